"""Wrong tensors in a valid file: the error names them, and no others.

The benchmark odd_tensors tries more of them.
"""

import re

import numpy as np
import pytest

from sdxl_jax.weights import description, formats
from tests.support import file_kinds, headers, odd_tensors


def try_one(entries, seed, path):
  """Changes tensors and reads the file; returns (what was done, the error)."""
  changed = odd_tensors.change(entries, np.random.default_rng(seed))
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


@pytest.mark.parametrize('first', range(5))
def test_the_error_names_the_wrong_tensors(tmp_path, first):
  entries = file_kinds.without_unet()
  for seed in range(first, 20, 5):
    try_one(entries, seed, tmp_path / 'a.safetensors')


def test_wrong_tensors_of_a_whole_model(tmp_path):
  for seed in range(100, 104):
    try_one(file_kinds.base(), seed, tmp_path / 'a.safetensors')
