"""Tests tar shards: names, where captions are, and broken files."""

import io
import json
import os
import re
import subprocess
import tarfile

import fsspec
import pytest

from sdxl_jax.data import images
from sdxl_jax.data.sources import kinds, record_filters, webdataset
from tests.support import datasets


def write(path, members):
  """Writes a tar of {name: bytes}, or of pairs where names repeat."""
  with tarfile.open(path, 'w') as tar:
    members = members.items() if isinstance(members, dict) else members
    for name, content in members:
      info = tarfile.TarInfo(name)
      info.size = len(content)
      tar.addfile(info, io.BytesIO(content))


def captions(source):
  return [source[i]['caption'] for i in range(len(source))]


PNG = datasets.encode(datasets.ramp(8, 12))


def test_only_the_named_shards(tmp_path):
  for n in range(4):
    write(tmp_path / f'{n}.tar', {'a.png': PNG, 'a.txt': b'%d' % n})
  source = webdataset.WebDataset(tmp_path / '{1..2}.tar', workers=0)
  assert captions(source) == ['1', '2']
  with pytest.raises(FileNotFoundError, match='no tar matches .*9.tar'):
    webdataset.WebDataset(tmp_path / '9.tar')


def load(path, **settings):
  """Returns {name of a record: caption}, and the lines of what is left out."""
  lines = []
  source = kinds.make_source(
    'webdataset', {'shards': str(path), **settings}, workers=0, say=lines.append
  )
  used = [source[i] for i in range(len(source))]
  account = source.account()
  left_out = [re.sub(r'.*?\.tar: ', '', line) for line in source.left_out()]
  assert account.seen == account.used + len(left_out)
  assert str(account) == lines[0]
  names = {e['name'].split('.tar: ')[1]: e['caption'] for e in used}
  assert len(names) == account.used
  return names, left_out, account.beside


def test_keys(tmp_path):
  write(
    tmp_path / '0.tar',
    {
      'deep.er/a.b.png': PNG,
      'deep.er/c.PNG': PNG,
      'deep.er/c.txt': b' two \n',
      'c.txt': b'another folder',
      'c.jpg': datasets.encode(datasets.ramp(8, 8), 'JPEG'),
      'my.photo.v2.TXT': b'dots',
      'my.photo.v2.png': PNG,
      'my.photo.v3.png': PNG,
      'my.photo.v3.txt': b'more dots',
    },
  )
  source = webdataset.WebDataset(tmp_path / '0.tar', workers=0)
  assert source.sizes.tolist() == [[8, 12], [8, 12], [8, 8], [8, 12], [8, 12]]
  assert source.name(1) == f'{tmp_path}/0.tar: deep.er/c'
  used, left_out, _ = load(tmp_path / '0.tar')
  assert used == {
    'deep.er/c': 'two',
    'c': 'another folder',
    'my.photo.v2': 'dots',
    'my.photo.v3': 'more dots',
  }
  assert left_out == ['deep.er/a.b: it has no caption (no member .txt)']


def test_webdatasets_own_grouping(tmp_path):
  """A text belongs to the only image of the name up to the first dot."""
  write(
    tmp_path / '0.tar',
    {
      '0.photo.png': PNG,
      '0.txt': b'zero',
      '1.input.png': PNG,
      '1.target.png': PNG,
      '1.txt': b'of which?',
      '2.png': PNG,
      '2.mask.png': PNG,
      '2.txt': b'two',
      '3.seg.png': PNG,
      '3.seg.txt': b'its own',
      '3.json': b'{"aesthetic_score": 7}',
    },
  )
  used, left_out, _ = load(tmp_path / '0.tar')
  assert used == {'0.photo': 'zero', '2': 'two', '3.seg': 'its own'}
  assert left_out == [
    '1.input: it has no caption (no member .txt)',
    '1.target: it has no caption (no member .txt)',
    '2.mask: it has no caption (no member .txt)',
    '1: it has no image (but .txt)',
  ]
  source = webdataset.WebDataset(tmp_path / '0.tar', workers=0)
  assert source.name(6).endswith('3.seg') and source[6]['aesthetic_score'] == 7


def test_repeated_names(tmp_path):
  """In one tar the first is used; in another tar it is another record."""
  first = [
    ('0.png', PNG),
    ('0.txt', b'first'),
    ('1.txt', b'one'),
    ('1.png', PNG),
  ]
  again = [('0.png', PNG), ('0.txt', b'second'), ('1.txt', b'another')]
  write(tmp_path / '0.tar', [*first, *again, ('1.jpg', b'')])
  write(tmp_path / '1.tar', first)
  used, left_out, _ = load(tmp_path / '0.tar')
  assert used == {'0': 'first', '1': 'one'}
  reason = 'an earlier record has its name'
  assert left_out == [
    f'1.jpg: {reason} (1.png is the image of this name already)',
    f'0: {reason} (0.png, 0.txt: the tar has it already)',
    f'1: {reason} (1.txt: the tar has it already)',
  ]
  source = kinds.make_source(
    'webdataset', {'shards': f'{tmp_path}/*.tar'}, workers=0
  )
  assert captions(source) == ['first', 'one'] * 2
  assert len(set(source.keys.tolist())) == 4


def test_other_members(tmp_path):
  write(
    tmp_path / '0.tar',
    {
      'README': b'',
      '0.png': PNG,
      '0.txt': b'zero',
      '0.npy': b'',
      '0.cls': b'',
      '1.png': PNG,
      '1.txt': b'one',
      '1.npy': b'',
      '2.raw': PNG,
      '2.txt': b'two',
      '3.json': b'{}',
      '4.txt': b'four',
      '5.png': PNG,
      '5.caption': b'five',
    },
  )
  used, left_out, beside = load(tmp_path / '0.tar')
  assert used == {'0': 'zero', '1': 'one'}
  assert left_out == [
    '5: it has no caption (no member .txt, but .caption)',
    '3: it has no image (but .json)',
    '4: it has no image (but .txt)',
    'README: its suffix is not that of an image',
    '2.raw: its suffix is not that of an image',
  ]
  assert beside == {
    'members .caption beside images, not read': 1,
    'members .cls beside images, not read': 1,
    'members .npy beside images, not read': 2,
  }
  used, left_out, _ = load(tmp_path / '0.tar', caption='caption')
  assert used == {'5': 'five'} and len(left_out) == 6


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
  write(tmp_path / '0.tar', members)
  used, left_out, beside = load(tmp_path / '0.tar', caption='caption')
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
  used, _, _ = load(tmp_path / '0.tar', caption='caption.en')
  assert used == {'struct': 'a dog'}
  used, _, _ = load(tmp_path / '0.tar', caption='caption', encoding='latin-1')
  assert used['latin'] == 'caf\xe9' and used['bom'] == 'bom'


def test_links_and_other_members_without_bytes(tmp_path):
  with tarfile.open(tmp_path / '0.tar', 'w') as tar:
    for name, content in {'pool/0.png': PNG, 'pool/0.txt': b'zero'}.items():
      info = tarfile.TarInfo(name)
      info.size = len(content)
      tar.addfile(info, io.BytesIO(content))
    for name, kind, target in (
      ('a.png', tarfile.SYMTYPE, 'pool/0.png'),
      ('a.txt', tarfile.SYMTYPE, './pool/../pool/0.txt'),
      ('sub/b.png', tarfile.SYMTYPE, '../a.png'),
      ('sub/b.txt', tarfile.LNKTYPE, 'pool/0.txt'),
      ('away.png', tarfile.SYMTYPE, '/data/away.png'),
      ('away.txt', tarfile.LNKTYPE, 'pool/0.txt'),
      ('cycle.png', tarfile.SYMTYPE, 'elcyc.png'),
      ('elcyc.png', tarfile.SYMTYPE, 'cycle.png'),
      ('words.png', tarfile.LNKTYPE, 'pool/0.png'),
      ('words.txt', tarfile.SYMTYPE, 'nothing.txt'),
      ('pipe.png', tarfile.FIFOTYPE, ''),
      ('folder.png', tarfile.DIRTYPE, ''),
    ):
      info = tarfile.TarInfo(name)
      info.type, info.linkname = kind, target
      tar.addfile(info)
  used, left_out, _ = load(tmp_path / '0.tar')
  assert used == dict.fromkeys(('pool/0', 'a', 'sub/b'), 'zero')
  link = 'it is a link that leads nowhere or back'
  assert left_out == [
    'pipe: its header cannot be read (a device or a pipe)',
    f'away: {link} (links to /data/away.png, which the tar lacks)',
    f'cycle: {link} (links to cycle.png, which leads back)',
    f'elcyc: {link} (links to elcyc.png, which leads back)',
    f'words: {link} (links to nothing.txt, which the tar lacks)',
  ]


@pytest.mark.parametrize('sparse', ['0.0', '0.1', '1.0', ''])
def test_sparse_members(tmp_path, sparse):
  """Written as GNU tar writes them: of 1.0 the map lies before the bytes."""
  info = tarfile.TarInfo('0.png')
  if sparse:
    info.pax_headers = {
      'GNU.sparse.major': sparse[0],
      'GNU.sparse.minor': sparse[2],
      'GNU.sparse.name': '0.png',
      'GNU.sparse.realsize': str(len(PNG)),
      'GNU.sparse.size': str(len(PNG)),
      'GNU.sparse.map': f'0,{len(PNG)}',
    }
  content = f'1\n0\n{len(PNG)}\n'.encode().ljust(512, b'\0') + PNG
  content = content if sparse == '1.0' else PNG
  info.size = len(content)
  with tarfile.open(tmp_path / '0.tar', 'w', format=tarfile.PAX_FORMAT) as tar:
    tar.addfile(info, io.BytesIO(content))
    info = tarfile.TarInfo('0.txt')
    info.size = 4
    tar.addfile(info, io.BytesIO(b'zero'))
    info.name = 'n' * 200 + '.png'  # whose name is in a header of its own
    info.size = len(PNG)
    tar.addfile(info, io.BytesIO(PNG))
  if not sparse:
    assert load(tmp_path / '0.tar')[0] == {'0': 'zero'}
    return
  with pytest.raises(ValueError, match='0: .*sparse member'):
    load(tmp_path / '0.tar')


def test_concatenated_tars(tmp_path):
  """Both are read, though an end mark lies between them."""
  for name in 'ab':
    write(tmp_path / f'{name}.tar', {f'{name}.png': PNG, f'{name}.txt': b'x'})
  both = [(tmp_path / f'{name}.tar').read_bytes() for name in 'ab']
  (tmp_path / 'c.tar').write_bytes(b''.join(both))
  used, left_out, _ = load(tmp_path / 'c.tar')
  assert used == {'a': 'x', 'b': 'x'} and not left_out
  source = webdataset.WebDataset(tmp_path / 'c.tar', workers=0)
  assert source[1]['image'] == PNG


def test_names_that_are_not_utf8(tmp_path):
  name = os.fsdecode(b'caf\xe9')
  write(tmp_path / '0.tar', {f'{name}.png': PNG, f'{name}.txt': b'x'})
  used, _, _ = load(tmp_path / '0.tar')
  assert used == {'caf\\udce9': 'x'}


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


@pytest.mark.parametrize('keep', [0, 100, 700, 1124, 2000])
def test_a_truncated_tar(tmp_path, keep):
  path = tmp_path / '0.tar'
  write(path, {'a.txt': b'x', 'a.png': bytes(1500)})
  path.write_bytes(path.read_bytes()[:keep])
  with pytest.raises(ValueError, match='0.tar is a truncated or corrupt tar'):
    webdataset.WebDataset(path, workers=0)


def test_a_corrupt_header(tmp_path):
  """Python's tarfile would end there, and leave out all that follows."""
  path = tmp_path / '0.tar'
  write(path, {'a.txt': b'x', 'a.png': PNG, 'b.txt': b'y', 'b.png': PNG})
  content = bytearray(path.read_bytes())
  content[1024 : 1024 + 200] = bytes(range(200))
  path.write_bytes(content)
  with pytest.raises(ValueError, match='corrupt tar .no header .* byte 1024'):
    webdataset.WebDataset(path, workers=0)


def test_a_tar_without_its_end(tmp_path, caplog):
  path = tmp_path / '0.tar'
  write(path, {'a.txt': b'x', 'a.png': PNG})
  end = len(path.read_bytes().rstrip(b'\0'))
  path.write_bytes(path.read_bytes()[: -(-end // 512) * 512])
  assert captions(webdataset.WebDataset(path, workers=0)) == ['x']
  assert f'{path} has no end-of-archive mark' in caplog.text


@pytest.mark.parametrize('suffix', ['gz', 'bz2', 'xz'])
def test_compressed_tars(tmp_path, suffix):
  path = tmp_path / f'0.tar.{suffix}'
  with tarfile.open(path, f'w:{suffix}') as tar:
    tar.addfile(tarfile.TarInfo('a.txt'), io.BytesIO())
  with pytest.raises(ValueError, match='is compressed by .* run `[gb]?un') as e:
    webdataset.WebDataset(path, workers=0)
  command = re.search('`(.*?)`', str(e.value))[1]
  subprocess.run(command.split(), check=True)
  assert tarfile.open(tmp_path / '0.tar').getnames() == ['a.txt']


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
