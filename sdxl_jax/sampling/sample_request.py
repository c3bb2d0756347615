"""What one picture is asked for: a Request.

Its fields are the flags of the command, the keys of a line of a prompts file,
and what a picture that was drawn tells of itself.
"""

import dataclasses
import json
import typing

from sdxl_jax.checkpoints import run_params
from sdxl_jax.data import images
from sdxl_jax.diffusion import samplers, sampling_schedule
from sdxl_jax.sampling import init_images, pipelines

TEXT = 'sdxl_jax'  # under which a PNG holds its Request


def setting(default, about, choices=None):
  metadata = {'about': about, 'choices': choices}
  return dataclasses.field(default=default, metadata=metadata)


Pair = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Request:
  """One picture: the arguments of sample.generate, files by their names."""

  prompt: str | None = setting(None, 'what to draw')
  negative_prompt: str | None = setting(None, 'what not to draw')
  prompt_2: str | None = setting(None, 'what bigG reads in place of the prompt')
  negative_prompt_2: str | None = setting(
    None, 'what bigG reads of the negative'
  )
  seed: int = setting(0, 'of the first picture; the next has seed + 1')
  height: int | None = setting(
    None, 'px; default: that of the image, or what the net was made for'
  )
  width: int | None = setting(None, 'px')
  steps: int = setting(50, 'sampler steps')
  sampler: str = setting('euler', 'sampler', list(samplers.SAMPLERS))
  spacing: str | None = setting(
    None, "of timesteps; default: the model's", sampling_schedule.SPACINGS
  )
  sigmas: str | None = setting(
    None, "how they are spaced; default: the model's", sampling_schedule.SIGMAS
  )
  eta: float | None = setting(None, '0..1, fresh noise of ddim and its like')
  guidance_scale: float = setting(5.0, '1 or less: no guidance')
  guidance_rescale: float = setting(0.0, '0..1')
  original_size: Pair | None = setting(None, 'H,W in px; what the net is told')
  crop_top_left: Pair = setting((0, 0), 'T,L in px; what the net is told')
  target_size: Pair | None = setting(None, 'H,W in px; what the net is told')
  negative_original_size: Pair | None = setting(
    None, 'the same, without prompt'
  )
  negative_crop_top_left: Pair | None = setting(
    None, 'the same, without prompt'
  )
  negative_target_size: Pair | None = setting(None, 'the same, without prompt')
  aesthetic_score: float = setting(6.0, 'what a refiner is told')
  negative_aesthetic_score: float = setting(2.5, 'the same, without prompt')
  clip_skip: int = setting(0, 'text encoder blocks left out')
  weighted_prompts: bool = setting(False, 'read (words:1.3) as a weight')
  long_prompts: bool = setting(False, 'read more than 77 tokens')
  image: str | None = setting(None, 'picture to start from')
  mask: str | None = setting(None, 'picture, white where to repaint the image')
  strength: float | None = setting(
    None, '0..1, share of the steps taken from an image; default: 0.3, or 1.0 '
    'with a mask'
  )  # fmt: skip
  tile: int | None = setting(
    None, 'px; decode in tiles, for large pictures on small devices'
  )
  refiner_start: float = setting(0.8, 'share of the way that the base goes')
  refiner_strength: float | None = setting(
    None, "0..1, the refiner goes over the base's picture instead"
  )


FIELDS = {f.name: f for f in dataclasses.fields(Request)}
# In these the pictures of one batch may differ.
OWN = ('prompt', 'negative_prompt', 'prompt_2', 'negative_prompt_2', 'seed')
# Settings that nets distilled to few steps ask for.
PRESETS = {
  'turbo': dict(
    sampler='euler_ancestral', spacing='trailing', steps=4, guidance_scale=1.0
  ),
  'lightning': dict(
    sampler='euler', spacing='trailing', steps=4, guidance_scale=1.0
  ),
  'lcm': dict(sampler='lcm', steps=4, guidance_scale=1.0),
  'tcd': dict(sampler='tcd', steps=4, guidance_scale=1.0),
}


# What draws them, with its default: by flags, or as a picture tells.
MODELS = {
  'weights': (None, 'diffusers folder, single file or workdir'),
  'refiner': (None, "a refiner's, likewise"),
  'dtype': ('float32', f'of the nets: {", ".join(pipelines.DTYPES)}'),
  'vae_dtype': ('float32', 'the same of the autoencoder'),
  'average': ('ema', run_params.HELP),
  'lora': (
    (),
    'FILE or FILE:WEIGHT, a LoRA for the weights; may be repeated',
  ),
}


def kind_of(field):
  """The type of a field, without None."""
  kinds = typing.get_args(field.type)
  if not kinds or typing.get_origin(field.type) is tuple:
    return field.type
  return kinds[0]


def check(fields, where):
  """{field: value} of JSON as Request has them.

  Raises:
    ValueError: for a name or type that it does not have, and where.
  """
  if not isinstance(fields, dict):
    raise ValueError(f'{where} is not an object, as {{"prompt": "a fox"}}')
  found = {}
  for name, value in fields.items():
    if name not in FIELDS:
      raise ValueError(
        f'{where}: no setting {name!r}; there are {list(FIELDS)}'
      )
    kind = kind_of(FIELDS[name])
    if kind == Pair and isinstance(value, list):
      value = tuple(value)
    whole = lambda x: isinstance(x, int) and not isinstance(x, bool)
    fits = {
      int: whole(value),
      float: whole(value) or isinstance(value, float),
      bool: isinstance(value, bool),
      str: isinstance(value, str),
      Pair: isinstance(value, tuple)
      and len(value) == 2
      and all(map(whole, value)),
    }
    optional = FIELDS[name].default is None
    if not (fits[kind] or (value is None and optional)):
      raise ValueError(f'{where}: {name} is {value!r}, which is no {kind}')
    found[name] = value
  return found


def batches(asked, size, tokenize):
  """Requests that can be drawn at once, at most `size`, in order.

  Args:
    asked: Requests.
    size: of a batch.
    tokenize: tokenizer.Tokenizer.
  """
  batch, common = [], None
  for request in asked:
    theirs = shared(request, tokenize)
    if batch and (len(batch) == size or common != theirs):
      yield batch
      batch = []
    batch, common = [*batch, request], theirs
  if batch:
    yield batch


def shared(request, tokenize):
  """What the Requests of a batch have in common."""
  absent = [name for name in OWN if getattr(request, name) is None]
  same = dataclasses.replace(request, **{n: None for n in OWN})
  return same, absent, request.long_prompts and chunks(request, tokenize)


def chunks(request, tokenize):
  """How many chunks prompt and negative prompt take."""
  texts = (
    (request.prompt, request.prompt_2),
    (request.negative_prompt, request.negative_prompt_2),
  )
  found = []
  for text, text_2 in texts:
    listed = [[text or ''], None if text_2 is None else [text_2]]
    tokens, _ = tokenize.chunks(
      *listed, weighted=request.weighted_prompts, long=True
    )
    found.append(tokens.shape[1])
  return found


def arguments(batch, default_size):
  """The arguments of sample.generate, files read.

  Args:
    batch: Requests of `batches`.
    default_size: (height, width) in px without an image.
  """
  first = batch[0]
  told = dataclasses.asdict(first)
  for name in (*OWN, 'height', 'width', 'image', 'mask'):
    told.pop(name)
  negative = {
    name: told.pop(f'negative_{name}')
    for name in ('original_size', 'crop_top_left', 'target_size')
  }
  each = lambda name: (
    None
    if getattr(first, name) is None
    else [getattr(request, name) for request in batch]
  )
  size = first.height, first.width
  start = init_images.load(first.image, first.mask, size, default_size)
  return told | dict(
    prompts=each('prompt'),
    negative_prompts=each('negative_prompt'),
    prompts_2=each('prompt_2'),
    negative_prompts_2=each('negative_prompt_2'),
    seeds=each('seed'),
    negative_sizes={n: v for n, v in negative.items() if v is not None},
    **start,
  )


def to_text(request, models, size):
  """What a PNG is to tell of its picture, see `from_text`.

  Args:
    request: Request.
    models: {flag: value} of what drew it.
    size: (height, width) in px that it has become.
  """
  told = dataclasses.asdict(request) | dict(zip(('height', 'width'), size))
  return {TEXT: json.dumps({'models': models} | told, ensure_ascii=False)}


def from_text(path):
  """({field: value} of the Request, {flag: value} of the models) of a PNG."""
  told = json.loads(images.load_text(path, TEXT)[TEXT])
  models = told.pop('models', {})
  return check(told, str(path)), models
