"""Plans a config: compiles its steps for a named machine and runs nothing.

  python -m sdxl_jax.plan --config configs/stage3.py --topology v5p:2x2x2

The machine need not be at hand. Prints for the step of each bucket, per device:
memory, FLOPs, traffic and an estimate of the time; then whether all steps fit,
and what to change if not. --search looks for the largest batch and the least
rematerialisation that fit. --sample plans sampling with the config's nets.
--profile shows where the time goes, --trace FILE draws it; --from_trace DIR
shows the same of a profile that JAX recorded. --recipe plans all stages of the
paper: days, chip-hours, what limits them.
"""

import concurrent.futures
import json
import math
import os
import pathlib
from typing import Any

import ml_collections
import tqdm
from absl import flags
from ml_collections import config_flags

from sdxl_jax import cli
from sdxl_jax.models import compute_dtype, stored_kernels
from sdxl_jax.planning import (
  batch_search,
  machines,
  profile_output,
  recipe_plan,
  recipe_report,
  sampling_plan,
  sampling_programs,
  sampling_report,
  training_plan,
  training_report,
)
from sdxl_jax.programs import program_cache
from sdxl_jax.sampling import offload_flag, sample_flags, settings
from sdxl_jax.sampling.settings import SampleSettings
from sdxl_jax.training import config_validation

GIB = 2**30


def choose_buckets(
  config: ml_collections.ConfigDict, choice: str
) -> list[tuple[int, int]]:
  """Returns the (height, width) of the buckets to plan.

  Args:
    config: with data.buckets.
    choice: 'extremes' (the square, widest and tallest), 'all', or 'HxW,HxW'.

  Raises:
    ValueError: for a bucket that the config does not have.
  """
  buckets = [tuple(map(int, bucket)) for bucket in config.data.buckets]
  if choice == 'all':
    return buckets
  if choice == 'extremes':
    by_aspect = sorted(buckets, key=lambda b: b[0] / b[1])
    square = min(buckets, key=lambda b: abs(math.log(b[0] / b[1])))
    return list(dict.fromkeys([square, by_aspect[0], by_aspect[-1]]))
  chosen = [tuple(map(int, name.split('x'))) for name in choice.split(',')]
  unknown = [f'{h}x{w}' for h, w in set(chosen) - set(buckets)]
  if unknown:
    raise ValueError(
      f'--buckets has {", ".join(unknown)}, which config.data.buckets lacks; '
      f'it has {", ".join(f"{h}x{w}" for h, w in buckets)}'
    )
  return chosen


def plan(
  config: ml_collections.ConfigDict,
  name: str,
  choice: str = 'extremes',
  threads: int = 1,
  profiled: bool = False,
) -> training_plan.TrainingPlan:
  """Plans the training of a config.

  Args:
    config: of the run.
    name: of the topology.
    choice: of buckets, see choose_buckets.
    threads: programs compiled at once.
    profiled: whether to find out where the time goes.

  Raises:
    ValueError: for a config that cannot run on the machine, or an unknown
      machine.
  """
  config_validation.check(config)
  buckets = choose_buckets(config, choice)
  planner = training_plan.Planner(config, name, profiled)
  bar = tqdm.tqdm(total=len(buckets) + 1, desc='compiling', unit='program')
  with concurrent.futures.ThreadPoolExecutor(threads) as pool:
    jobs = [pool.submit(planner.gradients, bucket) for bucket in buckets]
    update = pool.submit(planner.update)
    # Print each bucket as soon as it is compiled.
    for job in concurrent.futures.as_completed([*jobs, update]):
      bar.update()
      if job is not update:
        bar.write(training_report.one_line(job.result()))
  bar.close()
  return training_plan.TrainingPlan(
    planner, [job.result() for job in jobs], update.result()
  )


def plan_sampling(args: flags.FlagValues) -> None:
  """Prints what sampling with the config's nets needs."""
  machine = machines.make_machine(args.topology)
  height, width = args.size or args.config.samples.size
  workload = sampling_programs.SampleWorkload(
    SampleSettings(
      height=int(height),
      width=int(width),
      steps=args.steps,
      sampler=args.sampler,
      guidance_scale=args.guidance_scale,
      guidance_interval=sample_flags.parse(
        settings.FIELDS['guidance_interval'], args.guidance_interval
      ),
      tile=args.tile,
    ),
    batch=args.batch,
    dtype=compute_dtype.choose(args.dtype, machine.kind),
    vae_dtype=compute_dtype.choose_vae(args.vae_dtype, machine.kind),
    weights_dtype=args.weights_dtype,
    offload=args.offload,
    host_memory=args.host_memory and int(args.host_memory * GIB),
  )
  # Compile the programs of the base and, if there is one, of the refiner.
  configs = [c for c in (args.config, args.refiner) if c is not None]
  profiled = profile_output.is_wanted(args)
  planned = sampling_plan.plan(machine, configs, workload, profiled)
  print(sampling_report.to_text(planned))
  profile_output.show_sampling(args, planned)
  if args.json:
    save_json(args.json, sampling_report.to_json(planned))


def plan_recipe(args: flags.FlagValues) -> None:
  """Prints what the stages of the paper's recipe take."""
  planned = recipe_plan.plan(args.topology, args.stages, print)
  print(recipe_report.to_text(planned, args.host_images, args.host_gb))
  if args.json:
    save_json(args.json, recipe_report.to_json(planned, args.host_images))


def main(args: flags.FlagValues) -> None:
  """Plans as the flags ask."""
  if args.from_trace:
    figures = profile_output.show_recorded(args.from_trace, args.topology)
    if args.json:
      save_json(args.json, figures)
    return
  if args.topology == 'here':
    program_cache.turn_on()
    print_plan(args)
    return
  # JAX writes programs for absent devices, but cannot read them.
  with program_cache.unused():
    print_plan(args)


def print_plan(args: flags.FlagValues) -> None:
  """Plans sampling or training, and prints what is found."""
  if args.recipe:
    plan_recipe(args)
    return
  if args.sample:
    plan_sampling(args)
    return
  profiled = profile_output.is_wanted(args)
  planned = plan(
    args.config, args.topology, args.buckets, args.threads, profiled
  )
  print(training_report.to_text(planned))
  profile_output.show_training(args, planned)
  if args.json:
    save_json(args.json, training_report.to_json(planned))
  if args.search:
    height, width = map(int, planned.worst.bucket.split('x'))
    search(args, (height, width))


def search(args: flags.FlagValues, bucket: tuple[int, int]) -> None:
  """Prints the fastest settings for the bucket that takes the most memory."""
  print(f'searching for the best batch at {bucket[0]}x{bucket[1]}')
  best = batch_search.search(args.config, args.topology, bucket, print)
  if best is None:
    print('nothing fits')
    return
  print(f'best: {batch_search.as_flags(best.fields)}')
  unrolling = batch_search.unroll(args.config, args.topology, bucket, best)
  print(batch_search.describe(unrolling, args.config.total_steps))


def save_json(path: str | os.PathLike, content: dict[str, Any]) -> None:
  """Writes indented JSON."""
  pathlib.Path(path).write_text(json.dumps(content, indent=2) + '\n')


def define_training() -> None:
  """Defines the flags of training plans, and those of both."""
  config_flags.DEFINE_config_file('config', None, 'file with get_config()')
  flags.DEFINE_string('topology', None, 'v5p:2x2x2, h100x8, ... or here')
  flags.DEFINE_string(
    'buckets', 'extremes', "'extremes', 'all', or 1024x1024,512x2048"
  )
  flags.DEFINE_string('json', None, 'file to write the same figures to')
  flags.DEFINE_bool('search', False, 'search for the best batch and remat')
  flags.DEFINE_integer(
    'threads', 1, 'programs compiled at once, each in up to 10 GB'
  )


def define_sampling() -> None:
  """Defines the flags of --sample, named as those of the command `sample`."""
  flags.DEFINE_bool('sample', False, 'plan sampling instead of training')
  flags.DEFINE_integer('batch', 1, 'images per device', 1)
  flags.DEFINE_list('size', None, 'H,W in px; default: config.samples.size')
  workload = sampling_programs.SampleWorkload()
  defaults = {'steps': workload.settings.steps, 'sampler': workload.sampler}
  for name in (*defaults, 'guidance_scale', 'guidance_interval', 'tile'):
    field = settings.FIELDS[name]
    sample_flags.define_field(field, defaults.get(name, field.default))
  dtypes = list(compute_dtype.CHOICES)
  flags.DEFINE_enum('dtype', 'auto', dtypes, 'of UNet and text encoders')
  flags.DEFINE_enum('vae_dtype', 'auto', dtypes, 'of the autoencoder')
  flags.DEFINE_enum(
    'weights_dtype', None, list(stored_kernels.LARGEST), 'of their kernels'
  )
  flags.DEFINE_flag(offload_flag.make())
  flags.DEFINE_float(
    'host_memory', None, 'GiB of each host for --offload; default: no limit', 0
  )
  config_flags.DEFINE_config_file('refiner', None, "the refiner's config")


def define_recipe() -> None:
  """Defines the flags of --recipe."""
  stages = list(recipe_plan.STAGES)
  flags.DEFINE_bool('recipe', False, "plan the paper's stages, on its batches")
  flags.DEFINE_multi_enum('stages', stages, stages, 'those to plan')
  flags.DEFINE_float(
    'host_images', None, "images/s that a host's pipeline delivers", 0
  )
  flags.DEFINE_float('host_gb', 1.0, 'GB that a host writes in a second', 0)


if __name__ == '__main__':
  define_training()
  define_sampling()
  define_recipe()
  profile_output.define_flags()
  flags.adopt_module_key_flags(profile_output)  # so that --help lists them
  cli.define_cache_dir()
  cli.run(main)
