"""Tests what filters leave out, report and refuse."""

import collections
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sdxl_jax.data.sources import kinds, record_filters
from tests.support import datasets

PNG = datasets.encode(datasets.ramp(8, 12))
SIZES = ((20, 30), (10, 40), (25, 25), (33, 11), (40, 24), (16, 16)) * 3


def choose(tmp_path, kind='folder', **settings):
  """Returns the numbers of the records that pass, and why others do not."""
  filters, said = record_filters.Filters(**settings), []
  examples = [datasets.example(i, size) for i, size in enumerate(SIZES)]
  written = datasets.WRITERS[kind](tmp_path / kind, examples)
  source = kinds.make_source(kind, written, filters, 0, said.append)
  sizes = [source[i]['original_size'] for i in range(len(source))]
  assert source.sizes.tolist() == list(map(list, sizes))
  account = source.account()
  assert said == [str(account)]
  counts = {reason: lost.count for reason, lost in account.left_out.items()}
  assert account.seen == account.used + sum(counts.values()) == len(SIZES)
  assert account.used == len(source)
  return numbers_of(source), counts


def numbers_of(source):
  captions = [source[i]['caption'] for i in range(len(source))]
  return [int(caption.removeprefix('picture ')) for caption in captions]


def numbers(keep):
  return [i for i, size in enumerate(SIZES) if keep(i, *size)]


def test_sides(tmp_path):
  chosen, counts = choose(tmp_path, min_side=20)
  assert chosen == numbers(lambda i, h, w: min(h, w) >= 20)
  assert counts == {'a side is under 20 px': 9}


def test_aspects(tmp_path):
  chosen, counts = choose(tmp_path, min_aspect=0.5, max_aspect=1.0)
  assert chosen == numbers(lambda i, h, w: 0.5 <= h / w <= 1)
  assert counts == {'height / width is not 0.5 to 1.0': 9}


@pytest.mark.parametrize('kind', sorted(datasets.WRITERS))
def test_columns(tmp_path, kind):
  chosen, counts = choose(
    tmp_path,
    kind,
    min_aesthetic_score=4.5,
    columns=(('watermark', '<=', 0.25), ('watermark', '!=', 0.0)),
  )
  assert chosen == numbers(lambda i, h, w: i >= 4 and i % 4 == 1)
  # Each record is counted once, by the first condition that it fails.
  assert counts == {
    'watermark is not <= 0.25': 8,
    'watermark is not != 0.0': 5,
    'aesthetic_score is not >= 4.5': 1,
  }


def test_text_columns_and_missing_values(tmp_path):
  for name in ('a.png', 'b.png', 'c.png'):
    (tmp_path / name).write_bytes(datasets.encode(datasets.ramp(4, 4)))
  (tmp_path / 'metadata.csv').write_text(
    'file_name,text,lang,p\na.png,0,en,nan\nb.png,1,fr,0.5\nc.png,2,,0.1\n'
  )
  for rule, expected in (
    (('lang', '==', 'en'), ['0']),
    (('lang', '!=', 'en'), ['1']),  # not the one without a language
    (('p', '<', 0.4), ['2']),
    (('p', '!=', 0.5), ['2']),  # NaN is no value
  ):
    source = kinds.make_source(
      'folder', {'path': tmp_path}, record_filters.Filters(columns=(rule,)), 0
    )
    assert [source[i]['caption'] for i in range(len(source))] == expected


@pytest.mark.parametrize(
  'rule, message',
  [
    (('nonsense', '>', 1), "'nonsense', for which Folder has no value"),
    (('watermark', '>', 'x'), "compares watermark with 'x'"),
    (('watermark', '=>', 1), 'the comparison one of'),
    (('watermark', [], 1), 'the comparison one of'),
    ((5, '>', 1), 'the comparison one of'),
    (0.5, 'columns has 0.5; write'),
    (('watermark', '>', 9), 'leave none of 18'),
  ],
)
def test_refused(tmp_path, rule, message):
  with pytest.raises(ValueError, match=message):
    choose(tmp_path, columns=(rule,))


def test_sources_without_an_index(tmp_path):
  settings = dict(resolution=40, length=50, objects=8, colours=6)
  filters = record_filters.Filters(min_side=40)
  source = kinds.make_source('scenes', settings, filters, say=lambda line: None)
  assert 0 < len(source) < 50 and source.sizes.min() >= 40
  assert source[0]['original_size'] == tuple(source.sizes[0])
  filters = record_filters.Filters(columns=(('watermark', '<', 1),))
  with pytest.raises(ValueError, match='Scenes has no value'):
    kinds.make_source('scenes', settings, filters)


def test_mixture(tmp_path):
  """Meets the shares, and has every record of each source at least once."""
  parts = {}
  for n, (kind, share) in enumerate((('folder', 3), ('webdataset', 1))):
    examples = [
      datasets.example(100 * n + i, size) for i, size in enumerate(SIZES)
    ]
    parts[kind] = datasets.WRITERS[kind](tmp_path / kind, examples)
    parts[kind] |= {'source': kind, 'share': share}
  source = kinds.make_source('mixture', parts, workers=0)
  assert len(source) == len(source.sizes) == 4 * len(SIZES)
  counts = np.bincount(numbers_of(source), minlength=200)
  assert set(counts[:18]) == {3} and set(counts[100:118]) == {1}
  for i in range(len(source)):
    assert source[i]['original_size'] == tuple(source.sizes[i])


def test_a_share_of_nothing(tmp_path):
  scenes = dict(source='scenes', resolution=40, length=9, objects=8, colours=6)
  with pytest.raises(ValueError, match='mixture.b.share is 0'):
    kinds.make_source(
      'mixture', {'a': scenes | {'share': 1}, 'b': scenes | {'share': 0}}
    )
  with pytest.raises(ValueError, match='mixture is empty'):
    kinds.make_source('mixture', {})


def test_unknown_kind():
  with pytest.raises(ValueError, match=r"'laion'; choose one of \['folder'"):
    kinds.make_source('laion', {})


@pytest.mark.parametrize('weight', [1.0, 0.25])
def test_shares_weigh_a_prior(weight):
  """Mixes a few images with many of their class; see configs/lora.py."""
  kind = {'source': 'scenes', 'resolution': 32}
  parts = {
    'mine': kind | {'length': 20, 'share': 1.0},
    'others': kind | {'length': 200, 'share': weight},
  }
  source = kinds.make_source('mixture', parts, workers=0)
  mine, others = source.lengths
  assert others / mine == pytest.approx(weight)
  assert others == 200 and mine == 200 / weight
  times = collections.Counter(source[i]['name'] for i in range(mine))
  assert len(times) == 20 and set(times.values()) == {mine // 20}


@pytest.mark.parametrize('kind', sorted({*datasets.WRITERS} - {'tfds'}))
@pytest.mark.parametrize(
  'name', ['width', 'problem', 'key', 'reason', 'captions', 'record', 'row']
)
def test_columns_with_names_of_the_index(tmp_path, kind, name):
  """As img2dataset's width, key and status are."""
  values = [640, 7, None]
  if kind == 'folder':
    lines = []
    for i, value in enumerate(values):
      (tmp_path / f'{i}.png').write_bytes(PNG)
      lines.append({'file_name': f'{i}.png', 'text': f'{i}', name: value})
    lines = '\n'.join(map(json.dumps, lines))
    (tmp_path / 'metadata.jsonl').write_text(lines)
    settings = {'path': tmp_path}
  elif kind == 'webdataset':
    examples = [datasets.example(i, (8, 12), text=f'{i}') for i in range(3)]
    settings = datasets.write_webdataset(
      tmp_path, examples, fields=[{name: value} for value in values]
    )
  else:
    table = {'image': [PNG] * 3, 'text': ['0', '1', '2'], name: values}
    pq.write_table(pa.table(table), tmp_path / '0.parquet')
    settings = {'files': str(tmp_path)}
  filters = record_filters.Filters(columns=((name, '>', 100),))
  source = kinds.make_source(kind, settings, filters, 0, str)
  assert [e['caption'] for e in source] == ['0']
  assert source.sizes.tolist() == [[8, 12]]


@pytest.mark.parametrize(
  'part, message',
  [
    ({'share': 1}, 'mixture.b has no source'),
    ({'source': 'scenes'}, 'mixture.b has no share'),
    ({'source': 'folder', 'share': 1}, "mixture.b: .*missing .*: 'path'"),
    (
      {'source': 'folder', 'share': 1, 'path': '/no', 'pth': 1},
      "mixture.b: .*'pth'",
    ),
    ({'source': 'folder', 'share': 1, 'path': '/no'}, 'mixture.b: .*/no: no'),
    ({'source': 'scenes', 'share': '0.5'}, "b.share is '0.5'; it must be a nu"),
    ({'source': 'scenes', 'share': np.inf}, 'b.share is inf; it must be a num'),
    ({'source': 'scenes', 'share': 1e-12}, 'b.share is 1e-12, at which a pass'),
  ],
)
def test_a_broken_part_of_a_mixture_is_named(part, message):
  scenes = {'resolution': 40, 'length': 9, 'objects': 8, 'colours': 6}
  if part.get('source') == 'scenes':
    part = scenes | part
  parts = {'a': scenes | {'source': 'scenes', 'share': 1}, 'b': part}
  with pytest.raises(ValueError, match=message):
    kinds.make_source('mixture', parts, workers=0)


def test_conditions_on_bools(tmp_path):
  for name in 'ab':
    (tmp_path / f'{name}.png').write_bytes(PNG)
  (tmp_path / 'metadata.jsonl').write_text(
    '{"file_name": "a.png", "text": "a", "nsfw": true}\n'
    '{"file_name": "b.png", "text": "b", "nsfw": false}\n'
  )
  filters = record_filters.Filters(columns=(('nsfw', '==', False),))
  source = kinds.make_source('folder', {'path': tmp_path}, filters, 0, str)
  assert [e['caption'] for e in source] == ['b']


@pytest.mark.parametrize('rule', [5, ('p', '<', None), ('p', '==', ['a'])])
def test_conditions_that_are_none(rule):
  with pytest.raises(ValueError, match=r'columns has .*; write \(name'):
    record_filters.Filters(columns=(rule,))
