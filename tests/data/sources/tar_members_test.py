"""Tests the members of odd tars: links, sparse, concatenated, broken tars."""

import io
import os
import re
import subprocess
import tarfile

import pytest

from sdxl_jax.data.sources import webdataset
from tests.support import datasets, tars

PNG = datasets.encode(datasets.ramp(8, 12))


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
  used, left_out, _ = tars.load(tmp_path / '0.tar')
  assert used == dict.fromkeys(('pool/0', 'a', 'sub/b'), 'zero')
  link = 'it is a link that leads nowhere or back'
  assert left_out == [
    'pipe: its header cannot be read (a device or a pipe)',
    f'away: {link} (links to /data/away.png, which leads nowhere)',
    f'cycle: {link} (links to elcyc.png, which leads back)',
    f'elcyc: {link} (links to cycle.png, which leads back)',
    f'words: {link} (links to nothing.txt, which leads nowhere)',
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
    assert tars.load(tmp_path / '0.tar')[0] == {'0': 'zero'}
    return
  with pytest.raises(ValueError, match='0: .*sparse member'):
    tars.load(tmp_path / '0.tar')


def test_concatenated_tars(tmp_path):
  """Both are read, though an end mark lies between them."""
  for name in 'ab':
    tars.write(
      tmp_path / f'{name}.tar', {f'{name}.png': PNG, f'{name}.txt': b'x'}
    )
  both = [(tmp_path / f'{name}.tar').read_bytes() for name in 'ab']
  (tmp_path / 'c.tar').write_bytes(b''.join(both))
  used, left_out, _ = tars.load(tmp_path / 'c.tar')
  assert used == {'a': 'x', 'b': 'x'} and not left_out
  source = webdataset.WebDataset(tmp_path / 'c.tar', workers=0)
  assert source[1]['image'] == PNG


def test_names_that_are_not_utf8(tmp_path):
  name = os.fsdecode(b'caf\xe9')
  tars.write(tmp_path / '0.tar', {f'{name}.png': PNG, f'{name}.txt': b'x'})
  used, _, _ = tars.load(tmp_path / '0.tar')
  assert used == {'caf\\udce9': 'x'}


@pytest.mark.parametrize('keep', [0, 100, 700, 1124, 2000])
def test_a_truncated_tar(tmp_path, keep):
  path = tmp_path / '0.tar'
  tars.write(path, {'a.txt': b'x', 'a.png': bytes(1500)})
  path.write_bytes(path.read_bytes()[:keep])
  with pytest.raises(ValueError, match='0.tar is a truncated or corrupt tar'):
    webdataset.WebDataset(path, workers=0)


def test_a_corrupt_header(tmp_path):
  """Python's tarfile would end there, and leave out all that follows."""
  path = tmp_path / '0.tar'
  tars.write(path, {'a.txt': b'x', 'a.png': PNG, 'b.txt': b'y', 'b.png': PNG})
  content = bytearray(path.read_bytes())
  content[1024 : 1024 + 200] = bytes(range(200))
  path.write_bytes(content)
  with pytest.raises(ValueError, match='corrupt tar .no header .* byte 1024'):
    webdataset.WebDataset(path, workers=0)


def test_a_tar_without_its_end(tmp_path, caplog):
  path = tmp_path / '0.tar'
  tars.write(path, {'a.txt': b'x', 'a.png': PNG})
  end = len(path.read_bytes().rstrip(b'\0'))
  path.write_bytes(path.read_bytes()[: -(-end // 512) * 512])
  assert tars.captions(webdataset.WebDataset(path, workers=0)) == ['x']
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
