"""Tests which members of a tar make a record, and which are left out."""

from sdxl_jax.data.sources import kinds, webdataset
from tests.support import datasets, tars

PNG = datasets.encode(datasets.ramp(8, 12))


def test_keys(tmp_path):
  tars.write(
    tmp_path / '0.tar',
    {
      'deep.er/a.b.png': PNG,
      'deep.er/c.PNG': PNG,
      'deep.er/c.txt': b' two \n',
      'c.txt': b'another folder',
      'c.jpg': datasets.encode(datasets.ramp(8, 8), 'JPEG'),
      './my.photo.v2.TXT': b'dots',
      'my.photo.v2.png': PNG,
      'my.photo.v3.png': PNG,
      'my.photo.v3.txt': b'more dots',
    },
  )
  source = webdataset.WebDataset(tmp_path / '0.tar', workers=0)
  assert source.sizes.tolist() == [[8, 12], [8, 12], [8, 8], [8, 12], [8, 12]]
  assert source.name(1) == f'{tmp_path}/0.tar: deep.er/c'
  used, left_out, _ = tars.load(tmp_path / '0.tar')
  assert used == {
    'deep.er/c': 'two',
    'c': 'another folder',
    'my.photo.v2': 'dots',
    'my.photo.v3': 'more dots',
  }
  assert left_out == ['deep.er/a.b: it has no caption (no member .txt)']


def test_webdatasets_own_grouping(tmp_path):
  """A text belongs to the only image of the name up to the first dot."""
  tars.write(
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
  used, left_out, _ = tars.load(tmp_path / '0.tar')
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
  tars.write(tmp_path / '0.tar', [*first, *again, ('1.jpg', b'')])
  tars.write(tmp_path / '1.tar', first)
  used, left_out, _ = tars.load(tmp_path / '0.tar')
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
  assert tars.captions(source) == ['first', 'one'] * 2
  assert len(set(source.keys.tolist())) == 4


def test_other_members(tmp_path):
  tars.write(
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
  used, left_out, beside = tars.load(tmp_path / '0.tar')
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
  used, left_out, _ = tars.load(tmp_path / '0.tar', caption='caption')
  assert used == {'5': 'five'} and len(left_out) == 6
