"""Chips that programs are compiled for: memory, speed, and what XLA needs."""

import dataclasses

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
  """One device of a mesh; None: not known."""

  name: str
  memory: int | None = None  # bytes that a program may use
  flops: float | None = None  # peak dense 16-bit FLOPs per second
  bandwidth: float | None = None  # bytes/s of its memory
  link: float | None = None  # bytes/s sent to its slice or node, all links
  clock: float | None = None  # Hz of the cycles that a TPU's compiler counts
  compute_capability: str | None = None  # of a GPU, as '8.0'
  float32_flops: float | None = None  # peak of float32 on a GPU, or of TF32
  host_link: float | None = None  # bytes/s that it receives from its host

  def peak(self, dtype: str) -> float | None:
    """Returns the peak FLOPs per second of products of a type."""
    if dtype == 'float32' and self.float32_flops is not None:
      return self.float32_flops
    return self.flops


# FLOPs, bandwidths and links: cloud.google.com/tpu/docs/v4, v5p, v5e and v6e;
# links are one way, half of the "bidirectional" bandwidth there.
# Memory: what libtpu 0.0.42 and 0.0.50 leave of the HBM's 32, 95, 16 and 32 GB,
# from the error with which they refuse a larger program ("exceeds available HBM
# (95.73G)").
# Clock: peak FLOPs divided by the FLOPs of a chip's matrix units in one cycle,
# which are 2 * 8 * 128**2 on v4 and v5p, half as many on v5e and twice as many
# on v6e. With these clocks the estimated cycles of a large matmul amount to 70
# to 93 % of the peak. The clock of v4 agrees with the 1050 MHz of Jouppi et al.
# 2023, TPU v4.
TPUS = {
  'v4': Chip('TPU v4', int(30.75 * GIB), 275e12, 1200e9, 300e9, 1.05e9),
  'v5p': Chip('TPU v5p', int(95.73 * GIB), 459e12, 2765e9, 600e9, 1.75e9),
  'v5e': Chip('TPU v5e', int(15.75 * GIB), 197e12, 819e9, 200e9, 1.5e9),
  'v6e': Chip('TPU v6e', int(31.24 * GIB), 918e12, 1638e9, 400e9, 1.75e9),
}
# FLOPs without sparsity, bandwidth, NVLink one way (of T4 and L4: PCIe), PCIe
# one way: data sheets of A100, H100 and H200 SXM, T4 and L4; NVIDIA's papers on
# GA102 and Ada, of products that are summed in float32, for GeForce. Memory, of
# which JAX allocates a fraction: openxla/xla,
# xla/backends/gpu/target_config/specs; of T4, L4 and GeForce, what CUDA reports
# on Linux, where no display takes a part of it.
GPUS = {
  'a100': Chip(
    'NVIDIA A100-SXM4-80GB',
    85100068864,
    312e12,
    2039e9,
    300e9,
    compute_capability='8.0',
    float32_flops=156e12,
    host_link=32e9,
  ),
  'a100-40gb': Chip(
    'NVIDIA A100-SXM4-40GB',
    42331013120,
    312e12,
    1555e9,
    300e9,
    compute_capability='8.0',
    float32_flops=156e12,
    host_link=32e9,
  ),
  'h100': Chip(
    'NVIDIA H100 80GB HBM3',
    84942979072,
    989e12,
    3352e9,
    450e9,
    compute_capability='9.0',
    float32_flops=494e12,
    host_link=64e9,
  ),
  'h200': Chip(
    'NVIDIA H200',
    151397597184,
    989e12,
    4800e9,
    450e9,
    compute_capability='9.0',
    float32_flops=494e12,
    host_link=64e9,
  ),
  'l4': Chip(
    'NVIDIA L4',
    23583784960,
    121e12,
    300e9,
    32e9,
    compute_capability='8.9',
    float32_flops=60e12,
    host_link=32e9,
  ),
  't4': Chip(
    'Tesla T4',
    15843721216,
    65e12,
    320e9,
    16e9,
    compute_capability='7.5',
    float32_flops=8.1e12,
    host_link=16e9,
  ),
  'rtx4080': Chip(
    'NVIDIA GeForce RTX 4080',
    int(15.70 * GIB),
    97.5e12,
    717e9,
    32e9,
    compute_capability='8.9',
    float32_flops=48.7e12,
    host_link=32e9,
  ),
  'rtx3060': Chip(
    'NVIDIA GeForce RTX 3060',
    int(11.76 * GIB),
    25.6e12,
    360e9,
    32e9,
    compute_capability='8.6',
    float32_flops=12.8e12,
    host_link=32e9,
  ),
}
# Chip properties that XLA's GPU compiler needs, as a GpuTargetConfigProto.
TARGET = """
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32
  shared_memory_per_block: 49152
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535
  block_dim_limit_z: 65535 registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  memory_bandwidth: {bandwidth:.0f} device_memory_size: {memory} {architecture}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
device_description_str: "{name}"
"""
# By compute capability.
ARCHITECTURES = {
  '7.5': """
  core_count: 40 fpus_per_core: 64 clock_rate_ghz: 1.59
  threads_per_core_limit: 1024
  shared_memory_per_core: 65536 shared_memory_per_block_optin: 65536
  l2_cache_size: 4194304 cuda_compute_capability { major: 7 minor: 5 }""",
  '8.0': """
  core_count: 108 fpus_per_core: 64 clock_rate_ghz: 1.41
  threads_per_core_limit: 2048
  shared_memory_per_core: 167936 shared_memory_per_block_optin: 166912
  l2_cache_size: 41943040 cuda_compute_capability { major: 8 }""",
  '8.6': """
  core_count: 28 fpus_per_core: 128 clock_rate_ghz: 1.78
  threads_per_core_limit: 1536
  shared_memory_per_core: 102400 shared_memory_per_block_optin: 101376
  l2_cache_size: 3145728 cuda_compute_capability { major: 8 minor: 6 }""",
  '8.9': """
  core_count: 58 fpus_per_core: 128 clock_rate_ghz: 2.04
  threads_per_core_limit: 1536
  shared_memory_per_core: 102400 shared_memory_per_block_optin: 101376
  l2_cache_size: 50331648 cuda_compute_capability { major: 8 minor: 9 }""",
  '9.0': """
  core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98
  threads_per_core_limit: 2048
  shared_memory_per_core: 233472 shared_memory_per_block_optin: 232448
  l2_cache_size: 52428800
  cuda_compute_capability {
    major: 9 feature_extension: ACCELERATED_FEATURES
  }""",
}
