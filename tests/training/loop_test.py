"""The loop waits for the device nowhere but where it must; its samples."""

import contextlib
import json
import threading
import types

import jax.numpy as jnp
import numpy as np
import pytest

from sdxl_jax.evaluation import reconstruction
from sdxl_jax.models import autoencoder_gan
from sdxl_jax.sampling import finiteness
from sdxl_jax.training import (
  background,
  loop,
  metrics_writer,
  placing,
  sample_grid,
  tasks,
  train_state,
)
from tests.support import autoencoder_config, tiny_config

LONG = 10  # s until a wait without end is taken for one
STEPS, SAVED, SHOWN = 7, 3, 5  # of a run, between checkpoints, and samples


class Result:
  """A number that the device has yet to compute."""

  def __init__(self, value, done):
    self.value, self.done = value, done

  def __array__(self, dtype=None, copy=None):
    assert self.done.wait(2 * LONG), 'the device never came to it'
    return np.float32(self.value)


class Device:
  """Ends each step only once the host has the following ones ready.

  Before a step ends, the one after it must be dispatched, and the first batch
  of that after the next be placed: else the host waits for the device, and the
  step is noted in `waited_for`.
  """

  def __init__(self, micro_batches):
    self.micro_batches, self.waited_for = micro_batches, []
    events = [[threading.Event() for _ in range(STEPS)] for _ in range(3)]
    self.dispatched, self.placed, self.done = events
    threading.Thread(target=self.work, daemon=True).start()

  def work(self):
    for step, done in enumerate(self.done):
      self.dispatched[step].wait(2 * LONG)
      needed = [*self.dispatched[step + 1 :][:1], *self.placed[step + 2 :][:1]]
      # A checkpoint and samples need the State, and that its loss is known.
      is_free = not (step + 1) % SAVED or not (step + 1) % SHOWN
      if not is_free and not all([event.wait(LONG) for event in needed]):
        self.waited_for.append(step)
      done.set()

  def put_batch(self, batch, mesh, spec):
    if batch % self.micro_batches == 0:
      self.placed[batch // self.micro_batches].set()
    return {'number': batch}

  def gradients(self, params, frozen, batch, key, micro_step):
    number = batch['number']
    assert int(micro_step) == number, 'batches come in their order'
    return 'sum', {'loss': self.result(number, number // self.micro_batches)}

  def update(self, state, gradients):
    self.dispatched[state.step].set()
    return state_after(state.step + 1), {
      'grad_norm': self.result(0, state.step)
    }

  def result(self, value, step):
    return Result(value, self.done[step])


def state_after(step):
  return types.SimpleNamespace(
    step=step, params={}, opt_state=(), scale=(), shared={}
  )


class Batches:
  """The data: batches are their numbers."""

  def __init__(self):
    self.numbers = iter(range(1000))

  def __next__(self):
    return (16, 16), next(self.numbers)

  def get_state(self, batches):
    return {'batches': batches}

  def counts(self):
    return {}


def make_run(workdir, device, config):
  """Makes a Run on a Device that is none."""

  def program(function):
    return lambda *_: function

  programs = types.SimpleNamespace(
    gradients=program(device.gradients),
    add=program(lambda a, b: a),
    update=program(device.update),
  )
  values = {
    'config': config,
    'workdir': workdir,
    'mesh': None,
    'task': train_state.Task(
      None, None, None, lambda bucket: None, device.micro_batches
    ),
    'frozen': {},
    'key': None,
    'batches': Batches(),
    'dataset': {},
    'programs': programs,
    'sample_grid': types.SimpleNamespace(
      render=lambda params: np.zeros((8, 8, 3), np.uint8)
    ),
    'checkpoint_config': types.SimpleNamespace(make=lambda params: {}),
    'check_workdir': lambda: None,
  }
  return loop.Run(**values)


@pytest.mark.parametrize('micro_batches', [1, 2])
def test_the_device_never_waits(tmp_path, monkeypatch, micro_batches):
  """The next step is dispatched, and a batch more placed, while one runs."""
  device, saved, written = Device(micro_batches), [], []
  config = tiny_config.get_config().unlock()
  config.update(total_steps=STEPS, accumulation_steps=micro_batches)
  config.checkpoint.every, config.checkpoint.keep_every = SAVED, 0
  config.samples.every = SHOWN
  run = make_run(tmp_path, device, config)
  monkeypatch.setattr(placing.sharding, 'put_batch', device.put_batch)
  monkeypatch.setattr(loop.transform, 'averaged', lambda *_: {})
  monkeypatch.setattr(loop.ema_distance, 'of_line', lambda *_: {})
  unmoved = types.SimpleNamespace(
    follow=lambda *_: None, is_due=lambda done: False
  )
  monkeypatch.setattr(loop.tasks, 'make_movement', lambda *_: unmoved)

  # Samples are written while the next step runs already.
  def save_image(path, image):
    written.append((path.name, device.dispatched[SHOWN].wait(LONG)))

  monkeypatch.setattr(loop.images, 'save', save_image)

  # Numbers of a real device would wait for what it was asked before.
  def wait_for_all(self):
    raise AssertionError('the loop computes a number on the device')

  computed = tasks.LearningRates(config, 0)
  monkeypatch.setattr(loop.tasks, 'LearningRates', lambda *_: computed)
  checkpoints = types.SimpleNamespace(
    save=lambda done, state, data, config: saved.append(
      (done, state.step, data['batches'])
    )
  )
  notice = types.SimpleNamespace(
    interrupts=lambda: False,
    save_first=lambda: None,
    requested=lambda done: False,
  )
  recorder = types.SimpleNamespace(
    before_step=lambda state: None, close=lambda state: None
  )
  start = run, state_after(0), 0, checkpoints
  with (
    contextlib.closing(metrics_writer.Writer(tmp_path, 0, STEPS)) as writer,
    monkeypatch.context() as patch,
  ):
    for name in ('__float__', '__int__', '__bool__', '__array__'):
      patch.setattr(type(jnp.zeros(())), name, wait_for_all)
    done = loop.loop(*start, writer, notice, recorder)
  assert done == STEPS and device.waited_for == []
  assert saved == [(3, 3, 3), (6, 6, 6), (7, 7, 7)]
  assert written == [('0000005.png', True), ('0000007.png', True)]
  lines = (tmp_path / 'metrics.jsonl').read_text().splitlines()
  losses = [json.loads(line)['loss'] for line in lines]
  mean = (micro_batches - 1) / 2
  assert losses == [step * micro_batches + mean for step in range(STEPS)]


def test_samples_that_are_not_finite_are_left_out(tmp_path, monkeypatch):
  said = []
  run = object.__new__(loop.Run)
  grid = object.__new__(sample_grid.SampleGrid)
  for name, value in (('sample_grid', grid), ('workdir', tmp_path)):
    object.__setattr__(run, name, value)
  writer = object.__new__(metrics_writer.Writer)
  monkeypatch.setattr(
    metrics_writer.Writer, 'say', lambda self, line: said.append(line)
  )
  monkeypatch.setattr(
    metrics_writer.Writer, 'image', lambda *args: said.append('shown')
  )
  monkeypatch.setattr(loop.transform, 'averaged', lambda *_: {})
  state = train_state.State(jnp.int32(7), {}, ())
  aside = background.Background()
  reporter = types.SimpleNamespace(
    flush=lambda: None, aside=contextlib.nullcontext, writer=writer
  )

  def fail(self, params):
    raise finiteness.NonFiniteError('image 1 of 2 has NaN')

  monkeypatch.setattr(sample_grid.SampleGrid, 'render', fail)
  loop.write_samples(run, state, 7, reporter, aside)
  assert said == ['warning: no samples of step 7: image 1 of 2 has NaN']
  assert not list(tmp_path.rglob('*.png'))

  # Finite ones are written.
  monkeypatch.setattr(
    sample_grid.SampleGrid,
    'render',
    lambda self, params: np.zeros((8, 8, 3), np.uint8),
  )
  loop.write_samples(run, state, 8, reporter, aside)
  aside.close()
  assert said[1:] == ['shown']
  assert (tmp_path / 'samples' / '0000008.png').is_file()


def test_reconstructions_that_are_not_finite_are_no_grid(monkeypatch):
  config = autoencoder_config.get_config()
  images = np.zeros((2, 16, 16, 3), np.float32)
  model = object.__new__(autoencoder_gan.AutoencoderGAN)
  grid = sample_grid.SampleGrid(config, model, {}, images)
  for value, bad in ((0.5, False), (np.nan, True)):
    made = jnp.asarray(images).at[1, 3].set(value)
    monkeypatch.setattr(
      reconstruction, 'reconstruct', lambda *args, made=made: (made, None)
    )
    if not bad:
      assert grid.render({}).dtype == np.uint8
      continue
    with pytest.raises(finiteness.NonFiniteError, match='1 of 2 reconstruct'):
      grid.render({})
