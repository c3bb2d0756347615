"""Installs what a notebook lacks, and leaves the machine's JAX as it is.

Colab and Kaggle come with a jaxlib, a CUDA plugin or libtpu, and NumPy that fit
together and are loaded already. Another version of one of them leaves the
accelerator unusable, so all of them are held while pip installs the rest.
"""

import glob
import importlib
import importlib.metadata
import os
import pathlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping

ROOT = pathlib.Path(__file__).resolve().parents[2]
REQUIREMENTS = ROOT / 'requirements.txt'
# Kept at the installed version.
HELD = re.compile(
  r'jax|jaxlib|jax-cuda\d+-(plugin|pjrt)|libtpu(-nightly)?|flax|numpy'
)
CUDA_PLUGIN = re.compile(r'jax-cuda\d+-plugin')
# Set by Colab, Kaggle and Google Cloud on machines with a TPU.
TPU_VARIABLES = ('COLAB_TPU_1VM', 'ISTPUVM', 'TPU_ACCELERATOR_TYPE')
CHOOSE = (
  'choose a GPU or a TPU (Colab: Runtime > Change runtime type; Kaggle: '
  'Settings > Accelerator), or set TINY = True to try the notebook on a CPU'
)
FRESH = (
  'start a fresh machine (Colab: Runtime > Disconnect and delete runtime) and '
  'run this cell before other installs'
)
LIST_DEVICES = (
  'import jax\nfor d in jax.devices(): print(d.platform, d.device_kind)'
)


def find_accelerator(
  paths: Iterable[str], environment: Mapping[str, str]
) -> str | None:
  """Returns the kind of accelerator of a machine, without importing JAX.

  Args:
    paths: files of the machine, `device_files()`.
    environment: environment variables.

  Returns:
    'gpu' (NVIDIA), 'tpu' or None.
  """
  paths = list(paths)
  # nvidia-smi alone is in images that run without a GPU too.
  if any(re.fullmatch(r'/dev/(nvidia(\d+|ctl)|dxg)', path) for path in paths):
    return 'gpu'
  # /dev/vfio/vfio alone is on machines without a TPU too.
  if any(re.fullmatch(r'/dev/(accel|vfio/)\d+', path) for path in paths):
    return 'tpu'
  return 'tpu' if any(environment.get(v) for v in TPU_VARIABLES) else None


def device_files() -> list[str]:
  """Returns the files by which a GPU or a TPU is recognised."""
  patterns = ('nvidia*', 'dxg', 'accel*', 'vfio/*')
  return [path for p in patterns for path in glob.glob(f'/dev/{p}')]


def installed_versions() -> dict[str, str]:
  """Returns {name: version} of the packages here, names as on PyPI."""
  return {
    re.sub(r'[-_.]+', '-', found.name).lower(): found.version
    for found in importlib.metadata.distributions()
    if found.name
  }


def constraints(installed: Mapping[str, str]) -> list[str]:
  """Returns the lines of a pip constraints file that hold JAX and NumPy.

  Args:
    installed: {name: version}.
  """
  return [
    f'{name}=={version}'
    for name, version in sorted(installed.items())
    if HELD.fullmatch(name)
  ]


def pip_arguments(
  accelerator: str | None, installed: Mapping[str, str], held: pathlib.Path
) -> list[str]:
  """Returns the arguments of `pip install`.

  Args:
    accelerator: 'gpu', 'tpu' or None.
    installed: {name: version}.
    held: the file of `constraints(installed)`.
  """
  arguments = ['-c', str(held), '-r', str(REQUIREMENTS)]
  if accelerator == 'gpu' and not any(map(CUDA_PLUGIN.fullmatch, installed)):
    arguments.append('jax[cuda12]')
  if accelerator == 'tpu' and not {'libtpu', 'libtpu-nightly'} & {*installed}:
    arguments.append('jax[tpu]')
  return arguments


def devices_error(
  accelerator: str | None, devices: str, installed: Mapping[str, str]
) -> str | None:
  """Returns what is wrong with the devices that JAX found, or None.

  Args:
    accelerator: what the machine has: 'gpu', 'tpu' or None.
    devices: what LIST_DEVICES printed.
    installed: {name: version}.
  """
  if accelerator is None or not devices.startswith('cpu'):
    return None
  jaxlib = installed.get('jaxlib')
  plugins = [
    f'{name} {version}'
    for name, version in installed.items()
    if CUDA_PLUGIN.fullmatch(name) and version != jaxlib
  ]
  if plugins:
    reason = f'{plugins[0]} does not fit jaxlib {jaxlib}'
  else:
    reason = 'the lines above are what JAX printed'
  return (
    f'this machine has a {accelerator.upper()}, but jax.devices() is a CPU: '
    f'{reason}; {FRESH}'
  )


def run(command: list[str]) -> subprocess.CompletedProcess:
  """Runs a command and returns what it printed."""
  return subprocess.run(command, capture_output=True, text=True)


def install(accelerator: str | None) -> None:
  """Runs pip with all of HELD as it is.

  Args:
    accelerator: 'gpu', 'tpu' or None.

  Raises:
    SystemExit: pip failed.
  """
  installed = installed_versions()
  with tempfile.TemporaryDirectory() as folder:
    held = pathlib.Path(folder) / 'held.txt'
    held.write_text('\n'.join(constraints(installed)))
    pip = [sys.executable, '-m', 'pip', 'install', '--quiet']
    done = run(pip + pip_arguments(accelerator, installed, held))
  if done.returncode:
    print(done.stderr, file=sys.stderr)
    raise SystemExit('pip could not install what sdxl_jax needs: see above')
  importlib.invalidate_caches()


def prepare(cpu: bool = False) -> None:
  """Installs what is missing, and checks that JAX finds the accelerator.

  Args:
    cpu: whether a CPU will do.

  Raises:
    SystemExit: one sentence, which a notebook shows without a traceback.
  """
  accelerator = find_accelerator(device_files(), os.environ)
  if accelerator is None and not cpu:
    raise SystemExit(f'this machine has no GPU or TPU: {CHOOSE}')
  print('Installing what is missing; minutes where JAX is missing too.')
  install(accelerator)
  # In another process: in this one JAX could not choose its devices again.
  found = run([sys.executable, '-c', LIST_DEVICES])
  if found.returncode:
    last = (found.stderr.strip().splitlines() or ['no message'])[-1]
    raise SystemExit(f'jax.devices() failed: {last}; {FRESH}')
  expected = None if cpu else accelerator
  error = devices_error(expected, found.stdout, installed_versions())
  if error:
    print(found.stderr, file=sys.stderr)
    raise SystemExit(error)
  print('Devices:', ', '.join(found.stdout.splitlines()))
