"""Where the loop's state lies, and that no device waits for a report."""

import types

import jax
import jax.numpy as jnp
import numpy as np

from sdxl_jax.checkpoints import loading
from sdxl_jax.diffusion import samplers
from sdxl_jax.sampling import (
  denoising_loop,
  phase_clock,
  pipelines,
  prompt_encoding,
  step_net,
  step_segments,
)


def test_the_state_lies_where_the_steps_leave_it():
  shape = {'unet': {'scale': jax.ShapeDtypeStruct((2,), np.float32)}}
  place = loading.make_sharding_fn(mesh=None)(shape)['unet']['scale'].sharding
  params = {'unet': {'scale': jax.device_put(np.ones(2, np.float32), place)}}
  x = np.ones((1, 4, 4, 2), np.float32)
  state = samplers.init_state(samplers.SAMPLERS['dpmpp_3m'], x)
  state = denoising_loop.place_state(state, params, mesh=None)

  @jax.jit
  def step(params, state):
    return jax.tree.map(lambda x: x + params['unet']['scale'][0], state)

  clock = phase_clock.PhaseClock()
  for _ in range(3):
    state = step(params, state)
  assert clock.programs == 1


def test_states_without_loaded_parameters_stay():
  x = np.ones((1, 4, 4, 2), np.float32)
  state = samplers.init_state(samplers.SAMPLERS['euler'], x)
  for params in ({'unet': x}, {'unet': jax.numpy.ones(2)}):
    assert denoising_loop.place_state(state, params, mesh=None) is state


def make_expert(steps):
  """An Expert whose steps nothing computes."""
  pipeline = object.__new__(pipelines.Pipeline)
  model = types.SimpleNamespace(vae=types.SimpleNamespace(downscale=8))
  for name, value in {'model': model, 'mesh': None}.items():
    object.__setattr__(pipeline, name, value)
  conditioning = prompt_encoding.Conditioning(None, jnp.zeros((1, 2)))
  inputs = step_net.StepInputs(conditioning, None, None, None)
  guided = np.ones(steps, bool)
  return denoising_loop.Expert(pipeline, inputs, [(0, conditioning)], guided)


def test_the_next_steps_are_dispatched_before_a_report(monkeypatch):
  """Latents are the number of their step."""
  noted, x = [], jnp.zeros((1, 4, 4, 2))

  def take_steps(model, params, state, inputs, start, stop, **kwargs):
    noted.append(('dispatched', int(stop)))
    x = jnp.full(state.x.shape, float(stop))
    return samplers.SamplerState(x, x, None)

  def wait(self):
    noted.append(('waited for', float(self[0, 0, 0, 0])))
    return self

  def watch(done, total, state, running):
    numbers = [float(s.x[0, 0, 0, 0]) for s in (state, running)]
    noted.append(('reported', done, total, *numbers))

  stand_ins = {
    'take_steps': take_steps,
    'place_state': lambda state, *_: state,
    'precompute_context': lambda *_: None,
    'finish': lambda schedule, known, x: x,
  }
  for name, function in stand_ins.items():
    monkeypatch.setattr(denoising_loop, name, function)
  monkeypatch.setattr(pipelines.Pipeline, 'on_device', lambda self, net: {})
  segments = [step_segments.Segment(0, 'euler', 0, 5)]
  with monkeypatch.context() as patch:
    patch.setattr(type(x), 'block_until_ready', wait)
    denoising_loop.run([make_expert(5)], segments, x, watch, 2)
  assert noted == [
    ('dispatched', 2),
    ('dispatched', 4),
    ('waited for', 2),
    ('reported', 2, 5, 2, 4),
    ('dispatched', 5),
    ('waited for', 4),
    ('reported', 4, 5, 4, 5),
    ('waited for', 5),
    ('reported', 5, 5, 5, 5),
    ('waited for', 5),
  ]
