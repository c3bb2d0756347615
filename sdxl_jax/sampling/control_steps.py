"""ControlNets within the denoising loop: their inputs and their residuals."""

import dataclasses
import functools
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from sdxl_jax.diffusion import guidance
from sdxl_jax.models import controlnet, sdxl
from sdxl_jax.sampling import control_specs, prompt_encoding

Image = Float[Array, 'b height width 3']


# No type check, since a tree of it may hold shapes or shardings.
@typing.no_type_check
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Control:
  """One use of a ControlNet in a stretch of steps.

  Attributes:
    features: of each image [b, h, w, c], or in place of them the images.
    scales: float32 [k], one for each image; 0 outside of its share of steps.
    types: int32 [k] of a union net, or None.
    context: keys and values of the context; None before they are computed.
    net: its name in SDXL.
    guess: whether unconditional rows are left alone, see controlnet.ControlNet.
  """

  features: list[Any]
  scales: Any
  types: Any = None
  context: Any = None
  net: str = dataclasses.field(default='', metadata={'static': True})
  guess: bool = dataclasses.field(default=False, metadata={'static': True})


class Controls(typing.NamedTuple):
  """All uses of ControlNets in a run.

  Attributes:
    uses: with the images in place of features, and full scales.
    active: bool [k] of each use, [n] of each step: in its share of the steps.
  """

  uses: list[Control]
  active: list[Bool[np.ndarray, 'k n']]


def make_controls(
  configs: Mapping[str, Any],
  specs: Sequence[control_specs.ControlSpec],
  images: Sequence[Any],
  types: Sequence[Any],
  steps: range,
  guess: bool,
) -> Controls:
  """Makes the Controls of a batch.

  Args:
    configs: of the base and its ControlNets, SDXL.configs.
    specs: of the ControlNets.
    images: of each spec, RGB in [0, 1], of the size of the output.
    types: of each spec, number of a union net's type or None.
    steps: that are taken; shares of a spec are shares of them.
    guess: see settings.SampleSettings.guess_mode.
  """
  uses, active = [], []
  for use in control_specs.uses(configs, specs):
    of_types = [types[i] for i in use.places]
    uses.append(
      Control(
        features=[images[i] for i in use.places],
        scales=np.float32([specs[i].scale for i in use.places]),
        types=None if None in of_types else np.int32(of_types),
        net=use.net,
        guess=guess,
      )
    )
    active.append(np.stack([acting(specs[i], steps) for i in use.places]))
  return Controls(uses, active)


def acting(
  spec: control_specs.ControlSpec, steps: range
) -> Bool[np.ndarray, ' n']:
  """Returns which steps of a run a ControlNet acts in.

  As in diffusers, those that lie wholly between its start and its end.
  """
  found = np.zeros(steps.stop, bool)
  for i, step in enumerate(steps):
    found[step] = (
      i / len(steps) >= spec.start and (i + 1) / len(steps) <= spec.end
    )
  return found


def nets_of(controls: Controls | None) -> list[str]:
  """Returns the names of the ControlNets that a run uses."""
  uses = controls.uses if controls else []
  return list(dict.fromkeys(use.net for use in uses))


def changes(controls: Controls | None, start: int, stop: int) -> set[int]:
  """Returns the steps of a segment from which other images act."""
  if controls is None:
    return set()
  active = np.concatenate(controls.active)
  return {
    i
    for i in range(start + 1, stop)
    if (active[:, i] != active[:, i - 1]).any()
  }


def prepare(
  model: Any, params: dict[str, Any], controls: Controls | None
) -> Callable[[int, Any], tuple[Control, ...]]:
  """Makes (step, context) -> the uses of ControlNets that the step takes.

  What is the same at every step is computed once: features of images, keys and
  values of contexts. A use of one image is left out where its scale is 0, at no
  cost. Of several images, the net runs as long as the loop does, as in
  diffusers: without any of them it still answers to the text.

  Args:
    model: sdxl.SDXL of the base, with the ControlNets.
    params: of them.
    controls: of the run; None: there are none.
  """
  embedded, contexts = {}, {}

  def features_of(use):
    if id(use) not in embedded:
      embedded[id(use)] = [
        embed(model, params, image, name=use.net) for image in use.features
      ]
    return embedded[id(use)]

  def context_of(use, context):
    key = use.net, id(context)
    if key not in contexts:
      contexts[key] = precompute_context(model, params, context, name=use.net)
    return contexts[key]

  def at_step(step, context):
    taken = []
    for use, active in zip(*controls) if controls else ():
      scales = use.scales * active[:, step]
      if len(scales) > 1 or scales.any():
        taken.append(
          dataclasses.replace(
            use,
            features=features_of(use),
            scales=scales,
            context=context_of(use, context),
          )
        )
    return tuple(taken)

  return at_step


@functools.partial(jax.jit, static_argnames=('model', 'name'))
def embed(
  model: sdxl.SDXL, params: dict[str, Any], image: Image, *, name: str
) -> Float[Array, 'b h w c']:
  """Embeds a control image, once for all steps."""
  net = controlnet.ControlNet(model.configs[name])
  return net.apply({'params': params[name]}, image, method='embed')


@functools.partial(jax.jit, static_argnames=('model', 'name'))
def precompute_context(
  model: sdxl.SDXL,
  params: dict[str, Any],
  context: Float[Array, 'n t c'],
  *,
  name: str,
) -> dict[str, Any]:
  """Computes the keys and values of a ControlNet's cross-attention layers."""
  # One call on zeros stores them; the compiler drops all other layers.
  b, config = len(context), model.configs[name]
  side = 2 ** len(config.block_out_channels)
  kinds = jnp.zeros(1, jnp.int32) if config.control_types else None
  _, variables = controlnet.ControlNet(config).apply(
    {'params': params[name]},
    jnp.zeros((b, side, side, config.in_channels)),
    jnp.zeros(b),
    context,
    jnp.zeros((b, config.vector_dim)),
    [jnp.zeros((b, side, side, config.block_out_channels[0]))],
    jnp.ones(1),
    kinds,
    mutable=['context'],
  )
  return variables['context']


def make_residuals(
  model: sdxl.SDXL,
  params: dict[str, Any],
  vector: Float[Array, 'n v'],
  controls: Sequence[Control],
  count: int,
  guided: bool,
) -> Callable:
  """Makes (x, timestep) -> what ControlNets add to the UNet.

  Args:
    model: base, with the ControlNets.
    params: of them.
    vector: of all rows that the UNet takes.
    controls: with features and contexts, of the same rows.
    count: images.
    guided: whether the first row of each image is the unconditional one.
  """
  rows = len(vector) // count

  def residuals(x, timestep):
    total = None
    for control in controls:
      found = apply(model, params, control, rows, guided, (x, timestep, vector))
      total = found if total is None else list(map(jnp.add, total, found))
    return total

  return residuals


def apply(
  model: sdxl.SDXL,
  params: dict[str, Any],
  control: Control,
  rows: int,
  guided: bool,
  inputs: tuple[Array, Array, Array],
) -> list[Float[Array, 'n _ _ _']]:
  """Returns the residuals of one ControlNet.

  Args:
    model, params, guided: see make_residuals.
    control: with features and context.
    rows: of each image.
    inputs: x, timestep and vector of all rows.
  """
  config = model.configs[control.net]
  x, timestep, vector = inputs
  # In guess mode the unconditional rows get nothing.
  is_partial = control.guess and guided
  if is_partial:
    control = conditional(control, vector, rows)
    x, timestep, vector = (
      guidance.interleave_rows(guidance.split_rows(array, rows)[1:])
      for array in inputs
    )
    rows -= 1
  found = controlnet.ControlNet(config).apply(
    {'params': params[control.net], 'context': control.context},
    x[..., : config.in_channels],  # not the mask of an inpainting UNet
    timestep,
    None,
    vector,
    [jnp.repeat(feature, rows, axis=0) for feature in control.features],
    control.scales,
    control.types,
    control.guess,
  )
  if not is_partial:
    return found

  def with_uncond(array):
    parts = guidance.split_rows(array, rows)
    return guidance.interleave_rows([jnp.zeros_like(parts[0]), *parts])

  return list(map(with_uncond, found))


def conditional(
  control: Control, vector: Float[Array, 'n v'], rows: int
) -> Control:
  """Returns a Control whose context lacks the unconditional rows.

  Args:
    control: with the context of all rows.
    vector: of all rows.
    rows: of each image.
  """
  both = prompt_encoding.Conditioning(control.context, vector)
  context = prompt_encoding.conditional(both, rows).context
  return dataclasses.replace(control, context=context)
