"""Renames, drops, adds and reshapes tensors of a file; checks the error."""

import dataclasses
import math
import re

import numpy as np

from sdxl_jax.weights import description, formats
from tests.support import file_kinds, headers

HARMLESS = (
  'alphas_cumprod',
  'model_ema.decay',
  'first_stage_model.loss.logvar',
  'global_step',
  'denoiser.sigmas',
  'conditioner.embedders.0.transformer.text_projection.weight',
)
UNKNOWN = (
  'some.thing',
  'first_stage_model.encoder.thing.weight',
  'conditioner.embedders.1.model.ln_fin.weight',
  'conditioner.embedders.0.transformer.text_model.thing.bias',
)
# Of a size that differs among nets of SDXL, or read by nothing.
FREE = r'(?:token|position|positional)_embedding|position_ids|logit_scale'


@dataclasses.dataclass
class Changed:
  """A file with some tensors changed."""

  entries: dict  # {name: {'shape', 'dtype'}}
  wrong: set  # names of which an error has to name one, and no others
  harmless: set  # names that were added and change nothing
  done: list  # of what was done, for messages


def try_one(entries, seed, path):
  """Changes tensors and reads the file; returns (what was done, the error)."""
  changed = change(entries, np.random.default_rng(seed))
  headers.sparse(path, changed.entries)
  text = f'{seed}: {changed.done}'
  try:
    model = formats.open_model(path)
    for name in model.loaders:
      model.net(name).tensors()
  except ValueError as error:
    reason = str(error)
  else:
    reason = ''
    lines = '; '.join(description.describe_reading(model))
    count = re.search(r'passed over (\d+) tensor', lines)
    added = len(changed.harmless - set(entries))
    known = sum('position_ids' in n or 'logit_scale' in n for n in entries)
    assert int(count[1]) == added + known, f'{text}: {lines}'
  check_reason(reason, changed, entries, text)
  return changed.done, reason


def check_reason(reason, changed, entries, text):
  """Asserts that an error names a wrong tensor, and none that is right."""
  assert bool(reason) == bool(changed.wrong), f'{text}: {reason}'
  assert '\n' not in reason and len(reason) < 3000
  words = set(re.split(r'[\s,;:()]+', reason.replace('. ', ' ')))
  named = words & {*entries, *changed.entries}
  assert named <= changed.wrong, f'{text}: {reason}'
  if changed.wrong:
    assert named, f'{text}: {reason}'


def change(entries, rng):
  """Makes one to four changes to {name: {'shape', 'dtype'}}."""
  changed = Changed(dict(entries), set(), set(), [])
  names = [name for name in sorted(entries) if not re.search(FREE, name)]
  for name in rng.choice(names, rng.integers(1, 5), replace=False):
    how = CHANGES[rng.integers(len(CHANGES))]
    how(changed, str(name), rng)
  return changed


def rename(changed, name, rng):
  """A letter is missing, or a block has another number."""
  at = int(rng.integers(len(name.rpartition('.')[0]) - 1))
  new = name[:at] + name[at + 1 :]
  if rng.integers(2) and re.search(r'\.\d+\.', name):
    new = re.sub(r'\.(\d+)\.', lambda m: f'.{int(m[1]) + 40}.', name, count=1)
  if new in changed.entries:
    return
  changed.entries[new] = changed.entries.pop(name)
  changed.wrong |= {name, new}
  changed.done.append(f'{name} renamed to {new}')


def drop(changed, name, rng):
  del rng, changed.entries[name]
  changed.wrong.add(name)
  changed.done.append(f'{name} dropped')


def add_harmless(changed, name, rng):
  # The only text encoder of the refiner has another prefix.
  is_refiner = not any(n.startswith(file_kinds.SECOND) for n in changed.entries)
  count = len(HARMLESS) - is_refiner
  name = HARMLESS[rng.integers(count)]
  changed.entries[name] = file_kinds.entry(4)
  changed.harmless.add(name)
  changed.done.append(f'{name} added')


def add_unknown(changed, name, rng):
  name = UNKNOWN[rng.integers(len(UNKNOWN))]
  changed.entries[name] = file_kinds.entry(4)
  changed.wrong.add(name)
  changed.done.append(f'{name} added')


def reshape(changed, name, rng):
  shape = list(changed.entries[name]['shape'])
  axis = int(rng.integers(len(shape)))
  more = [*shape]
  more[axis] += 1
  odd = [more, [*shape, 2], [math.prod(shape) + 1], shape[::-1]]
  new = odd[rng.integers(len(odd))]
  if new == shape:
    new = more
  changed.entries[name] = changed.entries[name] | {'shape': new}
  changed.wrong.add(name)
  changed.done.append(f'{name} reshaped from {shape} to {new}')


CHANGES = rename, drop, add_harmless, add_unknown, reshape
