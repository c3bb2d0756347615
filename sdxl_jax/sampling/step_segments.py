"""Segments of a run's steps: which net takes which with which sampler.

A segment is divided into stretches, of steps that one program takes at once.
"""

from collections.abc import Collection, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

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


class Stretch(NamedTuple):
  """Consecutive steps of a segment with the same inputs."""

  start: int
  stop: int
  conditioning: Any  # prompt_encoding.Conditioning
  guided: bool  # whether the unconditional branch is computed too


def plan_segments(
  schedule: sampling_schedule.SamplingSchedule,
  first_step: int,
  chosen: SampleSettings,
  has_refiner: bool,
) -> list[Segment]:
  """Divides the steps from the first one on between base and refiner.

  Args:
    schedule: noise levels of the loop.
    first_step: of the schedule; later than 0 with an init image.
    chosen: the sampler, and where or how strongly the refiner starts.
    has_refiner: without one all steps are the base's.
  """
  sampler, steps = chosen.sampler, len(schedule.timesteps)
  if not has_refiner:
    return [Segment(0, sampler, first_step, steps)]
  if chosen.refiner_strength is not None:
    start = img2img.first_step(steps, chosen.refiner_strength)
    return [
      Segment(0, sampler, first_step, steps),
      Segment(1, sampler, start, steps, renoise=True),
    ]
  cut = sampling_schedule.steps_until(schedule, chosen.refiner_start)
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


def guided_steps(
  sigmas: Float[np.ndarray, ' levels'], interval: tuple | None
) -> Bool[np.ndarray, ' n']:
  """Returns which steps of a run are guided.

  A step is guided as a whole, by the noise level that it begins at.

  Args:
    sigmas: noise levels of the loop, that after the last step included.
    interval: (low, high) of SampleSettings.guidance_interval; None: all steps.
  """
  levels = sigmas[:-1].astype(np.float64)
  if interval is None:
    return np.ones(len(levels), bool)
  low, high = interval
  return (low < levels) & (levels <= high)


def stretches(
  stages: Sequence[tuple[int, Any]],
  guided: Bool[np.ndarray, ' n'],
  start: int,
  stop: int,
  stride: int,
  changes: Collection[int] = (),
) -> Iterator[Stretch]:
  """Yields the stretches of some steps, in order.

  Args:
    stages: of prompt_encoding.make_conditioning.
    guided: of each step of the run, whether it is guided.
    start, stop: of the steps.
    stride: steps between two reports, where a stretch ends too.
    changes: further steps from which inputs differ.
  """
  begins = {*range(start, stop, stride), *changes}
  begins |= {begin for begin, _ in stages if start < begin < stop}
  begins |= {i for i in range(start + 1, stop) if guided[i] != guided[i - 1]}
  begins = sorted(begins)
  for begin, end in zip(begins, [*begins[1:], stop]):
    *_, conditioning = (c for first, c in stages if first <= begin)
    yield Stretch(begin, end, conditioning, bool(guided[begin]))
