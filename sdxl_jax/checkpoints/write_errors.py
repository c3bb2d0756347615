"""Errors of writing to a workdir: what remains, and what to do."""

import pathlib
import re

# What to do about an error, by words in it; the first that match.
REMEDIES = (
  (r'No space|RESOURCE_EXHAUSTED|[Qq]uota|too large|GB left', 'make room'),
  (r'Read-only|Permission denied|not permitted', 'make the folder writable'),
  (
    r'No such file|NOT_FOUND|Stale|not connected|Input/output|vanished',
    'mount or restore the folder',
  ),
)


class CheckpointError(OSError):
  """A checkpoint cannot be written; the message has the last good one."""


def complete_steps(folder: pathlib.Path) -> list[int]:
  """Lists the steps of the complete checkpoints in a folder, in order."""
  # The name of one that is not complete is more than its step.
  try:
    names = [path.name for path in folder.iterdir()]
  except OSError:
    return []
  return sorted(int(name) for name in names if name.isdigit())


def explain(error: OSError, folder: pathlib.Path) -> CheckpointError:
  """Adds the last good checkpoint, and what to do, to an error's message.

  Args:
    error: of writing to the workdir.
    folder: of its checkpoints.
  """
  if isinstance(error, CheckpointError):
    return error
  steps = complete_steps(folder)
  last = f'that of step {steps[-1]}' if steps else 'that of no step'
  if not folder.is_dir():
    last = 'out of reach'
  text, remedy = str(error), 'mend that'
  for words, action in REMEDIES:
    if re.search(words, text):
      remedy = action
      break
  return CheckpointError(
    f'{text}. The last good one is {last}: {remedy} and run the same command '
    'again'
  )
