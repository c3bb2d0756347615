"""Tests the contract of a source on the same images stored in every format."""

import numpy as np
import pytest

from sdxl_jax.data import images
from sdxl_jax.data.sources import kinds
from tests.support import datasets

SIZES = ((20, 30), (10, 40), (25, 25), (33, 11), (40, 24), (16, 16)) * 3
KINDS = sorted(datasets.WRITERS)


def make(kind, folder, examples=None, **settings):
  if examples is None:
    examples = [datasets.example(i, size) for i, size in enumerate(SIZES)]
  written = datasets.WRITERS[kind](folder, examples)
  return kinds.make_source(kind, written, workers=0, **settings)


@pytest.mark.parametrize('kind', KINDS)
def test_contract(kind, tmp_path):
  source = make(kind, tmp_path)
  assert len(source) == len(SIZES)
  assert source.sizes.dtype == np.int32
  assert sorted(source.sizes.tolist()) == sorted(map(list, SIZES))
  for i in range(len(source)):
    example = source[i]
    number = int(example['caption'].removeprefix('picture '))
    assert example['original_size'] == SIZES[number]
    assert example['original_size'] == tuple(source.sizes[i])
    assert example['aesthetic_score'] == pytest.approx(4 + number / 8)
    decoded = np.asarray(images.decode(example['image'], example['name']))
    np.testing.assert_array_equal(
      decoded, datasets.ramp(*SIZES[number], number)
    )


@pytest.mark.parametrize('kind', KINDS)
def test_unusable_records_are_named(kind, tmp_path):
  examples = [datasets.example(i, size) for i, size in enumerate(SIZES)]
  examples[3]['image'] = b'no image'
  examples[7]['image'] = b''
  null = kind in ('webdataset', 'parquet')  # the others have at least ''
  if null:
    examples[9]['text'] = None
  lines = []
  source = make(kind, tmp_path, examples, say=lines.append)
  assert len(source) == len(SIZES) - 2 - null
  left_out = '\n'.join(source.left_out())
  names = {
    'folder': ('0003.png', '0007.png'),
    'webdataset': ('0003', '0007', '0009'),
    'parquet': ('row 3, in group 1', 'row 0, in group 0', 'row 2, in group 0'),
    'tfds': ('record 3', 'record 7'),
  }
  assert all(name in left_out for name in names[kind]), left_out
  account = source.account()
  assert lines == [str(account)]
  assert account.left_out['its header cannot be read'].count == 2
  assert account.seen == len(SIZES) == account.used + 2 + null
  captions = {source[i]['caption'] for i in range(len(source))}
  assert not captions & {'picture 3', 'picture 7'}
  assert ('picture 9' in captions) != null


@pytest.mark.parametrize('kind', KINDS)
def test_images_without_captions(kind, tmp_path):
  """Without captions in the settings, none need exist."""
  sizes = ((40, 60), (60, 40), (50, 50))
  examples = [datasets.example(i, size) for i, size in enumerate(sizes)]
  if kind != 'tfds':  # whose text is never missing
    for e in examples:
      e['text'] = None
  written = datasets.WRITERS[kind](tmp_path, examples)
  none = {'captions': False} if kind == 'folder' else {'caption': ''}
  source = kinds.make_source(kind, written | none, workers=0)
  assert len(source) == 3 and not list(source.left_out())
  for i, e in enumerate(examples):
    assert source[i]['caption'] == '' and source[i]['image'] == e['image']


def test_a_folder_of_images_alone(tmp_path):
  for i in range(3):
    path = tmp_path / f'{i}.png'
    path.write_bytes(datasets.example(i, (20, 30))['image'])
  with pytest.raises(ValueError, match='3  left out: it has no caption'):
    kinds.make_source('folder', {'path': tmp_path}, workers=0)
  settings = {'path': tmp_path, 'captions': False}
  source = kinds.make_source('folder', settings, workers=0)
  assert [source[i]['caption'] for i in range(3)] == [''] * 3


def listed(i):
  """Three captions of a record, as a list in every format."""
  return [f'picture {i}', f'another {i}', f'a third {i}']


def write_lists(kind, folder, change=lambda texts: texts):
  """Writes images with three captions each; returns settings of the source."""
  examples = [datasets.example(i, size) for i, size in enumerate(SIZES[:4])]
  texts = [change(listed(i)) for i in range(4)]
  if kind == 'webdataset':
    fields = [{'caption': t, 'aesthetic_score': 5.0} for t in texts]
    examples = [e | {'text': None} for e in examples]
    written = datasets.write_webdataset(folder, examples, fields=fields)
    return written | {'caption': 'caption'}
  examples = [e | {'text': t} for e, t in zip(examples, texts)]
  return datasets.WRITERS[kind](folder, examples)


LISTS = ('folder', 'webdataset', 'parquet')  # and tfds, in tfds_test.py


@pytest.mark.parametrize('kind', LISTS)
def test_all_captions_of_a_list(kind, tmp_path):
  """The first by default, and then all, in an index of their own."""
  settings, lines = write_lists(kind, tmp_path), []
  first = kinds.make_source(kind, settings, workers=0, say=lines.append)
  every = kinds.make_source(
    kind, settings, workers=0, say=lines.append, several=True
  )
  for i in range(4):
    assert 'captions' not in first[i]
    assert first[i]['caption'] == every[i]['caption'] == listed(i)[0]
    assert every[i]['captions'] == tuple(listed(i))
  assert '4  of the used have several captions, of which the first' in lines[0]
  assert '4  of the used have several captions, of which each pass' in lines[1]
  np.testing.assert_array_equal(first.keys, every.keys)


@pytest.mark.parametrize('kind', LISTS)
def test_a_changed_record_is_one_whose_used_captions_changed(kind, tmp_path):
  def stamps(settings, several):
    source = kinds.make_source(
      kind, settings, workers=0, say=str, several=several
    )
    return source.stamps

  def edit(texts):
    return [texts[0], 'something else', texts[2]]

  before = write_lists(kind, tmp_path / 'before')
  after = write_lists(kind, tmp_path / 'after', edit)
  assert (stamps(before, False) == stamps(after, False)).all()
  assert (stamps(before, True) != stamps(after, True)).all()


def test_a_mixture_chooses_among_captions_too(tmp_path):
  parts = {
    kind: dict(write_lists(kind, tmp_path / kind), source=kind, share=1.0)
    for kind in ('folder', 'parquet')
  }
  source = kinds.make_source('mixture', parts, workers=0, say=str, several=True)
  assert len(source) == 8
  assert all(len(source[i]['captions']) == 3 for i in range(8))


def test_the_index_of_earlier_versions_stays(tmp_path):
  """Its name is a hash of the settings that it was built with."""
  make('folder', tmp_path)
  names = [path.name for path in tmp_path.glob('.index-*.arrow')]
  assert names == ['.index-a04aed0e178d2987.arrow']
