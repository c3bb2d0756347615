"""Tests caches of records with several texts: all stored, one for each pass."""

import collections
import json

import numpy as np
import pytest

from sdxl_jax import precompute
from sdxl_jax.data import batch_rows, buckets, captioning, dataset, pipeline
from sdxl_jax.data.sources import cache_layout, precomputed
from sdxl_jax.text import tokenizer
from sdxl_jax.training import cache_check, config_validation, run_setup
from tests.support import caches, datasets

COUNT = 9
FIELDS = {'enable_wildcard': True, 'caption_prefix': 'p,'}
LINES = 'picture {i}\na {{red|blue}} one\n'  # of a .txt file


def text_of(i):
  return LINES.format(i=i) if i else 'one line'


@pytest.fixture
def cache(tmp_path, monkeypatch):
  """Makes a cache; returns its folder, that of the images, and `make`."""
  images = tmp_path / 'images'
  for i in range(COUNT):
    caches.write(images, i, text_of(i))

  def make(folder, fields=FIELDS, **options):
    config = caches.config_of(images)
    config.data.captions.update(fields)
    return caches.make(monkeypatch, config, folder, **options)

  make(tmp_path / 'cache', crops=2)
  return tmp_path / 'cache', images, make


def run_config(folder, fields=FIELDS):
  """The config of a run on a cache."""
  config = caches.config_of('nowhere')
  config.data.source = 'precomputed'
  config.data.precomputed.update(path=str(folder), dtype='float16')
  config.data.captions.update(fields)
  return config


def make_batches(folder, host=0, hosts=1, fields=FIELDS, **options):
  config = run_config(folder, fields)
  source = dataset.make_source(config, str)
  schedule = buckets.Schedule(source.sizes, caches.BUCKETS, 0, 4)
  options = batch_rows.BatchOptions(
    num_threads=1, captions=dataset.make_captioning(config), **options
  )
  rows = range(host, 4, hosts)
  return pipeline.make_batches(source, None, schedule, rows, options), source


def encoded(text):
  """The pooled text that `caches.PlainEncoder` makes, as bytes."""
  config = caches.config_of('x')
  setup = type('Setup', (), {'config': config})
  ((_, pooled),) = caches.PlainEncoder(setup, 1).text([text])
  return pooled.astype(np.float16).tobytes()


def read(batches, source, n):
  """Returns [(number of the image, encoded text), ...] of n batches."""
  found = []
  for step in range(batches.get_state()['batches'], 10**6)[:n]:
    ids = batches.record_ids(step)[list(batches._rows.rows)]
    _, batch = next(batches)
    names = [int(source.name(int(i))[-8:-4]) for i in ids]
    found += zip(names, (row.tobytes() for row in batch['pooled']))
  batches.close()
  return found


def test_every_text_is_stored_and_trained_on(cache):
  folder, *_ = cache
  captions = captioning.Captioning(**FIELDS)
  table = precomputed.Precomputed(folder, 'float16').table
  for name, texts, weights in zip(
    *(table[n].to_pylist() for n in ('name', 'texts', 'weights'))
  ):
    expected = captions.alternatives([text_of(int(name[-8:-4])).strip()])
    assert dict(zip(texts, weights)) == expected
  found = collections.Counter(read(*make_batches(folder), 250))
  expected = {
    (i, encoded(text)): weight
    for i in range(COUNT)
    for text, weight in captions.alternatives([text_of(i).strip()]).items()
  }
  assert found.keys() == expected.keys()
  each = 1000 / COUNT
  for key, weight in expected.items():
    slack = 6 * np.sqrt(each * weight * (1 - weight)) + 0.1 * each
    assert abs(found[key] - each * weight) < slack


def test_hosts_and_resuming(cache):
  folder, *_ = cache
  whole = read(*make_batches(folder), 30)
  batches, source = make_batches(folder)
  for _ in range(7):
    next(batches)
  state = json.loads(json.dumps(batches.get_state()))
  batches.close()
  shares = []
  for host in range(2):
    batches, source = make_batches(folder, host, 2)
    batches.set_state(state)
    shares.append(read(batches, source, 23))
  joined = [row for rows in zip(*shares) for row in rows]
  assert joined == whole[28:]


def test_dropped_captions_are_the_empty_one(cache):
  folder, *_ = cache
  fields = FIELDS | {'caption_dropout_every_n_epochs': 1}
  for options in ({'fields': fields}, {'caption_dropout': 1.0}):
    found = read(*make_batches(folder, **options), 3)
    assert {text for _, text in found} == {encoded('')}


def test_an_update_gives_the_bytes_of_a_fresh_cache(cache, tmp_path):
  folder, images, make = cache
  caches.write(images, 3, 'x\ny\nz')
  caches.write(images, 5, 'picture 5\nother')
  (images / '0007.png').write_bytes((images / '0007.png').read_bytes()[:50])
  caches.write(images, 20, 'one\ntwo')
  _, made = make(folder, crops=2)
  assert made == 2 * 3
  make(tmp_path / 'fresh', crops=2)
  assert caches.contents(folder) == caches.contents(tmp_path / 'fresh')
  source = precomputed.Precomputed(folder, 'float16')
  assert source.lengths.tolist().count(0) == 1
  whole = [source.rows(i) for i in np.flatnonzero(source.lengths)]
  assert sum(map(len, whole)) == source.lengths.sum()


def test_captions_as_they_are_need_no_more_columns(cache, tmp_path):
  *_, make = cache
  make(tmp_path / 'plain', fields={})
  layout = cache_layout.Layout.load(tmp_path / 'plain')
  assert 'captions' not in layout.facts
  table = precomputed.Precomputed(tmp_path / 'plain', 'float16').table
  assert not {'texts', 'weights'} & {*table.column_names}
  with pytest.raises(ValueError, match='holds another cache'):
    make(tmp_path / 'plain')


@pytest.mark.parametrize(
  'fields, words',
  [
    ({}, 'data.captions.enable_wildcard: True > False'),
    (FIELDS | {'caption_prefix': ''}, 'data.captions.caption_prefix: p, > '),
    (FIELDS | {'several': 'random'}, 'data.captions.several: first > random'),
  ],
)
def test_a_run_with_other_settings_is_refused(cache, tmp_path, fields, words):
  folder, *_ = cache
  (tmp_path / 'run').mkdir()
  run_setup.make_source(run_config(folder), tmp_path / 'run', str)
  with pytest.raises(ValueError, match='other settings of captions') as error:
    run_setup.make_source(run_config(folder, fields), tmp_path / 'run', str)
  assert words in str(error.value)


def test_a_changed_line_makes_a_cache_stale(cache, tmp_path):
  folder, images, _ = cache
  (tmp_path / 'run').mkdir()
  caches.write(images, 3, 'picture 3\nanother')
  with pytest.raises(ValueError, match='8 kept, 1 changed'):
    run_setup.make_source(run_config(folder), tmp_path / 'run', str)


@pytest.mark.parametrize(
  'fields', [{'shuffle_caption': True}, {'caption_tag_dropout_rate': 0.1}]
)
def test_chance_that_no_cache_can_hold_is_refused(cache, tmp_path, fields):
  folder, _, make = cache
  with pytest.raises(ValueError, match='a cache holds the encoded texts'):
    make(tmp_path / 'new', fields=fields)
  assert not (tmp_path / 'new').exists()
  config = run_config(folder, FIELDS | fields)
  with pytest.raises(ValueError, match='a cache holds the encoded texts'):
    config_validation.check(config)


def mix(images, parts):
  """A config of a mixture of one folder, in parts with other settings."""
  config = caches.config_of('nowhere').unlock()
  part = dict(source='folder', share=1.0, path=str(images))
  config.data.source = 'mixture'
  config.data.mixture = {name: part | own for name, own in parts.items()}
  return config


def test_parts_of_a_mixture(cache, tmp_path, monkeypatch):
  """Are read, checked and precomputed with settings of their own."""
  _, images, _ = cache
  parts = {'a': {'caption_suffix': 's'}, 'b': FIELDS}
  config = mix(images, parts)
  config_validation.check(config)
  source = dataset.make_source(config, str)
  captions = dataset.make_captioning(config)
  texts = [
    captions.of(e).longest([e['caption']])[0]
    for e in map(source.__getitem__, (1, COUNT + 1))
  ]
  assert texts == ['picture 1\na {red|blue} one s', 'p, picture 1']
  report = dataset.check_records(config, source, tokenizer.load())
  assert report.records == 2 * COUNT
  caches.make(monkeypatch, config, tmp_path / 'mixed')
  table = precomputed.Precomputed(tmp_path / 'mixed', 'float16').table
  counts = [len(texts) for texts in table['texts'].to_pylist()]
  assert sorted(counts) == [1] * (COUNT + 1) + [3] * (COUNT - 1)
  (tmp_path / 'run').mkdir()
  config = run_config(tmp_path / 'mixed', {})
  run_setup.make_source(config, tmp_path / 'run', str)


@pytest.mark.parametrize(
  'own, words',
  [
    ({'shuffle_caption': 1}, 'mixture.a.shuffle_caption is 1; it must'),
    ({'keep_token': 1}, 'a folder has a share and some of .*keep_tokens'),
    ({'caption_separator': ''}, "mixture.a.caption_separator is ''"),
    ({'caption_dropout_every_n_epochs': 2}, 'mixture.a.caption_dropout_ever'),
    ({'source': 'captions'}, "mixture.a.source is 'captions', which cannot"),
  ],
)
def test_parts_that_cannot_be(tmp_path, own, words):
  with pytest.raises(ValueError, match=words):
    config_validation.check(mix(tmp_path, {'a': own}))


@pytest.mark.parametrize(
  'own, words',
  [
    ({'shuffle_caption': True}, 'mixture.a.shuffle_caption is True'),
    ({'caption_dropout_every_n_epochs': 2}, 'which part of the mixture'),
  ],
)
def test_parts_that_cannot_be_precomputed(tmp_path, own, words):
  config = mix(tmp_path, {'a': own})
  config.uncond = 'empty'
  config_validation.check(config)
  with pytest.raises(ValueError, match=words):
    precompute.precompute(config, tmp_path / 'cache')
  assert not (tmp_path / 'cache').exists()


def test_lists_of_captions(tmp_path, monkeypatch):
  examples = [datasets.example(i, (32, 48)) for i in range(3)]
  for i, example in enumerate(examples):
    example['text'] = [f'{i}', 'x', 'y'][: i + 1]
  datasets.write_folder(tmp_path / 'images', examples)
  config = caches.config_of(tmp_path / 'images')
  config.data.captions.several = 'random'
  caches.make(monkeypatch, config, tmp_path / 'cache')
  table = precomputed.Precomputed(tmp_path / 'cache', 'float16').table
  assert sorted(table['texts'].to_pylist()) == [
    ['0'],
    ['1', 'x'],
    ['2', 'x', 'y'],
  ]


def test_a_record_with_too_many_texts_is_named(cache, tmp_path):
  _, images, make = cache
  caches.write(images, 4, '{a|b}{a|b}{a|b}{a|b}{a|b}{a|b}')
  with pytest.raises(ValueError, match='0004.png: its captions can become mo'):
    make(tmp_path / 'new')


def test_a_cache_without_settings_needs_none(cache, tmp_path):
  *_, make = cache
  make(tmp_path / 'plain', fields={})
  source = precomputed.Precomputed(tmp_path / 'plain', 'float16')
  cache_check.check_captions(run_config(tmp_path / 'plain', {}), source)
  with pytest.raises(ValueError, match='caption_suffix:  > s'):
    cache_check.check_captions(
      run_config(tmp_path / 'plain', {'caption_suffix': 's'}), source
    )
