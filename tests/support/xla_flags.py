"""Flags of XLA in the tests, where most of the time goes to compiling."""

# Of the effort that goes into a program's speed as little as XLA allows: a
# small UNet's gradient compiles in 40 % of the CPU time.
QUICK_COMPILES = (
  '--xla_backend_optimization_level=0',
  '--xla_llvm_disable_expensive_passes=true',
  '--xla_cpu_use_fusion_emitters=false',
  '--xla_cpu_parallel_codegen_split_count=1',  # no threads for one program
)


def flags(devices: int) -> str:
  """Returns XLA_FLAGS for programs that run once, on so many CPU devices."""
  count = f'--xla_force_host_platform_device_count={devices}'
  return ' '.join((count, *QUICK_COMPILES))
