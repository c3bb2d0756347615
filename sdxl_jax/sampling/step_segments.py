"""Segments of a run's steps: which net takes which with which sampler."""

from typing import NamedTuple

from sdxl_jax.diffusion import img2img, sampling_schedule
from sdxl_jax.sampling.settings import SampleSettings


class Segment(NamedTuple):
  """Consecutive steps that one model takes with one sampler."""

  model_index: int  # 0: base, 1: refiner
  sampler: str
  start: int
  stop: int
  renoise: bool = False  # from the denoised latents of the segment before

  @property
  def steps(self) -> int:
    return self.stop - self.start


def plan_segments(
  schedule: sampling_schedule.SamplingSchedule,
  first_step: int,
  settings: SampleSettings,
  has_refiner: bool,
) -> list[Segment]:
  """Divides the steps from the first one on between base and refiner.

  Args:
    schedule: noise levels of the loop.
    first_step: of the schedule; later than 0 with an init image.
    settings: the sampler, and where or how strongly the refiner starts.
    has_refiner: without one all steps are the base's.
  """
  sampler, steps = settings.sampler, len(schedule.timesteps)
  if not has_refiner:
    return [Segment(0, sampler, first_step, steps)]
  if settings.refiner_strength is not None:
    start = img2img.first_step(steps, settings.refiner_strength)
    return [
      Segment(0, sampler, first_step, steps),
      Segment(1, sampler, start, steps, renoise=True),
    ]
  cut = sampling_schedule.steps_until(schedule, settings.refiner_start)
  cut = max(first_step, cut)
  if sampler != 'heun' or cut == first_step:
    return [
      Segment(0, sampler, first_step, cut),
      Segment(1, sampler, cut, steps),
    ]
  # diffusers stops between Heun's two calls, after Euler's step, and its
  # refiner takes that step once more.
  return [
    Segment(0, 'heun', first_step, cut - 1),
    Segment(0, 'euler', cut - 1, cut),
    Segment(1, 'heun', cut - 1, steps),
  ]
