"""Says in one line why weights on the Hugging Face hub cannot be had."""

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

from sdxl_jax.weights import hub_files, unknown_paths

MOST_NAMES = 8  # that a line lists
LONGEST = 200  # characters of an error of a library
DENIED = 401, 403


def name_of(repository: Any) -> str:
  """Returns the name of a hub.Repository, with its revision."""
  revision = f'@{repository.revision}' if repository.revision else ''
  return repository.name + revision


def reason_of(error: BaseException) -> str:
  """Returns what an error of a library says, without what it advises."""
  if type(error).__name__ == 'OfflineModeIsEnabled':
    return 'HF_HUB_OFFLINE is set'
  lines = [line.strip() for line in str(error).splitlines()]
  first = next(filter(None, lines), '')[:LONGEST]
  return f'{type(error).__name__}: {first}' if first else type(error).__name__


def explain_refusal(repository: Any, error: Exception) -> str | None:
  """Describes an answer of the hub that is a refusal; None: it gave none.

  Args:
    repository: hub.Repository that was asked for.
    error: that huggingface_hub raised.
  """
  from huggingface_hub import errors

  name = repository.name
  status = getattr(getattr(error, 'response', None), 'status_code', None)
  # The kinds are ordered by class: a gated one counts as not found.
  if isinstance(error, errors.GatedRepoError):
    return (
      f'{name} on the Hugging Face hub is gated: accept its terms at '
      f'https://huggingface.co/{name}, then log in with `hf auth login` or set '
      'HF_TOKEN'
    )
  if isinstance(error, errors.RepositoryNotFoundError):
    return (
      f'{name} does not exist here, and the Hugging Face hub shows no such '
      'repository: check the path or the name; for a private one, log in with '
      '`hf auth login` or set HF_TOKEN'
    )
  if isinstance(error, errors.RevisionNotFoundError):
    return (
      f'{name} on the Hugging Face hub has no revision '
      f'{repository.revision!r}: pass a branch, a tag or a commit of it'
    )
  if isinstance(error, errors.HFValidationError):
    return f'{name} is no name of the Hugging Face hub: {reason_of(error)}'
  if status in DENIED:
    return (
      f'{name} on the Hugging Face hub may not be read (status {status}): log '
      'in with `hf auth login` or set HF_TOKEN, with the rights it needs'
    )
  return None


def explain_away(repository: Any, error: Exception) -> str:
  """Describes a hub that cannot be reached."""
  download = unknown_paths.DOWNLOAD.format(repository.name)
  return (
    f'{repository.name} does not exist here and was not downloaded before, and '
    f'the Hugging Face hub, huggingface.co, cannot be reached '
    f'({reason_of(error)}): go online, or download it elsewhere with '
    f'`{download}'
  )


def explain_files(repository: Any, names: Iterable[str]) -> str:
  """Describes a repository that is no folder of a model or a net."""
  return (
    f'{name_of(repository)} on the hub has neither model_index.json nor '
    f'config.json: {describe_files(repository, names)}'
  )


def describe_files(repository: Any, names: Iterable[str]) -> str:
  """Lists the files that may be passed in place of a repository."""
  found = sorted(n for n in names if n.endswith(hub_files.SUFFIXES))
  if not found:
    return 'it has no file of weights either; check the name'
  shown = [f'{name_of(repository)}/{name}' for name in found[:MOST_NAMES]]
  more = len(found) - len(shown)
  return f'pass {" or ".join(shown)}{f", or one of {more} more" * (more > 0)}'


@contextlib.contextmanager
def naming(repository: Any) -> Iterator[None]:
  """Raises what fails in a download as an OSError that says what to do."""
  try:
    yield
  except Exception as error:  # of the library, or of those that it calls
    refusal = explain_refusal(repository, error)
    if refusal:
      raise FileNotFoundError(refusal) from error
    raise OSError(
      f'{name_of(repository)} could not be downloaded ({reason_of(error)}): '
      'run the same command again, which goes on where it stopped; check the '
      'network and the space on the disk'
    ) from error
