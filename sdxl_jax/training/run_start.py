"""Opens the workdir at a start of a run."""

import contextlib
import dataclasses
import json
import pathlib

import jax
from ml_collections import config_dict

from sdxl_jax.checkpoints import orbax_checkpoint
from sdxl_jax.distributed import multihost, stop_notice
from sdxl_jax.models import net_types
from sdxl_jax.programs import compile_progress
from sdxl_jax.training import (
  config_warnings,
  folder_lock,
  metrics_writer,
  run_setup,
  set_back,
  validation_share,
  workdirs,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Start:
  """A start of a run: its config, and what it holds open in the workdir."""

  config: config_dict.ConfigDict
  workdir: pathlib.Path
  lock: folder_lock.FolderLock
  checkpoints: orbax_checkpoint.Checkpoints
  writer: metrics_writer.Writer
  accept_changes: bool  # of the config and the dataset
  stack: contextlib.ExitStack  # closes threads and files at the end


def open_checkpoints(
  config: config_dict.ConfigDict, workdir: pathlib.Path
) -> orbax_checkpoint.Checkpoints:
  """Opens the checkpoints of a workdir, to be kept as the config has it."""
  c = config.checkpoint
  return orbax_checkpoint.Checkpoints(
    workdir, c.max_to_keep, keep_every=c.keep_every
  )


def choose_open_fields(
  config: config_dict.ConfigDict, workdir: pathlib.Path
) -> config_dict.ConfigDict:
  """Fills in fields that the first start of a run decides.

  By those of the run so far, so that a run that goes on elsewhere, or with more
  data, computes as it did. In a new one 'auto' types are those that suit the
  device, and the share of validation is left to its data.
  """
  earlier = None
  if net_types.open_fields(config) or config.validation.share is None:
    with contextlib.closing(open_checkpoints(config, workdir)) as checkpoints:
      if checkpoints.latest_step is not None:
        earlier = checkpoints.read_config()
  config = net_types.resolve(config, jax.devices()[0], earlier)
  return validation_share.of_run(config, earlier)


def open_workdir(
  config: config_dict.ConfigDict,
  workdir: str | pathlib.Path,
  from_step: int | None,
  accept_changes: bool,
  notice: stop_notice.PreemptionNotice,
  stack: contextlib.ExitStack,
) -> Start:
  """Opens a workdir that no other run writes to; arguments as for train."""
  workdir = workdirs.make(workdir)
  lock = folder_lock.hold(workdir, print, '--workdir')
  stack.callback(lock.release)
  notice.end_at_once(
    'before its first step; the checkpoints are as they were', lock.release
  )
  workdirs.cache_compilations(workdir)
  compile_progress.show()
  given, config = config, choose_open_fields(config, workdir)
  if from_step is not None:
    # Refuse another config before anything is moved; it is compared, and its
    # changes are printed, again below.
    with contextlib.closing(open_checkpoints(config, workdir)) as checkpoints:
      workdirs.compare_config(
        config, workdir, checkpoints, accept_changes, lambda line: None
      )
    set_back.set_back(workdir, from_step, print)
  checkpoints = open_checkpoints(config, workdir)
  done = checkpoints.latest_step or 0
  writer = metrics_writer.Writer(
    workdir,
    done,
    config.total_steps,
    multihost.is_primary(),
    config.log_with,
    (config.log_tracker_name, json.loads(config.to_json())),
  )
  stack.callback(writer.close)
  writer.say(multihost.describe())
  for line in net_types.describe(given, config):
    writer.say(line)
  run_setup.warn(config_warnings.of_config(config), writer.say)
  workdirs.write_config(
    config, workdir, checkpoints, accept_changes, writer.say
  )
  return Start(
    config=config,
    workdir=workdir,
    lock=lock,
    checkpoints=checkpoints,
    writer=writer,
    accept_changes=accept_changes,
    stack=stack,
  )
