"""CLIP's pair of encoders against transformers and open_clip's layout."""

import dataclasses

import numpy as np
import pytest
from safetensors import numpy as safetensors

from sdxl_jax.models import clip_image
from sdxl_jax.weights import clip_weights, metric_files
from tests.support import random_images, tiny_clip

torch = pytest.importorskip('torch')
pytest.importorskip('transformers')
from tests.support import open_clip_in_torch, torchvision_package  # noqa: E402

GELU = dataclasses.replace(tiny_clip.IMAGE, hidden_act='gelu')
PAIRS = {
  'quick_gelu': tiny_clip.PAIR,
  'gelu': clip_image.make_pair(GELU, 48, 2, 3),
}
IDS = np.array([[49406, 320, 2368, 49407] + [49407] * 73] * 2, np.int32)
IDS[1, 3:6] = 1929, 530, 49407


@pytest.fixture(params=PAIRS)
def named(request, monkeypatch):
  """A tiny pair under the name of a published one."""
  pair = PAIRS[request.param]
  monkeypatch.setitem(clip_image.PAIRS, 'ViT-B/32', pair)
  return pair


def pixels():
  return np.stack(random_images.make([(56, 56)] * 3)).astype(np.float32) / 255


def normalised():
  return torch.tensor(
    ((pixels() - clip_image.MEAN) / clip_image.STD).transpose(0, 3, 1, 2)
  ).float()


def unit(x):
  return (x / x.norm(dim=-1, keepdim=True)).numpy()


def check(pair, params, images, texts, close):
  close(pair.embed_images(params, pixels()), unit(images), 1e-5)
  close(pair.embed_texts(params, IDS), unit(texts), 1e-5)


def numpy_state(net):
  return {n: x.numpy() for n, x in net.state_dict().items()}


@pytest.mark.torch
def test_as_transformers(named, tmp_path, close):
  net = tiny_clip.transformers_model(named)
  path = tmp_path / 'clip-vit-base-patch32' / 'model.safetensors'
  path.parent.mkdir()
  safetensors.save_file(numpy_state(net), path)
  params = clip_weights.load_clip('ViT-B/32', tmp_path)
  with torch.no_grad():
    out = net(torch.tensor(IDS).long(), normalised())
  check(named, params, out.image_embeds, out.text_embeds, close)


@pytest.mark.torch
@pytest.mark.parametrize('suffix', ['safetensors', 'bin'])
def test_open_clips_layout(named, suffix, tmp_path, close):
  torch.manual_seed(0)
  net = tiny_clip.jitter(open_clip_in_torch.CLIP(named))
  path = tmp_path / f'open_clip_model.{suffix}'
  if suffix == 'bin':
    torch.save(net.state_dict(), path)
  else:
    safetensors.save_file(numpy_state(net), path)
  params = clip_weights.load_clip('ViT-B/32', path)
  with torch.no_grad():
    images = net.encode_image(normalised())
    texts = net.encode_text(torch.tensor(IDS).long())
  check(named, params, images, texts, close)


@pytest.mark.torch
def test_as_open_clip(named, tmp_path, close):
  theirs = torchvision_package.open_clip()
  vision, text = named.image, named.text
  torch.manual_seed(0)
  net = theirs.CLIP(
    embed_dim=vision.projection_dim,
    vision_cfg=dict(
      image_size=vision.image_size,
      layers=vision.num_hidden_layers,
      width=vision.hidden_size,
      head_width=vision.hidden_size // vision.num_attention_heads,
      patch_size=vision.patch_size,
    ),
    text_cfg=dict(
      vocab_size=text.vocab_size,
      width=text.hidden_size,
      heads=text.num_attention_heads,
      layers=text.num_hidden_layers,
    ),
    quick_gelu=text.hidden_act == 'quick_gelu',
  )
  tiny_clip.jitter(net)
  path = tmp_path / 'open_clip_model.safetensors'
  safetensors.save_file(numpy_state(net), path)
  params = clip_weights.load_clip('ViT-B/32', path)
  with torch.no_grad():
    images = net.encode_image(normalised())
    texts = net.encode_text(torch.tensor(IDS).long())
  check(named, params, images, texts, close)


def test_a_missing_file_says_where_to_get_it(tmp_path):
  for name, file in metric_files.CLIP.items():
    with pytest.raises(FileNotFoundError) as error:
      clip_weights.load_clip(name, tmp_path)
    assert str(tmp_path / file.names[0]) in str(error.value)
    assert 'https://huggingface.co/' in str(error.value)
    assert 'hf download' in str(error.value)


def test_weights_of_another_net(named, tmp_path):
  state = numpy_state(tiny_clip.transformers_model(named))
  path = tmp_path / 'model.safetensors'
  with pytest.raises(ValueError, match='no CLIP'):
    clip_weights.load_clip('ViT-B/16', path)
  safetensors.save_file({'a': np.zeros(3, np.float32)}, path)
  with pytest.raises(ValueError, match='neither vision_model'):
    clip_weights.load_clip('ViT-B/32', path)
  changed = state | {'text_model.other': np.zeros(3, np.float32)}
  safetensors.save_file(changed, path)
  with pytest.raises(ValueError, match='text_model.other'):
    clip_weights.load_clip('ViT-B/32', path)
  state.pop('vision_model.post_layernorm.bias')
  safetensors.save_file(state, path)
  with pytest.raises(ValueError, match='vision_model.post_layernorm.bias'):
    clip_weights.load_clip('ViT-B/32', path)


def test_another_size():
  wrong = np.zeros((1, 42, 42, 3), np.float32)
  import jax

  with pytest.raises(ValueError, match='takes 56 x 56 px, not 42 x 42'):
    clip_image.CLIPImage(tiny_clip.IMAGE).init(jax.random.key(0), wrong)


def test_sizes_of_the_published_nets():
  """Parameters of each pair, as their publishers count them."""
  import jax

  counts = {}
  for name, pair in clip_image.PAIRS.items():
    shapes = jax.eval_shape(pair.init, jax.random.key(0))
    counts[name] = sum(np.prod(x.shape) for x in jax.tree.leaves(shapes))
  # Without logit_scale, one number.
  assert counts == {
    'ViT-B/32': 151_277_312,
    'ViT-L/14': 427_616_512,
    'ViT-L/14@336': 427_944_192,
    'ViT-H-14': 986_109_440,
  }
