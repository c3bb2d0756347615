"""How weights are read and held: the options of `pipelines.load`."""

import dataclasses
import os
from collections.abc import Collection, Sequence
from typing import Any

from sdxl_jax.models import from_config, sdxl, stored_kernels
from sdxl_jax.sampling import control_specs
from sdxl_jax.weights import pretrained, read_options


@dataclasses.dataclass(frozen=True)
class LoadOptions:
  """How `load` reads weights and holds them.

  The options of `read_options.ReadOptions` concern pretrained weights.
  """

  # Of computation, and of parameters, see compute_dtype.choose.
  dtype: str = 'auto'
  # Which parameters of a workdir: 'ema'; 'none', the last ones; or the width of
  # an EMA reconstructed from snapshots, such as '0.05'.
  average: str = 'ema'
  # Files to merge, each as 'FILE' or 'FILE:WEIGHT'.
  loras: Sequence[str] = ()
  vae_dtype: str = 'auto'  # of the autoencoder, see compute_dtype.choose_vae
  # Of the kernels of UNet and text encoders: one of stored_kernels.LARGEST;
  # None: dtype.
  weights_dtype: str | None = None
  attention: str = 'auto'  # see models/attention.py; 'auto': the fastest here
  # Where idle nets wait. 'auto': some of them in host memory, if not all fit on
  # the device; True: all of them; False: none; or their names.
  offload: str | bool | Collection[str] = 'auto'
  vae: str | os.PathLike[str] | None = None  # weights of another autoencoder
  # Files of textual inversion, each as 'FILE' or 'NAME=FILE'.
  embeddings: Sequence[str] = ()
  # ControlNets, each as 'PATH', 'PATH:SCALE' or 'PATH:SCALE:START:END'.
  controlnets: Sequence[str] = ()
  variant: str | None = None  # see read_options.ReadOptions
  prediction: str | None = None
  zero_snr: bool | None = None
  skip_unsupported: bool = False

  @property
  def reading(self) -> read_options.ReadOptions:
    """What concerns the readers of weights."""
    names = [f.name for f in dataclasses.fields(read_options.ReadOptions)]
    return read_options.ReadOptions(**{n: getattr(self, n) for n in names})

  @property
  def offloaded(self) -> tuple[str, ...]:
    """The nets that wait in host memory; `offload` is not 'auto' any more."""
    if isinstance(self.offload, bool):
      return offloadable(self.controlnets) if self.offload else ()
    return tuple(self.offload)

  def memory(self, name: str) -> str:
    """Returns the kind of memory that a net's parameters are kept in."""
    return 'pinned_host' if name in self.offloaded else 'device'

  def by_memory(self, names: Collection[str]) -> dict[str, list[str]]:
    """Returns {kind of memory: nets that are kept in it} of some nets."""
    groups = {}
    for name in names:
      groups.setdefault(self.memory(name), []).append(name)
    return groups


def parse(options: dict[str, Any]) -> LoadOptions:
  """Makes the LoadOptions of {name: value}.

  Raises:
    TypeError: for an option that does not exist.
    ValueError: for another value of offload.
  """
  known = [field.name for field in dataclasses.fields(LoadOptions)]
  for name in options:
    if name not in known:
      raise TypeError(f'load has no option {name!r}; there are {known}')
  chosen = LoadOptions(**options)
  check_offload(chosen.offload, chosen.controlnets)
  stored_kernels.check('weights_dtype', chosen.weights_dtype)
  return chosen


def offloadable(controlnets: Sequence[str]) -> tuple[str, ...]:
  """Returns the names of all nets, those of ControlNets too."""
  specs = [control_specs.parse(text) for text in controlnets]
  return *pretrained.COMPONENTS, *control_specs.names(specs)


def check_offload(offload: Any, controlnets: Sequence[str] = ()) -> None:
  """Raises ValueError for a value of offload that does not exist."""
  known = offloadable(controlnets)
  if offload == 'auto' or isinstance(offload, bool):
    return
  is_list = isinstance(offload, Collection) and not isinstance(offload, str)
  if not is_list or set(offload) - set(known):
    raise ValueError(
      f"offload is {offload!r}; pass 'auto', True, False, or names out of "
      f'{", ".join(known)}'
    )


def runtime_fields(
  name: str,
  dtype: str,
  vae_dtype: str,
  attention: str,
  weights_dtype: str | None = None,
) -> dict[str, Any]:
  """Returns the fields of a net's config that decide how sampling runs it."""
  if name == 'vae':
    return {'dtype': vae_dtype, 'param_dtype': vae_dtype}
  fields = {
    'dtype': dtype,
    'param_dtype': dtype,
    'weights_dtype': weights_dtype,
  }
  if name != 'unet' and not sdxl.is_controlnet(name):
    return fields
  if attention == 'auto':
    attention = from_config.default_attention()
  return fields | {'attention': attention}
