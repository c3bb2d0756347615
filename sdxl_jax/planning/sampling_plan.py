"""Plans sampling: memory and time of the programs of `generate`.

Text encoding, denoising steps and decoding follow one another. While one of
them runs, the parameters of all nets are on the device but for those that wait
in host memory: the ones that `sample` would choose on that machine, or all.

SDXL's base and refiner in float16, their autoencoder in float32, with guidance
at 1024 px, take 11.9 of the 13.6 GiB that JAX allocates of a T4, and 2.9 GiB of
host memory (--topology t4x1 --refiner configs/refiner.py --host_memory 12).
"""

import dataclasses
import time
from collections.abc import Sequence

import ml_collections
import tqdm

from sdxl_jax.distributed import device_mesh
from sdxl_jax.planning import (
  cost,
  hlo_kinds,
  machines,
  program_profile,
  sampling_programs,
)
from sdxl_jax.planning.sampling_programs import Expert, SampleWorkload
from sdxl_jax.sampling import offload_choice, validation


@dataclasses.dataclass(frozen=True)
class PhaseCost:
  """What one program needs, per device unless stated otherwise."""

  name: str
  memory: int  # bytes at the peak, of all that is on the device then
  parameters: int  # bytes, those of idle nets that stay there included
  flops: float  # per image
  seconds: float | None  # of a run, with copies of nets from the host
  compile_seconds: float
  runs: float = 1.0  # of a batch, see sampling_programs.Phase
  profile: program_profile.Profile | None = None  # of a run; see `plan`


@dataclasses.dataclass(frozen=True)
class SamplingPlan:
  """What a run of `generate` needs on a machine."""

  machine: machines.Machine
  workload: SampleWorkload
  phases: list[PhaseCost]  # in order
  offloaded: tuple[str, ...] = ()  # nets that wait in host memory
  host_bytes: int = 0  # of them, on each host
  notes: tuple[str, ...] = ()  # why they do

  @property
  def worst(self) -> PhaseCost:
    """The phase that takes the most memory."""
    return max(self.phases, key=lambda phase: phase.memory)

  @property
  def seconds(self) -> float | None:
    """Time of a batch; None if the speed of the machine is not known."""
    if any(phase.seconds is None for phase in self.phases):
      return None
    return sum(phase.runs * phase.seconds for phase in self.phases)

  @property
  def profiles(self) -> list[program_profile.Profile]:
    """Where the time of a batch goes, by phase, in the order of the phases."""
    return [
      phase.profile.repeated(phase.runs)
      for phase in self.phases
      if phase.profile is not None
    ]


def plan(
  machine: machines.Machine,
  configs: Sequence[ml_collections.ConfigDict],
  workload: SampleWorkload,
  profiled: bool = False,
) -> SamplingPlan:
  """Plans a run of `generate`.

  Args:
    machine: its devices split the images.
    configs: of the base and, if there is one, of the refiner.
    workload: what to sample.
    profiled: whether to find out where the time goes.
  """
  experts = [
    sampling_programs.make_expert(config, machine, workload)
    for config in configs
  ]
  experts, workload, notes = place(machine, experts, workload)
  phases = sampling_programs.list_phases(experts, workload)
  bar = tqdm.tqdm(phases, desc='compiling', unit='program')
  costs = [
    measure(machine, workload, phase, experts, profiled) for phase in bar
  ]
  waiting = [
    (offload_choice.prefix(i) + name, expert.params[name])
    for i, expert in enumerate(experts)
    for name in expert.offloaded
  ]
  return SamplingPlan(
    machine,
    workload,
    costs,
    tuple(name for name, _ in waiting),
    machine.devices_of_a_host * sum(machines.bytes_of(x) for _, x in waiting),
    notes,
  )


def place(
  machine: machines.Machine, experts: Sequence[Expert], workload: SampleWorkload
) -> tuple[list[Expert], SampleWorkload, tuple[str, ...]]:
  """Chooses the nets that wait in host memory, as `sample` does.

  Returns:
    The experts with what is offloaded, the workload with the tiles of decoding,
    and lines on the choice.
  """
  offloaded, notes = [() for _ in experts], ()
  if workload.offload == 'auto':
    try:
      choice = offload_choice.choose(
        [machine.with_attention(expert.model) for expert in experts],
        largest(experts, workload),
        machine.free_memory(workload.host_memory),
      )
      offloaded, notes = choice.offloaded, choice.notes
      if choice.tile is not None:
        settings = dataclasses.replace(workload.settings, tile=choice.tile)
        workload = dataclasses.replace(workload, settings=settings)
    except ValueError as error:
      notes = (f'`sample` would end with this error: {error}',)
      offloaded = [tuple(expert.params) for expert in experts]
  elif workload.offload:
    offloaded = [tuple(expert.params) for expert in experts]
  placed = [
    dataclasses.replace(expert, offloaded=names)
    for expert, names in zip(experts, offloaded)
  ]
  return placed, workload, notes


def largest(
  experts: Sequence[Expert], workload: SampleWorkload
) -> offload_choice.Workload:
  """Returns the workload by which the memory of programs is estimated."""
  scale = workload.settings.guidance_scale
  is_guided = any(validation.uses_cfg(e.model, scale) for e in experts)
  return offload_choice.Workload(
    workload.size,
    workload.batch,
    branches=2 if is_guided else 1,
    chunks=max(expert.text_chunks for expert in experts),
    tile=workload.settings.tile,
  )


def measure(
  machine: machines.Machine,
  workload: SampleWorkload,
  phase: sampling_programs.Phase,
  experts: Sequence[Expert],
  profiled: bool = False,
) -> PhaseCost:
  """Compiles the program of a phase and returns its cost.

  Args:
    machine: to compile for.
    workload: what to sample.
    phase: the program.
    experts: all, with what of them is offloaded.
    profiled: whether to find out where the time goes.
  """
  expert = phase.expert
  params = {n: expert.params[n] for n in phase.nets if n in expert.params}
  started = time.monotonic()
  with device_mesh.use(machine.mesh):
    traced = phase.trace(machine.mesh, workload, expert, params)
    compiled = traced.lower().compile(machine.options)
  compile_seconds = time.monotonic() - started
  # Nets of other phases stay on the device unless they are offloaded.
  idle = sum(
    machines.bytes_of(tree)
    for other in experts
    for name, tree in other.params.items()
    if name not in other.offloaded and not (other is expert and name in params)
  )
  dtype = workload.vae_dtype if 'vae' in phase.nets else workload.dtype
  arguments = compiled.as_text(), traced.jaxpr, dtype
  seconds = machine.seconds(*arguments)
  name, profile = expert.name + phase.name, None
  if profiled:
    profile = program_profile.profile(machine, name, *arguments)
  if seconds is not None and machine.chip.host_link:
    copied = {n: x for n, x in params.items() if n in expert.offloaded}
    copying = machines.bytes_of(copied) / machine.chip.host_link
    seconds += copying
    profile = profile and profile.preceded_by(hlo_kinds.HOST, copying)
  return PhaseCost(
    name=name,
    memory=cost.memory(compiled).peak + idle,
    parameters=machines.bytes_of(params) + idle,
    flops=cost.compiled_flops(*arguments[:2], machine.size)
    / (workload.batch * machine.size),
    seconds=seconds,
    compile_seconds=compile_seconds,
    runs=phase.runs,
    profile=profile,
  )
