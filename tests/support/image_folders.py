"""Writes folders of images, and reads what can be used of them."""

import json
import os

import pytest
from PIL import Image

from sdxl_jax.data.sources import folder, record_filters


def write_image(path, size=(20, 30), **options):
  path.parent.mkdir(parents=True, exist_ok=True)
  h, w = size
  Image.new('RGB', (w, h), 'teal').save(path, **options)


def write_captioned(path, caption, suffix='.txt', **options):
  write_image(path, **options)
  data = caption if isinstance(caption, bytes) else caption.encode()
  path.with_suffix(suffix).write_bytes(data)


def write_four(folder):
  """Writes four images with captions, one rotated, some in sub-folders."""
  rotated = Image.Exif()
  rotated[0x0112] = 6
  write_image(folder / 'b.JPG', (20, 30), exif=rotated)
  write_image(folder / 'deep/er/a.png', (10, 40))
  write_image(folder / 'deep/c.webp', (25, 25))
  write_image(folder / 'd.jpeg', (33, 11))
  for name in ('b', 'deep/er/a', 'deep/c', 'd'):
    (folder / f'{name}.txt').write_text(f'caption of {name}\n')
  return folder


def metadata(captioned, *rows):
  """Writes metadata.jsonl of rows, which are dicts or lines."""
  lines = [r if isinstance(r, str) else json.dumps(r) for r in rows]
  (captioned / 'metadata.jsonl').write_text('\n'.join(lines))
  return captioned


def all_of(source):
  return [source[i] for i in range(len(source))]


def usable(path, **settings):
  """Returns the records of a folder that can be used."""
  source = folder.Folder(path, workers=0, **settings)
  chosen = record_filters.FilteredSource(source, record_filters.NONE)
  account = chosen.account()
  counts = {reason: lost.count for reason, lost in account.left_out.items()}
  assert account.seen == account.used + sum(counts.values()) == len(source)
  assert len(list(chosen.left_out())) == sum(counts.values())
  return chosen


def counts_of(chosen):
  """Returns {why: count} of what is left out."""
  return {why: lost.count for why, lost in chosen.account().left_out.items()}


def captions_of(chosen):
  """Returns {name of the file: caption}."""
  return {os.path.basename(e['name']): e['caption'] for e in all_of(chosen)}


def fails(captioned, *words, error=ValueError):
  """Expects an error that fits one screen and holds all the words."""
  with pytest.raises(error) as caught:
    usable(captioned)
  text = str(caught.value)
  assert len(text.splitlines()) < 16
  for word in words:
    assert word in text, text
