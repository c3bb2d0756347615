"""Weights named by their repository on the Hugging Face hub.

  owner/name, owner/name@revision, owner/name/file.safetensors

A path that exists comes first. Files are downloaded by huggingface_hub, where
it is installed, into its cache; those that are there are not read again. Of
several processes on a host, one downloads a file, under the lock of that
library, and the others wait for it.
"""

import dataclasses
import functools
import glob
import importlib.util
import os
import pathlib
import re
from collections.abc import Collection
from typing import NamedTuple

from sdxl_jax.weights import (
  hub_errors,
  hub_files,
  read_options,
  unknown_paths,
)

Path = str | os.PathLike[str]
NAME = re.compile(
  rf'(?P<name>{unknown_paths.HUB_NAME.pattern})'
  r'(@(?P<revision>refs/pr/\d+|[\w.-]+))?'
  r'(/(?P<file>.+))?'
)
SECONDS = 10  # to wait for the first answer


class Repository(NamedTuple):
  """What a name names.

  Attributes:
    name: owner/name.
    revision: branch, tag or commit; None: the default branch.
    file: the one that is named; None: the repository.
  """

  name: str
  revision: str | None = None
  file: str | None = None


class Listing(NamedTuple):
  """The files of a repository: {name: bytes}, of the cache if so."""

  sizes: dict[str, int]
  cached: pathlib.Path | None = None  # the folder, where the hub is away


def parse(path: Path) -> Repository | None:
  """Parses the name of a repository or of a file in one; None: a path."""
  given = os.fspath(path)
  match = NAME.fullmatch(given)
  # A folder of the owner's name makes it a path, in which something is missing.
  if not match or os.path.exists(given) or is_folder(given.split('/')[0]):
    return None
  file = match['file']
  if (file or match['name']).endswith(hub_files.SUFFIXES) != bool(file):
    return None
  return Repository(match['name'], match['revision'], file)


def is_folder(path: str) -> bool:
  """Checks whether a path is a folder."""
  return pathlib.Path(path).is_dir()


def is_name(path: Path | None) -> bool:
  """Checks whether a path is no path, but the name of weights on the hub."""
  if path is None or importlib.util.find_spec('huggingface_hub') is None:
    return False
  return parse(path) is not None


def resolve(path: Path) -> Path:
  """Returns the path of weights, of which only small files are needed.

  Those are the configs and tokenizers of a repository in the layout of
  diffusers. See `locate`.
  """
  return locate(path, nets=())[0] if is_name(path) else path


def locate(
  path: Path,
  options: read_options.ReadOptions = read_options.DEFAULT,
  nets: Collection[str] | None = None,
) -> tuple[Path, read_options.ReadOptions]:
  """Returns the path of weights, downloaded if need be.

  Args:
    path: of weights, or their name on the hub.
    options: how they are read. Without a variant, that of a repository is fp16
      where a net has it, and otherwise the plain files.
    nets: that are needed, of pretrained.COMPONENTS; None: all.

  Returns:
    (path, options to read it with).

  Raises:
    FileNotFoundError: where there is no such repository, revision or file, or
      it cannot be read.
    OSError: where the download fails.
    ValueError: where it is not clear which files to take.
  """
  if not is_name(path):
    return path, options
  repository = parse(path)
  if repository.file:
    return fetch_file(repository), options
  needed = None if nets is None else tuple(sorted(nets))
  folder, variant = fetch(repository, options.variant, needed)
  return folder, dataclasses.replace(options, variant=variant)


def variants(path: Path) -> set[str]:
  """Returns the variants that weights on the hub are stored as."""
  repository = parse(path)
  if repository.file:
    return set()
  return hub_files.variants(list_files(repository).sizes)


@functools.cache  # a command asks several times
def list_files(repository: Repository) -> Listing:
  """Lists the files of a repository; see `locate` for errors."""
  import huggingface_hub as library

  try:
    info = library.HfApi().model_info(
      repository.name,
      revision=repository.revision,
      files_metadata=True,
      timeout=SECONDS,
    )
  except Exception as error:  # of the library, or of the one that it calls
    refusal = hub_errors.explain_refusal(repository, error)
    if refusal:
      raise FileNotFoundError(refusal) from error
    folder = cached_folder(repository)
    if folder is None:
      message = hub_errors.explain_away(repository, error)
      raise FileNotFoundError(message) from error
    reason = hub_errors.reason_of(error)
    print(
      f'{repository.name}: the hub cannot be reached ({reason}), so the files '
      'of the last download are read',
      flush=True,
    )
    files = [p for p in folder.rglob('*') if p.is_file()]
    sizes = {p.relative_to(folder).as_posix(): p.stat().st_size for p in files}
    return Listing(sizes, folder)
  return Listing({f.rfilename: f.size or 0 for f in info.siblings})


@functools.cache
def fetch(
  repository: Repository,
  variant: str | None,
  nets: tuple[str, ...] | None,
) -> tuple[pathlib.Path, str | None]:
  """Returns (folder of some nets of a repository, variant); see `locate`."""
  import huggingface_hub as library

  listing = list_files(repository)
  name = repository.name
  if not hub_files.is_folder(listing.sizes):
    raise ValueError(hub_errors.explain_files(repository, listing.sizes))
  try:
    names, chosen = hub_files.choose(listing.sizes, variant, nets)
  except ValueError as error:
    raise ValueError(f'{name} on the hub: {error}') from None
  if listing.cached:
    return listing.cached, chosen
  if nets != ():
    size = sum(listing.sizes[n] for n in names)
    of = f', of the variant {chosen}' if chosen else ''
    print(
      f'{name}: {len(names)} files of the hub, {size / 1e9:.3g} GB{of}',
      flush=True,
    )
  with hub_errors.naming(repository):
    return pathlib.Path(
      library.snapshot_download(
        name,
        revision=repository.revision,
        allow_patterns=[glob.escape(n) for n in names],
      )
    ), chosen


@functools.cache
def fetch_file(repository: Repository) -> pathlib.Path:
  """Returns the path of a file of a repository; see `locate` for errors."""
  import huggingface_hub as library

  sizes = list_files(repository).sizes
  if repository.file not in sizes:
    raise FileNotFoundError(
      f'{repository.name} on the hub has no {repository.file}: '
      f'{hub_errors.describe_files(repository, sizes)}'
    )
  with hub_errors.naming(repository):
    return pathlib.Path(
      library.hf_hub_download(
        repository.name, repository.file, revision=repository.revision
      )
    )


def cached_folder(repository: Repository) -> pathlib.Path | None:
  """Returns the folder of what was downloaded before, or None."""
  import huggingface_hub as library

  names = 'model_index.json', 'config.json', repository.file
  for name in filter(None, names):
    path = library.try_to_load_from_cache(
      repository.name, name, revision=repository.revision
    )
    if isinstance(path, str):
      return pathlib.Path(path.removesuffix(name))
  return None
