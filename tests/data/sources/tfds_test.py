"""Tests TFDS without TensorFlow: splits, names, and what is refused."""

import subprocess
import sys

import pytest

from sdxl_jax.data.sources import tfds
from tests.support import datasets

SIZES = ((8, 12), (12, 8), (10, 10), (9, 9), (8, 8))


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  examples = [datasets.example(i, size) for i, size in enumerate(SIZES)]
  built = tmp_path_factory.mktemp('tfds')
  return datasets.write_tfds(built, examples)['dataset']


def test_slices_of_a_split(folder):
  source = tfds.TFDS(folder, split='train[20%:80%]', workers=0)
  assert source.sizes.tolist() == list(map(list, SIZES[1:4]))
  assert source[0]['caption'] == 'picture 1'
  assert source.name(0) == 'ramps/1.0.0 train[20%:80%]: record 0'


def test_missing_features(folder):
  with pytest.raises(ValueError, match=r"no feature \['text'\], but \['aest"):
    tfds.TFDS(folder, caption='text', workers=0)


def test_unknown_split_and_name(folder, tmp_path):
  with pytest.raises(ValueError, match="Unknown split 'test'"):
    tfds.TFDS(folder, split='test', workers=0)
  for name in ('no_such_set', str(tmp_path)):
    with pytest.raises(FileNotFoundError, match='TFDS has no dataset'):
      tfds.TFDS(name, workers=0)


def test_no_tensorflow(folder):
  """Runs in a process of its own, where nothing else can have imported it."""
  code = (
    'import sys; from sdxl_jax.data.sources import tfds; '
    f'print(len(tfds.TFDS({folder!r}, workers=0)[0]["image"])); '
    'sys.exit("tensorflow" in sys.modules)'
  )
  subprocess.run([sys.executable, '-c', code], check=True)
