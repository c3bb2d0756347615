"""Every bucket's program, compiled once, in threads beside the training."""

import concurrent.futures
import time

import flax.linen as nn
import jax
import jax.numpy as jnp

from sdxl_jax.distributed import device_mesh, sharding

# What compilers are told. Left alone, the TPU's makes of each product with
# parameters that fsdp spread out a loop over their parts, too thin for its
# matrix units: ten blocks at 1024 tokens, forward and backward, then take 34 M
# cycles per picture instead of 19 M (8 pictures per chip of v5p:2x2x2).
OPTIONS = {
  'tpu': {
    'xla_tpu_enable_windowed_einsum_for_all_gather': 'false',
    'xla_tpu_enable_windowed_einsum_for_reduce_scatter': 'false',
  }
}


class Programs:
  """The compiled programs of a task, ready or on their way.

  Args:
    task: state.Task.
    mesh: of all devices.
    state, frozen: trees of jax.ShapeDtypeStruct with shardings.
    buckets: (height, width) in the order in which the schedule needs them.
    threads: programs compiled at once.
    say: takes a line for the user.
  """

  def __init__(self, task, mesh, state, frozen, buckets, threads, say):
    self._pool = concurrent.futures.ThreadPoolExecutor(threads)
    self._say, self._total = say, len(buckets)
    submit = lambda name, make, *args: self._pool.submit(
      self._timed, name, make, *args
    )
    gradients = lambda bucket: submit(
      f'{bucket[0]}x{bucket[1]}',
      *(
        compile_gradients,
        task,
        mesh,
        state.params,
        frozen,
        bucket,
      ),
    )
    # The first step needs one bucket and the update; the others can wait.
    first, *others = buckets
    self._gradients = {first: gradients(first)}
    self._update = submit('the update', compile_update, task, mesh, state)
    if task.parts > 1:
      self._add = submit('the sum', compile_add, state.params)
    self._gradients |= {bucket: gradients(bucket) for bucket in others}

  def _timed(self, name, make, *args):
    start = time.monotonic()
    compiled = make(*args)
    done = sum(f.done() for f in self._gradients.values())
    seconds = time.monotonic() - start
    self._say(
      f'compiled {name} in {seconds:.0f} s; buckets ready: {done} of '
      f'{self._total}'
    )
    return compiled

  def gradients(self, bucket):
    """The program of a bucket, waited for if need be.

    Raises:
      ValueError: for a bucket that was not announced; nothing is compiled.
    """
    if bucket not in self._gradients:
      raise ValueError(
        f'a batch has the size {bucket}, for which nothing was compiled; the '
        f'buckets are {sorted(self._gradients)}'
      )
    return self._gradients[bucket].result()

  @property
  def add(self):
    return self._add.result()

  @property
  def update(self):
    return self._update.result()

  def close(self):
    """Gives up what is not yet begun."""
    self._pool.shutdown(wait=False, cancel_futures=True)


def compile_gradients(task, mesh, params, frozen, bucket, options=None):
  """task.gradients, compiled ahead for one bucket.

  Args:
    task: state.Task.
    mesh: of all devices.
    params, frozen: trees of jax.ShapeDtypeStruct with shardings.
    bucket: (height, width) in px.
    options: {name: value} for the compiler, besides OPTIONS.

  Returns:
    gradients(params, frozen, batch, key, part); any other shape is refused.
  """
  options = OPTIONS.get(device_mesh.platform(mesh), {}) | (options or {})
  traced = trace_gradients(task, mesh, params, frozen, bucket)
  return traced.lower().compile(options)


def trace_gradients(task, mesh, params, frozen, bucket):
  """As compile_gradients, but only the jax.stages.Traced, with its jaxpr."""
  gradients = jax.jit(
    task.gradients, out_shardings=(places(params), sharding.replicated(mesh))
  )
  batch, key, part = example_batch(task, mesh, bucket)
  keep_rows = sharding.keep_rows(mesh, len(batch['target_size']))
  with jax.set_mesh(mesh), nn.intercept_methods(keep_rows):
    return gradients.trace(params, frozen, batch, key, part)


def example_batch(task, mesh, bucket):
  """Shapes and shardings of (batch, key, part), as gradients takes them."""
  spec = lambda place: (
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place)
  )
  rows = spec(sharding.batch_sharding(mesh))
  key = jax.eval_shape(lambda: jax.random.key(0))
  everywhere = spec(sharding.replicated(mesh))
  part = everywhere(jax.ShapeDtypeStruct((), jnp.int32))
  return jax.tree.map(rows, task.batch_spec(bucket)), everywhere(key), part


def compile_add(params, options=None):
  """(a, b) -> a + b over trees of gradients; a is spent."""
  add = jax.jit(
    lambda a, b: jax.tree.map(jnp.add, a, b),
    out_shardings=places(params),
    donate_argnums=0,
  )
  return add.lower(params, params).compile(options)


def compile_update(task, mesh, state, options=None):
  """task.update, compiled ahead; the state given is spent."""
  update = jax.jit(
    task.update,
    out_shardings=(places(state), sharding.replicated(mesh)),
    donate_argnums=0,
  )
  return update.lower(state, state.params).compile(options)


def places(shapes):
  return jax.tree.map(lambda x: x.sharding, shapes)
