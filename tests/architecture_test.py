"""Who may import whom, read from the syntax trees."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PACKAGE = ROOT / 'sdxl_jax'
# A file at the door may import any room, and these of its neighbours.
DOORS = {
  'train': {'command'},
  'plan': {'command'},
  'precompute': {'command'},
  'show': {'command'},
  'sample': {'command'},
  'convert': {'command', 'exports'},
  'exports': set(),
  'evaluate': {'command'},
  'command': set(),
}
ROOMS = {
  'models': set(),
  'diffusion': set(),
  'distributed': set(),
  'conditioning': {'models'},
  'weights': {'models'},
  'data': {'conditioning.tokenizer'},
  'training': {'models', 'diffusion', 'conditioning', 'distributed'},
  'evaluation': {'models'},
  'sampling': {
    *('models', 'diffusion', 'conditioning', 'distributed', 'data'),
    *('training', 'evaluation', 'weights'),
  },
}
# Which of our files alone may import a library.
OWNERS = {
  'transformers': {'conditioning/tokenizer.py'},
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
      ours = target.split('.')[0]
      assert ours != 'train', f'{name} imports a command'
      if room in DOORS:
        assert ours in set(ROOMS) | DOORS[room], f'{name}: {imported}'
      elif ours != room:
        allowed = ROOMS[room]
        assert any(f'{target}.'.startswith(f'{a}.') for a in allowed), (
          f'{name} may not import {imported}'
        )
    elif library in OWNERS:
      assert any(name.as_posix().startswith(o) for o in OWNERS[library]), (
        f'{name} may not import {imported}'
      )
    assert library != 'configs', f'{name} imports a config'


def test_every_room_is_in_the_table():
  rooms = {p.parent.name for p in PACKAGE.glob('*/*.py')}
  assert rooms == set(ROOMS)
  assert {p.stem for p in PACKAGE.glob('*.py')} == {*DOORS, '__init__'}


def test_top_level():
  allowed = {'sdxl_jax', 'configs', 'launch', 'tests', 'requirements.txt'}
  allowed |= {'README.md', 'pyproject.toml'}
  skip = {'build', 'sdxl_jax.egg-info', '__pycache__'}
  found = {p.name for p in ROOT.iterdir() if not p.name.startswith('.')}
  assert found - skip <= allowed
