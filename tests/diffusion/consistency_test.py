"""Latent consistency distillation: boundary, the teacher's step, the loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdxl_jax.diffusion import consistency, loss_kinds, losses, noise_schedule

SHAPE = 6, 4, 4, 3
SCHEDULE = noise_schedule.Schedule()
SETTINGS = consistency.Settings()
SQUARES = loss_kinds.Distance()


def draw(seed, shape=SHAPE):
  return jnp.float32(np.random.default_rng(seed).normal(size=shape))


def rates(schedule, timestep):
  return [r[timestep, None, None, None] for r in losses.rates(schedule)]


def test_the_function_is_the_identity_at_timestep_0():
  c_skip, c_out = consistency.boundary(np.array([0, 19]), 10.0)
  assert c_skip[0] == 1 and c_out[0] == 0
  assert c_skip[1] < 1e-5 and c_out[1] > 0.99999


@pytest.mark.torch
def test_the_boundary_is_that_of_the_sampler(close):
  diffusers = pytest.importorskip('diffusers')
  scheduler = diffusers.LCMScheduler(timestep_scaling=10.0)
  for t in (0, 1, 3, 19, 999):
    found = consistency.boundary(np.array([t]), 10.0)
    expected = scheduler.get_scalings_for_boundary_condition_discrete(t)
    close(np.stack([x.item() for x in found]), np.array(expected), 1e-6)


@pytest.mark.parametrize('kind', ['eps', 'v', 'x0'])
def test_predictions_are_taken_apart(kind, close):
  timestep = np.array([0, 100, 400, 700, 900, 999])
  at = rates(SCHEDULE, timestep)
  x0, eps = draw(0), draw(1)
  target = losses.target_of(kind, x0, eps, *at)
  x = losses.add_noise(x0, eps, *at)
  found = consistency.x0_and_eps(kind, target, x, *at)
  close(found[0], x0, 1e-4)
  close(found[1], eps, 1e-4)


def test_other_predictions_are_refused():
  x = draw(0)
  with pytest.raises(ValueError, match="predicts 'flow' is not distilled"):
    consistency.x0_and_eps('flow', x, x, *rates(SCHEDULE, np.arange(6)))


def test_steps_of_the_teacher():
  found = consistency.solver_timesteps(SETTINGS, 1000)
  assert found[0] == 19 and found[-1] == 999 and len(found) == 50
  assert set(np.diff(found)) == {20}


def loss_of(
  student,
  teacher,
  latents=None,
  schedule=SCHEDULE,
  settings=SETTINGS,
  distance=SQUARES,
  mask=None,
):
  """Returns the loss."""
  latents = draw(0) if latents is None else latents
  loss, metrics = consistency.distillation_loss(
    student,
    teacher,
    latents,
    jax.random.key(2),
    schedule,
    settings,
    distance,
    mask,
  )
  assert metrics['loss'] is loss
  return loss


def small_teacher(x, timestep):
  return 0.1 * x, 0.2 * x


class Nets:
  """A student and a teacher that record what they are called with."""

  def __init__(self):
    self.calls, self.taught = [], []
    self.predictions = draw(1), draw(2)

  def student(self, x, timestep):
    self.calls.append((np.asarray(x), np.asarray(timestep)))
    return 0.3 * x

  def teacher(self, x, timestep):
    self.taught.append((np.asarray(x), np.asarray(timestep)))
    return self.predictions


@pytest.mark.torch
@pytest.mark.parametrize(
  'kind, name', [('eps', 'epsilon'), ('v', 'v_prediction')]
)
def test_the_teacher_takes_a_guided_step_of_ddim(kind, name, close):
  torch = pytest.importorskip('torch')
  diffusers = pytest.importorskip('diffusers')
  schedule = noise_schedule.Schedule(prediction=kind)
  scheduler = diffusers.DDIMScheduler(
    beta_start=0.00085,
    beta_end=0.012,
    beta_schedule='scaled_linear',
    clip_sample=False,
    set_alpha_to_one=False,
    prediction_type=name,
  )
  scheduler.set_timesteps(50)
  nets, w = Nets(), 6.5
  settings = consistency.Settings(w_min=w, w_max=w)
  loss_of(nets.student, nets.teacher, schedule=schedule, settings=settings)
  ((x, start),) = nets.taught
  (x_stop, stop), (x_start, same) = nets.calls
  assert np.array_equal(x, x_start) and np.array_equal(start, same)
  assert np.array_equal(stop, np.maximum(start - 20, 0)) and len(set(start)) > 1
  uncond, cond = (torch.tensor(np.asarray(p)) for p in nets.predictions)
  guided = uncond + (1 + w) * (cond - uncond)
  expected = [
    # Its last step ends at timestep 0 too.
    scheduler.step(guided[i], int(start[i]), torch.tensor(x[i])).prev_sample
    for i in range(len(x))
  ]
  close(x_stop, np.stack(expected), 1e-4)


def test_a_perfect_student_has_no_loss():
  """Of data that are one point, which is the end of every path."""
  point = draw(3, (1, 4, 4, 3))
  data = jnp.tile(point, (64, 1, 1, 1))

  def net(x, timestep):
    signal, noise = rates(SCHEDULE, timestep)
    return (x - signal * point) / noise

  def pair(x, timestep):
    return net(x, timestep), net(x, timestep)

  loss = loss_of(net, pair, data)
  # Step 0 ends in the little noise of timestep 0: 1 of 50, variance 0.0009.
  assert loss < 1e-4
  assert loss_of(lambda x, t: net(x, t) + 0.1, pair, data) > 50 * loss


def test_the_loss_by_hand(close):
  """f at the start less f at the end, of a student that predicts a constant.

  Of two steps, so that some end at timestep 0, where f is the identity.
  """
  nets, settings = Nets(), consistency.Settings(num_ddim_timesteps=2)
  nets.student = lambda x, t: nets.calls.append((x, t)) or jnp.full_like(x, 0.3)
  loss = loss_of(nets.student, nets.teacher, settings=settings)
  values = []
  for x, timestep in nets.calls:
    signal, noise = rates(SCHEDULE, timestep)
    t = 10 * np.asarray(timestep)[:, None, None, None]
    x0 = (x - noise * 0.3) / signal
    values.append(0.25 / (t**2 + 0.25) * x + t / (t**2 + 0.25) ** 0.5 * x0)
  target, found = values
  assert 0 in nets.calls[0][1] and 499 in nets.calls[0][1]
  close(loss, jnp.mean((found - target) ** 2), 1e-5)


def test_the_target_has_no_gradient(close):
  def loss(scale, frozen=None):
    calls = []

    def student(x, timestep):
      calls.append(x)
      # The first call is that of the target.
      is_target = len(calls) == 1 and frozen is not None
      return x * (frozen if is_target else scale)

    huber = loss_kinds.Distance('huber', 'constant', 0.001)
    return loss_of(student, small_teacher, distance=huber)

  found = jax.grad(loss)(0.3)
  close(found, jax.grad(lambda s: loss(s, frozen=0.3))(0.3), 1e-6)
  assert abs(found) > 1e-6


def test_rows_do_not_depend_on_each_other():
  """As in training: an example's draws follow from its row and the key."""
  key = jax.random.key(3)
  sample = jax.vmap(
    lambda row, x: consistency.sample_row(key, row, x, SETTINGS)
  )
  many = sample(jnp.arange(500), jnp.zeros((500, 1, 1, 1)))
  few = sample(jnp.arange(3), jnp.zeros((3, 1, 1, 1)))
  for a, b in zip(many, few):
    assert np.array_equal(a[:3], b)
  step, w, eps = map(np.asarray, many)
  assert {0, 49} <= set(step.tolist()) and 3 <= w.min() < w.max() < 15
  assert abs(eps.std() - 1) < 0.1


def test_a_mask_leaves_positions_out():
  mask = np.ones((6, 4, 4), np.float32)
  mask[:, :2] = 0

  def loss(of_masked, of_others, mask=mask):
    def student(x, timestep):
      is_masked = jnp.arange(4)[:, None, None] < 2
      return jnp.where(is_masked, of_masked, of_others) * x

    return loss_of(student, small_teacher, mask=mask)

  assert loss(0.1, 0.3) == loss(0.9, 0.3) != loss(0.1, 0.4)
  assert loss(0.1, 0.3, mask=None) != loss(0.9, 0.3, mask=None)
