"""Kinds of files whose metadata or tensors say what the UNet predicts."""

from tests.support.file_kinds import (
  ALL,
  UNET,
  base,
  entry,
  kind,
  under,
  without_unet,
)

SPEC = 'modelspec.prediction_type'
ZERO_SNR = {
  'prediction_type': 'v_prediction',
  'rescale_betas_zero_snr': True,
  'timestep_spacing': 'trailing',
}

for word, scheduler in (
  ('v-zsnr', ZERO_SNR),
  ('X0', {'prediction_type': 'sample', 'timestep_spacing': 'leading'}),
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
  metadata={SPEC: 'score'},
  error="is 'score', which is no known prediction.*--prediction",
)(base)
kind(
  'modelspec of flow matching',
  metadata={SPEC: 'rectified_flow'},
  error="is 'rectified_flow', which is flow matching, taken from --predict",
)(base)


@kind('marks of ComfyUI', ALL, passed_over=2, scheduler=ZERO_SNR)
def comfyui():
  return base() | {name: entry(0) for name in ('v_pred', 'ztsnr')}


kind('marks of ComfyUI in a box', ALL, passed_over=2, scheduler=ZERO_SNR)(
  lambda: under('state_dict.', comfyui())
)

# Sparse files have only zeros, which no mark of EDM may have: it is read.
for title, names, error in (
  ('the mean of latents', ['edm_mean'], 'edm_mean without edm_std'),
  ('the deviation of latents', ['edm_std'], 'edm_std without edm_mean'),
  ('both', ['edm_mean', 'edm_std'], 'edm_std is .*0.0.*which cannot be right'),
  ('the least noise', ['edm_vpred.sigma_min'], 'sigma_min without .*sigma_max'),
  ('the most noise', ['edm_vpred.sigma_max'], 'sigma_max is .*cannot be right'),
):
  for box in ('', 'module.'):
    kind(f'mark of {title} {box and "in a box"}'.strip(), error=error)(
      lambda box=box, names=names: under(
        box, without_unet() | {name: entry(4, dtype='F32') for name in names}
      )
    )


for title, name in (
  ('scaled fp8', 'scaled_fp8'),
  ('a scale for each layer', f'{UNET}input_blocks.0.0.scale_weight'),
  ('four bits of bitsandbytes', f'{UNET}out.2.weight.absmax'),
  ('four bits of Nunchaku', f'{UNET}out.2.wscales'),
):
  kind(f'file of {title}', error=f'quantised weights, such as {name}')(
    lambda name=name: base() | {name: entry(2)}
  )
