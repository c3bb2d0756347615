"""Evaluate: measures generated images, an autoencoder, or weights by prompts.

  python -m sdxl_jax.evaluate --weights SDXL --prompts captions.tsv \
    --reference val2014.npz --metrics fid,clip --output OUT

Draws an image of each prompt, compares them with a reference and with their
prompts by FID, KID and other metrics (evaluation/README.md), and writes
OUT/report.html; after a stop, the images that are there are not drawn again.
--preset mlperf and --preset paper are the protocols of others; --benchmark
writes the folders that GenEval, DPG-Bench and HPSv2 score.

  python -m sdxl_jax.evaluate --samples DIR --reference IMAGES \
    --metrics fid --output OUT

Measures images that are there.

  python -m sdxl_jax.evaluate --config configs/stage0.py --weights DIR \
    --output OUT --config.data.folder.path=IMAGES

Measures what the autoencoder of published weights or of a workdir reconstructs;
--average chooses the parameters of a workdir. Prints PSNR, SSIM and LPIPS at
the size of the config's bucket, 256 px as in Table 3 of the SDXL paper, and the
scaling that gives the latents unit variance; writes OUT/metrics.json and
OUT/reconstructions.png.

  python -m sdxl_jax.evaluate --validation --config configs/stage3.py \
    --weights WEIGHTS --output OUT --config.data.folder.path=IMAGES

Measures the loss of the records that the config holds out of training
(config.validation), as a run does while it trains; writes OUT/validation.json.
"""

import dataclasses
from typing import NamedTuple

from absl import flags
from ml_collections import config_flags

from sdxl_jax import cli
from sdxl_jax.distributed import multihost
from sdxl_jax.evaluation import (
  benchmark_layouts,
  metric_flags,
  presets,
  sample_report,
)
from sdxl_jax.sampling import (
  drawing,
  measured_samples,
  model_flags,
  offload_flag,
  png_settings,
  prompt_set,
  prompts_file,
  sample_flags,
  sample_request,
)
from sdxl_jax.training import autoencoder_evaluation, offline_validation

evaluate = autoencoder_evaluation.evaluate
# Settings of an image that all images of a set share.
OF_ONE_IMAGE = (
  'prompt',
  'prompt_2',
  'image',
  'mask',
  'mask_threshold',
  'strength',
  'control',
  'guess_mode',
)
SETTINGS = {
  name: field
  for name, field in sample_request.FIELDS.items()
  if name not in OF_ONE_IMAGE
}
STEERED = ('controlnet',)  # by an image of each, which prompts have not
MODELS = tuple(n for n in model_flags.MODEL_OPTIONS if n not in STEERED)
DRAWN = (*MODELS, *SETTINGS, 'latents', 'batch', 'offload', 'processes')


class Mode(NamedTuple):
  """A measurement: flags that it needs, and others that it may have."""

  needs: tuple[str, ...]
  may_have: tuple[str, ...]


# By the flag that decides for it; of several, the first.
MODES = {
  'benchmark': Mode(('weights', 'prompts'), DRAWN),
  'samples': Mode((), (*metric_flags.NAMES, 'processes')),
  'validation': Mode(('config', 'weights'), ('variant', 'average')),
  'config': Mode(('weights',), ('variant', 'average', 'pictures')),
  'weights': Mode(
    ('prompts',),
    (*metric_flags.NAMES, *DRAWN, 'preset', 'guidance_scales', 'pictures'),
  ),
}


def define():
  """Defines the flags of the command."""
  config_flags.DEFINE_config_file('config', None, 'a file with get_config()')
  flags.DEFINE_string('output', None, 'folder to write to')
  flags.DEFINE_bool(
    'validation', None, 'measure the loss of the records held out'
  )
  flags.DEFINE_integer(
    'pictures', None, 'number of images, at most; default: 5000, or all', 1
  )
  flags.DEFINE_integer(
    'batch_size', 8, 'images measured at once, per device', 1
  )
  metric_flags.define()
  sample_flags.define_models()
  for field in SETTINGS.values():
    sample_flags.define_field(field)
  flags.DEFINE_enum('preset', None, list(presets.PRESETS), 'protocol of others')
  flags.DEFINE_enum(
    'benchmark',
    None,
    list(benchmark_layouts.BENCHMARKS),
    'draw the --prompts of a benchmark, and write what its own tool scores',
  )
  flags.DEFINE_list(
    'guidance_scales', None, 'draw and measure all images at each of these'
  )
  flags.DEFINE_string(
    'latents',
    None,
    'noise that all images begin with: .npy, or latents.pt of MLPerf',
  )
  flags.DEFINE_integer(
    'batch', None, 'images drawn at once; default: one per device', 1
  )
  flags.DEFINE_flag(offload_flag.make())
  flags.DEFINE_integer(
    'processes', 1, 'that share the images, started together, as of training', 1
  )
  flags.mark_flags_as_required(['output'])


def choose_mode(given):
  """Returns which of MODES the flags passed are for.

  Args:
    given: names of the flags that were passed.

  Raises:
    ValueError: for flags of different measurements, or too few.
  """
  mode = next((name for name in MODES if name in given), None)
  if mode is None:
    raise ValueError(
      'nothing to measure: pass --samples, a folder of images; --weights and '
      '--prompts, to draw them first; or --config and --weights, for an '
      'autoencoder, or with --validation for the loss of records held out'
    )
  needs, may_have = MODES[mode]
  known = {*MODES, *STEERED}.union(
    *(m.needs + m.may_have for m in MODES.values())
  )
  wrong = sorted((given & known) - {mode, *needs, *may_have})
  if wrong:
    raise ValueError(f'--{wrong[0]} does not go with --{mode}: leave one out')
  lacking = [name for name in needs if name not in given]
  if lacking:
    other = ', or --config for an autoencoder' if mode == 'weights' else ''
    raise ValueError(f'--{mode} needs --{lacking[0]}: pass both{other}')
  return mode


def main(args):
  given = {name for name in args if args[name].present}
  if args.validation is False:
    given.discard('validation')
  measure = {
    'benchmark': draw_benchmark,
    'samples': measure_samples,
    'validation': measure_validation,
    'config': measure_autoencoder,
    'weights': measure_weights,
  }
  mode = choose_mode(given)
  multihost.start(args.processes, 'processes')
  measure[mode](args)


def measure_autoencoder(args):
  """Measures the reconstructions of an autoencoder."""
  # The config's own is of config.init_from, which is not read.
  args.config.init_variant = args.variant or ''
  evaluate(
    args.config,
    args.weights,
    args.output,
    num_images=args.pictures or 5000,
    batch_size=args.batch_size,
    average=args.average or 'ema',
  )


def measure_validation(args):
  """Measures the loss of records that are held out."""
  args.config.init_variant = args.variant or ''
  weights = offline_validation.Weights(args.weights, args.average or 'ema')
  offline_validation.evaluate(
    args.config, weights, args.output, args.batch_size, print
  )


def measure_samples(args):
  """Measures images that are there, by the flags of metric_flags."""
  # All flags are checked before the first file is read.
  request = metric_flags.to_request(args)
  sample_report.check(request)
  if args.prompts:
    lines = prompts_file.read(args.prompts)
    prompts = [line.fields['prompt'] for line in lines]
    request = dataclasses.replace(request, prompts=prompts)
  measured_samples.measure_folder(request, args.output, say)


def measure_weights(args):
  """Draws an image of each prompt, and measures them."""
  preset = presets.PRESETS.get(args.preset)
  request = metric_flags.to_request(args)
  if preset and not args['metrics'].present:
    request = dataclasses.replace(request, metrics=preset.metrics)
  if preset and not args['clip_net'].present:
    request = dataclasses.replace(request, clip=preset.clip_net)
  count = args.pictures or (preset.images if preset else None)
  drawn = dataclasses.replace(
    drawing_of(args, preset),
    lines=prompts_file.read(args.prompts),
    count=count,
    scales=scales_of(args, preset),
  )
  measured_samples.measure(drawn, request, args.output, preset, say)


def draw_benchmark(args):
  """Draws the prompts of a benchmark in its layout."""
  items = benchmark_layouts.read(args.benchmark, args.prompts)
  drawn = drawing_of(args, None)
  measured_samples.draw_benchmark(
    args.benchmark, items, drawn, args.output, say
  )


def say(line):
  """Prints a line, once for all processes."""
  if multihost.is_primary():
    print(line)


def drawing_of(args, preset):
  """Makes the Drawing of the flags, without lines."""
  passed = {
    name: sample_flags.parse(field, args[name].value)
    for name, field in SETTINGS.items()
    if args[name].value is not None
  }
  latents = prompt_set.read_latents(args.latents) if args.latents else None
  return measured_samples.Drawing(
    lines=(),
    settings=measured_samples.settings_of(preset, passed),
    models=sample_flags.model_options(args, png_settings.PngSettings({}, {})),
    latents=latents,
    options=drawing.Options(batch=args.batch, offload=args.offload),
  )


def scales_of(args, preset):
  """Returns the guidance scales of the flags, or of a preset."""
  if args.guidance_scales is None:
    has_own = args['guidance_scale'].present
    return preset.guidance_scales if preset and not has_own else ()
  try:
    scales = tuple(map(float, args.guidance_scales))
  except ValueError:
    scales = ()
  if not scales or len(set(scales)) < len(scales):
    raise ValueError(
      f'--guidance_scales={",".join(args.guidance_scales)} must be numbers, '
      'each once, as 3,5,8'
    )
  return scales


if __name__ == '__main__':
  define()
  cli.define_cache_dir()
  cli.run(main, memory='pass a smaller --batch_size or --batch')
