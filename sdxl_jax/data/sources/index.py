"""The index of a dataset: a row per record, known without opening a picture.

One Arrow file, mapped into memory, so that a hundred million rows cost no more
of it than what is looked at; then the digest of its bytes. Columns:
  height, width    int32, px, upright; 0 where the header cannot be read
  aesthetic_score  float32, NaN where there is none
and those by which a source finds its records and filters choose them.
"""

import concurrent.futures
import contextlib
import functools
import hashlib
import json
import logging
import multiprocessing
import os
import pathlib
import shutil
import threading
import time

import fsspec
import pyarrow as pa
import tqdm

VERSION = 1  # of the columns' meaning; another one is built anew
DIGEST = 32  # bytes at the end of the file
CACHE = '~/.cache/sdxl_jax'  # of indices whose data's own place takes no file
CHANGES = ('mtime', 'updated', 'LastModified', 'etag', 'ETag', 'md5Hash')
LOCK_TIMEOUT_S = 60  # seconds without a sign of life
MIN_PARALLEL_PARTS = 4  # parts that are not worth starting processes for


def load(folder, facts, parts, measure, workers=8):
  """The index of a dataset as a pa.Table, built if it is not there.

  Args:
    folder: where it belongs, or None for data that is not on a local disk.
    facts: JSON dict of what the dataset is and how it is read.
    parts: [(what, stamp)], the pieces that are measured apart, such as tars, in
      JSON; the stamp of one changes with its content.
    measure: picklable function, what -> pa.Table of the records of a part.
    workers: processes that measure; 0: none but this one.
  """
  facts = {'version': VERSION, **facts}
  path = index_path(folder, digest(facts)[:16])
  while (table := read(path, digest([facts, parts]))) is None:
    with build_lock(path.with_suffix('.lock')) as ours:
      if ours:
        build(path, facts, parts, measure, workers)
  return table


def load_files(source, pattern, fs, paths, facts, measure, workers):
  """The index of files, each a part, local or behind a URL.

  Args:
    source: name of the kind.
    pattern: what the files were found by.
    fs, paths: fsspec's file system, and the files on it.
    facts: how they are read; further arguments of measure.
    measure: picklable function, (path, fs=fs, **facts) -> pa.Table.
    workers: as for `load`.
  """
  return load(
    local_folder(fs, paths[0]),
    {'source': source, 'files': str(pattern), **facts},
    [(path, file_version(fs, path)) for path in paths],
    functools.partial(measure, fs=fs, **facts),
    workers,
  )


def digest(value):
  return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def index_path(folder, identity):
  """A path that can be written: hidden beside the data, or in a cache."""
  if folder is not None and os.access(folder, os.W_OK):
    return pathlib.Path(folder) / f'.index-{identity}.arrow'
  folder = pathlib.Path(os.environ.get('SDXL_JAX_CACHE', CACHE)).expanduser()
  folder.mkdir(parents=True, exist_ok=True)
  return folder / f'index-{identity}.arrow'


@contextlib.contextmanager
def build_lock(lock):
  """Whether to build now; if another process does, waits until it is done.

  Who builds touches the file as a sign of life, so that one that was killed
  keeps nobody waiting.
  """
  try:
    lock.touch(exist_ok=False)
  except FileExistsError:
    wait_for(lock)
    yield False
    return
  done = threading.Event()

  def live():
    while not done.wait(LOCK_TIMEOUT_S / 6):
      lock.touch()

  alive = threading.Thread(target=live, daemon=True)
  alive.start()
  try:
    yield True
  finally:
    done.set()
    alive.join()
    lock.unlink(missing_ok=True)


def wait_for(lock):
  """Returns when a lock is gone, or takes away that of a dead process."""
  logging.warning('another process builds the index; waiting for %s', lock)
  seen, since = None, time.monotonic()
  while lock.exists():
    try:
      touched = lock.stat().st_mtime_ns
    except FileNotFoundError:
      return
    if touched != seen:
      seen, since = touched, time.monotonic()
    elif time.monotonic() - since > LOCK_TIMEOUT_S:
      lock.unlink(missing_ok=True)
    time.sleep(0.1)


def build(path, facts, parts, measure, workers):
  """Measures all parts, of which an earlier, broken attempt may hold some."""
  folder = path.with_suffix('.parts')
  folder.mkdir(exist_ok=True)
  jobs = [
    (folder / f'{i:06d}.arrow', digest([facts, what, stamp]), what, measure)
    for i, (what, stamp) in enumerate(parts)
  ]
  progress = tqdm.tqdm(total=len(jobs), desc='indexing', unit='part', delay=2)
  with progress, pool(workers if len(jobs) >= MIN_PARALLEL_PARTS else 0) as run:
    for _ in run(measure_part, jobs):
      progress.update()
  table = join([read(file, known) for file, known, _, _ in jobs])
  write(path, digest([facts, parts]), table)
  shutil.rmtree(folder)


def join(tables):
  """One table of many, where a column may lack in some; copies no rows."""
  try:
    table = pa.concat_tables(tables, promote_options='permissive')
  except pa.ArrowTypeError as error:
    raise ValueError(
      f'a column of the metadata holds numbers in places and text in others '
      f'({error}): make them alike, or leave it out of the filters'
    ) from error
  return table.unify_dictionaries()


@contextlib.contextmanager
def pool(workers):
  """A map() that runs in processes, or in this one."""
  if not workers:
    yield map
    return
  # Not forked: JAX may have started threads, which a fork would freeze.
  spawn = multiprocessing.get_context('spawn')
  with concurrent.futures.ProcessPoolExecutor(workers, spawn) as executor:
    yield executor.map


def measure_part(job):
  file, known, what, measure = job
  if read(file, known) is None:
    write(file, known, measure(what))


def write(path, known, table):
  """Writes a table so that it appears whole or not at all."""
  table = table.replace_schema_metadata({'known': known})
  new = path.with_name(f'{path.name}.{os.getpid()}')
  with pa.OSFile(str(new), 'wb') as sink:
    with pa.ipc.new_file(sink, table.schema) as writer:
      writer.write_table(table)
  with open(new, 'rb') as file:
    digest = hashlib.file_digest(file, new_hash).digest()
  with open(new, 'ab') as file:
    file.write(digest)
  new.replace(path)


def new_hash():
  return hashlib.blake2b(digest_size=DIGEST)


def read(path, known):
  """The table, or None where there is none of these facts."""
  if not path.exists():
    return None
  content = pa.memory_map(str(path)).read_buffer()
  end = max(0, content.size - DIGEST)
  body = content.slice(0, end)
  expected = new_hash()
  expected.update(body)
  if expected.digest() != content.slice(end).to_pybytes():
    logging.warning('the index %s is damaged, and is built anew', path)
    return None
  table = pa.ipc.open_file(body).read_all()
  if table.schema.metadata[b'known'].decode() != known:
    logging.warning('the data changed, so %s is built anew', path)
    return None
  return table


def local_folder(fs, path):
  """The folder of a file, None where it is not on a local disk."""
  local = isinstance(fs, fsspec.implementations.local.LocalFileSystem)
  return os.path.dirname(path) if local else None


def file_version(fs, path):
  """What changes with a file's content, known without reading it."""
  info = fs.info(path)
  return [info['size'], *(str(info[k]) for k in CHANGES if k in info)]
