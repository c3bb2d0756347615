"""Tests tar shards: names, where captions are, and broken files."""

import io
import json
import tarfile

import fsspec
import pytest

from sdxl_jax.data import images
from sdxl_jax.data.sources import record_filters, webdataset
from tests.support import datasets


def write(path, members):
  """Writes a tar of {name: bytes}."""
  with tarfile.open(path, 'w') as tar:
    for name, content in members.items():
      info = tarfile.TarInfo(name)
      info.size = len(content)
      tar.addfile(info, io.BytesIO(content))


def captions(source):
  return [source[i]['caption'] for i in range(len(source))]


PNG = datasets.encode(datasets.ramp(8, 12))


def test_braces():
  assert webdataset.braces('a/{08..11}.tar') == [
    f'a/{n}.tar' for n in ('08', '09', '10', '11')
  ]
  assert webdataset.braces('{0..1}/{0..1}') == ['0/0', '0/1', '1/0', '1/1']
  assert webdataset.braces('*.tar') == ['*.tar']


def test_only_the_named_shards(tmp_path):
  for n in range(4):
    write(tmp_path / f'{n}.tar', {'a.png': PNG, 'a.txt': b'%d' % n})
  source = webdataset.WebDataset(tmp_path / '{1..2}.tar', workers=0)
  assert captions(source) == ['1', '2']
  with pytest.raises(FileNotFoundError, match='no tar matches .*9.tar'):
    webdataset.WebDataset(tmp_path / '9.tar')


def test_keys_reach_to_the_first_dot(tmp_path):
  write(
    tmp_path / '0.tar',
    {
      'deep.er/a.b.png': PNG,  # of the key a, as in webdataset
      'deep.er/c.PNG': PNG,
      'deep.er/c.txt': b' two \n',
      'c.txt': b'another folder',
      'c.jpg': datasets.encode(datasets.ramp(8, 8), 'JPEG'),
    },
  )
  source = webdataset.WebDataset(tmp_path / '0.tar', workers=0)
  assert captions(source) == ['two', 'another folder']
  assert source.sizes.tolist() == [[8, 12], [8, 8]]
  assert source.name(0) == f'{tmp_path}/0.tar: deep.er/c'


def test_captions_in_json(tmp_path):
  fields = ({'title': 'one', 'score': 5}, {'score': 6}, {'title': 'three'})
  members = {}
  for n, content in enumerate(fields):
    members |= {f'{n}.png': PNG, f'{n}.json': json.dumps(content).encode()}
  write(tmp_path / '0.tar', members | {'3.png': PNG, '3.json': b'{oops'})
  source = webdataset.WebDataset(
    tmp_path / '*.tar', caption='title', score='score', workers=0
  )
  chosen = record_filters.FilteredSource(source, record_filters.NONE)
  assert captions(chosen) == ['one', 'three']
  assert (
    chosen[0]['aesthetic_score'] == 5 and 'aesthetic_score' not in chosen[1]
  )
  assert [line.split(': ')[1] for line in chosen.left_out()] == ['1', '3']


@pytest.mark.parametrize('keep', [700, 2000])
def test_a_truncated_tar(tmp_path, keep):
  path = tmp_path / '0.tar'
  write(path, {'a.txt': b'x', 'a.png': bytes(1500)})
  path.write_bytes(path.read_bytes()[:keep])
  with pytest.raises(ValueError, match='0.tar is a truncated or corrupt tar'):
    webdataset.WebDataset(path, workers=0)


def test_behind_a_url(tmp_path, monkeypatch):
  monkeypatch.setenv('SDXL_JAX_CACHE', str(tmp_path / 'cache'))
  fs = fsspec.filesystem('memory')
  write(tmp_path / '0.tar', {'a.png': PNG, 'a.txt': b'far away'})
  fs.pipe_file('/bucket/0.tar', (tmp_path / '0.tar').read_bytes())
  source = webdataset.WebDataset('memory://bucket/*.tar', workers=0)
  assert captions(source) == ['far away'] and source[0]['image'] == PNG
  assert list((tmp_path / 'cache').glob('*.arrow'))
  fs.rm('/bucket/0.tar')
  with pytest.raises(images.UnreadableImage, match='0.tar: a'):
    source[0]
