"""Flags of XLA in the tests, where most of the time goes to compiling."""

import re
from importlib import metadata

# Of the effort that goes into a program's speed as little as XLA allows: a
# small UNet's gradient compiles in 40 % of the CPU time.
QUICK_COMPILES = (
  '--xla_backend_optimization_level=0',
  '--xla_llvm_disable_expensive_passes=true',
  '--xla_cpu_parallel_codegen_split_count=1',  # no threads for one program
)
# {flag: first version of jaxlib that lacks it}: XLA ends a process that passes
# one it does not know, before Python could say so.
REMOVED = {'--xla_cpu_use_fusion_emitters=false': (0, 11, 1)}

# The same of those that an older jaxlib lacks. Four devices on two busy cores
# may wait for one another for longer than XLA's 40 s, which ends the process.
ADDED = {'--xla_cpu_collective_call_terminate_timeout_seconds=900': (0, 10, 2)}


def flags(devices: int) -> str:
  """Returns XLA_FLAGS for programs that run once, on so many CPU devices."""
  count = f'--xla_force_host_platform_device_count={devices}'
  version = tuple(map(int, re.findall(r'\d+', metadata.version('jaxlib'))[:3]))
  known = [flag for flag, removed in REMOVED.items() if version < removed]
  known += [flag for flag, added in ADDED.items() if version >= added]
  return ' '.join((count, *QUICK_COMPILES, *known))
