"""Describes a machine that programs are compiled for: memory and speed."""

import dataclasses
import math
from typing import Any

import jax

from sdxl_jax.distributed import device_mesh
from sdxl_jax.models import compute_dtype, from_config, sdxl
from sdxl_jax.planning import chips, cost, topology
from sdxl_jax.sampling import offload_choice

# Fraction of the memory that is kept free for fragmentation and for other
# programs, which no compiler counts.
MEMORY_HEADROOM = offload_choice.HEADROOM
# Heads of 64 fill half of a matrix unit that is 128 wide, so that fused
# attention can reach half of the peak at best.
ATTENTION_PEAK_SHARE = 0.5
# A GPU's compiler estimates no time. Large matmuls reach about 70 % of the
# peak there.
GPU_SHARE = 0.7
# XLA chooses the tiles of a matmul by trying them on the GPU. Without a GPU the
# default tiles may not fit at all, so matmuls are left to cuBLAS.
NO_AUTOTUNING = {'gpu': {'xla_gpu_enable_triton_gemm': False}}
ESTIMATE_METHOD = {
  'tpu': 'seconds: the cycles that the TPU compiler estimates, plus fused '
  f'attention at {ATTENTION_PEAK_SHARE} of the peak, plus the transfers of the '
  'collectives over the links',
  'gpu': f'seconds: FLOPs at {GPU_SHARE} of the peak or memory traffic at full '
  'bandwidth, whichever takes longer, plus the transfers of the collectives. '
  "Planned with XLA's attention; cuDNN's takes less memory and traffic",
  'cpu': 'no seconds: the peak FLOPs of this machine are not known',
}


@dataclasses.dataclass(frozen=True)
class Machine:
  """Devices of one kind, arranged as a mesh."""

  chip: chips.Chip
  mesh: jax.sharding.Mesh

  @property
  def size(self) -> int:
    """Number of devices."""
    return self.mesh.size

  @property
  def platform(self) -> str:
    """'tpu', 'gpu' or 'cpu'."""
    return device_mesh.platform(self.mesh)

  @property
  def kind(self) -> compute_dtype.Kind:
    """What decides the type that nets compute in."""
    # Devices that programs are only compiled for have no such attribute.
    capability = self.chip.compute_capability or getattr(
      self.mesh.devices.flat[0], 'compute_capability', None
    )
    return compute_dtype.Kind(self.platform, capability)

  @property
  def options(self) -> dict[str, Any]:
    """{name: value} that the compiler needs."""
    return NO_AUTOTUNING.get(self.platform, {})

  @property
  def devices_of_a_host(self) -> int:
    """Number of devices that one host has."""
    hosts = {device.process_index for device in self.mesh.devices.flat}
    return self.size // len(hosts)

  def free_memory(self, host: int | None) -> offload_choice.Machine:
    """Returns the memory that `sample` would find on it.

    Args:
      host: bytes of host memory; None: no limit.
    """
    return offload_choice.Machine(
      self.chip.name,
      self.platform,
      self.devices_of_a_host,
      self.chip.memory,
      host,
    )

  def with_attention(self, model: sdxl.SDXL) -> sdxl.SDXL:
    """Returns a model with the attention that its UNet would have there."""
    name = from_config.ATTENTION[self.platform]
    capability = device_mesh.compute_capability(self.kind)
    if name == 'cudnn' and capability is not None and capability < (8, 0):
      name = 'xla'
    unet = dataclasses.replace(model.unet, attention=name)
    return dataclasses.replace(model, unet=unet)

  def fits(self, peak: int) -> bool:
    """Returns whether `peak` bytes fit a device, with MEMORY_HEADROOM left."""
    return (
      self.chip.memory is None
      or peak <= (1 - MEMORY_HEADROOM) * self.chip.memory
    )

  def seconds(
    self, text: str, jaxpr: cost.Jaxpr, dtype: str = 'bfloat16'
  ) -> float | None:
    """Estimates the time of one run, as ESTIMATE_METHOD describes.

    Args:
      text: of the compiled program.
      jaxpr: of the same program, with the FLOPs of all devices.
      dtype: of its matmuls, which on GPUs decides their peak.

    Returns:
      seconds; None if the speed of the chip is not known.
    """
    chip = self.chip
    if chip.flops is None:
      return None
    # FLOPs per device, in fused kernels and outside of them.
    matmul_flops = cost.flops_by_kernel(jaxpr)[None] / self.size
    kernel_flops = cost.compiled_kernel_flops(text, jaxpr)
    # A single chip has no links and receives nothing.
    received = sum(cost.collectives(text).values())
    transfer = received / chip.link if received else 0.0
    if self.platform == 'tpu':
      estimated = cost.cycles(text).estimated / chip.clock
      attention = kernel_flops / (ATTENTION_PEAK_SHARE * chip.flops)
      return estimated + attention + transfer
    compute = (matmul_flops + kernel_flops) / (GPU_SHARE * chip.peak(dtype))
    return max(compute, cost.bytes_accessed(text) / chip.bandwidth) + transfer


def make_machine(
  name: str, data: int = -1, fsdp: int = 1, tensor: int = 1
) -> Machine:
  """Makes the Machine of a topology's name, its devices arranged as a mesh.

  Raises:
    ValueError: for an unknown name, or axes that do not fit the devices.
  """
  devices, chip = topology.make_devices(name)
  return Machine(chip, device_mesh.make_mesh(data, fsdp, tensor, devices))


def bytes_of(tree: Any) -> int:
  """Returns the bytes per device of a tree of shapes with shardings."""
  total = 0
  for x in jax.tree.leaves(tree):
    total += math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
  return total
