"""The net of a step: one prediction for each image, guided or not."""

import dataclasses
import typing
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from jaxtyping import Array, Float, Key

from sdxl_jax.diffusion import guidance, img2img, sampling_schedule
from sdxl_jax.models import sdxl
from sdxl_jax.sampling import control_steps, prompt_encoding


class Guidance(NamedTuple):
  """Scale and rescale of classifier-free guidance, as arrays or floats.

  And the weights, [b, n], of the n prompts that AND combines, if there are any.
  """

  scale: Any
  rescale: Any
  weights: Any = None


# No type check, since a tree of it may hold shapes or shardings.
@typing.no_type_check
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StepInputs:
  """What every step of one model takes besides its state."""

  conditioning: prompt_encoding.Conditioning
  schedule: sampling_schedule.SamplingSchedule
  keys: Key[Array, ' b']  # one per image
  guidance: Guidance
  known: img2img.KnownRegion | None = None  # what a mask leaves unchanged
  concat_channels: Float[Array, 'b h w k'] | None = None
  controls: tuple[control_steps.Control, ...] = ()  # that act


def make(
  model: sdxl.SDXL,
  params: dict[str, Any],
  conditioning: prompt_encoding.Conditioning,
  how: Guidance,
  count: int,
  guided: bool,
  controls: Sequence[control_steps.Control] = (),
) -> Callable:
  """Makes net(x, timestep) of one prediction for each image.

  Args:
    model: base or refiner.
    params: of its UNet.
    conditioning: of all rows that guidance takes, or of the prompt alone.
    how: to guide.
    count: images.
    guided: whether by classifier-free guidance. If not, only the conditional
      rows are computed.
    controls: ControlNets that act, with the context of the same rows as the
      conditioning.
  """
  branches = len(conditioning.vector) // count
  if branches > 1 and not guided:
    controls = [
      control_steps.conditional(control, conditioning.vector, branches)
      for control in controls
    ]
    conditioning = prompt_encoding.conditional(conditioning, branches)
  control = None
  if controls:
    control = control_steps.make_residuals(
      model, params, conditioning.vector, controls, count, guided
    )
  net = model.denoiser(params, *conditioning, how.scale, control)
  if guided:
    return guidance.classifier_free_guidance(net, *how)
  return net if how.weights is None else guidance.average_net(net, how.weights)
