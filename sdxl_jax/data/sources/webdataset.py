"""Tar shards of images and captions, as webdataset and img2dataset write them.

See `tar_records` for which members make a record. The same name in two tars is
two records, since many programs count from 0 in each tar; in one tar the first
one is used.
"""

import collections
import io
import os
from typing import IO, Any, NamedTuple

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sdxl_jax.data import images
from sdxl_jax.data.sources import (
  captions,
  file_patterns,
  index,
  indexed,
  measuring,
  tar_fields,
  tar_members,
  tar_records,
  text_decoding,
)

NO_SUFFIX = 'without a suffix'
MAX_DETAIL = 200  # characters, of the fields of a json member


class WebDataset(indexed.IndexedSource):
  """Records at known offsets of tar files, local or behind a URL.

  Args:
    shards: pattern of paths, or of URLs that fsspec opens: /data/{000..127}.tar
      or gs://bucket/*.tar; or a folder.
    caption: suffix of the member that holds it, such as 'txt'; where a record
      has no such member, a field of its json member, with dots for a field
      within a field; '': captions are ''.
    score: field of the json member for aesthetic_score.
    encoding: of captions without a byte order mark; '': UTF-8.
    several: whether all captions of a list in the json member are used.
    mask: suffix of the member that holds the mask, such as 'mask.png'; '':
      none.
    columns: other fields of the json member, by which filters choose.
    workers: processes that read the tars to index them.

  Raises:
    FileNotFoundError: if no file matches.
    ValueError: for a truncated or compressed tar.
  """

  def __init__(
    self,
    shards: str | os.PathLike,
    caption: str = 'txt',
    score: str = 'aesthetic_score',
    encoding: str = '',
    several: bool = False,
    mask: str = '',
    columns: tuple[str, ...] = (),
    workers: int = 8,
  ):
    text_decoding.check(encoding, 'config.data.webdataset.encoding')
    self.caption, self.encoding = caption, encoding
    self.several, self.mask = several, mask
    found = file_patterns.find(shards, '.tar')
    self.fs = found.fs
    # One part of the index for each tar.
    columns = indexed.index_columns(columns, score)
    build_options = dict(
      base=found.base,
      caption=caption,
      encoding=encoding,
      columns=columns,
      **indexed.if_set(several=several),
    )
    if mask:  # an index without masks is that of earlier versions
      build_options['mask'] = mask
    table = index.load_files(
      'webdataset',
      index.Files(str(shards), found.fs, found.paths),
      build_options,
      measure,
      workers,
    )
    super().__init__(table, beside=found.beside | count_others(table))

  @property
  def remedy(self) -> str:
    """What to do where no record has a caption."""
    return (
      'Name the suffix of the member with the caption, or the field of the '
      "json member, in config.data.webdataset.caption; '' trains without "
      'captions (stage 0).'
    )

  def name(self, i: int) -> str:
    return f'{self.value("shard", i)}: {self.value("record", i)}'

  def read(self, i: int) -> indexed.Example:
    try:
      image = self.member('image', i)
      text = self.member('text', i) if self.caption else b''
      masks = {'mask': self.read_mask(i)} if self.mask else {}
    except OSError as error:
      raise images.UnreadableImage(self.name(i), error) from error
    if not self.caption:
      return {'image': image, 'caption': '', **masks}
    # A caption is a member of its own, or a field of the json one.
    if self.value('in_json', i):
      fields = tar_fields.parse(text, self.encoding)
      value = captions.look_up(fields, self.caption)
      caption = captions.parse(value, several=self.several)
    else:
      caption = captions.parse(text, self.encoding)
    return {'image': image, **captions.of_example(caption), **masks}

  def read_mask(self, i: int) -> bytes | None:
    """Reads the mask of a record; None if it has none."""
    return self.member('mask', i) if self.value('mask_bytes', i) else None

  def member(self, kind: str, i: int) -> bytes:
    """Reads the 'image', the 'text' or the 'mask' of a record."""
    start = self.value(f'{kind}_start', i)
    end = start + self.value(f'{kind}_bytes', i)
    return self.fs.cat_file(self.value('shard', i), start, end)


def count_others(table: pa.Table) -> dict[str, int]:
  """Counts the members beside images that are not read: {what: count}."""
  counts = collections.Counter()
  for row in pc.value_counts(table['others']).to_pylist():
    for suffix in row['values'].split('/') if row['values'] else ():
      counts[suffix] += row['counts']
  return {
    f'members {suffix} beside images, not read': count
    for suffix, count in sorted(counts.items())
  }


class Row(NamedTuple):
  """What the index holds of an item."""

  item: tar_records.Item
  measured: indexed.Measured
  text: tar_members.Member | None = None  # with the caption
  in_json: bool = False  # whether it is the json member
  values: dict[str, Any] = {}  # {name in the index: value}


def measure(
  path: str,
  fs: fsspec.AbstractFileSystem,
  base: str,
  caption: str,
  encoding: str,
  columns: dict[str, str],
  several: bool = False,
  mask: str = '',
) -> pa.Table:
  """Measures a part of the index: one tar.

  Args:
    path: of the tar, on `fs`.
    fs: file system.
    base: folder to which names of records are relative.
    caption, encoding, several: as for `WebDataset`.
    columns: {name in the index: field of the json member}.
    mask: as for `WebDataset`.
  """
  with fs.open(path, 'rb') as file:
    members = tar_members.read_members(file, path, fs)
    items = tar_records.items(members, caption, mask)
    reader = TarReader(file, caption, encoding, columns, several)
    prefix = path.removeprefix(base)
    rows = [reader.row(item, f'{prefix}: {item.name}') for item in items]
  table = make_table(path, rows, columns)
  if mask:
    masks = [row.item.mask or tar_members.Member('') for row in rows]
    for name, values in (
      ('mask_start', [m.start for m in masks]),
      ('mask_bytes', [m.size for m in masks]),
    ):
      table = table.append_column(name, pa.array(values, pa.int64()))
  return table


def make_table(path: str, rows: list[Row], columns: dict[str, str]) -> pa.Table:
  """Makes the table of a tar; arguments as for `measure`."""
  n = len(rows)
  names = [indexed.printable(row.item.name) for row in rows]
  images_of = [row.item.image or tar_members.Member('') for row in rows]
  texts = [row.text or tar_members.Member('') for row in rows]
  # No suffix has a slash.
  others = [
    indexed.printable('/'.join(o or NO_SUFFIX for o in row.item.others)) or None
    for row in rows
  ]
  return indexed.make_table(
    [row.measured for row in rows],
    {name: [row.values.get(name) for row in rows] for name in columns},
    shard=pa.array([path] * n, pa.string()).dictionary_encode(),
    record=pa.array(names, pa.string()),
    others=pa.array(others, pa.string()).dictionary_encode(),
    image_start=pa.array([m.start for m in images_of], pa.int64()),
    image_bytes=pa.array([m.size for m in images_of], pa.int64()),
    text_start=pa.array([m.start for m in texts], pa.int64()),
    text_bytes=pa.array([m.size for m in texts], pa.int64()),
    in_json=np.array([row.in_json for row in rows], bool),
  )


class TarReader:
  """Measures the items of an open tar.

  Args:
    file: the tar.
    caption, encoding, columns, several: as for `measure`.
  """

  def __init__(
    self,
    file: IO[bytes],
    caption: str,
    encoding: str,
    columns: dict[str, str],
    several: bool = False,
  ):
    self.file, self.caption, self.encoding = file, caption, encoding
    self.columns, self.several = columns, several

  def row(self, item: tar_records.Item, name: str) -> Row:
    """Measures an item; `name` is relative to the dataset."""
    problem, detail = item.problem, item.detail
    if item.mask is not None and item.mask.problem:
      problem, detail = item.mask.problem, f'its mask: {item.mask.detail}'
    if problem:
      return Row(item, indexed.Measured(name, None, problem, detail))
    # Fields, where anything is read from them.
    try:
      fields = self.fields(item)
    except text_decoding.BadEncoding as error:
      detail = f'its .json: {error}'
      measured = indexed.Measured(name, None, indexed.BAD_ENCODING, detail)
      return Row(item, measured)
    except tar_fields.BadFields as error:
      measured = indexed.Measured(name, None, indexed.BAD_JSON, str(error))
      return Row(item, measured)
    values = {
      n: captions.look_up(fields, field) for n, field in self.columns.items()
    }
    # Image, caption and score.
    caption, in_json = self.read_caption(item, fields)
    score, wrong = measuring.parse_score(values.get('aesthetic_score'))
    values['aesthetic_score'] = score
    image = io.BufferedReader(tar_members.Window(self.file, item.image))
    mask = None
    if item.mask is not None:
      mask = tar_members.Window(self.file, item.mask)
    measured = measuring.measure(name, image, caption, score, mask)
    text = item.fields if in_json else item.text
    return Row(
      item, measuring.check_score(measured, wrong), text, in_json, values
    )

  def read(self, member: tar_members.Member) -> bytes:
    """Reads the bytes of a member."""
    self.file.seek(member.start)
    return self.file.read(member.size)

  def fields(self, item: tar_records.Item) -> dict[str, Any]:
    """Reads the fields of a record, {} where it has none or none are read."""
    caption_in_json = self.caption and item.text is None
    if item.fields is None or not (self.columns or caption_in_json):
      return {}
    if item.fields.problem:
      raise tar_fields.BadFields(item.fields.detail)
    return tar_fields.parse(self.read(item.fields), self.encoding)

  def read_caption(
    self, item: tar_records.Item, fields: dict[str, Any]
  ) -> tuple[captions.Caption, bool]:
    """Reads a caption; also returns whether it is in the json member."""
    if not self.caption:
      return captions.Caption(''), False
    if item.text is None:
      value = captions.look_up(fields, self.caption)
      caption = captions.parse(value, several=self.several)
      if caption == captions.NONE:
        caption = caption._replace(detail=self.explain(item, fields))
      return caption, True
    if item.text.problem:
      return captions.Caption('', item.text.problem, item.text.detail), False
    return captions.parse(self.read(item.text), self.encoding), False

  def explain(self, item: tar_records.Item, fields: dict[str, Any]) -> str:
    """Says where the caption of a record was looked for."""
    detail = f'no member .{self.caption}'
    if item.fields is not None:
      detail += f', no text in {self.caption!r} of its .json'
      # All fields, to choose from.
      detail += f', which has {list(fields)}'[:MAX_DETAIL]
    return detail + ''.join(f', but {suffix}' for suffix in item.others)
