"""The index of a dataset: a row per record, measured without decoding images.

One Arrow file, memory-mapped, so that a hundred million rows take no more
memory than those in use, followed by the digest of its bytes. Columns:
  height, width    int32, px, upright; 0 where the header cannot be read
  problem          uint8, whether the record can be used, see `indexed`
  reason           string, details of the problem, where there are any
  key, stamp       uint64, hashes of the record's name and of its content
  captions         uint8, how many it has, where there are several
  aesthetic_score  float, null where there is none
and those by which a source finds its records and filters choose them.
"""

import functools
import hashlib
import itertools
import json
import logging
import os
import pathlib
import shutil
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import fsspec
import pyarrow as pa
import tqdm

from sdxl_jax import atomic_write
from sdxl_jax.data.sources import broken_file, build_lock, worker_processes

VERSION = 2  # of the columns' meaning; a change rebuilds every index
HIDDEN_PREFIX = '.index-'  # of an index in the folder of its data
DIGEST_BYTES = 32  # at the end of the file
CACHE = '~/.cache/sdxl_jax'  # of indices whose data's folder is not writable
# Fields of fsspec's info that change with a file's content.
VERSION_FIELDS = ('mtime', 'updated', 'LastModified', 'etag', 'ETag', 'md5Hash')
MIN_PARALLEL_PARTS = 4  # fewer are not worth starting processes for

Part = tuple[Any, Any]  # what to measure, and its version; both JSON


def load(
  folder: str | os.PathLike | None,
  build_options: dict[str, Any],
  parts: Sequence[Part],
  measure: Callable[[Any], pa.Table],
  workers: int = 8,
) -> pa.Table:
  """Reads the index of a dataset, or builds it where it is missing or outdated.

  Of several processes one builds, and the others wait for its index.

  Args:
    folder: of the dataset, or None for data that is not on a local disk.
    build_options: JSON dict of the dataset's name and how it is read.
    parts: [(what, version)], pieces such as tars that are measured
      independently; the version of one changes with its content.
    measure: picklable function, what -> table of the records of a part.
    workers: processes that measure; 0: none but this one.

  Raises:
    TimeoutError: after a day of waiting for another process.
  """
  # The file's name depends on the options, its fingerprint also on the data.
  build_options = {'version': VERSION, **build_options}
  path = index_path(folder, digest(build_options)[:16])
  fingerprint = digest([build_options, parts])
  table = read(path, fingerprint)
  if table is None:
    with build_lock.hold(path.with_suffix('.lock')):
      # Another process may have built it while this one waited.
      table = read(path, fingerprint)
      if table is None:
        build(path, build_options, parts, measure, workers)
        table = read(path, fingerprint)
  return table


class Files(NamedTuple):
  """The files of a dataset, each a part of its index."""

  pattern: str  # as the config has it
  fs: fsspec.AbstractFileSystem  # that holds them
  paths: Sequence[str]  # on `fs`, in the order of their records


def load_files(
  source: str,
  files: Files,
  build_options: dict[str, Any],
  measure: Callable[..., pa.Table],
  workers: int,
) -> pa.Table:
  """Loads the index of files, local or behind a URL.

  Args:
    source: kind of the source.
    files: of the dataset.
    build_options: how the files are read; further arguments of measure.
    measure: picklable function, (path, fs=fs, **build_options) -> table.
    workers: see `load`.
  """
  fs, paths = files.fs, files.paths
  return load(
    local_folder(fs, paths[0]),
    {'source': source, 'files': files.pattern, **build_options},
    [(path, file_version(fs, path)) for path in paths],
    functools.partial(measure, fs=fs, **build_options),
    workers,
  )


def digest(value: Any) -> str:
  """Hashes a JSON value."""
  return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def index_path(folder: str | os.PathLike | None, identity: str) -> pathlib.Path:
  """Returns a writable path: hidden in the data's folder, or in a cache."""
  if folder is not None and os.access(folder, os.W_OK):
    return pathlib.Path(folder) / f'{HIDDEN_PREFIX}{identity}.arrow'
  folder = pathlib.Path(os.environ.get('SDXL_JAX_CACHE', CACHE)).expanduser()
  folder.mkdir(parents=True, exist_ok=True)
  return folder / f'index-{identity}.arrow'


class Job(NamedTuple):
  """A part of an index to measure."""

  path: pathlib.Path  # of the result
  fingerprint: str
  what: Any
  measure: Callable[[Any], pa.Table]


def build(
  path: pathlib.Path,
  build_options: dict[str, Any],
  parts: Sequence[Part],
  measure: Callable[[Any], pa.Table],
  workers: int,
) -> None:
  """Measures all parts but those that an interrupted attempt left, and joins.

  Args:
    path: of the index.
    build_options, parts, measure, workers: see `load`.
  """
  folder = path.with_suffix('.parts')
  folder.mkdir(exist_ok=True)
  jobs = [
    Job(
      folder / f'{i:06d}.arrow',
      digest([build_options, what, version]),
      what,
      measure,
    )
    for i, (what, version) in enumerate(parts)
  ]
  # Measure in processes, each part to a file of its own.
  if len(jobs) < MIN_PARALLEL_PARTS:
    workers = 0
  broken = []
  progress = tqdm.tqdm(total=len(jobs), desc='indexing', unit='part', delay=2)
  with progress, worker_processes.start(workers) as run:
    for error in run(measure_part, jobs):
      progress.update()
      broken += [error] if error else []
  # All at once, since downloads that broke off come in numbers.
  if len(broken) > 1:
    raise ValueError(f'{len(broken)} files:\n' + '\n'.join(map(str, broken)))
  if broken:
    raise broken[0]
  # Join the parts, which are memory-mapped, in their folder, so that nothing
  # that a killed process leaves there outlives it.
  tables = [read(job.path, job.fingerprint) for job in jobs]
  table = join(tables, [job.what for job in jobs])
  joined = folder / path.name
  write(joined, digest([build_options, parts]), table)
  os.replace(joined, path)
  shutil.rmtree(folder)


def join(tables: Sequence[pa.Table], names: Sequence[Any] = ()) -> pa.Table:
  """Concatenates tables, some of which may lack a column; copies no rows.

  Args:
    tables: of the parts of an index.
    names: of the parts, for the error; others than strings are not shown.

  Raises:
    ValueError: if a column is numeric in one table and text in another.
  """
  try:
    table = pa.concat_tables(tables, promote_options='permissive')
  except pa.ArrowTypeError as error:
    where = mixed(tables, names) or error
    raise ValueError(
      'a column of the metadata holds numbers in places and text in others '
      f'({where}): make them alike, or remove the column from the filters'
    ) from error
  return table.unify_dictionaries()


def mixed(tables: Sequence[pa.Table], names: Sequence[Any]) -> str:
  """Names the first column of two types, and a part with each."""
  first = {}  # {column: (type, name of a part)}
  for table, name in itertools.zip_longest(tables, names):
    shown = f' in {name}' if isinstance(name, str) else ''
    for field in table.schema:
      kind, place = first.setdefault(field.name, (field.type, shown))
      if pa.types.is_null(kind):
        first[field.name] = field.type, shown
      elif field.type not in (kind, pa.null()):
        return f'{field.name}: {kind}{place}, {field.type}{shown}'
  return ''


def measure_part(job: Job) -> broken_file.BrokenFile | None:
  """Writes the table of a part, or returns the error of a broken file."""
  if read(job.path, job.fingerprint) is None:
    try:
      write(job.path, job.fingerprint, job.measure(job.what))
    except broken_file.BrokenFile as error:
      return error


def write(path: pathlib.Path, fingerprint: str, table: pa.Table) -> None:
  """Writes a table and the digest of its bytes atomically.

  Args:
    path: of the file.
    fingerprint: of the inputs, by which `read` recognises what is outdated.
    table: of an index, or of a part.
  """
  table = table.replace_schema_metadata({'known': fingerprint})
  with atomic_write.atomic_path(path, overwrite=True) as partial:
    with pa.OSFile(str(partial), 'wb') as sink:
      with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    with open(partial, 'rb') as file:
      content_digest = hashlib.file_digest(file, new_hash).digest()
    with open(partial, 'ab') as file:
      file.write(content_digest)


def new_hash():
  return hashlib.blake2b(digest_size=DIGEST_BYTES)


def read(path: pathlib.Path, fingerprint: str) -> pa.Table | None:
  """Maps a table into memory, None if missing or written for other inputs."""
  if not path.exists():
    return None
  # Check the digest, which ends the file.
  content = pa.memory_map(str(path)).read_buffer()
  end = max(0, content.size - DIGEST_BYTES)
  body = content.slice(0, end)
  body_hash = new_hash()
  body_hash.update(body)
  if body_hash.digest() != content.slice(end).to_pybytes():
    logging.warning('the index %s is damaged and will be rebuilt', path)
    return None
  table = pa.ipc.open_file(body).read_all()
  if table.schema.metadata[b'known'].decode() != fingerprint:
    logging.warning('the data changed, so %s will be rebuilt', path)
    return None
  return table


def local_folder(fs: fsspec.AbstractFileSystem, path: str) -> str | None:
  """Returns the folder of a file, None where it is not on a local disk."""
  local = isinstance(fs, fsspec.implementations.local.LocalFileSystem)
  return os.path.dirname(path) if local else None


def file_version(fs: fsspec.AbstractFileSystem, path: str) -> list:
  """Returns what changes with a file's content, known without reading it."""
  info = fs.info(path)
  return [info['size'], *(str(info[k]) for k in VERSION_FIELDS if k in info)]
