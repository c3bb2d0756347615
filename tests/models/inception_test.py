"""Inception v3 against PyTorch, from the file that pytorch-fid publishes."""

import jax
import numpy as np
import pytest
from PIL import Image

from sdxl_jax.evaluation import features, preprocessing
from sdxl_jax.models import inception
from sdxl_jax.weights import inception_weights

torch = pytest.importorskip('torch')
from tests.support import (  # noqa: E402
  inception_in_torch,
  random_images,
  torchvision_package,
)


@pytest.fixture(scope='module')
def net():
  return inception_in_torch.make()


@pytest.fixture(scope='module')
def extractor(net, tmp_path_factory):
  path = tmp_path_factory.mktemp('weights') / 'pt_inception-2015-12-05.pth'
  torch.save(net.state_dict(), path)
  return features.load_inception(path.parent)


def images():
  """Larger than the net's input, smaller, and neither square."""
  return random_images.make([(512, 320), (300, 299), (1024, 768), (64, 150)])


def in_torch(net, image):
  pixels = torch.tensor(image.transpose(2, 0, 1)[None]).float() / 255
  with torch.no_grad():
    return net(pixels)


@pytest.mark.torch
def test_as_in_torch(net, extractor, close):
  ours = features.compute(extractor, images(), batch_size=1)
  theirs = np.concatenate([in_torch(net, image) for image in images()])
  assert ours.shape == (4, 2048) and ours.dtype == np.float32
  close(ours, theirs, 1e-4)
  # What images have in common does not hide an error.
  close(ours - ours.mean(0), theirs - theirs.mean(0), 1e-4)


@pytest.mark.torch
def test_as_pytorch_fid(net, extractor, close, monkeypatch):
  theirs = torchvision_package.pytorch_fid('inception')
  monkeypatch.setattr(
    theirs, 'load_state_dict_from_url', lambda *_, **__: net.state_dict()
  )
  reference = theirs.InceptionV3().eval()
  expected = np.concatenate(
    [in_torch(reference, image)[0][:, :, 0, 0] for image in images()]
  )
  close(features.compute(extractor, images(), batch_size=1), expected, 1e-4)


@pytest.mark.parametrize('size', [(64, 48), (299, 299), (1024, 700), (5, 3)])
def test_bilinear_is_torchs(size):
  rng = np.random.default_rng(1)
  image = rng.integers(0, 256, (*size, 3), np.uint8)
  ours = preprocessing.bilinear(Image.fromarray(image), 299)
  pixels = torch.tensor(image.transpose(2, 0, 1)[None]).float() / 255
  theirs = torch.nn.functional.interpolate(
    pixels, (299, 299), mode='bilinear', align_corners=False
  )
  assert ours.dtype == np.float32
  np.testing.assert_allclose(
    ours, theirs[0].permute(1, 2, 0).numpy(), rtol=0, atol=5e-7
  )


def test_a_file_of_another_net(tmp_path):
  path = tmp_path / 'pt_inception-2015-12-05.pth'
  torch.save({'Conv2d_1a_3x3.conv.weight': torch.zeros(32, 3, 3, 3)}, path)
  with pytest.raises(ValueError, match='not the Inception v3 of FID.*https'):
    inception_weights.load_inception(path)


def test_the_file_is_missing(tmp_path):
  with pytest.raises(FileNotFoundError) as error:
    features.load_inception(tmp_path)
  assert str(tmp_path / 'pt_inception-2015-12-05-6726825d.pth') in str(
    error.value
  )
  assert 'github.com/mseitzer/pytorch-fid/releases' in str(error.value)


def test_every_parameter_is_of_the_published_net(net):
  shapes = inception_weights.shapes(inception.InceptionConfig())
  count = sum(np.prod(x.shape) for x in jax.tree.leaves(shapes))
  state = net.state_dict()
  names = [n for n in state if not n.startswith('fc.') and 'num_b' not in n]
  assert count == sum(state[n].numel() for n in names) == 21_802_784 + 17_216
