"""The flag --offload in all its spellings."""

import pytest
from absl import flags

from sdxl_jax.sampling import offload_flag


@pytest.fixture
def values(monkeypatch):
  """Fresh flags, with --offload alone."""
  fresh = flags.FlagValues()
  monkeypatch.setattr(flags, 'FLAGS', fresh)
  flags.DEFINE_flag(offload_flag.make(), fresh)
  return fresh


@pytest.mark.parametrize(
  'words, value',
  [
    ([], 'auto'),
    (['--offload'], True),
    (['--nooffload'], False),
    (['--offload=auto'], 'auto'),
    (['--offload=true'], True),
    (['--offload=false'], False),
  ],
)
def test_spellings(values, words, value):
  values(['program', *words])
  assert values.offload is value or values.offload == value == 'auto'


def test_another_value(values):
  with pytest.raises(flags.IllegalFlagValueError, match='auto, true or false'):
    values(['program', '--offload=some'])
  assert "(default: 'auto')" in str(values)
