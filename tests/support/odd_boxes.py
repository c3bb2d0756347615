"""Boxes in which `odd_datasets` writes folders, tables, tars, parquet files.

A box notes what must be counted of what is put into it.
"""

import collections
import csv
import io
import json
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq

from sdxl_jax.data.sources import indexed
from tests.support import datasets

PNG = datasets.encode(datasets.ramp(8, 12))
# Reasons of filters, beside the codes of an index.
RESIZE, SIDE = 'its resize for a bucket', 'a side is under'


class Box:
  """A dataset to fill, and what a source must count of it.

  Args:
    folder: in which it is written.
    kind: of the box, see BOXES.
    rng: of all choices.
  """

  source = 'folder'

  def __init__(self, folder, kind, rng):
    self.folder, self.kind, self.rng = folder / 'data', kind, rng
    self.away_folder = folder / 'away'
    self.folder.mkdir(parents=True)
    self.oddities = collections.Counter()
    self.used = []  # captions
    self.left_out = collections.Counter()  # by code or start of the reason
    self.beside = 0  # files that belong to records, or are hidden
    self.several = self.joined = 0  # records with several captions, rows joined

  def expect(self, problem, caption=None):
    """Notes an item: used with a caption, or left out for a problem."""
    if problem:
      self.left_out[problem] += 1
    else:
      self.used.append(caption)

  def record(
    self,
    name,
    image=PNG,
    suffix='.png',
    text='',
    caption='',
    score=5.0,
    problem=0,
    upper=False,
  ):
    """Adds a record; `text` is its caption as stored, by default the name."""
    name_of_text = ascii(name)
    text = name_of_text if text == '' else text
    self.put(name, image, suffix, text, score, upper)
    self.expect(problem, caption or text)

  def away(self, name, data):
    """Writes a file outside of the dataset; returns its path."""
    path = self.away_folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path

  def write(self, name, data):
    """Writes a file of the dataset."""
    path = self.folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)

  def close(self):
    """Writes what is still to write."""


class Folder(Box):
  """Images with .txt files."""

  def put(self, name, image, suffix, text, score, upper):
    self.write(name + suffix, image)
    if text is not None:
      text = text if isinstance(text, bytes) else text.encode()
      self.write(name + ('.TXT' if upper else '.txt'), text)
      self.beside += 1

  @property
  def settings(self):
    return {'path': str(self.folder)}


class Table(Box):
  """Images with metadata.jsonl or metadata.csv."""

  def __init__(self, folder, kind, rng):
    super().__init__(folder, kind, rng)
    self.lines, self.line_end, self.encoding = [], '\n', 'utf-8'
    self.beside = 1  # the table itself
    if kind == 'csv':
      self.lines.append('file_name,aesthetic_score,text')

  def put(self, name, image, suffix, text, score, upper):
    self.write(name + suffix, image)
    self.row(name + suffix, text, score)

  def row(self, file_name, text, score=5.0):
    row = {'file_name': file_name, 'aesthetic_score': score, 'text': text}
    if self.kind == 'jsonl':
      # Other characters than ASCII stand as they are in half of the lines.
      plain = isinstance(text, str) and '\ud83d' not in text
      ascii_only = not plain or bool(self.rng.integers(2))
      self.lines.append(json.dumps(row, ensure_ascii=ascii_only))
      return
    line = io.StringIO()
    csv.writer(line, lineterminator='').writerow(row.values())
    self.lines.append(line.getvalue())

  def close(self):
    content = self.line_end.join(self.lines).encode(self.encoding)
    self.write(f'metadata.{self.kind}', content)

  @property
  def settings(self):
    return {'path': str(self.folder)}


class Tar(Box):
  """Tars; the caption is the member txt or a field of the member json."""

  source = 'webdataset'

  def __init__(self, folder, kind, rng):
    super().__init__(folder, kind, rng)
    self.suffixes = ('.png', '.json' if kind == 'tar json' else '.txt')
    # One tar, two tars, or two concatenated to one file.
    self.layout = rng.integers(3)
    self.buffers, self.tars = [], []
    self.start()

  def start(self):
    """Begins a tar."""
    self.buffers.append(io.BytesIO())
    format = (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT)[self.rng.integers(2)]
    tar = tarfile.open(fileobj=self.buffers[-1], mode='w', format=format)
    self.tars.append(tar)

  def put(self, name, image, suffix, text, score, upper):
    self.member(name + suffix, image)
    if text is not None or score != 5.0 or self.kind == 'tar json':
      self.texts(name, text, score, upper)

  def texts(self, name, text, score, upper=False):
    """Adds the members with caption and score."""
    fields = {'aesthetic_score': score}
    if self.kind == 'tar json':
      fields['caption'] = text
    elif text is not None:
      data = text if isinstance(text, bytes) else text.encode()
      self.member(name + ('.TXT' if upper else '.txt'), data)
    if self.kind == 'tar json' or score != 5.0:
      self.member(f'{name}.json', json.dumps(fields).encode())

  def member(self, name, data, headers=None):
    info = tarfile.TarInfo(name)
    info.size = len(data)
    if headers:
      info.pax_headers = headers
      block = info.tobuf(tarfile.PAX_FORMAT)
      tar = self.tars[-1]
      tar.fileobj.write(block + data + bytes(-len(data) % 512))
      tar.offset += len(block) + len(data) + -len(data) % 512
      return
    self.tars[-1].addfile(info, io.BytesIO(data))

  def link(self, name, kind, target):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    self.tars[-1].addfile(info)

  def close(self):
    if self.layout:
      # The same name in another tar is another record.
      self.start()
      self.record('0-plain')
    for tar in self.tars:
      tar.close()
    contents = [buffer.getvalue() for buffer in self.buffers]
    if self.layout == 2:
      # In one file it is the same name again.
      contents = [b''.join(contents)]
      self.used.remove("'0-plain'")
      self.expect(indexed.DUPLICATE)
    for number, content in enumerate(contents):
      self.write(f'{number:05d}.tar', content)

  @property
  def settings(self):
    caption = 'caption' if self.kind == 'tar json' else 'txt'
    return {'shards': str(self.folder / '*.tar'), 'caption': caption}


class Parquet(Box):
  """Parquet files in Hugging Face's layout, in folders, some without rows."""

  source = 'parquet'
  TEXTS = {
    'parquet text': (pa.string(), pa.large_string()),
    'parquet bytes': (pa.binary(), pa.large_binary()),
    'parquet lists': (pa.list_(pa.string()), pa.large_list(pa.string())),
  }

  def __init__(self, folder, kind, rng):
    super().__init__(folder, kind, rng)
    self.rows = []

  def put(self, name, image, suffix, text, score, upper):
    self.row({'bytes': image, 'path': name + suffix}, text, score)

  def row(self, image, text, score=5.0):
    if self.kind == 'parquet lists' and isinstance(text, str):
      text = [text]
    elif self.kind == 'parquet bytes' and isinstance(text, str):
      text = text.encode()
    self.rows.append((image, text, score))

  def close(self):
    image = pa.struct([('bytes', pa.binary()), ('path', pa.string())])
    texts = self.TEXTS[self.kind]
    text = texts[self.rng.integers(len(texts))]
    images, captions, scores = map(list, zip(*self.rows))
    table = pa.table(
      {
        'image': pa.array(images, image),
        'captions': self.encode(pa.array(captions, text)),
        'score': pa.array(scores, pa.float64()),
      }
    )
    # Files whose images lie beside them stay where these are.
    size = int(self.rng.integers(1, 4))
    pq.write_table(table, self.folder / '0.parquet', row_group_size=size)
    (self.folder / 'lang=en').mkdir()
    pq.write_table(table.slice(0, 0), self.folder / 'lang=en' / '1.parquet')
    pq.ParquetWriter(self.folder / '2.parquet', table.schema).close()

  def encode(self, column):
    """Encodes half of the columns of text as dictionaries."""
    is_text = self.kind == 'parquet text'
    return column.dictionary_encode() if is_text and len(column) % 2 else column

  @property
  def settings(self):
    files = str(self.folder)
    return {'files': files, 'caption': 'captions', 'score': 'score'}


BOXES = {
  'folder': Folder,
  'jsonl': Table,
  'csv': Table,
  'tar': Tar,
  'tar json': Tar,
  **dict.fromkeys(Parquet.TEXTS, Parquet),
}
