"""A machine that programs are compiled for: what fits, and how fast it is."""

import dataclasses
import math

import jax

from sdxl_jax.distributed import device_mesh
from sdxl_jax.planning import cost, topology

# Of the chip's memory, for what no compiler counts: fragments, other programs.
MEMORY_HEADROOM = 0.05
# Heads of 64 fill half of a matrix unit that is 128 wide, so that fused
# attention can reach half of the peak at best.
ATTENTION_PEAK_SHARE = 0.5
# A GPU's compiler estimates no time. Large matmuls reach about 70 % there.
GPU_SHARE = 0.7
# What fits a GPU's matmuls best is tried out on it. Without one the guess of
# tiles may fit none at all, so they are left to cuBLAS.
NO_AUTOTUNING = {'gpu': {'xla_gpu_enable_triton_gemm': False}}
ESTIMATE_METHOD = {
  'tpu': 'seconds: the cycles that the TPU compiler estimates, fused attention '
  f'at {ATTENTION_PEAK_SHARE} of the peak, and what the collectives move over '
  'the links, one after another',
  'gpu': f'seconds: FLOPs at {GPU_SHARE} of the peak or bytes at full '
  'bandwidth, whichever takes longer, and then what the collectives move. '
  "Planned with XLA's attention; cuDNN's takes less memory and traffic",
  'cpu': 'no figures of this machine are known, so no time',
}


@dataclasses.dataclass(frozen=True)
class Machine:
  """Devices of one kind, arranged as a mesh."""

  chip: topology.Chip
  mesh: jax.sharding.Mesh

  @property
  def size(self):
    return self.mesh.size

  @property
  def platform(self):
    return device_mesh.platform(self.mesh)

  @property
  def options(self):
    """{name: value} that its compiler must be told."""
    return NO_AUTOTUNING.get(self.platform, {})

  def fits(self, peak):
    """Whether so many bytes on each device do, with something to spare."""
    return (
      self.chip.memory is None
      or peak <= (1 - MEMORY_HEADROOM) * self.chip.memory
    )

  def seconds(self, text, traced):
    """The estimate that METHOD describes, or None.

    Args:
      text: of the compiled program.
      traced: its jaxpr, in which all devices' FLOPs are.
    """
    chip = self.chip
    if chip.flops is None:
      return None
    moved = sum(cost.collectives(text).values())
    kernels = cost.flops_by_kernel(traced)
    matmuls = kernels.pop(None, 0) / self.size
    fused = sum(kernels.values()) / self.size
    # A single chip has no links, and nothing moves.
    links = moved / chip.link if moved else 0.0
    if self.platform == 'tpu':
      estimated = cost.cycles(text).estimated / chip.clock
      return estimated + fused / (ATTENTION_PEAK_SHARE * chip.flops) + links
    compute = matmuls / (GPU_SHARE * chip.flops)
    return max(compute, cost.bytes_accessed(text) / chip.bandwidth) + links


def make_machine(name, data=-1, fsdp=1, tensor=1):
  """The Machine of a topology's name, its devices arranged as the axes say."""
  devices, chip = topology.make_devices(name)
  return Machine(chip, device_mesh.make_mesh(data, fsdp, tensor, devices))


def bytes_of(tree):
  """Of the arrays on one device, from shapes with shardings."""
  local = lambda x: x.sharding.shard_shape(x.shape)
  return sum(
    math.prod(local(x)) * x.dtype.itemsize for x in jax.tree.leaves(tree)
  )
