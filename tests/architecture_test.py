"""Who may import whom, read from the syntax trees."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PACKAGE = ROOT / 'sdxl_jax'
# Commands may import any room, and no room imports a command.
COMMANDS = {
  *('train', 'sample', 'convert', 'evaluate', 'precompute', 'plan'),
  'preview_data',
}
# Files beside the commands, with what they import of ours.
SHARED = {'cli': {'distributed.multihost'}, 'atomic_write': set()}
# What each room may import of ours, itself besides.
ROOMS = {
  'text': set(),
  'diffusion': set(),
  'ema': set(),
  'distributed': set(),
  'data': {'text.tokenizer', 'atomic_write'},
  'models': {'text', 'diffusion', 'distributed'},
  'weights': {'models', 'diffusion', 'atomic_write'},
  'evaluation': {'models'},
  'checkpoints': {'models', 'weights', 'ema', 'distributed', 'atomic_write'},
}
ROOMS['sampling'] = {*ROOMS, 'atomic_write'}
ROOMS['training'] = {*ROOMS, 'atomic_write'}
ROOMS['planning'] = {*ROOMS}
# Which of our files alone may import a library.
OWNERS = {
  'transformers': {'text/tokenizer.py'},
  'safetensors': set(),
  'grain': {'data/'},
  'tensorflow_datasets': {'data/'},
  'array_record': {'data/'},
  'pyarrow': {'data/'},
  'fsspec': {'data/'},
  'torch': set(),
  'diffusers': set(),
  'tensorflow': set(),
}
FILES = sorted(PACKAGE.rglob('*.py'))


def imports(path):
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      assert not node.level, f'{path}: relative import'
      yield from (f'{node.module}.{alias.name}' for alias in node.names)


@pytest.mark.parametrize('path', FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports(path):
  name = path.relative_to(PACKAGE)
  room = name.parts[0].removesuffix('.py')
  for imported in imports(path):
    library, _, target = imported.partition('.')
    if library == 'sdxl_jax':
      check_room(name, room, target)
    elif library in OWNERS:
      assert any(name.as_posix().startswith(o) for o in OWNERS[library]), (
        f'{name} may not import {imported}'
      )
    assert library != 'configs', f'{name} imports a config'


def check_room(name, room, target):
  """Fails where a file of a room imports what the table does not allow."""
  imported_room = target.split('.')[0]
  assert imported_room not in COMMANDS, f'{name} imports a command'
  if room in COMMANDS:
    assert imported_room in {*ROOMS, *SHARED}, f'{name}: {target}'
  elif room in SHARED:
    assert target in SHARED[room], f'{name}: {target}'
  elif imported_room != room:
    allowed = ROOMS[room]
    assert any(f'{target}.'.startswith(f'{a}.') for a in allowed), (
      f'{name} may not import {target}'
    )


def test_every_room_is_in_the_table():
  rooms = {p.relative_to(PACKAGE).parts[0] for p in PACKAGE.glob('*/*.py')}
  assert rooms == set(ROOMS)
  files = {p.stem for p in PACKAGE.glob('*.py')}
  assert files == {*COMMANDS, *SHARED, '__init__'}


def test_top_level():
  allowed = {'sdxl_jax', 'configs', 'launch', 'tests', 'requirements.txt'}
  allowed |= {'README.md', 'pyproject.toml'}
  skip = {'build', 'sdxl_jax.egg-info', '__pycache__'}
  found = {p.name for p in ROOT.iterdir() if not p.name.startswith('.')}
  assert found - skip <= allowed
