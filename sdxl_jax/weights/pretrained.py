"""A model as it is published, wherever it lies: names now, numbers when asked.

Whatever is read becomes a Model, and whatever is written is made of one.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable

import jax
import jax.numpy as jnp

from sdxl_jax.models import clip, unet, vae
from sdxl_jax.weights.diffusers import config_json, tensor_names

COMPONENTS = ('unet', 'vae', 'text_encoder', 'text_encoder_2')
TOKENIZERS = {'text_encoder': 'tokenizer', 'text_encoder_2': 'tokenizer_2'}
# Of the published SDXL, base and refiner: scheduler_config.json.
SCHEDULER = {
  '_class_name': 'EulerDiscreteScheduler',
  'num_train_timesteps': 1000,
  'beta_start': 0.00085,
  'beta_end': 0.012,
  'beta_schedule': 'scaled_linear',
  'prediction_type': 'epsilon',
  'timestep_spacing': 'leading',
  'steps_offset': 1,
  'use_karras_sigmas': False,
  'interpolation_type': 'linear',
  'set_alpha_to_one': False,
  'skip_prk_steps': True,
  'clip_sample': False,
  'sample_max_value': 1.0,
  'trained_betas': None,
}


@dataclasses.dataclass(frozen=True)
class ModelIndex:
  """What model_index.json says of the model."""

  refiner: bool  # one text tower, and an aesthetic score for the target size
  force_zeros: bool  # zeros instead of an encoded '' without negative prompt
  inpainting: bool = False  # its UNet sees a mask

  @property
  def components(self):
    """Names of the nets that the model consists of."""
    return [n for n in COMPONENTS if n != 'text_encoder' or not self.refiner]


@dataclasses.dataclass(frozen=True)
class Net:
  """A net whose numbers are not read yet."""

  name: str
  published: dict  # its config.json
  location: str  # for errors
  read: Callable[[], dict]  # () -> {published name: Tensor}
  # (target) -> params, where they are stored as a tree of ours.
  restore: Callable | None = None

  def config(self, **fields):
    """Our config, some of its fields replaced: dtype, param_dtype, remat."""
    config = config_json.read(self.name, self.published, self.location)
    return dataclasses.replace(config, **fields)

  def tensors(self):
    """{published name of today: Tensor} of all that the net consists of."""
    return self._named(tensor_names.match_to_model, self.shapes(self.config()))

  def shapes(self, config):
    """The tree of shapes and dtypes of the net, stacked as the config says."""
    try:
      return abstract_params(config)
    except Exception as error:  # a layer's own, of any kind
      reason = ' '.join(str(error).split())[:200]
      raise ValueError(
        f'{self.location}: no net can be built as its config says ({reason})'
      ) from error

  def load(self, shard=lambda target: target, **fields):
    """(config, params), each array straight to its place.

    Args:
      shard: gives the leaves of a tree of jax.ShapeDtypeStruct the shardings
        that their arrays are to have; without one they stay in numpy.
      **fields: of the config; numbers are cast to its param_dtype.
    """
    config = self.config(**fields)
    target = shard(self.shapes(config))
    if self.restore:
      return config, self.restore(target)
    return config, self._named(tensor_names.from_published, target)

  def _named(self, convert, target):
    try:
      return convert(self.read(), target)
    except ValueError as error:
      raise ValueError(f'{self.location}: {error}') from None


@dataclasses.dataclass(frozen=True)
class Model:
  """What lies in a folder or a file."""

  kind: str  # the format, in words
  path: pathlib.Path
  loaders: dict[str, Callable[[], Net]]  # by component
  index: ModelIndex | None  # None: only parts of a model
  scheduler: dict  # as in scheduler_config.json; of parts, what they tell
  # What writes each into a folder that it makes.
  tokenizers: dict[str, Callable] = dataclasses.field(default_factory=dict)
  metadata: dict[str, str] = dataclasses.field(default_factory=dict)
  # Tensors that belong to no net.
  unused_tensors: dict = dataclasses.field(default_factory=dict)

  def net(self, name):
    """The Net of a component.

    Raises:
      FileNotFoundError: where the model lacks it.
    """
    if name not in self.loaders:
      raise FileNotFoundError(
        f'{self.path} has only {" and ".join(self.loaders)}, no {name}: make a '
        'whole model of it, python -m sdxl_jax.convert FILE TARGET --base DIR'
      )
    return self.loaders[name]()

  @property
  def is_complete(self):
    return self.index is not None and set(self.loaders) == set(
      self.index.components
    )

  @property
  def sample_size(self):
    """Side in latents of the pictures that the UNet was made for."""
    return self.net('unet').published.get('sample_size', 128)


def check_complete(model):
  """Raises FileNotFoundError for a model that lacks nets."""
  wanted = model.index.components if model.index else COMPONENTS
  for name in wanted:
    if name not in model.loaders:
      model.net(name)


def join(parts, base):
  """The Model of some nets, and of the nets of another model."""
  if parts.index and parts.index.refiner != base.index.refiner:
    kinds = {True: 'refiner', False: 'base'}
    raise ValueError(
      f'{parts.path} is of a {kinds[parts.index.refiner]} and {base.path} of a '
      f'{kinds[base.index.refiner]}: give a --base of the same kind'
    )
  strange = set(parts.loaders) - set(base.index.components)
  if strange:
    raise ValueError(
      f'{parts.path} has a {strange.pop()}, but {base.path} is a refiner, '
      'which has none: give another --base'
    )
  check_complete(base)
  index = parts.index or base.index
  loaders = base.loaders | parts.loaders
  return dataclasses.replace(
    base,
    kind=f'{parts.kind}, and {base.path} for the rest',
    path=parts.path,
    index=index,
    loaders={name: loaders[name] for name in index.components},
    scheduler=base.scheduler | parts.scheduler,
    tokenizers=base.tokenizers | parts.tokenizers,
    metadata=parts.metadata,
    unused_tensors=parts.unused_tensors,
  )


def from_params(name, config, restore):
  """The Net of a tree of ours.

  Args:
    name: of the component.
    config: ours.
    restore: (target) -> params, of the config's param_dtype.
  """
  target = abstract_params(config)
  return Net(
    name=name,
    published=config_json.write(name, config),
    location=name,
    read=lambda: tensor_names.lazy(target, lambda: restore(target)),
    restore=restore,
  )


@functools.cache  # tracing a net takes seconds
def abstract_params(config):
  """The tree of shapes and dtypes of the net that a config describes."""
  if isinstance(config, unet.UNetConfig):
    inputs = (
      jnp.zeros((1, 8, 8, config.in_channels)),
      jnp.zeros(1),
      jnp.zeros((1, 77, config.context_dim)),
      jnp.zeros((1, config.vector_dim)),
    )
    net = unet.UNet(config)
  elif isinstance(config, clip.CLIPTextConfig):
    ids = jnp.zeros((1, config.max_position_embeddings), jnp.int32)
    inputs, net = (ids,), clip.CLIPText(config)
  else:
    inputs = (jnp.zeros((1, 64, 64, config.in_channels)),)
    net = vae.make_vae(config)
  return jax.eval_shape(net.init, jax.random.key(0), *inputs).get('params', {})
