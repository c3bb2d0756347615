"""Tar shards of images and captions, as webdataset and img2dataset write them.

The members of a record share their path up to the first dot of the name:
00/000012.jpg, 00/000012.txt and perhaps 00/000012.json.
"""

import json
import os
import re
import tarfile
from collections.abc import Sequence
from typing import Any, NamedTuple

import fsspec
import numpy as np
import pyarrow as pa

from sdxl_jax.data import images
from sdxl_jax.data.sources import index, indexed

Members = dict[str, tarfile.TarInfo]  # {suffix: member} of a record


class WebDataset(indexed.IndexedSource):
  """Records at known offsets of tar files, local or behind a URL.

  Args:
    shards: pattern of paths, or of URLs that fsspec opens: /data/{000..127}.tar
      or gs://bucket/*.tar.
    caption: 'txt', the member that holds it, or a field of the json member;
      '': captions are ''.
    score: field of the json member for aesthetic_score.
    columns: other fields of the json member, by which filters choose.
    workers: processes that read the tars to index them.

  Raises:
    FileNotFoundError: if no file matches.
    ValueError: for a truncated tar.
  """

  def __init__(
    self,
    shards: str | os.PathLike,
    caption: str = 'txt',
    score: str = 'aesthetic_score',
    columns: tuple[str, ...] = (),
    workers: int = 8,
  ):
    self.fs, pattern = fsspec.core.url_to_fs(str(shards))
    self.caption = caption
    # Sorted, so that all hosts number the records alike.
    paths = sorted(
      path for part in braces(pattern) for path in self.fs.glob(part)
    )
    if not paths:
      raise FileNotFoundError(
        f'no tar matches {shards}: check the path, or the login for a URL'
      )
    # One part of the index for each tar.
    columns = indexed.index_columns(columns, score)
    super().__init__(
      index.load_files(
        'webdataset',
        index.Files(str(shards), self.fs, paths),
        dict(caption=caption, columns=columns),
        measure,
        workers,
      )
    )

  def name(self, i: int) -> str:
    return f'{self.value("shard", i)}: {self.value("key", i)}'

  def read(self, i: int) -> indexed.Example:
    try:
      image = self.member('image', i)
      text = self.member('text', i) if self.caption else b''
    except OSError as error:
      raise images.UnreadableImage(self.name(i), error) from error
    # A caption is the .txt member, or a field of the .json one.
    text = text.decode('utf-8', errors='replace')
    if self.caption not in ('txt', ''):
      text = json.loads(text)[self.caption]
    return {'image': image, 'caption': text.strip()}

  def member(self, kind: str, i: int) -> bytes:
    """Reads the 'image' or the 'text' of a record."""
    start = self.value(f'{kind}_start', i)
    end = start + self.value(f'{kind}_bytes', i)
    return self.fs.cat_file(self.value('shard', i), start, end)


def braces(pattern: str) -> list[str]:
  """Expands {000..127} in a pattern."""
  match = re.search(r'\{(\d+)\.\.(\d+)\}', pattern)
  if not match:
    return [pattern]
  first, last = match.groups()
  before, after = pattern[: match.start()], pattern[match.end() :]
  return [
    expanded
    for n in range(int(first), int(last) + 1)
    for expanded in braces(f'{before}{n:0{len(first)}d}{after}')
  ]


def measure(
  path: str,
  fs: fsspec.AbstractFileSystem,
  caption: str,
  columns: dict[str, str],
) -> pa.Table:
  """Measures a part of the index: one tar.

  Args:
    path: of the tar, on `fs`.
    fs: file system.
    caption: as for `WebDataset`.
    columns: {name in the index: field of the json member}.
  """
  try:
    with fs.open(path, 'rb') as file, tarfile.open(fileobj=file) as tar:
      return measure_tar(tar, path, caption, columns)
  except tarfile.TarError as error:
    raise ValueError(
      f'{path} is a truncated or corrupt tar ({error}): re-download or remove '
      'it'
    ) from error


class Record(NamedTuple):
  """Members of a tar that make a record."""

  key: str
  image: tarfile.TarInfo
  text: tarfile.TarInfo | None  # that holds the caption
  fields: dict[str, Any]  # of the json member


def measure_tar(
  tar: tarfile.TarFile, path: str, caption: str, columns: dict[str, str]
) -> pa.Table:
  """Measures the records of an open tar; arguments as for `measure`."""
  # Files without an image are not records.
  records = []
  text_suffix = '.txt' if caption == 'txt' else '.json'
  for key, members in group(tar).items():
    image_members = [members[s] for s in images.SUFFIXES if s in members]
    if image_members:
      fields = read_json(tar, members)
      text = members.get(text_suffix)
      records.append(Record(key, image_members[0], text, fields))
  # Where the caption is, so that it can be read later.
  captioned = [
    not caption
    or (r.text is not None and (caption == 'txt' or caption in r.fields))
    for r in records
  ]
  image_members = [r.image for r in records]
  texts = [r.text for r in records]
  problems = np.where(captioned, indexed.USABLE, indexed.NO_CAPTION)
  return indexed.make_table(
    [
      indexed.Measured(
        r.key, indexed.size_of(tar.extractfile(r.image)), int(problem)
      )
      for r, problem in zip(records, problems)
    ],
    {n: [r.fields.get(name) for r in records] for n, name in columns.items()},
    shard=pa.array([path] * len(records), pa.string()).dictionary_encode(),
    key=pa.array([r.key for r in records], pa.string()),
    image_start=offsets(image_members),
    image_bytes=lengths(image_members),
    text_start=offsets(texts),
    text_bytes=lengths(texts),
  )


def offsets(members: Sequence[tarfile.TarInfo | None]) -> pa.Array:
  """Returns where the content of members starts in their tar."""
  values = [None if m is None else m.offset_data for m in members]
  return pa.array(values, pa.int64())


def lengths(members: Sequence[tarfile.TarInfo | None]) -> pa.Array:
  """Returns the bytes of the content of members."""
  values = [None if m is None else m.size for m in members]
  return pa.array(values, pa.int64())


def group(tar: tarfile.TarFile) -> dict[str, Members]:
  """Groups the members of a tar by record: {key: {suffix: member}}."""
  groups = {}
  for member in tar:
    if member.isfile():
      folder, slash, name = member.name.rpartition('/')
      stem, dot, suffix = name.partition('.')
      members = groups.setdefault(folder + slash + stem, {})
      members[dot + suffix.lower()] = member
  return groups


def read_json(tar: tarfile.TarFile, members: Members) -> dict[str, Any]:
  """Reads the fields of a record's json member; {} where it has none."""
  if '.json' not in members:
    return {}
  try:
    return {**json.load(tar.extractfile(members['.json']))}
  except (ValueError, TypeError):
    return {}
