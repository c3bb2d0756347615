"""A pretrained model, loaded lazily: names and shapes at once, data on demand.

Every format is read into a Model, and every format is written from one.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable
from typing import Any

import jax

from sdxl_jax.weights import (
  checked_cast,
  net_shapes,
  quantization,
  safetensors_file,
)
from sdxl_jax.weights.diffusers import (
  config_defaults,
  config_json,
  edm_config,
  scheduler_defaults,
  spellings,
  tensor_names,
)

NetConfig = net_shapes.NetConfig
Tensors = dict[str, safetensors_file.LazyTensor]
Tree = net_shapes.Tree

COMPONENTS = ('unet', 'vae', 'text_encoder', 'text_encoder_2')
TOKENIZERS = {'text_encoder': 'tokenizer', 'text_encoder_2': 'tokenizer_2'}
SCHEDULER = scheduler_defaults.SDXL  # of the published base and refiner


@dataclasses.dataclass(frozen=True)
class ModelIndex:
  """The facts of model_index.json."""

  refiner: bool  # one text encoder; an aesthetic score for the target size
  force_zeros: bool  # zeros instead of an encoded '' without negative prompt
  inpainting: bool = False  # the mask is an input of the UNet

  @property
  def components(self) -> list[str]:
    """Names of the nets that the model consists of."""
    return [n for n in COMPONENTS if n != 'text_encoder' or not self.refiner]


@dataclasses.dataclass(frozen=True)
class Net:
  """A net whose parameters are read on demand."""

  name: str
  published: dict[str, Any]  # its config.json
  location: str  # for errors
  read: Callable[[], Tensors] | None  # opens {published name: tensor}
  # (target) -> params, where they are stored as a tree of our own.
  restore: Callable[[Tree], Tree] | None = None
  skip_unsupported: bool = False  # see companions.check
  # Names of tensors of its file that it does not read; None: see `passed_over`.
  left_out: tuple[str, ...] | None = None

  def config(self, **fields: Any) -> NetConfig:
    """Returns our config, with fields replaced: dtype, param_dtype, remat."""
    config = config_json.read(self.name, self.published, self.location)
    return dataclasses.replace(config, **fields)

  def tensors(self) -> Tensors:
    """Opens {canonical published name: tensor} of all that the net has."""
    shapes = self.shapes(self.config())
    return self._convert(tensor_names.match_to_model, shapes)

  def shapes(self, config: NetConfig) -> Tree:
    """Returns the tree of shapes of the net of a config; see net_shapes.py."""
    return net_shapes.shapes_of(config, self.location)

  def load(
    self,
    shard: Callable[[Tree], Tree] = lambda target: target,
    watch: Callable[[int], Any] = lambda count: None,
    **fields: Any,
  ) -> tuple[NetConfig, Tree]:
    """Loads (config, params), each array directly into its sharding.

    Args:
      shard: adds to the leaves of a tree of jax.ShapeDtypeStruct the shardings
        that their arrays get; arrays without one stay in numpy.
      watch: called with the bytes of each array that was loaded.
      **fields: of the config; arrays are cast to its param_dtype.
    """
    config = self.config(**fields)
    target = shard(self.shapes(config))
    if self.restore:
      params = self.restore(quantization.without_scales(target))
      checked_cast.check_tree(params, self.location)
      watch(sum(x.nbytes for x in jax.tree.leaves(params)))
      return config, quantization.quantize_tree(params, target)
    convert = functools.partial(tensor_names.from_published, watch=watch)
    return config, self._convert(convert, target)

  def passed_over(self) -> tuple[str, ...]:
    """Lists the names of tensors beside the net that it does not read."""
    if self.left_out is not None:
      return self.left_out
    if self.restore:  # a tree of our own has no others
      return ()
    shapes = self.shapes(self.config())
    return tuple(tensor_names.surplus(self.read(), shapes))

  def _convert(self, convert, target):
    try:
      published = without_unused(self.name, self.config(), self.read())
      return convert(published, target, self.skip_unsupported)
    except checked_cast.NotFiniteError:
      raise  # its message names the file
    except ValueError as error:
      # Errors of a file name it, in the folder of the net.
      if str(error).startswith(self.location):
        raise
      raise ValueError(f'{self.location}: {error}') from None


@dataclasses.dataclass(frozen=True)
class Model:
  """The contents of a folder or a file of pretrained weights."""

  kind: str  # the format, in words
  path: pathlib.Path
  loaders: dict[str, Callable[[], Net]]  # by component
  index: ModelIndex | None  # None: only parts of a model
  scheduler: dict[str, Any]  # scheduler_config.json; of parts, what is known
  # (path): writes one of pretrained.TOKENIZERS into a new folder.
  tokenizers: dict[str, Callable] = dataclasses.field(default_factory=dict)
  # {'tokenizer' or 'tokenizer_2': tokens that it adds to CLIP's vocabulary}, as
  # text/added_tokens.py describes them, where there is no such folder.
  added_tokens: dict[str, list] = dataclasses.field(default_factory=dict)
  metadata: dict[str, str] = dataclasses.field(default_factory=dict)
  unused_tensors: Tensors = dataclasses.field(default_factory=dict)
  notes: tuple[str, ...] = ()  # lines for the user on how it was read
  passed_over: tuple[str, ...] = ()  # names of tensors that belong to no net

  def net(self, name: str) -> Net:
    """Opens the net of a component.

    Raises:
      FileNotFoundError: if the model lacks it.
    """
    if name not in self.loaders:
      raise FileNotFoundError(
        f'{self.path} has only {" and ".join(self.loaders)}, no {name}: '
        'complete it, python -m sdxl_jax.convert FILE TARGET --base DIR'
      )
    return self.loaders[name]()

  @property
  def is_complete(self) -> bool:
    """Whether the model has all the nets of its kind."""
    return self.index is not None and set(self.loaders) == set(
      self.index.components
    )

  @property
  def sample_size(self) -> tuple[int, int]:
    """(height, width) in latents of the images that the UNet is trained for."""
    net = self.net('unet')
    return config_defaults.sample_size(net.published, net.location)


def without_unused(name: str, config: NetConfig, published: Tensors) -> Tensors:
  """Leaves out the projection of the first text encoder.

  Programs store it, and SDXL reads the pooled output of the second one only.

  Raises:
    ValueError: if the second one has a projection that its config leaves out.
  """
  if name not in TOKENIZERS or config.projection_dim is not None:
    return published
  unused = f'{spellings.BARE_PROJECTION}.weight'
  rest = {
    name: tensor
    for name, tensor in published.items()
    if spellings.canonical_name(name) != unused
  }
  if name == 'text_encoder_2' and len(rest) < len(published):
    raise ValueError(
      f'it has {unused}, but its config.json names a class without a '
      "projection: set its architectures to ['CLIPTextModelWithProjection']"
    )
  return rest


def check_complete(model: Model) -> None:
  """Raises FileNotFoundError if a model lacks one of its nets."""
  names = model.index.components if model.index else COMPONENTS
  for name in names:
    if name not in model.loaders:
      model.net(name)


def join(parts: Model, base: Model) -> Model:
  """Completes some nets with the other nets of another model.

  Raises:
    ValueError: if one is a base and the other a refiner.
    FileNotFoundError: if the base lacks nets itself.
  """
  check_complete(base)
  # Their UNets differ, so that one cannot complete the other.
  if parts.index and parts.index.refiner != base.index.refiner:
    kinds = {True: 'refiner', False: 'base'}
    raise ValueError(
      f'{parts.path} is of a {kinds[parts.index.refiner]} and {base.path} of a '
      f'{kinds[base.index.refiner]}: pass a --base of the same kind'
    )
  surplus = set(parts.loaders) - set(base.index.components)
  if surplus:
    raise ValueError(
      f'{parts.path} has a {surplus.pop()}, but {base.path} is a refiner, '
      'which has none: pass another --base'
    )
  # The parts come first; the base fills in.
  index = parts.index or base.index
  loaders = base.loaders | parts.loaders
  return dataclasses.replace(
    base,
    kind=f'{parts.kind}, and {base.path} for the rest',
    path=parts.path,
    index=index,
    loaders={name: loaders[name] for name in index.components},
    scheduler=edm_config.join(base.scheduler, parts.scheduler),
    tokenizers=base.tokenizers | parts.tokenizers,
    added_tokens=base.added_tokens | parts.added_tokens,
    metadata=parts.metadata,
    unused_tensors=parts.unused_tensors,
    notes=parts.notes + base.notes,
    passed_over=parts.passed_over + base.passed_over,
  )


def from_params(
  name: str, config: NetConfig, restore: Callable[[Tree], Tree]
) -> Net:
  """Makes the Net of a tree of our own.

  Args:
    name: of the component.
    config: ours.
    restore: (target) -> params, of the config's param_dtype.
  """
  target = net_shapes.abstract_params(config)
  return Net(
    name=name,
    published=config_json.write(name, config),
    location=name,
    read=lambda: tensor_names.lazy(target, lambda: restore(target)),
    restore=restore,
  )
