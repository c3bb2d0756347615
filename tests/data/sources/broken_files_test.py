"""Tests 300 broken files of twelve kinds among 3,000 good ones."""

import hashlib
import re
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from sdxl_jax.data import batch_rows, buckets, pipeline
from sdxl_jax.data.sources import kinds
from tests.support import datasets

GOOD, PER_KIND, BATCH = 3000, 25, 20
BUCKETS = ((16, 16), (16, 24), (24, 16))


def flip_a_bit(data, place):
  return data[:place] + bytes([data[place] ^ 255]) + data[place + 1 :]


def claim_size(png, side):
  """Returns a PNG whose header has a wrong size."""
  header = b'IHDR' + struct.pack('>IIBBBBB', side, side, 8, 2, 0, 0, 0)
  return png[:12] + header + struct.pack('>I', zlib.crc32(header)) + png[33:]


def broken_kinds():
  """Returns {name of a file: its bytes}, one of each kind."""
  image = np.random.default_rng(0).integers(0, 256, (24, 30, 3), np.uint8)
  png, jpeg, webp, gif = (
    datasets.encode(image, name) for name in ('PNG', 'JPEG', 'WEBP', 'GIF')
  )
  return {
    'empty.png': b'',
    'text.jpg': b'<html>404 not found</html>',
    'other.png': b'%PDF-1.7' + bytes(200),
    'header.jpg': jpeg[:10],
    'cut.jpg': jpeg[:-100],
    'cut.png': png[: len(png) // 2],
    'cut.webp': webp[: len(webp) // 2],
    'cut.gif': gif[: len(gif) // 2],
    'pixels.png': flip_a_bit(png, 60),
    'checksum.png': flip_a_bit(png, 30),
    'bomb.png': claim_size(png, 30_000),
    'nothing.png': claim_size(png, 0),
  }


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp('broken')
  rng = np.random.default_rng(0)
  for i in range(GOOD):
    h, w = rng.integers(14, 30, 2)
    path = folder / f'{i:04d}-good.png'
    Image.fromarray(datasets.ramp(h, w, i % 20)).save(path)
    path.with_suffix('.txt').write_text(f'{i}')
  broken = broken_kinds()
  assert len(broken) * PER_KIND == 300
  for name, content in broken.items():
    for i in rng.choice(GOOD, PER_KIND, replace=False):
      path = folder / f'{i:04d}-{name}'  # among the good ones
      path.write_bytes(content)
      path.with_suffix('.txt').write_text('broken')
  return folder


def tokenize(captions):
  tokens = np.array([[[int(text)] * 77] * 2 for text in captions])
  return tokens, [''] * len(captions)


def run(source, host, hosts):
  """Returns the digests of the rows of a pass and a half."""
  schedule = buckets.Schedule(source.sizes, BUCKETS, 0, BATCH)
  batches = pipeline.make_batches(
    source,
    tokenize,
    schedule,
    range(host, BATCH, hosts),
    batch_rows.BatchOptions(num_threads=2),
  )
  rows = []
  for _ in range(3 * len(source) // 2 // BATCH):
    _, batch = next(batches)
    keys = sorted(batch)
    for row in range(BATCH // hosts):
      content = b''.join(batch[key][row].tobytes() for key in keys)
      rows.append(hashlib.sha256(content).digest())
  batches.close()
  return rows


def test_all_are_named_and_hosts_agree(folder, caplog):
  source = kinds.make_source('folder', {'path': folder}, workers=0)
  one_host = run(source, 0, 1)
  named = {line.split(': ')[0] for line in source.left_out()}
  named |= set(re.findall(r'replaced by its neighbour: (.*?): ', caplog.text))
  expected = {str(p) for p in folder.glob('[0-9]*') if '-good' not in p.name}
  assert named == {p for p in expected if not p.endswith('.txt')}
  assert len(named) == 300
  for hosts in (2, 4):
    shares = [run(source, i, hosts) for i in range(hosts)]
    per_batch = BATCH // hosts
    for i, digest in enumerate(one_host):
      batch, row = divmod(i, BATCH)
      share = shares[row % hosts]
      assert share[batch * per_batch + row // hosts] == digest
