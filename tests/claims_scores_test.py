"""The scores of the claims in miniature, on scenes whose content is known."""

import numpy as np
import pytest
from PIL import Image, ImageFilter

from configs.claims import crop_conditioning, multi_aspect, small
from sdxl_jax.data import transforms
from sdxl_jax.data.sources import synthetic
from tests.benchmarks.miniature import feature_net, measure, scenes, scores

SQUARE = measure.SQUARE


@pytest.fixture(scope='module')
def vocabulary():
  return measure.vocabulary_of(small.get_config())


def crops(count):
  """Crops as training makes them, with where they are in the whole images."""
  source = synthetic.Scenes(**crop_conditioning.get_config().data.scenes)
  images, corners, sizes = [], [], []
  for i in range(count):
    row = transforms.transform(source[i], SQUARE, [i])
    images.append(np.uint8(np.rint(127.5 * (row['image'] + 1))))
    corners.append(row['crop_top_left'])
    sizes.append(transforms.cover(tuple(row['original_size']), SQUARE))
  return np.stack(images), np.array(corners), np.array(sizes)


def test_cut_off_finds_what_a_crop_cuts():
  """Objects are in the middle, so that the crop says what is cut."""
  images, corners, sizes = crops(400)
  found = scores.cut_off(images)
  # px between the middle of the whole image and that of the crop
  away = np.abs(corners + np.array(SQUARE) / 2 - sizes / 2).max(axis=1)
  # The smallest object is 15 px wide in 32, the largest 26.
  assert not found[away <= 2].any()
  assert found[away >= 10].mean() > 0.97
  assert 0.4 < found.mean() < 0.7


def test_cut_off_takes_noise_for_no_object(vocabulary):
  whole = scenes.make(vocabulary, SQUARE, 60, 3).images
  noise = 12 * np.random.default_rng(0).normal(size=whole.shape)
  noisy = np.uint8(np.clip(whole + noise, 0, 255))
  assert not scores.cut_off(whole).any()
  assert scores.cut_off(noisy).mean() < 0.05
  # 8 px of each side away: most objects reach an edge.
  assert scores.cut_off(whole[:, 8:-8, 8:-8]).mean() > 0.8


@pytest.mark.parametrize('length, is_cut', [(2, False), (3, True)])
def test_cut_off_takes_specks_for_no_object(length, is_cut):
  image = np.full((1, *SQUARE, 3), 200, np.uint8)
  image[0, 10 : 10 + length, 0] = 0
  assert scores.cut_off(image).tolist() == [is_cut]


@pytest.mark.parametrize('size', [multi_aspect.TALL, multi_aspect.WIDE])
def test_scenes_of_other_aspects_are_whole(vocabulary, size):
  made = scenes.make(vocabulary, size, 40, 3)
  assert made.images.shape == (40, *size, 3)
  assert not scores.cut_off(made.images).any()


def test_sharpness_falls_with_blur(vocabulary):
  images = scenes.make(vocabulary, SQUARE, 20, 3).images
  values = [scores.sharpness(images).mean()]
  for radius in 0.5, 1, 2:
    blur = ImageFilter.GaussianBlur(radius)
    blurred = [np.asarray(Image.fromarray(x).filter(blur)) for x in images]
    values.append(scores.sharpness(np.stack(blurred)).mean())
  assert values == sorted(values, reverse=True)
  assert values[-1] < 0.5 * values[0]


def test_labels_are_those_of_the_captions(vocabulary):
  made = scenes.make(vocabulary, SQUARE, 30, 5)
  colours = list(synthetic.COLOURS)
  for i, text in enumerate(made.captions):
    assert f' {colours[made.labels.colour[i]]} background' in text
    assert text.startswith('two ') == bool(made.labels.count[i])


@pytest.fixture(scope='module')
def features(vocabulary):
  """A net that is trained briefly."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(feature_net, 'TRAINED', 400)
    patch.setattr(feature_net, 'TESTED', 100)
    return feature_net.train(vocabulary, [SQUARE], steps=120, say=lambda x: 0)


def test_features_tell_content_apart(features, vocabulary):
  assert features.accuracy['colour'] > 0.5  # chance is 0.1
  assert features.accuracy['noun'] > 0.3  # chance is 0.11
  known = scenes.make(vocabulary, SQUARE, 200, 11)
  others = scenes.make(vocabulary, SQUARE, 200, 12).images
  same = scores.fid(features, others, known.images)
  few = np.concatenate([others[:10]] * 20)  # less variety
  assert scores.fid(features, few, known.images) > 2 * same
  blur = ImageFilter.GaussianBlur(2)
  blurred = [np.asarray(Image.fromarray(x).filter(blur)) for x in others]
  assert scores.fid(features, np.stack(blurred), known.images) > 2 * same
  right = scores.right(features, known.images, known.labels)
  shuffled = known.labels.take(np.roll(np.arange(len(known.images)), 1))
  assert (
    right.mean() > 3 * scores.right(features, known.images, shuffled).mean()
  )


def test_the_inception_score_of_one_image_is_one(features, vocabulary):
  images = scenes.make(vocabulary, SQUARE, 60, 3).images
  assert scores.inception_score(features, images[:1]) == pytest.approx(1)
  assert 1 < scores.inception_score(features, images) <= vocabulary.objects


def test_the_net_of_a_file_is_not_trained_again(
  features, vocabulary, tmp_path, monkeypatch
):
  file = tmp_path / 'features.msgpack'
  monkeypatch.setattr(feature_net, 'train', lambda *_, **__: features)
  feature_net.load_or_train(file, vocabulary, [SQUARE])
  monkeypatch.delattr(feature_net, 'train')
  again = feature_net.load_or_train(file, vocabulary, [SQUARE])
  assert again.accuracy == features.accuracy
  images = scenes.make(vocabulary, SQUARE, 4, 3).images
  np.testing.assert_array_equal(again(images)[0], features(images)[0])
