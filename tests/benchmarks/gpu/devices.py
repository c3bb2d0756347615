"""The first case: which devices and which versions there are."""

import os
import shutil
import subprocess

# The two frameworks share the GPU here, so neither takes its memory ahead.
os.environ['XLA_PYTHON_CLIENT_PREALLOCATE'] = 'false'


def measure(setting):
  """Reports devices and versions as one line."""
  found = find_jax() | find_torch() | {'driver': find_driver()}
  card = found.get('jax_card') or found.get('torch_card') or 'CPU'
  setting.report(**(found | {'card': card}))


def find_jax():
  """Returns what JAX finds."""
  try:
    import jax

    devices = jax.devices()
  except Exception as error:  # plug-ins and drivers raise many types
    return {'jax': None, 'jax_missing': f'JAX does not start: {error}'[:300]}
  stats = devices[0].memory_stats() or {}
  return {
    'jax': jax.__version__,
    'jax_platform': devices[0].platform,
    'jax_devices': ', '.join(map(str, devices)),
    'jax_card': devices[0].device_kind,
    'jax_gib': round(stats.get('bytes_limit', 0) / 2**30, 1),
  }


def find_torch():
  """Returns what PyTorch finds; diffusers is needed with it."""
  try:
    import diffusers
    import torch
  except Exception as error:  # of versions that do not fit, not ImportError
    reason = f'PyTorch and diffusers do not start: {error}'[:300]
    return {'torch': None, 'torch_missing': reason}
  cuda = torch.cuda.is_available()
  return {
    'torch': torch.__version__,
    'diffusers': diffusers.__version__,
    'torch_cuda': cuda,
    'torch_card': torch.cuda.get_device_name() if cuda else None,
  }


def find_driver():
  """Returns the line of nvidia-smi: driver, memory and clocks; '' without."""
  if not shutil.which('nvidia-smi'):
    return ''
  fields = 'driver_version,memory.total,clocks.sm,clocks.max.sm,power.limit'
  command = ['nvidia-smi', f'--query-gpu={fields}', '--format=csv,noheader']
  try:
    ended = subprocess.run(command, capture_output=True, text=True, timeout=30)
  except (OSError, subprocess.TimeoutExpired) as error:
    return str(error)
  return ' '.join(ended.stdout.split())
