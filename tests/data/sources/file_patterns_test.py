"""Tests which files a pattern names, and what it names in vain."""

import errno
import os

import pytest

from sdxl_jax.data.sources import file_patterns


def test_braces():
  assert file_patterns.braces('a/{08..11}.tar') == [
    f'a/{n}.tar' for n in ('08', '09', '10', '11')
  ]
  assert file_patterns.braces('{0..1}/{0..1}') == ['0/0', '0/1', '1/0', '1/1']
  assert file_patterns.braces('*.tar') == ['*.tar']


@pytest.mark.parametrize(
  'pattern, expected, missing',
  [
    ('{000..003}.tar', ['000.tar', '002.tar'], ['001.tar', '003.tar']),
    ('*.tar', ['000.tar', '002.tar', 'x.tar/a.tar', 'x.tar/y/b.tar'], []),
    ('', ['000.tar', '002.tar', 'x.tar/a.tar', 'x.tar/y/b.tar'], []),
    ('x.*/*.tar', ['x.tar/a.tar'], []),
    ('**/*.tar', ['000.tar', '002.tar', 'x.tar/a.tar', 'x.tar/y/b.tar'], []),
  ],
)
def test_find(tmp_path, pattern, expected, missing):
  (tmp_path / 'x.tar' / 'y').mkdir(parents=True)
  for name in ('000', '002', 'x.tar/a', 'x.tar/y/b', 'other'):
    suffix = '.json' if name == 'other' else '.tar'
    (tmp_path / f'{name}{suffix}').touch()
  found = file_patterns.find(f'{tmp_path}/{pattern}', '.tar')
  names = [path.removeprefix(f'{tmp_path}/') for path in found.paths]
  assert names == expected
  assert found.missing == [f'{tmp_path}/{name}' for name in missing]
  assert found.base == str(tmp_path) + '/'


def test_nothing(tmp_path):
  with pytest.raises(FileNotFoundError, match=r'no tar matches .*/1.tar'):
    file_patterns.find(f'{tmp_path}/1.tar', '.tar')


def test_what_cannot_be_opened(tmp_path):
  """A protocol that fsspec lacks, and a name that no index can hold."""
  with pytest.raises(ValueError, match='s4://a.tar cannot be opened: Protocol'):
    file_patterns.find('s4://a.tar', '.tar')
  (tmp_path / 'caf\udce9.tar').touch()
  with pytest.raises(ValueError, match=r'caf\\udce9.tar is not UTF-8: rename'):
    file_patterns.find(tmp_path, '.tar')


def test_a_folder_that_cannot_be_listed(tmp_path, monkeypatch):
  """As of another user; the tars beside it do not stand for all."""
  for name in ('a', 'b'):
    (tmp_path / name).mkdir()
    (tmp_path / name / '0.tar').touch()
  scan = os.scandir

  def scandir(path):
    if os.fspath(path).rstrip('/') == f'{tmp_path}/b':
      raise PermissionError(errno.EACCES, 'Permission denied', path)
    return scan(path)

  monkeypatch.setattr(os, 'scandir', scandir)
  for pattern in ('', '/**/*.tar', '/*/*.tar', '/b/*.tar'):
    with pytest.raises(PermissionError, match=f'{tmp_path}/b/? of .*chmod'):
      file_patterns.find(f'{tmp_path}{pattern}', '.tar')
  assert len(file_patterns.find(tmp_path / 'a', '.tar').paths) == 1
