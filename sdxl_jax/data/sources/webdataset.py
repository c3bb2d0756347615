"""Tar shards of pictures and captions, as webdataset and img2dataset write.

The members of a record share their path up to the first dot of the name:
00/000012.jpg, 00/000012.txt and perhaps 00/000012.json.
"""

import json
import re
import tarfile

import fsspec
import pyarrow as pa

from sdxl_jax.data import images
from sdxl_jax.data.sources import index, indexed


class WebDataset(indexed.IndexedSource):
  """Records at known places of tar files, local or behind a URL.

  Args:
    shards: pattern of paths, or of URLs that fsspec opens: /data/{000..127}.tar
      or gs://bucket/*.tar.
    caption: 'txt', the member that holds it, or a field of the json member;
      '': there are none.
    score: field of the json member for aesthetic_score.
    columns: others, by which filters choose.
    workers: processes that read the tars.

  Raises:
    FileNotFoundError: where no file is so named.
    ValueError: for a tar that is not whole.
  """

  def __init__(
    self,
    shards,
    caption='txt',
    score='aesthetic_score',
    columns=(),
    workers=8,
  ):
    self.fs, pattern = fsspec.core.url_to_fs(str(shards))
    self.caption = caption
    paths = sorted(p for one in braces(pattern) for p in self.fs.glob(one))
    if not paths:
      raise FileNotFoundError(
        f'no tar is named {shards}: check the path, or the login for a URL'
      )
    facts = dict(caption=caption, columns=indexed.index_columns(columns, score))
    super().__init__(
      index.load_files(
        'webdataset', shards, self.fs, paths, facts, measure, workers
      )
    )

  def name(self, i):
    return f'{self.value("shard", i)}: {self.value("key", i)}'

  def read(self, i):
    try:
      image = self.member('image', i)
      text = self.member('text', i) if self.caption else b''
    except OSError as error:
      raise images.UnreadableImage(self.name(i), error) from error
    text = text.decode('utf-8', errors='replace')
    if self.caption not in ('txt', ''):
      text = json.loads(text)[self.caption]
    return {'image': image, 'caption': text.strip()}

  def member(self, kind, i):
    start = self.value(f'{kind}_start', i)
    end = start + self.value(f'{kind}_bytes', i)
    return self.fs.cat_file(self.value('shard', i), start, end)


def braces(pattern):
  """The patterns that one with {000..127} stands for."""
  match = re.search(r'\{(\d+)\.\.(\d+)\}', pattern)
  if not match:
    return [pattern]
  first, last = match.groups()
  before, after = pattern[: match.start()], pattern[match.end() :]
  return [
    one
    for n in range(int(first), int(last) + 1)
    for one in braces(f'{before}{n:0{len(first)}d}{after}')
  ]


def measure(path, fs, caption, columns):
  """A part of the index: one tar."""
  try:
    with fs.open(path, 'rb') as file, tarfile.open(fileobj=file) as tar:
      return measure_tar(tar, path, caption, columns)
  except tarfile.TarError as error:
    raise ValueError(
      f'{path} is not a whole tar ({error}): fetch it again or remove it'
    ) from error


def measure_tar(tar, path, caption, columns):
  found = [
    (key, members, image)
    for key, members in group(tar).items()
    if (image := next(filter(None, map(members.get, images.SUFFIXES)), None))
  ]
  fields = [read_json(tar, members) for _, members, _ in found]
  texts = [
    members.get('.txt' if caption == 'txt' else '.json')
    for _, members, _ in found
  ]
  # Only then can the caption be read later.
  captioned = [
    not caption or (text is not None and (caption == 'txt' or caption in field))
    for text, field in zip(texts, fields)
  ]
  places = lambda members, what: pa.array(
    [m and getattr(m, what) for m in members], pa.int64()
  )
  pictures = [image for _, _, image in found]
  return indexed.make_table(
    [indexed.size_of(tar.extractfile(picture)) for picture in pictures],
    captioned,
    {n: [field.get(name) for field in fields] for n, name in columns.items()},
    shard=pa.array([path] * len(found), pa.string()).dictionary_encode(),
    key=pa.array([key for key, _, _ in found], pa.string()),
    image_start=places(pictures, 'offset_data'),
    image_bytes=places(pictures, 'size'),
    text_start=places(texts, 'offset_data'),
    text_bytes=places(texts, 'size'),
  )


def group(tar):
  """{key: {suffix: member}} of a tar."""
  groups = {}
  for member in tar:
    if member.isfile():
      folder, slash, name = member.name.rpartition('/')
      stem, dot, suffix = name.partition('.')
      members = groups.setdefault(folder + slash + stem, {})
      members[dot + suffix.lower()] = member
  return groups


def read_json(tar, members):
  """The fields of a record's json member, {} where it has none."""
  if '.json' not in members:
    return {}
  try:
    return {**json.load(tar.extractfile(members['.json']))}
  except (ValueError, TypeError):
    return {}
