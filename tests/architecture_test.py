"""Checks who may import whom, and the style, on the syntax trees."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PACKAGE = ROOT / 'sdxl_jax'
# Commands may import any room, and no room imports a command.
COMMANDS = {
  'train',
  'sample',
  'convert',
  'evaluate',
  'precompute',
  'plan',
  'preview_data',
  'web',
}
# Files beside the commands, with what they import of ours.
SHARED = {
  'cli': {
    'distributed.gpu_memory',
    'distributed.multihost',
    'programs.compile_progress',
    'programs.program_cache',
  },
  'atomic_write': set(),
}
# What each room may import of ours, itself besides.
ROOMS = {
  'text': set(),
  'diffusion': set(),
  'ema': set(),
  'distributed': set(),
  'programs': set(),
  'data': {'text', 'atomic_write'},
  'models': {'text', 'diffusion', 'distributed'},
  'weights': {'models', 'diffusion', 'atomic_write'},
  'evaluation': {
    'text',
    'data',
    'distributed',
    'models',
    'weights',
    'atomic_write',
  },
  'checkpoints': {
    'text',
    'models',
    'weights',
    'ema',
    'distributed',
    'atomic_write',
  },
}
ROOMS['sampling'] = {*ROOMS, 'atomic_write'}
ROOMS['training'] = {*ROOMS, 'atomic_write'}
ROOMS['planning'] = {*ROOMS}
# Which of our files alone may import a library.
OWNERS = {
  'transformers': {'text/tokenizer.py'},
  'gradio': {'web.py'},
  'huggingface_hub': {'weights/hub'},
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
# Rooms whose public functions are annotated without exception.
ANNOTATED_ROOMS = {
  'models',
  'diffusion',
  'text',
  'ema',
  'sampling',
  'checkpoints',
}
MOST_PARAMETERS = 9
# 'file.function': the reason why it may take more parameters.
LONG_SIGNATURES = {
  'folder.__init__': 'the fields of config.data.folder',
  'tfds.__init__': 'the fields of config.data.tfds',
}
FILES = sorted(PACKAGE.rglob('*.py'))
FUNCTIONS = ast.FunctionDef | ast.AsyncFunctionDef


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


def styled_files():
  """Files of the package and the configs."""
  paths = [*FILES, *sorted((ROOT / 'configs').rglob('*.py'))]
  return [
    pytest.param(path, id=path.relative_to(ROOT).as_posix()) for path in paths
  ]


def places(path, nodes):
  """'file:line' of each node, for a message."""
  return [f'{path.relative_to(ROOT)}:{node.lineno}' for node in nodes]


def parameters(function):
  """The ast.arg of all parameters but self and cls."""
  args = function.args
  named = [*args.posonlyargs, *args.args, *args.kwonlyargs]
  named = [arg for arg in named if arg.arg not in ('self', 'cls')]
  return [*named, *(arg for arg in (args.vararg, args.kwarg) if arg)]


def public_functions(body):
  """The public functions, methods and __call__s of a module or a class."""
  for node in body:
    if isinstance(node, FUNCTIONS):
      if not node.name.startswith('_') or node.name == '__call__':
        yield node
    elif isinstance(node, ast.ClassDef) and not node.name.startswith('_'):
      yield from public_functions(node.body)


@pytest.mark.parametrize(
  'path',
  [p for p in FILES if p.relative_to(PACKAGE).parts[0] in ANNOTATED_ROOMS],
  ids=lambda p: str(p.relative_to(ROOT)),
)
def test_public_functions_are_annotated(path):
  bare = [
    function
    for function in public_functions(ast.parse(path.read_text()).body)
    if not (
      function.returns and all(a.annotation for a in parameters(function))
    )
  ]
  names = [function.name for function in bare]
  assert not bare, f'annotate all of {names} in {places(path, bare)}'


@pytest.mark.parametrize('path', styled_files())
def test_no_literal_is_unpacked(path):
  literals = ast.Tuple | ast.List | ast.Set
  unpacked = [
    node
    for node in ast.walk(ast.parse(path.read_text()))
    if isinstance(node, ast.Starred) and isinstance(node.value, literals)
  ]
  assert not unpacked, f'write out what {places(path, unpacked)} unpack'


@pytest.mark.parametrize('path', styled_files())
def test_no_lambda_has_a_name(path):
  assignments = ast.Assign | ast.AnnAssign | ast.NamedExpr
  named = [
    node
    for node in ast.walk(ast.parse(path.read_text()))
    if isinstance(node, assignments) and isinstance(node.value, ast.Lambda)
  ]
  assert not named, f'write `def` at {places(path, named)}'


@pytest.mark.parametrize('path', styled_files())
def test_no_function_takes_too_many_parameters(path):
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, FUNCTIONS):
      count = len(parameters(node))
      name = f'{path.stem}.{node.name}'
      assert count <= MOST_PARAMETERS or name in LONG_SIGNATURES, (
        f'{node.name} of {places(path, [node])} takes {count} parameters, more '
        f'than {MOST_PARAMETERS}: group them, or add it to LONG_SIGNATURES '
        'with the reason'
      )


def test_the_rules_find_what_they_forbid(tmp_path, monkeypatch):
  (path := tmp_path / 'bad.py').write_text(
    'f(*(a, b), c)\ndef g(*, a, b, c, d, e, f, g, h, i, j):\n  h = lambda: 0\n'
  )
  monkeypatch.setitem(globals(), 'ROOT', tmp_path)
  for test, message in [
    (test_public_functions_are_annotated, "annotate all of \\['g'\\]"),
    (test_no_literal_is_unpacked, 'bad.py:1'),
    (test_no_lambda_has_a_name, 'bad.py:3'),
    (test_no_function_takes_too_many_parameters, 'takes 10 parameters'),
  ]:
    with pytest.raises(AssertionError, match=message):
      test(path)
