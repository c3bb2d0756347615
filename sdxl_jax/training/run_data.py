"""Opens the data of a start of a run."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
from ml_collections import config_dict

from sdxl_jax.data import dataset, fingerprint, pipeline
from sdxl_jax.data.sources import held_out
from sdxl_jax.distributed import multihost, sharding
from sdxl_jax.text import tokenizer
from sdxl_jax.training import (
  resuming,
  run_setup,
  run_start,
  tasks,
  validation_share,
  workdirs,
)


class Data(NamedTuple):
  """The data of a start."""

  config: config_dict.ConfigDict  # of the start, with the share held out
  split: held_out.Split  # of all records
  tokenize: tokenizer.Tokenizer
  fingerprint: fingerprint.Json  # of the records that are trained on
  batches: pipeline.Batches
  make_batches: Callable[[], pipeline.Batches]  # others, from the beginning
  new_pass: bool  # whether the records are others than the checkpoint's


def open_data(start: run_start.Start, mesh: jax.sharding.Mesh) -> Data:
  """Opens the data: the same in all processes, and those of the checkpoint."""
  config, say = start.config, start.writer.say
  split = run_setup.make_split(config, start.workdir, say, start.accept_changes)
  line = validation_share.describe(
    config.validation.share, split, config.validation.every
  )
  if line:
    say(line)
  config = validation_share.with_share(config, split.share)
  workdirs.save_config(config, start.workdir)
  identity = fingerprint.of(split.trained)
  held = [fingerprint.of(source) for _, source in split.held_out]
  tokenize = run_setup.load_tokenizer(config)
  rows = sharding.local_rows(mesh, tasks.micro_batch_size(config))
  make_batches = functools.partial(
    dataset.make_batches, config, split.trained, tokenize, rows
  )

  batches = make_batches()
  start.stack.callback(batches.close)
  run_setup.warn_of_data(config, batches.schedule, say)
  facts = tasks.run_fingerprint(config, batches.schedule)
  facts |= {'dataset': str(identity), 'set of held-out records': str(held)}
  multihost.check_equal_across_hosts(facts)
  new_pass = resuming.check_dataset(
    start.checkpoints,
    start.workdir,
    resuming.Dataset(split.trained, identity, batches.schedule.streams),
    start.accept_changes,
    say,
  )
  return Data(
    config, split, tokenize, identity, batches, make_batches, new_pass
  )
