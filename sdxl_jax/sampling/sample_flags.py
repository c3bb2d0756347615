"""What a user asks `sample` for: by flags, a file of prompts, or a picture."""

import dataclasses
import json
import pathlib

from absl import flags

from sdxl_jax.sampling import pipelines, sample_request


def define():
  """A flag for each field; none has a default, which would hide a preset's."""
  for name, field in sample_request.FIELDS.items():
    about, choices = field.metadata['about'], field.metadata['choices']
    kind = sample_request.kind_of(field)
    if field.default not in (None, False):
      about += f'; default: {field.default}'
    if choices:
      flags.DEFINE_enum(name, None, choices, about)
    elif kind is bool:
      flags.DEFINE_bool(name, None, about)
    elif kind is int:
      flags.DEFINE_integer(name, None, about)
    elif kind is float:
      flags.DEFINE_float(name, None, about)
    elif kind is str:
      flags.DEFINE_string(name, None, about)
    else:
      flags.DEFINE_list(name, None, about)
  for name, (default, about) in sample_request.MODELS.items():
    one = flags.DEFINE_multi_string if default == () else flags.DEFINE_string
    one(name, None, about)
  flags.DEFINE_enum(
    'preset', None, list(sample_request.PRESETS), 'for distilled nets'
  )
  flags.DEFINE_string('prompts_file', None, 'a prompt a line; or .jsonl')
  flags.DEFINE_string('from_png', None, 'a picture to draw again, by its text')
  flags.DEFINE_integer('repeat', 1, 'pictures of each prompt', 1)
  flags.DEFINE_bool(
    'offload',
    False,
    "keep idle nets in the host's memory: slower, for small devices",
  )
  flags.DEFINE_integer('batch', None, 'at once; default: one a device', 1)
  flags.DEFINE_string('output', 'out.png', 'PNG; {i} and {seed} may be in it')
  flags.DEFINE_string('grid', None, 'PNG of all pictures to write')
  flags.DEFINE_string('preview', None, 'PNG to write while sampling')
  flags.DEFINE_integer('preview_every', 5, 'steps', 1)
  flags.DEFINE_bool('watermark', False, "the reference's, which nobody sees")
  flags.DEFINE_string('init_noise', None, '.npy, N(0, 1) [n, h/8, w/8, 4]')
  flags.DEFINE_string('save_latents', None, '.npy to write the latents to')


def read(args):
  """The requests of the command's flags, in order.

  What a line of the prompts file says goes before the flags, these before the
  preset, and that before what a picture tells.

  Raises:
    ValueError: for values that do not fit, naming flag or line.
  """
  given = {name: args[name].value for name in sample_request.FIELDS}
  given = {name: value for name, value in given.items() if value is not None}
  for name in given:
    if (
      sample_request.kind_of(sample_request.FIELDS[name]) == sample_request.Pair
    ):
      given[name] = parse_pair(name, given[name])
  told = sample_request.from_text(args.from_png)[0] if args.from_png else {}
  common = told | sample_request.PRESETS.get(args.preset, {}) | given
  lines = read_prompts(args.prompts_file) if args.prompts_file else [{}]
  if args.prompts_file and 'prompt' in given:
    raise ValueError(
      '--prompt and --prompts_file are both given: leave one out'
    )
  asked = [sample_request.Request(**(common | line)) for line in lines]
  if any(request.prompt is None for request in asked):
    raise ValueError(
      'nothing to draw: give --prompt, --prompts_file or --from_png'
    )
  return [
    dataclasses.replace(request, seed=request.seed + i)
    for request in asked
    for i in range(args.repeat)
  ]


def models(args):
  """{flag: value} of requests.MODELS.

  Raises:
    ValueError: where no weights are given.
  """
  told = sample_request.from_text(args.from_png)[1] if args.from_png else {}
  found = {}
  for name, (default, _) in sample_request.MODELS.items():
    given = args[name].value
    found[name] = told.get(name, default) if given is None else given
  if not found['weights']:
    raise ValueError('nothing to draw with: give --weights')
  for name in ('dtype', 'vae_dtype'):
    if found[name] not in pipelines.DTYPES:
      known = ' or '.join(pipelines.DTYPES)
      raise ValueError(f'--{name}={found[name]} is not {known}')
  return found


def parse_pair(name, value):
  """Two whole numbers of a flag."""
  try:
    first, second = map(int, value)
  except ValueError:
    raise ValueError(
      f'--{name}={",".join(value)} must be two whole numbers in px, as '
      '1024,1024'
    ) from None
  return first, second


def read_prompts(path):
  """[{field: value}] of a file: one prompt a line, or JSON objects in .jsonl.

  Empty lines are passed over.
  """
  path = pathlib.Path(path)
  found = []
  for number, line in enumerate(path.read_text('utf-8-sig').splitlines(), 1):
    if not line.strip():
      continue
    if path.suffix != '.jsonl':
      found.append({'prompt': line.strip()})
      continue
    where = f'{path}, line {number}'
    try:
      fields = json.loads(line)
    except json.JSONDecodeError as error:
      raise ValueError(f'{where} is not JSON: {error}') from None
    found.append(sample_request.check(fields, where))
    if 'prompt' not in fields:
      raise ValueError(f'{where} has no "prompt"')
  if not found:
    raise ValueError(f'{path} has no prompts: write one on each line')
  return found


def names(pattern, asked):
  """The file of each Request, from a pattern as out.png or out/{i}-{seed}.png.

  Raises:
    ValueError: for a pattern with another name in braces, or of another kind.
  """
  path = pathlib.Path(pattern)
  if path.suffix.lower() != '.png':
    raise ValueError(f'--output={pattern}: pictures are written as .png')
  if '{' not in pattern and len(asked) > 1:
    path = path.with_stem(f'{path.stem}-{{i}}')
  try:
    found = [str(path).format(i=i, seed=r.seed) for i, r in enumerate(asked)]
  except (KeyError, IndexError, ValueError) as error:
    raise ValueError(
      f'--output={pattern}: {error}; braces may hold i and seed, as in '
      'out/{i:04}-{seed}.png'
    ) from None
  if len(set(found)) < len(found):
    raise ValueError(
      f'--output={pattern} names two pictures alike: put in {{i}}'
    )
  return found
