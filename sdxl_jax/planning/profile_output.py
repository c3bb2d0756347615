"""The profile of the command `plan`: its flags, tables and trace."""

from collections.abc import Sequence
from typing import Any

from absl import flags

from sdxl_jax.planning import (
  machines,
  profile_report,
  profiler_trace,
  program_profile,
  recorded_profile,
  sampling_plan,
  topology,
  trace_file,
  training_plan,
)


def define_flags() -> None:
  """Defines the flags, and which of the others are required without them."""
  flags.DEFINE_bool('profile', False, 'show where the estimated time goes')
  flags.DEFINE_string(
    'trace', None, 'file for Perfetto to draw the profile in, .json or .json.gz'
  )
  flags.DEFINE_string(
    'from_trace',
    None,
    'folder of a jax.profiler.trace to show instead of a plan',
  )
  flags.register_multi_flags_validator(
    ['config', 'topology', 'recipe', 'from_trace'],
    is_complete,
    'give --config and --topology, --recipe and --topology, or --from_trace',
  )


def is_complete(values: dict[str, Any]) -> bool:
  """Returns whether the flags name what to plan or what to show."""
  is_chosen = values['config'] is not None or values['recipe']
  plans = is_chosen and values['topology'] is not None
  return plans or values['from_trace'] is not None


def is_wanted(args: flags.FlagValues) -> bool:
  """Returns whether a plan is to show where the time goes."""
  return args.profile or args.trace is not None


def show_training(
  args: flags.FlagValues, plan: training_plan.TrainingPlan
) -> None:
  """Prints the profiles of the first bucket and of the update."""
  if is_wanted(args):
    # By default the first bucket is the square one.
    first, *_, update = plan.profiles
    show(args, plan.planner.machine, [first, update], [first, update])


def show_sampling(
  args: flags.FlagValues, plan: sampling_plan.SamplingPlan
) -> None:
  """Prints the profile of all phases of sampling together."""
  if is_wanted(args):
    phases = plan.profiles
    images = plan.workload.batch * plan.machine.size
    whole = program_profile.joined(f'sampling {images} images', phases)
    show(args, plan.machine, [whole], phases)


def show(
  args: flags.FlagValues,
  machine: machines.Machine,
  shown: Sequence[program_profile.Profile],
  drawn: Sequence[program_profile.Profile],
) -> None:
  """Prints profiles, and draws others in the file of --trace."""
  for profile in shown:
    print(profile_report.to_text(profile, machine.platform))
  if args.trace:
    device = f'each of {machine.size} x {machine.chip.name}, estimated'
    trace_file.write(args.trace, drawn, device)
    print(f'{args.trace} opens in ui.perfetto.dev')


def show_recorded(folder: str, name: str | None) -> dict[str, Any]:
  """Prints where the time of a recorded profile went, and the estimate of it.

  Args:
    folder: of jax.profiler.trace.
    name: of a topology, for the speed of its devices; None: not known.

  Returns:
    the figures for --json.
  """
  recording = profiler_trace.read(folder)
  chip = None if name is None else topology.chip_of(name)
  programs = recorded_profile.compare(recording, chip)
  print(recorded_profile.to_text(recording, programs))
  return recorded_profile.to_json(recording, programs)
