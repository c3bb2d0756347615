"""Plan: compile a config's steps for machines you do not have; run nothing.

  python -m sdxl_jax.plan --config configs/stage3.py --topology v5p:2x2x2

Says of each bucket's step, per device: memory, FLOPs, traffic, an estimate of
its time; then whether all fits, and what to change. --search looks for the
largest batch and the least rematerialisation that fit. --sample says the same
of drawing with the config's nets.
"""

import concurrent.futures
import dataclasses
import json
import math
import pathlib

import tqdm
from absl import flags
from ml_collections import config_flags

from sdxl_jax import cli
from sdxl_jax.diffusion import samplers
from sdxl_jax.distributed import device_mesh
from sdxl_jax.planning import cost, machines, sampling_plan, training_plan
from sdxl_jax.sampling import pipelines
from sdxl_jax.training import config_validation, tasks

GIB = 2**30


def choose_buckets(config, choice):
  """'extremes' (the square, widest and tallest), 'all', or 'HxW,HxW'."""
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


def plan(config, name, choice='extremes', threads=1):
  """(Plans of the buckets, peak bytes of the update, Planner)."""
  config_validation.check(config)
  buckets = choose_buckets(config, choice)
  planner = training_plan.Planner(config, name)
  bar = tqdm.tqdm(total=len(buckets) + 1, desc='compiling', unit='program')
  with concurrent.futures.ThreadPoolExecutor(threads) as pool:
    jobs = [pool.submit(planner.gradients, bucket) for bucket in buckets]
    update = pool.submit(planner.update)
    for job in concurrent.futures.as_completed([*jobs, update]):
      bar.update()
      if job is not update:
        bar.write(row(job.result()))
  bar.close()
  return [job.result() for job in jobs], update.result(), planner


def search(config, name, bucket, say):
  """Fields of the config that fit and take the least time per picture.

  Doubles the batch under each rematerialisation until it no longer fits.
  Compiles quickly, so that times compare among themselves only.

  Returns:
    ({field: value}, Plan), or None where nothing fits.

  Raises:
    ValueError: for a machine whose memory and speed are not known.
  """
  planner, found = training_plan.Planner(config, name), []
  if planner.machine.chip.memory is None:
    raise ValueError(
      f'--search needs to know the memory of the devices, and that of {name!r} '
      'is not known: name a machine'
    )
  smallest = device_mesh.row_devices(planner.mesh) * tasks.micro_batches_of(
    config
  )
  for remat in ('none', 'dots', 'full'):
    size = smallest
    while True:
      fields = {
        training_plan.REMAT[config.task]: remat,
        'global_batch_size': size,
      }
      planner = training_plan.Planner(
        training_plan.changed(config, fields), name
      )
      one = planner.gradients(bucket, training_plan.QUICK)
      say(f'  {as_flags(fields)}: {one.memory / GIB:.1f} GiB')
      if not one.fits:
        break
      found.append((one.seconds / one.batch, fields, one))
      size *= 2
  return min(found, key=lambda f: f[0])[1:] if found else None


def as_flags(fields):
  return ' '.join(f'--config.{name}={value}' for name, value in fields.items())


COLUMNS = (
  ('bucket', lambda p: p.bucket),
  ('batch', lambda p: f'{p.batch}'),
  ('GiB', lambda p: f'{p.memory / GIB:.1f}'),
  ('TFLOP/image', lambda p: f'{p.model_flops / 1e12:.1f}'),
  ('with remat', lambda p: f'{p.flops / 1e12:.1f}'),
  ('gathered GB', lambda p: f'{p.collectives.get("all-gather", 0) / 1e9:.1f}'),
  ('reduced GB', lambda p: f'{reduced(p.collectives) / 1e9:.1f}'),
  ('other GB', lambda p: f'{others(p.collectives) / 1e9:.1f}'),
  ('seconds', lambda p: f'{p.seconds:.3f}' if p.seconds else '?'),
  ('MFU', lambda p: f'{p.utilisation:.0%}' if p.utilisation else '?'),
  ('compiled in s', lambda p: f'{p.compile_seconds:.0f}'),
)


def row(p):
  """A Plan in one line, for while the others still compile."""
  return ', '.join(f'{name} {show(p)}' for name, show in COLUMNS)


def reduced(collectives):
  return collectives.get('reduce-scatter', 0) + collectives.get('all-reduce', 0)


def others(collectives):
  counted = collectives.get('all-gather', 0) + reduced(collectives)
  return sum(collectives.values()) - counted


def report(plans, update_peak, planner):
  """All that the command prints of a plan, as text."""
  chip = planner.machine.chip
  state = planner.state
  axes = ', '.join(f'{n}={size}' for n, size in planner.mesh.shape.items())
  limit = (
    f'{chip.memory / GIB:.1f} GiB each' if chip.memory else 'no limit known'
  )
  return '\n'.join(
    [
      f'{planner.machine.size} x {chip.name}, {limit}; mesh {axes}',
      'of each device: parameters '
      f'{machines.bytes_of(state.params) / GIB:.2f} GiB, moments and EMA '
      f'{machines.bytes_of(state.opt_state) / GIB:.2f}, frozen nets '
      f'{machines.bytes_of(planner.frozen) / GIB:.2f}; the update peaks at '
      f'{update_peak / GIB:.1f}',
      cost.table(COLUMNS, plans),
      estimate_method(planner),
      verdict(plans, update_peak, planner),
    ]
  )


def estimate_method(planner):
  """Describes how the seconds were estimated, and of what."""
  method = machines.ESTIMATE_METHOD[planner.machine.platform]
  return f'{method}; {training_plan.OF}'


def verdict(plans, update_peak, planner):
  worst = max(plans, key=lambda p: p.memory)
  peak = max(worst.memory, update_peak)
  most = worst.bucket if peak == worst.memory else 'the update'
  if planner.machine.chip.memory is None:
    return f'Most is taken by {most}: {peak / GIB:.2f} GiB.'
  share = peak / planner.machine.chip.memory
  where = f'{most} takes {share:.0%} of the memory of a device'
  if planner.machine.fits(peak):
    return f'It fits: {where}.'
  limit = f'{1 - machines.MEMORY_HEADROOM:.0%} is the limit'
  return f'It does not fit: {where}, {limit}. {remedy(planner)}'


def remedy(planner):
  """What to change first, by what it costs."""
  config, mesh = planner.config, planner.mesh
  rows = config.global_batch_size // tasks.micro_batches_of(config)
  field = training_plan.REMAT[config.task]
  remat = config_validation.get(config, field)
  if remat != 'full':
    following = {'none': 'dots', 'dots': 'full'}[remat]
    return f'Set --config.{field}={following}.'
  if rows > device_mesh.row_devices(mesh):
    more = config.accumulation_steps * 2
    return f'Set --config.accumulation_steps={more}.'
  if mesh.shape['fsdp'] < planner.machine.size:
    return 'Set --config.mesh.fsdp=-1 --config.mesh.data=1.'
  return 'Take more devices, or some with more memory.'


def plan_sampling(args):
  """Prints what drawing needs."""
  machine = machines.make_machine(args.topology)
  height, width = args.size or args.config.samples.size
  asked = sampling_plan.SampleWorkload(
    batch=args.batch,
    size=(int(height), int(width)),
    steps=args.steps,
    sampler=args.sampler,
    guided=args.guidance_scale > 1,
    tile=args.tile,
    dtype=args.dtype,
    vae_dtype=args.vae_dtype,
    offload=args.offload,
  )
  configs = [c for c in (args.config, args.refiner) if c is not None]
  phases = sampling_plan.plan(machine, configs, asked)
  print(sampling_plan.report(phases, machine, asked))
  if args.json:
    found = [dataclasses.asdict(phase) for phase in phases]
    save_json(args.json, dataclasses.asdict(asked) | {'phases': found})


def main(args):
  if args.sample:
    plan_sampling(args)
    return
  plans, update_peak, planner = plan(
    args.config, args.topology, args.buckets, args.threads
  )
  print(report(plans, update_peak, planner))
  if args.json:
    write_json(args.json, plans, update_peak, planner)
  if args.search:
    worst = max(plans, key=lambda p: p.memory).bucket
    print(f'looking for the best batch at {worst}')
    bucket = tuple(map(int, worst.split('x')))
    best = search(args.config, args.topology, bucket, print)
    print(f'best: {as_flags(best[0])}' if best else 'nothing fits')


def write_json(path, plans, update_peak, planner):
  chip = dataclasses.asdict(planner.machine.chip)
  content = {
    'chip': chip | {'count': planner.machine.size},
    'mesh': dict(planner.mesh.shape),
    'parameter_bytes': machines.bytes_of(planner.state.params),
    'optimizer_bytes': machines.bytes_of(planner.state.opt_state),
    'frozen_bytes': machines.bytes_of(planner.frozen),
    'update_peak': update_peak,
    'method': estimate_method(planner),
    'buckets': [dataclasses.asdict(p) for p in plans],
  }
  save_json(path, content)


def save_json(path, content):
  pathlib.Path(path).write_text(json.dumps(content, indent=2) + '\n')


def define_sampling():
  """Flags of --sample, named as those of the command `sample`."""
  flags.DEFINE_bool('sample', False, 'plan drawing instead of training')
  flags.DEFINE_integer('batch', 1, 'pictures of each device', 1)
  flags.DEFINE_list('size', None, "H,W in px; default: the config's samples'")
  flags.DEFINE_integer('steps', 20, 'sampler steps', 1)
  flags.DEFINE_enum('sampler', 'euler', list(samplers.SAMPLERS), 'sampler')
  flags.DEFINE_float('guidance_scale', 5.0, '1 or less: no guidance')
  flags.DEFINE_integer('tile', None, 'px; decode in tiles', 2)
  dtypes = list(pipelines.DTYPES)
  flags.DEFINE_enum('dtype', 'float32', dtypes, 'of the nets')
  flags.DEFINE_enum('vae_dtype', 'float32', dtypes, 'of the autoencoder')
  flags.DEFINE_bool('offload', False, 'idle nets lie in the memory of the host')
  config_flags.DEFINE_config_file('refiner', None, "a refiner's config")


if __name__ == '__main__':
  config_flags.DEFINE_config_file('config', None, 'a file with get_config()')
  flags.DEFINE_string('topology', None, 'v5p:2x2x2, h100x8, ... or here')
  flags.DEFINE_string('buckets', 'extremes', "or 'all', or 1024x1024,512x2048")
  flags.DEFINE_string('json', None, 'a file to write the same figures to')
  flags.DEFINE_bool('search', False, 'look for the best batch and remat')
  flags.DEFINE_integer('threads', 1, 'compiled at once; each takes up to 10 GB')
  define_sampling()
  flags.mark_flags_as_required(['config', 'topology'])
  cli.run(main)
