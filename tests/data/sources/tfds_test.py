"""Tests TFDS without TensorFlow: splits, names, and what is refused."""

import io
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets
from tensorflow_datasets import features

from sdxl_jax.data.sources import kinds, tfds, tfds_features
from tests.support import datasets

PNG = datasets.encode(datasets.ramp(8, 12))

SIZES = ((8, 12), (12, 8), (10, 10), (9, 9), (8, 8))


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  examples = [datasets.example(i, size) for i, size in enumerate(SIZES)]
  built = tmp_path_factory.mktemp('tfds')
  return datasets.write_tfds(built, examples)['dataset']


def test_slices_of_a_split(folder):
  source = tfds.TFDS(folder, split='train[20%:80%]', workers=0)
  assert source.sizes.tolist() == list(map(list, SIZES[1:4]))
  assert source[0]['caption'] == 'picture 1'
  assert source.name(0) == 'ramps/1.0.0 train[20%:80%]: record 0'


def test_missing_features(folder):
  with pytest.raises(ValueError, match=r"no feature \['text'\], but \['aest"):
    tfds.TFDS(folder, caption='text', workers=0)


class Odd(tensorflow_datasets.core.GeneratorBasedBuilder):
  """Captions of all kinds that public datasets have."""

  VERSION = tensorflow_datasets.core.Version('1.0.0')

  def _info(self):
    captions = features.Sequence({'id': np.int64, 'text': features.Text()})
    label = features.ClassLabel(names=['cat', 'dog'])
    return tensorflow_datasets.core.DatasetInfo(
      builder=self,
      features=features.FeaturesDict(
        {
          'image': features.Image(),
          'nested': {'image': features.Image(), 'de': features.Text()},
          'captions': captions,
          'sentences': features.Sequence(features.Text()),
          'label': label,
          'labels': features.Sequence(label),
          'bytes': features.Text(),
          'score': np.float32,
        }
      ),
      disable_shuffling=True,
    )

  def _split_generators(self, downloads):
    return {'train': self._generate_examples()}

  def _generate_examples(self):
    scores = [5.0, float('nan'), float('inf')]
    for i in range(3):
      texts = [{'id': j, 'text': f't{i}{j}'} for j in range(i)]
      yield (
        i,
        {
          'image': io.BytesIO(PNG),
          'nested': {'image': io.BytesIO(PNG), 'de': f'd{i}'},
          'captions': texts,
          'sentences': [t['text'] for t in texts],
          'label': i - 1,
          'labels': [0, 1][:i],
          'bytes': [b'a', b'caf\xe9', b''][i],
          'score': scores[i],
        },
      )


@pytest.fixture(scope='module')
def odd(tmp_path_factory):
  folder = tmp_path_factory.mktemp('odd')
  builder = Odd(data_dir=folder, file_format='array_record')
  builder.download_and_prepare()
  return str(builder.data_dir)


@pytest.mark.parametrize(
  'caption, expected',
  [
    ('captions/text', {1: 't10', 2: 't20'}),
    ('captions.text', {1: 't10', 2: 't20'}),
    ('sentences', {1: 't10', 2: 't20'}),
    ('nested/de', {0: 'd0', 1: 'd1', 2: 'd2'}),
    ('label', {1: 'cat', 2: 'dog'}),
    ('labels', {1: 'cat', 2: 'cat'}),
    ('bytes', {0: 'a'}),
    ('', {0: '', 1: '', 2: ''}),
  ],
)
def test_captions_of_every_kind(odd, caption, expected):
  settings = {'dataset': odd, 'caption': caption}
  source = kinds.make_source('tfds', settings, workers=0, say=str)
  read = {int(e['name'][-1]): e['caption'] for e in source}
  assert read == expected
  assert len(list(source.left_out())) == 3 - len(expected)
  assert source.account().seen == 3


@pytest.mark.parametrize('caption', ['captions/text', 'sentences', 'labels'])
def test_all_captions_of_a_sequence(odd, caption):
  settings = {'dataset': odd, 'caption': caption}
  source = kinds.make_source('tfds', settings, workers=0, say=str, several=True)
  texts = ('cat', 'dog') if caption == 'labels' else ('t20', 't21')
  assert source[1]['captions'] == texts
  assert source[1]['caption'] == texts[0] and 'captions' not in source[0]


@pytest.mark.parametrize(
  'settings, message',
  [
    ({'caption': 'captions'}, r"not text: name one of \['bytes', 'captions/te"),
    ({'caption': 'captions/id'}, "feature 'captions/id' is .*, not text"),
    ({'caption': 'score'}, "feature 'score' is .*, not text"),
    (
      {'caption': 'captions/nothing'},
      r"no feature \['captions/nothing'\], but",
    ),
    ({'image': 'bytes'}, r"not one encoded image: name one of \['image', 'nes"),
  ],
)
def test_refused_features(odd, settings, message):
  with pytest.raises(ValueError, match=message):
    tfds.TFDS(odd, **{'caption': '', **settings}, workers=0)


def test_nested_images_and_scores(odd):
  settings = {'dataset': odd, 'image': 'nested/image', 'caption': 'nested/de'}
  source = kinds.make_source(
    'tfds', settings | {'score': 'score'}, workers=0, say=str
  )
  assert [e.get('aesthetic_score') for e in source] == [5, None]
  assert source[0]['image'] == PNG
  (line,) = source.left_out()
  start = 'odd/1.0.0 train: record 2: its score is not a number (aesthetic_sc'
  assert line.startswith(start)


def test_unknown_split_and_name(folder, tmp_path):
  with pytest.raises(ValueError, match="split is 'test': Unknown split"):
    tfds.TFDS(folder, split='test', workers=0)
  for name in ('no_such_set', str(tmp_path)):
    with pytest.raises(FileNotFoundError, match='TFDS has no dataset'):
      tfds.TFDS(name, workers=0)


def test_no_tensorflow(folder):
  """Runs in a process of its own, where nothing else can have imported it."""
  code = (
    'import sys; from sdxl_jax.data.sources import tfds; '
    f'print(len(tfds.TFDS({folder!r}, workers=0)[0]["image"])); '
    'sys.exit("tensorflow" in sys.modules)'
  )
  subprocess.run([sys.executable, '-c', code], check=True)


def test_a_broken_description(tmp_path):
  (tmp_path / 'dataset_info.json').write_text('{"name":')
  with pytest.raises(ValueError, match='dataset_info.json, or .* build the da'):
    tfds.TFDS(tmp_path, workers=0)


def test_several_images_in_a_record():
  image = {'image': features.Image()}
  fields = features.FeaturesDict(
    {'images': features.Sequence(image), 'one': image}
  )
  with pytest.raises(ValueError, match=r"name one of \['one/image'\]"):
    tfds_features.check(fields, 'images/image', '')
  assert tfds_features.check(fields, 'one/image', '') == ()
