"""Precomputes moments and encoded text of a dataset, as shards for training.

  python -m sdxl_jax.precompute --config configs/stage3.py --output CACHE \
    --config.init_from=SDXL --config.data.folder.path=IMAGES

Then train with --config.data.source=precomputed
--config.data.precomputed.path=CACHE. To continue after an interruption, or
after the data changed, run the same command again: only what is new or changed
is computed.
"""

import os
import pathlib
from collections.abc import Callable
from typing import Any

import ml_collections
from absl import flags
from ml_collections import config_flags

from sdxl_jax import cli
from sdxl_jax.checkpoints import run_sources
from sdxl_jax.distributed import multihost
from sdxl_jax.training import (
  cache_encoder,
  cache_settings,
  cache_update,
  config_validation,
  data_validation,
  folder_lock,
  run_setup,
)


def precompute(
  config: ml_collections.ConfigDict,
  output: str | os.PathLike,
  *,
  crops: int = 1,
  flips: bool = False,
  dtype: str = 'bfloat16',
  shard_size: int = 1024,
  batch_size: int = 8,
  say: Callable[[str], Any] = print,
) -> None:
  """Writes the moments and encoded text of a dataset, or updates them.

  The format is that of data/sources/cache_layout.py.

  Args:
    config: as for training.
    output: folder, the same one for all processes.
    crops: different crops of each image.
    flips: whether to add the mirror image of each crop.
    dtype: of moments and text in the shards, 'bfloat16' or 'float16'.
    shard_size: records in a file, at most.
    batch_size: images, and captions, encoded at once on each device.
    say: takes a line for the user.

  Raises:
    ValueError: for an invalid config, or a folder that holds a cache of other
      settings or nets, or that another command writes to; nothing in it is
      changed.
    OSError: if the disk is full, or another command has taken the folder
      over; what is finished is kept.
  """
  cache_settings.check_images(config)
  config_validation.check(config)
  data_validation.check_encodable(config)
  multihost.start(config.mesh.processes)
  # The folder, new or of an earlier run, before what takes minutes.
  folder = pathlib.Path(output).absolute()
  folder.mkdir(parents=True, exist_ok=True)
  lock = folder_lock.hold(folder, say, '--output')
  try:
    # The dataset, and the nets on this process's own devices.
    vae_source = run_sources.vae_source(config)
    setup = run_setup.set_up_locally(config, vae_source, say)
    encoder = cache_encoder.Encoder(setup, batch_size)
    layout = cache_settings.make_layout(
      setup.config, setup.model, setup.source, crops, flips, dtype
    )
    layout = layout.with_nets(encoder.identity())
    cache_update.update(
      setup, folder, layout, encoder, shard_size, say, lock.check
    )
  finally:
    lock.release()


def main(args):
  precompute(
    args.config,
    args.output,
    crops=args.crops,
    flips=args.flips,
    dtype=args.dtype,
    shard_size=args.shard_size,
    batch_size=args.batch_size,
  )


def define_flags():
  config_flags.DEFINE_config_file('config', None, 'file with get_config()')
  flags.DEFINE_string('output', None, 'folder of the cache')
  flags.DEFINE_integer('crops', 1, 'different crops of each image', 1)
  flags.DEFINE_bool('flips', False, 'add the mirror image of each crop')
  flags.DEFINE_enum(
    'dtype', 'bfloat16', ['bfloat16', 'float16'], 'of moments and text'
  )
  flags.DEFINE_integer('shard_size', 1024, 'records in a file', 1)
  flags.DEFINE_integer(
    'batch_size', 8, 'images, and captions, encoded at once per device', 1
  )
  flags.mark_flags_as_required(['config', 'output'])


if __name__ == '__main__':
  define_flags()
  cli.define_cache_dir()
  cli.run(main, memory='pass a smaller --batch_size')
