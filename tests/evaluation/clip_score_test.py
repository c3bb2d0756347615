"""CLIP score and CMMD from files to number, against transformers and torch."""

import numpy as np
import pytest
from PIL import Image
from safetensors import numpy as safetensors

from sdxl_jax.evaluation import clip_score, cmmd, features, preprocessing
from sdxl_jax.models import clip_image
from tests.support import random_images, tiny_clip, torchvision_package

SIZES = [(100, 64), (64, 131), (56, 56), (400, 300), (40, 30)]
PROMPTS = [
  'a red fox in the snow',
  'Two PIGS, &amp; a "blue" house',
  '',
  'a photo of ' + 'very ' * 100 + 'old cats',
  "it's 3 o'clock",
]


@pytest.fixture
def net(monkeypatch):
  """transformers' model under the names of published ones."""
  pytest.importorskip('torch')
  for name in ('ViT-B/32', 'ViT-L/14@336'):
    monkeypatch.setitem(clip_image.PAIRS, name, tiny_clip.PAIR)
  return tiny_clip.transformers_model()


@pytest.fixture
def loaded(net, tmp_path):
  path = tmp_path / 'model.safetensors'
  state = {n: x.numpy() for n, x in net.state_dict().items()}
  safetensors.save_file(state, path)
  return features.load_clip('ViT-B/32', path)


def in_torch(net, pixels):
  """transformers' embeddings of length 1 of uint8 pixels, float64."""
  import torch

  scaled = pixels.astype(np.float32) / 255
  scaled = (scaled - clip_image.MEAN) / clip_image.STD
  scaled = torch.tensor(scaled.transpose(0, 3, 1, 2)).float()
  with torch.no_grad():
    found = net.get_image_features(pixel_values=scaled)
  found = getattr(found, 'pooler_output', found).double().numpy()
  return found / np.linalg.norm(found, axis=1, keepdims=True)


def resized(size):
  """Shorter side by Pillow, then the central crop, as OpenAI's code."""
  rows = []
  for image in random_images.make(SIZES):
    image = Image.fromarray(image)
    scale = size / min(image.size)
    new = [max(size, int(n * scale + 1e-9)) for n in image.size]
    image = image.resize(new, Image.BICUBIC)
    left, top = (round((n - size) / 2) for n in new)
    rows.append(np.asarray(image)[top : top + size, left : left + size])
  return np.stack(rows)


@pytest.mark.torch
def test_the_score_as_transformers(net, loaded, close):
  import torch
  import transformers

  from sdxl_jax.text import clip_vocabulary

  extractor = features.make_clip(loaded, preprocessing.clip_crop)
  images = features.compute(extractor, random_images.make(SIZES), batch_size=1)
  texts = clip_score.embed(loaded.pair, loaded.params, PROMPTS, batch_size=1)
  expected_images = in_torch(net, resized(56))
  close(images, expected_images, 1e-4)
  # The text by the library's tokenizer, entities decoded.
  vocabulary, merges = clip_vocabulary.load()
  tokenize = transformers.CLIPTokenizer(vocab=vocabulary, merges=merges)
  plain = [p.replace('&amp;', '&') for p in PROMPTS]
  ids = tokenize(
    plain, padding='max_length', max_length=77, truncation=True
  ).input_ids
  with torch.no_grad():
    found = net.get_text_features(input_ids=torch.tensor(ids))
  found = getattr(found, 'pooler_output', found).double().numpy()
  found /= np.linalg.norm(found, axis=1, keepdims=True)
  close(texts, found, 1e-4)
  expected = 100 * (expected_images * found).sum(1)
  np.testing.assert_allclose(
    clip_score.scores(images, texts), expected, atol=1e-3
  )
  # From the same embeddings, the formula.
  cosines = [
    sum(map(float, a * b)) / np.sqrt(sum(a * a) * sum(b * b))
    for a, b in zip(images.astype(float), texts.astype(float))
  ]
  metric = clip_score.compute(images, texts, 50)
  np.testing.assert_allclose(metric.value, 100 * np.mean(cosines), rtol=1e-6)
  assert metric.low < metric.value < metric.high


@pytest.mark.torch
def test_cmmd_as_its_code(net, loaded, close):
  """Cut to a square, resized, embedded, compared."""
  rows = []
  for image in random_images.make(SIZES):
    image = Image.fromarray(image)
    width, height = image.size
    n = min(width, height)
    left, top = (width - n) // 2, (height - n) // 2
    image = image.crop((left, top, left + n, top + n))
    rows.append(np.asarray(image.resize((56, 56), Image.BICUBIC)))
  expected = in_torch(net, np.stack(rows))
  extractor = features.make_clip(loaded, preprocessing.cmmd_crop)
  ours = features.compute(extractor, random_images.make(SIZES), batch_size=1)
  close(ours, expected, 1e-4)
  close(
    np.array(cmmd.distance(ours[:3], ours[3:])),
    np.array(cmmd.distance(expected[:3], expected[3:])),
    1e-4,
  )


def test_resize_is_open_clips():
  torchvision_package.open_clip()
  from open_clip import transform

  theirs = transform.image_transform(56, is_train=False)
  for image in random_images.make([*SIZES, (77, 90), (57, 113), (91, 78)]):
    image = Image.fromarray(image)
    expected = theirs(image).numpy().transpose(1, 2, 0)
    ours = preprocessing.clip_crop(image, 56) / 255
    ours = (ours - clip_image.MEAN) / clip_image.STD
    np.testing.assert_allclose(ours, expected, atol=1e-5)


def test_tokens_are_open_clips():
  theirs = torchvision_package.open_clip()
  ours, expected = clip_score.tokenize(PROMPTS), theirs.tokenize(PROMPTS)
  for mine, other in zip(ours, expected.numpy()):
    end = mine.tolist().index(49407)
    # Behind the end of the text, padding differs and is not seen.
    assert mine[: end + 1].tolist() == other[: end + 1].tolist()


def test_a_prompt_for_each_image():
  x = np.ones((3, 4))
  with pytest.raises(ValueError, match='3 images and 2 prompts'):
    clip_score.scores(x, x[:2])
