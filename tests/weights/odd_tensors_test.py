"""Wrong tensors in a valid file: the error names them, and no others.

The benchmark odd_tensors tries more of them.
"""

import pytest

from tests.support import file_kinds, odd_tensors


@pytest.mark.parametrize('first', range(5))
def test_the_error_names_the_wrong_tensors(tmp_path, first):
  entries = file_kinds.without_unet()
  for seed in range(first, 20, 5):
    odd_tensors.try_one(entries, seed, tmp_path / 'a.safetensors')


def test_wrong_tensors_of_a_whole_model(tmp_path):
  for seed in range(100, 104):
    odd_tensors.try_one(file_kinds.base(), seed, tmp_path / 'a.safetensors')
