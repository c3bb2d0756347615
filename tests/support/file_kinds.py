"""The kinds of model files that users bring, and how each is to be read.

Names and shapes are those of the full-size nets; the files are sparse. A kind
is a function that makes {name: {'shape', 'dtype'}} of the lists of names, and
what is expected of it; add further kinds with `kind`.
"""

import dataclasses
import functools
import json
import re
from collections.abc import Callable

from tests.support import golden_sets, headers

KEYS = golden_sets.GOLDEN / 'keys'
UNET, VAE = 'model.diffusion_model.', 'first_stage_model.'
FIRST, SECOND = 'conditioner.embedders.0.', 'conditioner.embedders.1.'
CLIP_L, CLIP_G = f'{FIRST}transformer.', f'{SECOND}model.'
PROJECTION = f'{CLIP_G}text_projection'
TEXT = 'text_encoder', 'text_encoder_2'
ALL = 'unet', 'vae', *TEXT
SCHEDULE = (
  'alphas_cumprod',
  'alphas_cumprod_prev',
  'betas',
  'log_one_minus_alphas_cumprod',
  'posterior_log_variance_clipped',
  'posterior_mean_coef1',
  'posterior_variance',
  'sqrt_alphas_cumprod',
  'sqrt_recipm1_alphas_cumprod',
)


@dataclasses.dataclass(frozen=True)
class Kind:
  """A kind of file, and its reading."""

  name: str
  make: Callable[[], dict]  # {name: {'shape', 'dtype'}}
  nets: tuple[str, ...] = ()  # that it holds, all tensors of which are read
  error: str = ''  # pattern of the error, without which it is read
  passed_over: int = 0  # tensors that change nothing
  names: tuple[str, ...] = ()  # that the line on them has
  skip: bool = False  # whether tensors that matter are left out
  refiner: bool | None = None  # of a whole model
  scheduler: dict = dataclasses.field(default_factory=dict)  # fields of it
  metadata: dict = dataclasses.field(default_factory=dict)
  lists: str = 'base'  # whose UNet it is
  # Shapes in which it differs from the lists of diffusers' names.
  shapes: dict = dataclasses.field(default_factory=dict)
  component: str = ''  # that a folder holds, instead of a file
  slow: bool = False  # whether a net is traced for it alone


KINDS = []


def kind(name, nets=(), **expected):
  """Adds the kind that the decorated function makes."""

  def add(make):
    KINDS.append(Kind(name, make, tuple(nets), **expected))
    return make

  return add


@functools.cache
def read_list(name):
  """Returns a list of names; do not change it."""
  return json.loads((KEYS / f'{name}.json').read_text())


def base():
  return dict(read_list('original.sd_xl_base_1.0'))


def refiner():
  return dict(read_list('original.sd_xl_refiner_1.0'))


def diffusers(component, which='base'):
  name = f'{which}.unet' if component == 'unet' else component
  return dict(read_list(f'diffusers.{name}'))


def entry(*shape, dtype='F16'):
  return {'shape': list(shape), 'dtype': dtype}


def part(prefix, entries=None):
  """The names below a prefix, without it."""
  entries = base() if entries is None else entries
  return {
    name.removeprefix(prefix): x
    for name, x in entries.items()
    if name.startswith(prefix)
  }


def under(prefix, entries):
  return {prefix + name: x for name, x in entries.items()}


def without_unet():
  """A small file to put companions into: the autoencoder and the texts."""
  return {n: x for n, x in base().items() if not n.startswith(UNET)}


def without(entries, *names):
  return {n: x for n, x in entries.items() if n not in names}


def rename(entries, *rules):
  """Applies (pattern, replacement)s to names, each to one at least."""
  for pattern, replacement in rules:
    renamed = {re.sub(pattern, replacement, n): x for n, x in entries.items()}
    assert set(renamed) != set(entries), f'{pattern} matches no name'
    entries = renamed
  return entries


def reshape(entries, pattern, change):
  """Changes the shapes of the names that match, of which there must be some."""
  changed = {
    name: x | {'shape': change(x['shape'])}
    for name, x in entries.items()
    if re.search(pattern, name)
  }
  assert changed, f'{pattern} matches no name'
  return entries | changed


def with_companions(*names):
  return without_unet() | {name: entry(4, dtype='F32') for name in names}


def add_simple(title, names, error='', count=0, **expected):
  """Adds a small file with further tensors."""
  nets = () if error else ('vae', *TEXT)
  count = 0 if error else (count or len(names) + 2)
  shown = () if error else (names[0],)
  kind(title, nets, error=error, passed_over=count, names=shown, **expected)(
    functools.partial(with_companions, *names)
  )


def write(path, a_kind):
  """Writes the sparse file of a kind."""
  headers.sparse(path, a_kind.make(), a_kind.metadata)
