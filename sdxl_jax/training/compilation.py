"""Compiles each bucket's program once, in threads that run during training."""

import concurrent.futures
import contextlib
import functools
import threading
import time
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from sdxl_jax.diffusion import timestep_importance
from sdxl_jax.distributed import device_mesh, sharding
from sdxl_jax.programs import compile_progress
from sdxl_jax.training import train_state

# Compiler options by platform. By default the TPU's compiler turns each product
# with parameters that fsdp has spread out into a loop over their parts, which
# are too thin for its matrix units: ten blocks at 1024 tokens, forward and
# backward, then take 34 M cycles per image instead of 19 M (8 images per chip
# of v5p:2x2x2).
OPTIONS = {
  'tpu': {
    'xla_tpu_enable_windowed_einsum_for_all_gather': 'false',
    'xla_tpu_enable_windowed_einsum_for_reduce_scatter': 'false',
  }
}

POLL_S = 0.2  # between two looks for an interruption

Bucket = tuple[int, int]  # (height, width) in px


class Interrupted(Exception):
  """The run was told to stop while it waited for a program."""


def never() -> bool:
  """Returns False: nothing interrupts."""
  return False


class Programs:
  """The programs of a task: compiled, or being compiled in threads.

  Args:
    task: what is trained.
    mesh: of all devices.
    state, frozen: trees of jax.ShapeDtypeStruct with shardings.
    buckets: (height, width) in the order in which the schedule needs them.
    threads: programs compiled at once.
    say: prints a line for the user.
  """

  def __init__(
    self,
    task: train_state.Task,
    mesh: jax.sharding.Mesh,
    state: train_state.State,
    frozen: dict[str, Any],
    buckets: list[Bucket],
    threads: int,
    say: Callable[[str], None],
  ):
    self._task, self._mesh = task, mesh
    self._state, self._frozen = state, frozen
    # Threads suffice, since XLA compiles without holding Python's lock.
    self._pool = concurrent.futures.ThreadPoolExecutor(threads)
    self._say, self._lock = say, threading.Lock()
    self._ready, self._total = 0, len(buckets)
    # The first step needs one bucket and the update; the others can wait.
    first, *others = buckets
    self._gradients = {first: self._pool.submit(self._compile_bucket, first)}
    self._update = self._pool.submit(self._compile_update)
    # A single micro-batch has nothing to be added to.
    if task.micro_batches > 1:
      self._add = self._pool.submit(self._compile_add)
    for bucket in others:
      future = self._pool.submit(self._compile_bucket, bucket)
      self._gradients[bucket] = future

  def _compile_bucket(self, bucket):
    params, frozen = self._state.params, self._frozen
    with self._reporting(f'{bucket[0]}x{bucket[1]}', buckets=1):
      return compile_gradients(self._task, self._mesh, params, frozen, bucket)

  def _compile_update(self):
    with self._reporting('the update'):
      return compile_update(self._task, self._mesh, self._state)

  def _compile_add(self):
    with self._reporting('the sum'):
      return compile_add(self._task.trained(self._state.params))

  @contextlib.contextmanager
  def _reporting(self, name, buckets=0):
    """Prints a line about a compiled program; `buckets` of them are new."""
    started = time.monotonic()
    with compile_progress.naming(name, is_reported=True) as stage:
      yield
    seconds = time.monotonic() - started
    made = 'read' if stage.was_kept else 'compiled'
    # Under a lock, so that the numbers in the lines ascend.
    with self._lock:
      self._ready += buckets
      self._say(
        f'{made} {name} in {seconds:.0f} s; buckets ready: {self._ready} of '
        f'{self._total}'
      )

  def gradients(
    self, bucket: Bucket, interrupted: Callable[[], bool] = never
  ) -> Callable:
    """Returns the program of a bucket; waits until it is compiled.

    Args:
      bucket: (height, width) in px.
      interrupted: whether to give up waiting.

    Raises:
      ValueError: for a bucket that was not announced; nothing is compiled.
      Interrupted: if waiting was given up, as for the programs below.
    """
    if bucket not in self._gradients:
      raise ValueError(
        f'a batch has the size {bucket}, for which nothing was compiled; the '
        f'buckets are {sorted(self._gradients)}'
      )
    return wait(self._gradients[bucket], interrupted)

  def add(self, interrupted: Callable[[], bool] = never) -> Callable:
    """Returns the program that sums gradients of two micro-batches."""
    return wait(self._add, interrupted)

  def update(self, interrupted: Callable[[], bool] = never) -> Callable:
    """Returns the program that updates the state."""
    return wait(self._update, interrupted)

  def close(self) -> None:
    """Cancels what has not begun to compile."""
    self._pool.shutdown(wait=False, cancel_futures=True)


def wait(
  future: concurrent.futures.Future, interrupted: Callable[[], bool]
) -> Callable:
  """Returns a program once it is compiled.

  Raises:
    Interrupted: if that is wanted before.
  """
  while not concurrent.futures.wait([future], POLL_S).done:
    if interrupted():
      raise Interrupted
  return future.result()


def compile_gradients(
  task: train_state.Task,
  mesh: jax.sharding.Mesh,
  params: dict[str, Any],
  frozen: dict[str, Any],
  bucket: Bucket,
  options: dict[str, str] | None = None,
  keep_unused: bool = False,
) -> jax.stages.Compiled:
  """Compiles task.gradients ahead of time for one bucket.

  Args:
    task: what is trained.
    mesh: of all devices.
    params, frozen: trees of jax.ShapeDtypeStruct with shardings.
    bucket: (height, width) in px.
    options: {name: value} for the compiler, in addition to OPTIONS.
    keep_unused: see `trace_gradients`.

  Returns:
    gradients(params, frozen, batch, key, micro_step), and the scale where the
    task is scaled, which accepts the shapes of this bucket only.
  """
  options = OPTIONS.get(device_mesh.platform(mesh), {}) | (options or {})
  traced = trace_gradients(task, mesh, params, frozen, bucket, keep_unused)
  return traced.lower().compile(options)


def trace_gradients(
  task: train_state.Task,
  mesh: jax.sharding.Mesh,
  params: dict[str, Any],
  frozen: dict[str, Any],
  bucket: Bucket,
  keep_unused: bool = False,
) -> jax.stages.Traced:
  """Traces task.gradients for one bucket, without compiling it.

  Args:
    task: what is trained.
    mesh: of all devices.
    params, frozen: trees of jax.ShapeDtypeStruct with shardings.
    bucket: (height, width) in px.
    keep_unused: whether the memory of the program counts arrays that it does
      not read, which are on the devices nevertheless.
  """
  gradients = jax.jit(
    task.gradients,
    out_shardings=(
      shardings_of(task.trained(params)),
      sharding.replicated(mesh),
    ),
    keep_unused=keep_unused,
  )
  batch, *others = example_batch(task, mesh, bucket)
  # Fused kernels need the mesh as a context; activations keep their sharding.
  keep_rows = sharding.keep_rows(mesh, len(batch['target_size']))
  with jax.set_mesh(mesh), nn.intercept_methods(keep_rows):
    return gradients.trace(params, frozen, batch, *others)


def example_batch(
  task: train_state.Task, mesh: jax.sharding.Mesh, bucket: Bucket
) -> tuple[Any, ...]:
  """Shapes and shardings of what follows (params, frozen) in `gradients`.

  Returns:
    (batch, key, micro_step), and the scale where the task is scaled.
  """

  def placed(shapes, place):
    return jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), shapes
    )

  # Rows are sharded over the devices; all have the same key and number.
  replicated = sharding.replicated(mesh)
  key = jax.eval_shape(lambda: jax.random.key(0))
  micro_step = jax.ShapeDtypeStruct((), jnp.int32)
  scale = jax.ShapeDtypeStruct((), jnp.float32)
  scalars = (key, micro_step, scale) if task.is_scaled else (key, micro_step)
  return (
    placed(task.batch_spec(bucket), sharding.batch_sharding(mesh))
    | sharding.with_shardings(task.shared, mesh),
    *placed(scalars, replicated),
  )


def compile_add(
  params: Any, options: dict[str, str] | None = None
) -> jax.stages.Compiled:
  """Compiles (a, b) -> a + b of gradients by `params`; a is donated."""
  add = jax.jit(
    lambda a, b: jax.tree.map(jnp.add, a, b),
    out_shardings=shardings_of(params),
    donate_argnums=0,
  )
  return add.lower(params, params).compile(options)


def compile_update(
  task: train_state.Task,
  mesh: jax.sharding.Mesh,
  state: train_state.State,
  options: dict[str, str] | None = None,
) -> jax.stages.Compiled:
  """Compiles task.update ahead of time; the state is donated."""
  return trace_update(task, mesh, state).lower().compile(options)


def trace_update(
  task: train_state.Task, mesh: jax.sharding.Mesh, state: train_state.State
) -> jax.stages.Traced:
  """Traces task.update, without compiling it."""
  update = jax.jit(
    task.update,
    out_shardings=(shardings_of(state), sharding.replicated(mesh)),
    donate_argnums=0,
  )
  return update.trace(state, task.trained(state.params))


@functools.cache
def observer(place: jax.sharding.Sharding) -> Callable:
  """Returns timestep_importance.observe as a program.

  Args:
    place: of the loss history, before and after.
  """
  return jax.jit(timestep_importance.observe, out_shardings=place)


def shardings_of(shapes: Any) -> Any:
  """The shardings of a tree of jax.ShapeDtypeStruct."""
  return jax.tree.map(lambda x: x.sharding, shapes)
