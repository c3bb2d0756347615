"""Opens ControlNets for a model, which lie at paths of their own."""

import pathlib
from collections.abc import Sequence
from typing import Any

from sdxl_jax.weights import formats, hub, pretrained, read_options
from sdxl_jax.weights.single_file import control_names

NAME = 'controlnet'


def open_all(
  paths: Sequence[str | pathlib.Path],
  model: Any,
  options: read_options.ReadOptions = read_options.DEFAULT,
) -> list[pretrained.Net]:
  """Opens ControlNets, and reads no tensor data.

  Args:
    paths: of their folders or files, or their names on the Hugging Face hub.
    model: sdxl.SDXL that they are to steer.
    options: of the model; its variant is read where a path has it.

  Raises:
    FileNotFoundError: if a path holds no ControlNet.
    ValueError: if it is broken, or of another model.
  """
  nets = [open_net(path, options) for path in paths]
  for path, net in zip(paths, nets):
    check_fits(net.config(), model.unet, path)
  return nets


def open_net(
  path: str | pathlib.Path,
  options: read_options.ReadOptions = read_options.DEFAULT,
) -> pretrained.Net:
  """Opens the ControlNet at a path, see `open_all`."""
  options = formats.for_other(path, options)
  path, options = hub.locate(path, options, (NAME,))
  if formats.detect_format(path) is None:
    raise FileNotFoundError(
      f'ControlNet {path}: neither a file, nor a folder with the config.json '
      'of one (ControlNetModel or ControlNetUnionModel)'
    )
  if pathlib.Path(path).is_file():
    return control_names.open_net(path, options.skip_unsupported)
  model = formats.open_model(path, None, options)
  if NAME not in model.loaders:
    raise FileNotFoundError(
      f'{path} has {" and ".join(model.loaders)}, and is no ControlNet: pass '
      'the folder or the file of one as --controlnet'
    )
  return model.net(NAME)


def check_fits(config: Any, unet: Any, path: str | pathlib.Path) -> None:
  """Raises ValueError for a ControlNet of another UNet.

  Args:
    config: of the ControlNet.
    unet: config of the UNet, whose pruned blocks differ too.
    path: of the ControlNet.
  """
  ours, theirs = (
    {
      'channels': c.block_out_channels,
      'layers_per_block': [c.layers(i) for i in range(levels(c))],
      'cross_attention_dim': c.context_dim,
      'vector': c.vector_dim,
      'latents': latents,
    }
    for c, latents in ((config, config.in_channels), (unet, unet.out_channels))
  )
  for name, value in ours.items():
    if value != theirs[name]:
      raise ValueError(
        f'ControlNet {path} is of another model: its {name} is {value}, and '
        f'that of the UNet {theirs[name]}; use one that was trained for it'
      )


def levels(config: Any) -> int:
  """Returns the number of resolutions of a net."""
  return len(config.block_out_channels)
