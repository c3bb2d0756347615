"""Kinds of files whose metadata or tensors say what the UNet predicts."""

from tests.support.file_kinds import ALL, UNET, base, entry, kind

SPEC = 'modelspec.prediction_type'
V = {'prediction_type': 'v_prediction'}
ZERO_SNR = V | {
  'rescale_betas_zero_snr': True,
  'timestep_spacing': 'trailing',
}
LEADING = {'timestep_spacing': 'leading'}

for word, scheduler in (
  ('v', V | LEADING),
  ('V-Prediction', V | LEADING),
  ('velocity', V | LEADING),
  ('v-zsnr', ZERO_SNR),
  ('EPSILON', {'prediction_type': 'epsilon'} | LEADING),
  ('x0', {'prediction_type': 'sample'} | LEADING),
):
  kind(
    f'modelspec says {word}',
    ALL,
    metadata={SPEC: word},
    scheduler=scheduler,
    passed_over=2,  # positions, and the scale of CLIP's loss
  )(base)
kind(
  'modelspec says something else',
  metadata={SPEC: 'rectified_flow'},
  error="is 'rectified_flow', which is no known prediction.*--prediction",
)(base)
kind(
  'settings of kohya',
  ALL,
  passed_over=2,
  metadata={'ss_v_parameterization': 'True', 'ss_zero_terminal_snr': 'True'},
  scheduler=ZERO_SNR,
)(base)


@kind('marks of ComfyUI', ALL, passed_over=2, scheduler=ZERO_SNR)
def comfyui():
  return base() | {name: entry(0) for name in ('v_pred', 'ztsnr')}


for title, name in (
  ('scaled fp8', 'scaled_fp8'),
  ('a scale for each layer', f'{UNET}input_blocks.0.0.scale_weight'),
  ('four bits of bitsandbytes', f'{UNET}out.2.weight.absmax'),
  ('four bits of Nunchaku', f'{UNET}out.2.wscales'),
):
  kind(f'file of {title}', error=f'quantised weights, such as {name}')(
    lambda name=name: base() | {name: entry(2)}
  )
