"""The folder that a run writes to and resumes from, shared by all hosts."""

import json
import os
import pathlib
from collections.abc import Callable
from typing import Any

import jax
from ml_collections import config_dict

from sdxl_jax import atomic_write
from sdxl_jax.checkpoints import orbax_checkpoint
from sdxl_jax.distributed import multihost
from sdxl_jax.programs import program_cache
from sdxl_jax.training import config_diff

CONFIG = 'config.json'  # in the workdir


def make(workdir: str | os.PathLike) -> pathlib.Path:
  """Makes the folder and checks that it can be written to.

  Raises:
    ValueError: for a URL, or a folder that cannot be written to.
  """
  if '://' in str(workdir):
    raise ValueError(
      f'workdir {workdir} is a URL; pass a folder that all hosts share, such '
      'as the bucket mounted with gcsfuse'
    )
  workdir = pathlib.Path(workdir).absolute()
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    probe = workdir / f'.writable-{jax.process_index()}'
    probe.write_bytes(b' ' * 4096)  # an empty file fits even on a full disk
    probe.unlink()
  except OSError as error:
    raise ValueError(
      f'workdir {workdir} cannot be written ({error}): pass another folder'
    ) from error
  return workdir


def write_config(
  config: config_dict.ConfigDict,
  workdir: pathlib.Path,
  checkpoints: orbax_checkpoint.Checkpoints,
  accept_changes: bool,
  say: Callable[[str], None],
) -> None:
  """Saves the config to WORKDIR/config.json.

  Args:
    config: of the run.
    workdir: from `make`.
    checkpoints: of the workdir, which the config must fit if there are any.
    accept_changes: whether grave changes since the last start are allowed.
    say: prints a line for the user.

  Raises:
    ValueError: on grave changes; see config_diff.check_changes.
  """
  compare_config(config, workdir, checkpoints, accept_changes, say)
  # Written once all processes have compared.
  multihost.barrier('every process has read the old config')
  save_config(config, workdir)


def save_config(config: config_dict.ConfigDict, workdir: pathlib.Path) -> None:
  """Writes WORKDIR/config.json, in the primary process."""
  if multihost.is_primary():
    text = json.dumps(json.loads(config.to_json()), indent=2)
    atomic_write.write_text(workdir / CONFIG, text + '\n')


def compare_config(
  config: config_dict.ConfigDict,
  workdir: pathlib.Path,
  checkpoints: orbax_checkpoint.Checkpoints,
  accept_changes: bool,
  say: Callable[[str], None],
) -> None:
  """Compares the config with that of the last start; see `write_config`."""
  # Without checkpoints nothing was trained, so another config may follow.
  if checkpoints.latest_step is None:
    return
  old = read_config(workdir / CONFIG, checkpoints, say)
  new = json.loads(config.to_json())
  config_diff.check_changes(
    old,
    new,
    workdir,
    accept_changes,
    say,
    has_fingerprint=lambda: 'dataset' in checkpoints.read_data(),
  )


def read_config(
  path: pathlib.Path,
  checkpoints: orbax_checkpoint.Checkpoints,
  say: Callable[[str], None],
) -> dict[str, Any]:
  """Reads the config of the run so far, from its latest checkpoint if need be.

  Args:
    path: of config.json.
    checkpoints: of the workdir, at least one.
    say: prints a line for the user.
  """
  try:
    return json.loads(path.read_text())
  except (FileNotFoundError, ValueError) as error:
    say(
      f'warning: {path} cannot be read ({error}): the config is compared with '
      f'that of the checkpoint of step {checkpoints.latest_step}'
    )
  # As JSON has it, where tuples are lists.
  return json.loads(json.dumps(checkpoints.read_config()))


def cache_compilations(workdir: pathlib.Path) -> None:
  """Keeps compiled programs, so that a resumed run starts at once.

  Where the user has named no folder, it is WORKDIR/compiled in a workdir that
  has one, and for several processes: only the first of them writes programs, so
  that all must share the folder.
  """
  own = workdir / 'compiled'
  is_own = own.is_dir() or jax.process_count() > 1
  program_cache.turn_on(own if is_own else None)
