"""Writes the same images in every format that a source reads."""

import io
import json
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tensorflow_datasets as tfds
from PIL import Image

STEP = 12  # so that JPEG does not blur one number into the next


def ramp(h, w, number=0):
  """Makes an image whose pixels encode their coordinates and its number.

  Red is x / w, green y / h, both of 255; blue is STEP times the number.
  """
  y, x = (np.indices((h, w)) + 0.5) / np.array([h, w]).reshape(2, 1, 1) * 255
  return np.rint(np.stack([x, y, 0 * x + STEP * number], -1)).astype(np.uint8)


def encode(image, format='PNG', **options):
  """Returns the bytes of a file."""
  file = io.BytesIO()
  image = image if isinstance(image, Image.Image) else Image.fromarray(image)
  image.save(file, format, **options)
  return file.getvalue()


def example(i, size, format='PNG', **more):
  """Makes record i, as the writers below take it."""
  return {
    'key': f'{i:04d}',
    'image': encode(ramp(*size, number=i), format),
    'format': format.lower(),
    'text': f'picture {i}',
    'aesthetic_score': 4 + i / 8,
    'watermark': (i % 4) / 4,
    **more,
  }


def write_folder(folder, examples):
  """Writes files and metadata.jsonl; returns the settings of the source."""
  folder.mkdir(parents=True, exist_ok=True)
  lines = []
  for e in examples:
    name = f'{e["key"]}.{e["format"]}'
    (folder / name).write_bytes(e['image'])
    if e.get('mask'):
      (folder / f'{e["key"]}.mask.png').write_bytes(e['mask'])
    fields = {'file_name': name, 'text': e['text'] or ''}
    lines.append(json.dumps(fields | metadata(e)))
  (folder / 'metadata.jsonl').write_text('\n'.join(lines))
  return {'path': str(folder)}


def metadata(e):
  """Returns the fields that every format stores beside image and caption."""
  return {name: e[name] for name in ('aesthetic_score', 'watermark')}


def write_webdataset(folder, examples, per_tar=5, fields=None):
  """Writes tars; returns the settings of the source.

  fields: of each example's json member, in place of its scores.
  """
  folder.mkdir(parents=True, exist_ok=True)
  for start in range(0, len(examples), per_tar):
    with tarfile.open(folder / f'{start:05d}.tar', 'w') as tar:
      for i, e in enumerate(examples[start : start + per_tar], start):
        members = {e['format']: e['image']}
        if e['text'] is not None:
          members['txt'] = e['text'].encode()
        content = metadata(e) if fields is None else fields[i]
        members['json'] = json.dumps(content).encode()
        if e.get('mask'):
          members['mask.png'] = e['mask']
        for suffix, content in members.items():
          info = tarfile.TarInfo(f'{e["key"]}.{suffix}')
          info.size = len(content)
          tar.addfile(info, io.BytesIO(content))
  return {'shards': f'{folder}/*.tar'}


def write_parquet(folder, examples, per_file=7, row_group_size=3):
  """Writes parquet files; returns the settings of the source."""
  folder.mkdir(parents=True, exist_ok=True)
  for start in range(0, len(examples), per_file):
    rows = examples[start : start + per_file]
    columns = {
      'image': [{'bytes': e['image'], 'path': e['key']} for e in rows],
      'text': [e['text'] for e in rows],
      'aesthetic_score': [e['aesthetic_score'] for e in rows],
      'watermark': [e['watermark'] for e in rows],
    }
    if 'mask' in rows[0]:
      columns['mask'] = [e['mask'] for e in rows]
    table = pa.table(columns)
    path = folder / f'part-{start:05d}.parquet'
    pq.write_table(table, path, row_group_size=row_group_size)
  return {'files': f'{folder}/*.parquet', 'score': 'aesthetic_score'}


def write_tfds(folder, examples):
  """Builds a TFDS dataset; returns the settings of the source."""
  make = MaskedRamps if 'mask' in examples[0] else Ramps
  builder = make(data_dir=folder, file_format='array_record')
  builder.examples = examples
  builder.download_and_prepare()
  return {'dataset': str(builder.data_dir), 'score': 'aesthetic_score'}


class Ramps(tfds.core.GeneratorBasedBuilder):
  """A TFDS dataset of the list `examples`, which is set before building."""

  VERSION = tfds.core.Version('1.0.0')
  more = {}  # features

  def _info(self):
    features = self.more | {
      'image': tfds.features.Image(),
      'caption': tfds.features.Text(),
      'aesthetic_score': np.float32,
      'watermark': np.float32,
    }
    return tfds.core.DatasetInfo(
      builder=self,
      features=tfds.features.FeaturesDict(features),
      disable_shuffling=True,  # record i is example i
    )

  def _split_generators(self, downloads):
    return {'train': self._generate_examples()}

  def _generate_examples(self):
    for i, e in enumerate(self.examples):
      image = io.BytesIO(e['image'])
      more = {name: io.BytesIO(e[name]) for name in self.more}
      yield (
        i,
        {
          'image': image,
          'caption': e['text'] or '',
          **metadata(e),
          **more,
        },
      )


class MaskedRamps(Ramps):
  """One whose examples have masks."""

  more = {'mask': tfds.features.Image(shape=(None, None, 1))}


WRITERS = {
  'folder': write_folder,
  'webdataset': write_webdataset,
  'parquet': write_parquet,
  'tfds': write_tfds,
}
