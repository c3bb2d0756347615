"""Flags of `sample`: read from the command line, a prompts file or a PNG."""

import dataclasses
import pathlib
from typing import Any

from absl import flags

from sdxl_jax.models import compute_dtype, stored_kernels
from sdxl_jax.sampling import (
  dtype_choice,
  image_seeds,
  model_flags,
  offload_flag,
  png_settings,
  prompts_file,
  sample_request,
  settings,
)
from sdxl_jax.sampling.located import Located, naming
from sdxl_jax.sampling.png_settings import PngSettings
from sdxl_jax.sampling.sample_request import Request


def define() -> None:
  """Defines the flags of the command."""
  for field in sample_request.FIELDS.values():
    define_field(field)
  define_models()
  flags.DEFINE_enum(
    'preset',
    None,
    list(sample_request.PRESETS),
    'settings for distilled models; or fast: fewer steps, not all guided',
  )
  # Which images.
  flags.DEFINE_string(
    'prompts_file', None, 'one prompt a line, .jsonl with settings, or .tsv'
  )
  flags.DEFINE_string(
    'from_png', None, 'image whose settings and models are used again'
  )
  flags.DEFINE_integer('repeat', 1, 'images of each prompt', 1)
  flags.DEFINE_integer(
    'batch', None, 'images at once; default: one per device', 1
  )
  flags.DEFINE_string(
    'init_noise', None, '.npy, N(0, 1) [n, h/8, w/8, 4] instead of the seeds'
  )
  flags.DEFINE_flag(offload_flag.make())
  flags.DEFINE_bool(
    'warm_up',
    False,
    'compile the programs of these images, for later starts, and draw none',
  )
  # What is written.
  flags.DEFINE_string('output', 'out.png', 'PNG; {i} and {seed} may be in it')
  flags.DEFINE_bool(
    'skip_existing',
    False,
    'draw only the images whose files are not there, after a stop',
  )
  flags.DEFINE_integer(
    'zoom',
    None,
    "whole factor by which pixels are repeated; default: the workdir's "
    'config.samples.zoom, or 1',
    1,
  )
  flags.DEFINE_string('grid', None, 'PNG of all images')
  flags.DEFINE_string('preview', None, 'PNG to write while sampling')
  flags.DEFINE_integer('preview_every', 5, 'steps between two previews', 1)
  flags.DEFINE_bool('watermark', False, "embed SDXL's invisible watermark")
  flags.DEFINE_string('save_latents', None, '.npy to write the latents to')


def define_models() -> None:
  """Defines the flags of the models."""
  define_by_kind = {
    str: flags.DEFINE_string,
    bool: flags.DEFINE_bool,
    list: flags.DEFINE_multi_string,
  }
  for name, option in model_flags.MODEL_OPTIONS.items():
    # None: a flag that is not passed must not hide the value of a PNG.
    define_by_kind[option.kind](name, None, option.help)


def define_field(field: dataclasses.Field, default: Any = None) -> None:
  """Defines the flag of a field.

  Args:
    field: of a Request or of SampleSettings.
    default: of the flag; None where a flag that is not passed must not hide
      the value of a preset.
  """
  name, kind = field.name, settings.value_type(field)
  about, choices = settings.describe(field), field.metadata['choices']
  if choices:
    flags.DEFINE_enum(name, default, choices, about)
  elif kind is bool:
    flags.DEFINE_bool(name, default, about)
  elif kind is int:
    flags.DEFINE_integer(name, default, about)
  elif kind is float:
    flags.DEFINE_float(name, default, about)
  elif kind is str:
    flags.DEFINE_string(name, default, about)
  elif kind == settings.Texts:
    flags.DEFINE_multi_string(name, default, about)
  else:
    flags.DEFINE_list(name, default, about)


def load_png(args: flags.FlagValues) -> PngSettings:
  """Returns the settings of --from_png, none without it, and prints its note.

  Raises:
    ValueError, OSError: see png_settings.load.
  """
  if not args.from_png:
    return PngSettings({}, {})
  png = png_settings.load(args.from_png)
  if png.note:
    print(png.note)
  return png


def read(args: flags.FlagValues, png: PngSettings) -> list[Located]:
  """Returns the requests of the command's flags, in order.

  Lines of the prompts file take precedence over flags, flags over the preset,
  and the preset over the settings of a PNG.

  Args:
    args: the flags.
    png: of `load_png`.

  Raises:
    ValueError: for values that do not fit, naming flag or line.
  """
  passed = {name: args[name].value for name in sample_request.FIELDS}
  passed = {name: value for name, value in passed.items() if value is not None}
  for name in passed:
    passed[name] = parse(sample_request.FIELDS[name], passed[name])
  common = png.fields | sample_request.PRESETS.get(args.preset, {}) | passed
  trade = sample_request.describe_trade(args.preset, common)
  if trade:
    print(trade)
  lines = [prompts_file.Line('', {})]
  if args.prompts_file:
    lines = prompts_file.read(args.prompts_file)
  if args.warm_up and not args.prompts_file:
    common.setdefault('prompt', '')  # no prompt changes a program
  if args.prompts_file and 'prompt' in passed:
    raise ValueError(
      '--prompt and --prompts_file are both given: leave one out'
    )
  located, drawn = [], []
  for location, fields in lines:
    with naming(location):
      request = Request(**(common | fields))
      if request.prompt is None:
        raise ValueError(
          'nothing to sample: pass --prompt, --prompts_file or --from_png'
        )
      seeds = image_seeds.repeat(request.seed, args.repeat)
    drawn += seeds[:1] if request.seed == image_seeds.DRAWN else []
    located += [
      Located(location, dataclasses.replace(request, seed=seed))
      for seed in seeds
    ]
  if drawn:
    print(image_seeds.describe_drawn(drawn))
  return located


def model_options(args: flags.FlagValues, png: PngSettings) -> dict[str, Any]:
  """Returns {flag: value} of model_flags.MODEL_OPTIONS.

  Args:
    args: the flags, which take precedence.
    png: of `load_png`.

  Raises:
    ValueError: where no weights are given, or for a dtype that is unknown or
      overflows.
  """
  saved = png.models
  if saved:  # it is ours
    saved = model_flags.FORMER_DEFAULTS | saved
  options = {}
  for name, option in model_flags.MODEL_OPTIONS.items():
    value = args[name].value
    if value is None:
      value = saved.get(name, option.default)
    options[name] = value
  if not options['weights']:
    source = ''
    if png.made_with:
      source = f'; {args.from_png} was made with {png.made_with}'
    raise ValueError(f'no model to sample from: pass --weights{source}')
  for name in ('dtype', 'vae_dtype'):
    compute_dtype.check(f'--{name}', options[name])
  stored_kernels.check('--weights_dtype', options['weights_dtype'])
  dtype_choice.check_vae(options['vae_dtype'], options['vae'])
  return options


def parse(field: dataclasses.Field, value: Any) -> Any:
  """Returns the value of a field's flag, of two numbers as a pair.

  Raises:
    ValueError: unless they are two numbers of the field's type.
  """
  kind = settings.value_type(field)
  number, example = {
    settings.Pair: (int, 'two whole numbers in px, as 1024,1024'),
    settings.Levels: (float, 'two numbers, as 0.28,5.42'),
  }.get(kind, (None, ''))
  if kind == settings.Texts and value is not None:
    return tuple(value)
  if number is None or value is None:
    return value
  try:
    first, second = map(number, value)
  except ValueError:
    raise ValueError(
      f'--{field.name}={",".join(value)} must be {example}'
    ) from None
  return first, second


def file_names(pattern: str, requests: list[Request]) -> list[str]:
  """Returns the file of each request.

  Args:
    pattern: such as out.png or out/{i}-{seed}.png.
    requests: in the order of the images.

  Raises:
    ValueError: for a pattern with another name in braces or another suffix, or
      one that gives two images the same name.
  """
  path = pathlib.Path(pattern)
  if path.suffix.lower() != '.png':
    raise ValueError(f'--output={pattern}: images are written as .png')
  if '{' not in pattern and len(requests) > 1:
    path = path.with_stem(f'{path.stem}-{{i}}')
  try:
    names = [
      str(path).format(i=i, seed=request.seed)
      for i, request in enumerate(requests)
    ]
  except (KeyError, IndexError, ValueError) as error:
    raise ValueError(
      f'--output={pattern}: {error}; braces may hold i and seed, as in '
      'out/{i:04}-{seed}.png'
    ) from None
  if len(set(names)) < len(names):
    raise ValueError(
      f'--output={pattern} gives two images the same name: add {{i}}'
    )
  return names
