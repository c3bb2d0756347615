"""Every kind of file that users bring is read as expected, or refused so."""

import json
import pathlib
import re
import shutil

import pytest

from sdxl_jax.weights import companions, description, formats, read_options
from sdxl_jax.weights.diffusers import weight_files
from tests.support import (
  file_kinds,
  marked_files,
  net_files,
  odd_files,
  whole_files,
)

MODULES = (
  whole_files,
  net_files,
  odd_files,
  marked_files,
)  # which add to file_kinds.KINDS
KINDS = [
  pytest.param(
    kind, id=kind.name, marks=[pytest.mark.slow] if kind.slow else []
  )
  for kind in file_kinds.KINDS
]


def write(kind, path):
  """Writes the file of a kind, or its folder; returns the path to open."""
  if not kind.component:
    file_kinds.write(path / 'a.safetensors', kind)
    return path / 'a.safetensors'
  configs = file_kinds.KEYS / 'configs' / 'base' / kind.component
  shutil.copytree(configs, path / 'a')
  stem = weight_files.STEMS[kind.component]
  file_kinds.write(path / 'a' / f'{stem}.safetensors', kind)
  return path / 'a'


def read(kind, path):
  """Opens all that a file holds."""
  options = read_options.ReadOptions(skip_unsupported=kind.skip)
  model = formats.open_model(write(kind, path), options=options)
  shapes = {}
  for name in model.loaders:
    tensors = model.net(name).tensors()
    shapes[name] = {n: list(t.shape) for n, t in tensors.items()}
  return model, shapes


@pytest.mark.parametrize('kind', KINDS)
def test_a_kind_of_file(kind, tmp_path):
  if kind.error:
    with pytest.raises((ValueError, OSError), match=kind.error) as caught:
      read(kind, tmp_path)
    message = str(caught.value)
    assert '\n' not in message and len(message) < 2000
    assert message.count(str(tmp_path)) == 1, 'the file is named once'
    return
  model, shapes = read(kind, tmp_path)
  assert set(shapes) == set(kind.nets)
  for net, found in shapes.items():
    expected = file_kinds.diffusers(net, kind.lists)
    expected = {n: x['shape'] for n, x in expected.items()}
    changed = {n: s for n, s in kind.shapes.items() if n in expected}
    assert found == expected | changed
  if kind.refiner is not None:
    assert model.index.refiner == kind.refiner
  for field, value in kind.scheduler.items():
    assert model.scheduler[field] == value
  lines = '; '.join(description.describe_reading(model))
  counts = map(int, re.findall(r'(?:over|out) (\d+) tensor', lines))
  assert sum(counts) == kind.passed_over, lines
  for name in kind.names:
    assert name in lines


def test_there_are_enough_kinds():
  names = [kind.name for kind in file_kinds.KINDS]
  assert len(names) == len(set(names)) >= 60


def test_no_module_of_kinds_is_left_out():
  folder = pathlib.Path(file_kinds.__file__).parent
  adding = {
    path.stem
    for path in folder.glob('*.py')
    if 'from tests.support.file_kinds import' in path.read_text()
  }
  assert adding == {module.__name__.split('.')[-1] for module in MODULES}


def test_no_name_of_a_net_is_a_companion(keys):
  """But for those of single files that no net reads."""
  for path in (*keys.glob('diffusers.*.json'), *keys.glob('original.*.json')):
    found = companions.classify(json.loads(path.read_text()))
    assert not found.matters
    assert all(
      name.endswith(('position_ids', 'logit_scale')) for name in found.harmless
    )
