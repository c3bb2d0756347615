"""Plan: compile a config's steps for machines you do not have; run nothing.

  python -m sdxl_jax.plan --config configs/stage3.py --topology v5p:2x2x2

Says of each bucket's step, per device: memory, FLOPs, traffic, an estimate of
its time; then whether all fits, and what to change. --search looks for the
largest batch and the least rematerialisation that fit.
"""

import concurrent.futures
import dataclasses
import json
import math
import pathlib
import sys
import time

import jax
import tqdm
from absl import app, flags
from ml_collections import config_flags

from sdxl_jax.distributed import cost, sharding, topology
from sdxl_jax.distributed import mesh as meshes
from sdxl_jax.training import limits
from sdxl_jax.training import task as tasks

GIB = 2**30
# Of the chip's memory, for what no compiler counts: fragments, other programs.
SPARE = 0.05
# Heads of 64 fill half of a matrix unit that is 128 wide, so that fused
# attention can reach half of the peak at best.
KERNEL_SHARE = 0.5
# A GPU's compiler estimates no time. Large matmuls reach about 70 % there.
GPU_SHARE = 0.7
# The compiler then takes a fifth of its time; programs need as much memory.
QUICK = {'exec_time_optimization_effort': -1.0}
METHOD = {
  'tpu': 'time: the cycles that the TPU compiler estimates, fused attention at '
  f'{KERNEL_SHARE} of the peak, and what the collectives move over the links, '
  'one after another',
  'gpu': f'time: FLOPs at {GPU_SHARE} of the peak or bytes at full bandwidth, '
  'whichever takes longer, and what the collectives move, one after another. '
  "Planned with XLA's attention; cuDNN's takes less memory and traffic",
  'cpu': 'no figures of this machine are known, so no time',
}


@dataclasses.dataclass(frozen=True)
class Plan:
  """What one bucket's step needs, per device unless said otherwise."""

  bucket: str  # heightxwidth
  batch: int  # pictures per device and micro-batch
  memory: int  # bytes at the peak, all that lives then
  fits: bool
  model_flops: float  # per picture, without rematerialisation
  flops: float  # per picture, as compiled
  collectives: dict  # {kind: bytes received}
  seconds: float | None  # of the gradients of one micro-batch
  utilisation: float | None  # model FLOPs over the chip's peak (MFU)
  compile_seconds: float


class Planner:
  """Compiles the steps of a config for the devices of a topology."""

  def __init__(self, config, name):
    self.devices, self.chip = topology.make_devices(name)
    self.platform = platform(self.devices)
    self.mesh = meshes.make_mesh(
      config.mesh.data, config.mesh.fsdp, config.mesh.tensor, self.devices
    )
    tasks.check_mesh(config, self.mesh)
    self.config = config
    self.task, self.state, self.frozen = self.make(config)
    self.plain, *_ = self.make(changed(config, {'unet.remat': 'none'}))

  def make(self, config):
    # Asking cuDNN needs its device, so GPUs are planned with XLA's attention.
    if self.platform == 'gpu' and config.unet.attention in ('auto', 'cudnn'):
      config = changed(config, {'unet.attention': 'xla'})
    nets = tasks.make_nets(config, self.platform)
    task = tasks.make_task(config, nets)
    key = jax.random.key(0)
    params = jax.eval_shape(nets.init, key)
    frozen = {name: params[name] for name in nets.configs}
    frozen = {n: x for n, x in frozen.items() if n not in config.trained}
    place = lambda tree: sharding.with_shardings(tree, self.mesh)
    return task, place(jax.eval_shape(task.init, key)), place(frozen)

  def update(self, options=None):
    """Peak of the update, with what lives beside it."""
    compiled = tasks.compile_update(self.task, self.mesh, self.state, options)
    return cost.memory(compiled).peak + bytes_of(self.frozen)

  def gradients(self, bucket, options=None):
    """The Plan of a bucket."""
    started = time.monotonic()
    args = self.task, self.mesh, self.state.params, self.frozen, bucket
    compiled = tasks.compile_gradients(*args, options)
    compile_seconds = time.monotonic() - started
    text, peak = compiled.as_text(), cost.memory(compiled).peak
    # Not among its arguments, but there: moments and EMA, the sum of the parts
    # before, and the next batch on its way.
    batch, *_ = tasks.example_batch(self.task, self.mesh, bucket)
    peak += bytes_of(self.state.opt_state) + bytes_of(batch)
    if self.task.parts > 1:
      peak += bytes_of(self.state.params)
    traced = tasks.trace_gradients(*args)
    plain = tasks.trace_gradients(self.plain, *args[1:])
    rows = self.config.global_batch_size // self.task.parts
    model_flops = cost.flops(plain)
    seconds = self.seconds(text, traced)
    peak_flops = seconds and self.chip.flops * len(self.devices) * seconds
    return Plan(
      bucket=f'{bucket[0]}x{bucket[1]}',
      batch=rows // meshes.row_devices(self.mesh),
      memory=peak,
      fits=self.fits(peak),
      model_flops=model_flops / rows,
      flops=cost.flops(traced) / rows,
      collectives=cost.collectives(text),
      seconds=seconds,
      utilisation=seconds and model_flops / peak_flops,
      compile_seconds=compile_seconds,
    )

  def fits(self, peak):
    return self.chip.memory is None or peak <= (1 - SPARE) * self.chip.memory

  def seconds(self, text, traced):
    """The estimate that METHOD describes."""
    chip, moved = self.chip, sum(cost.collectives(text).values())
    kernels = cost.flops_by_kernel(traced)
    matmuls = kernels.pop(None, 0) / len(self.devices)
    fused = sum(kernels.values()) / len(self.devices)
    if self.platform == 'tpu':
      estimated = cost.cycles(text).estimated / chip.clock
      kernel = fused / (KERNEL_SHARE * chip.flops)
      return estimated + kernel + moved / chip.link
    if self.platform == 'gpu':
      compute = matmuls / (GPU_SHARE * chip.flops)
      memory = cost.bytes_accessed(text) / chip.bandwidth
      return max(compute, memory) + moved / chip.link
    return None


def platform(devices):
  return {'cuda': 'gpu'}.get(devices[0].platform, devices[0].platform)


def changed(config, fields):
  config = config.copy_and_resolve_references()
  config.update_from_flattened_dict(fields)
  return config


def bytes_of(tree):
  """Of the arrays on one device."""
  local = lambda x: x.sharding.shard_shape(x.shape)
  return sum(
    math.prod(local(x)) * x.dtype.itemsize for x in jax.tree.leaves(tree)
  )


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
  limits.check(config)
  buckets = choose_buckets(config, choice)
  planner = Planner(config, name)
  bar = tqdm.tqdm(total=len(buckets) + 1, desc='compiling', unit='program')
  with concurrent.futures.ThreadPoolExecutor(threads) as pool:
    jobs = [pool.submit(planner.gradients, bucket) for bucket in buckets]
    update = pool.submit(planner.update)
    for _ in concurrent.futures.as_completed([*jobs, update]):
      bar.update()
  bar.close()
  return [job.result() for job in jobs], update.result(), planner


def search(config, name, bucket, say):
  """Fields of the config that fit and take the least time per picture.

  Doubles the batch under each rematerialisation until it no longer fits.
  Compiles quickly, so that times compare among themselves only.

  Returns:
    ({field: value}, Plan), or None where nothing fits.
  """
  found = []
  for remat in ('none', 'dots', 'full'):
    rows = meshes.row_devices(Planner(config, name).mesh)
    size = rows * tasks.parts_of(config)
    while True:
      fields = {'unet.remat': remat, 'global_batch_size': size}
      one = Planner(changed(config, fields), name).gradients(bucket, QUICK)
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


def reduced(collectives):
  return collectives.get('reduce-scatter', 0) + collectives.get('all-reduce', 0)


def others(collectives):
  counted = collectives.get('all-gather', 0) + reduced(collectives)
  return sum(collectives.values()) - counted


def table(plans):
  rows = [[name for name, _ in COLUMNS]]
  rows += [[show(p) for _, show in COLUMNS] for p in plans]
  widths = [max(map(len, column)) for column in zip(*rows)]
  line = lambda row: '  '.join(x.rjust(w) for x, w in zip(row, widths))
  return '\n'.join(map(line, rows))


def report(plans, update_peak, planner):
  """All that the command prints of a plan, as text."""
  chip, devices = planner.chip, planner.devices
  state = planner.state
  axes = ', '.join(f'{n}={size}' for n, size in planner.mesh.shape.items())
  limit = (
    f'{chip.memory / GIB:.1f} GiB each' if chip.memory else 'no limit known'
  )
  return '\n'.join(
    [
      f'{len(devices)} x {chip.name}, {limit}; mesh {axes}',
      'of each device: parameters '
      f'{bytes_of(state.params) / GIB:.2f} GiB, moments and EMA '
      f'{bytes_of(state.opt_state) / GIB:.2f}, frozen nets '
      f'{bytes_of(planner.frozen) / GIB:.2f}; the update peaks at '
      f'{update_peak / GIB:.1f}',
      table(plans),
      METHOD[planner.platform],
      verdict(plans, update_peak, planner),
    ]
  )


def verdict(plans, update_peak, planner):
  worst = max(plans, key=lambda p: p.memory)
  peak = max(worst.memory, update_peak)
  if planner.chip.memory is None:
    return f'The worst bucket is {worst.bucket}, at {peak / GIB:.2f} GiB.'
  share = peak / planner.chip.memory
  where = f'{worst.bucket} takes {share:.0%} of the memory of a device'
  if planner.fits(peak):
    return f'It fits: {where}.'
  return f'It does not fit: {where}, {1 - SPARE:.0%} is the limit. ' + remedy(
    planner
  )


def remedy(planner):
  """What to change first, by what it costs."""
  config, mesh = planner.config, planner.mesh
  rows = config.global_batch_size // tasks.parts_of(config)
  if config.unet.remat != 'full':
    following = {'none': 'dots', 'dots': 'full'}[config.unet.remat]
    return f'Set --config.unet.remat={following}.'
  if rows > meshes.row_devices(mesh):
    more = config.accumulation_steps * 2
    return f'Set --config.accumulation_steps={more}.'
  if mesh.shape['fsdp'] < len(planner.devices):
    return 'Set --config.mesh.fsdp=-1 --config.mesh.data=1.'
  return 'Take more devices, or some with more memory.'


def main(argv):
  del argv
  args = flags.FLAGS
  try:
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
  except (ValueError, OSError) as error:
    sys.exit(f'error: {error}')


def write_json(path, plans, update_peak, planner):
  chip = dataclasses.asdict(planner.chip)
  content = {
    'chip': chip | {'count': len(planner.devices)},
    'mesh': dict(planner.mesh.shape),
    'parameter_bytes': bytes_of(planner.state.params),
    'optimizer_bytes': bytes_of(planner.state.opt_state),
    'frozen_bytes': bytes_of(planner.frozen),
    'update_peak': update_peak,
    'method': METHOD[planner.platform],
    'buckets': [dataclasses.asdict(p) for p in plans],
  }
  pathlib.Path(path).write_text(json.dumps(content, indent=2) + '\n')


if __name__ == '__main__':
  config_flags.DEFINE_config_file('config', None, 'a file with get_config()')
  flags.DEFINE_string('topology', None, 'v5p:2x2x2, h100x8, ... or here')
  flags.DEFINE_string('buckets', 'extremes', "or 'all', or 1024x1024,512x2048")
  flags.DEFINE_string('json', None, 'a file to write the same figures to')
  flags.DEFINE_bool('search', False, 'look for the best batch and remat')
  flags.DEFINE_integer('threads', 1, 'compiled at once; each takes up to 10 GB')
  flags.mark_flags_as_required(['config', 'topology'])
  app.run(main)
