"""Tests tar shards: their captions, scores, and places."""

import io
import json
import re
import tarfile

import fsspec
import pytest

from sdxl_jax.data import images
from sdxl_jax.data.sources import record_filters, webdataset
from tests.support import datasets, tars

PNG = datasets.encode(datasets.ramp(8, 12))


def test_only_the_named_shards(tmp_path):
  for n in range(4):
    tars.write(tmp_path / f'{n}.tar', {'a.png': PNG, 'a.txt': b'%d' % n})
  source = webdataset.WebDataset(tmp_path / '{1..2}.tar', workers=0)
  assert tars.captions(source) == ['1', '2']
  with pytest.raises(FileNotFoundError, match='no tar matches .*9.tar'):
    webdataset.WebDataset(tmp_path / '9.tar')


def test_captions_of_every_kind(tmp_path):
  """Those of img2dataset, Hugging Face, COCO; numbers and rubbish are named."""
  contents = {
    'text': '{"caption": " a dog "}',
    'null': '{"caption": null, "status": "success"}',
    'none': '{}',
    'nan': '{"caption": NaN}',
    'empty': '{"caption": " "}',
    'list': '{"caption": ["first", "second"]}',
    'null first': '{"caption": [null, "second"]}',
    'no list': '{"caption": []}',
    'number': '{"caption": 3}',
    'struct': '{"caption": {"en": "a dog"}}',
    'half': '{"caption": "a dog \\ud83d"}',
    'broken': '{oops',
    'array': '["a dog"]',
    'deep': '[' * 100_000,
    'latin': '{"caption": "caf\xe9"}'.encode('latin-1'),
    'utf-16': '{"caption": "utf-16"}'.encode('utf-16'),
    'bom': '{"caption": "bom"}'.encode('utf-8-sig'),
    'score': '{"caption": "a", "aesthetic_score": "good"}',
    'infinite': '{"caption": "a", "aesthetic_score": Infinity}',
    'as text': '{"caption": "as text", "aesthetic_score": "6.5"}',
    'NaN score': '{"caption": "NaN score", "aesthetic_score": NaN}',
  }
  members = {}
  for name, content in contents.items():
    data = content if isinstance(content, bytes) else content.encode()
    members |= {f'{name}.png': PNG, f'{name}.json': data}
  tars.write(tmp_path / '0.tar', members)
  used, left_out, beside = tars.load(tmp_path / '0.tar', caption='caption')
  assert used == {
    'text': 'a dog',
    'list': 'first',
    'null first': 'second',
    'utf-16': 'utf-16',
    'bom': 'bom',
    'as text': 'as text',
    'NaN score': 'NaN score',
  }
  reasons = dict(
    re.match(r'(.*?): (.*?)( \(.*)?$', s).groups()[:2] for s in left_out
  )
  assert reasons == {
    'null': 'it has no caption',
    'none': 'it has no caption',
    'nan': 'it has no caption',
    'empty': 'it has no caption',
    'no list': 'it has no caption',
    'number': 'its caption is not text',
    'struct': 'its caption is not text',
    'half': 'its caption is in another encoding',
    'broken': 'its json is not a JSON object',
    'array': 'its json is not a JSON object',
    'deep': 'its json is not a JSON object',
    'latin': 'its caption is in another encoding',
    'score': 'its score is not a number',
    'infinite': 'its score is not a number',
  }
  assert sum(beside.values()) == 1  # with several captions
  used, _, _ = tars.load(tmp_path / '0.tar', caption='caption.en')
  assert used == {'struct': 'a dog'}
  used, _, _ = tars.load(
    tmp_path / '0.tar', caption='caption', encoding='latin-1'
  )
  assert used['latin'] == 'caf\xe9' and used['bom'] == 'bom'


def test_no_captions_at_all(tmp_path):
  tars.write(
    tmp_path / '0.tar', {'0.png': PNG, '0.json': b'{"caption": "here"}'}
  )
  with pytest.raises(ValueError) as error:
    tars.load(tmp_path, caption='text')
  message = str(error.value)
  assert "no text in 'text' of its .json, which has ['caption']" in message
  assert 'Name the suffix of the member with the caption' in message


def test_captions_in_json(tmp_path):
  fields = ({'title': 'one', 'score': 5}, {'score': 6}, {'title': 'three'})
  members = {}
  for n, content in enumerate(fields):
    members |= {f'{n}.png': PNG, f'{n}.json': json.dumps(content).encode()}
  tars.write(tmp_path / '0.tar', members | {'3.png': PNG, '3.json': b'{oops'})
  source = webdataset.WebDataset(
    tmp_path / '*.tar', caption='title', score='score', workers=0
  )
  chosen = record_filters.FilteredSource(source, record_filters.NONE)
  assert tars.captions(chosen) == ['one', 'three']
  assert (
    chosen[0]['aesthetic_score'] == 5 and 'aesthetic_score' not in chosen[1]
  )
  assert [line.split(': ')[1] for line in chosen.left_out()] == ['1', '3']


def test_behind_a_url(tmp_path, monkeypatch):
  monkeypatch.setenv('SDXL_JAX_CACHE', str(tmp_path / 'cache'))
  fs = fsspec.filesystem('memory')
  tars.write(tmp_path / '0.tar', {'a.png': PNG, 'a.txt': b'far away'})
  fs.pipe_file('/bucket/0.tar', (tmp_path / '0.tar').read_bytes())
  source = webdataset.WebDataset('memory://bucket/*.tar', workers=0)
  assert tars.captions(source) == ['far away'] and source[0]['image'] == PNG
  assert list((tmp_path / 'cache').glob('*.arrow'))
  fs.rm('/bucket/0.tar')
  with pytest.raises(images.UnreadableImage, match='0.tar: a'):
    source[0]


def test_odd_suffixes_are_counted(tmp_path):
  """With spaces, without any, not UTF-8; a json that is a broken link."""
  names = ('a.by me too', 'a', 'a.x\udce9')
  tars.write(
    tmp_path / '0.tar',
    {'a.png': PNG, 'a.txt': b'a dog'} | dict.fromkeys(names, b''),
  )
  used, _, beside = tars.load(tmp_path / '0.tar')
  assert used == {'a': 'a dog'}
  suffixes = ('.by me too', '.x\\udce9', 'without a suffix')
  assert beside == {
    f'members {suffix} beside images, not read': 1 for suffix in suffixes
  }


def test_json_that_is_a_broken_link(tmp_path):
  with tarfile.open(tmp_path / '0.tar', 'w') as tar:
    for name in ('a.png', 'b.png', 'b.json'):
      info = tarfile.TarInfo(name)
      content = PNG if name.endswith('png') else b'{"caption": "a dog"}'
      info.size = len(content)
      tar.addfile(info, io.BytesIO(content))
    link = tarfile.TarInfo('a.json')
    link.type, link.linkname = tarfile.SYMTYPE, 'gone.json'
    tar.addfile(link)
  used, (line,), _ = tars.load(tmp_path / '0.tar', caption='caption')
  assert used == {'b': 'a dog'}
  assert 'links to gone.json, which leads nowhere' in line
