"""The autoencoder's critics, written a second time with torch's layers."""

import numpy as np
import torch
from flax import traverse_util
from torch import nn

from sdxl_jax.models import lpips
from sdxl_jax.weights.diffusers import tensor_names


def image(array):
  """[b, h, w, c] > [b, c, h, w]."""
  return torch.tensor(np.array(array).transpose(0, 3, 1, 2))


def state_of(params):
  """{published name: tensor} of our parameters."""
  flat = traverse_util.flatten_dict(params)
  tensors = tensor_names.locations(flat).items()
  return {
    n: torch.tensor(tensor_names.tensor(flat, slot)) for n, slot in tensors
  }


def discriminator(params, features):
  """The reference's NLayerDiscriminator with these parameters."""

  def conv(i, o, stride, bias):
    return nn.Conv2d(i, o, 4, stride, 1, bias=bias)

  f, main = features, [conv(3, features, 2, True), nn.LeakyReLU(0.2)]
  for i, o, stride in ((f, 2 * f, 2), (2 * f, 4 * f, 2), (4 * f, 8 * f, 1)):
    main += [conv(i, o, stride, False), nn.BatchNorm2d(o), nn.LeakyReLU(0.2)]
  main = nn.Sequential(*main, conv(8 * f, 1, 1, True))
  state = {n.removeprefix('main.'): x for n, x in state_of(params).items()}
  lacking, extra = main.load_state_dict(state, strict=False)
  assert not extra and all('running' in n or 'num_' in n for n in lacking)
  return main.train()


def vgg16(params):
  """torchvision's vgg16().features with these parameters."""
  made, width = [], 3
  for block, channels in zip(lpips.BLOCKS, lpips.CHANNELS):
    for _ in block:
      conv = nn.Conv2d(width, channels, 3, padding=1)
      made, width = [*made, conv, nn.ReLU()], channels
    made.append(nn.MaxPool2d(2, 2))
  state = state_of({n: p for n, p in params.items() if 'features' in n})
  net = nn.Sequential(*made)
  net.load_state_dict(
    {n.removeprefix('features.'): x for n, x in state.items()}
  )
  return net


def distance(params, x, y):
  """LPIPS [b] by the formulas of the paper."""
  shift, scale = (
    torch.tensor(v)[:, None, None] for v in (lpips.SHIFT, lpips.SCALE)
  )
  a, b, total, net = (
    (x - shift) / scale,
    (y - shift) / scale,
    0.0,
    vgg16(params),
  )
  taps = [block[-1] + 1 for block in lpips.BLOCKS]  # after the ReLU
  heads = [
    state_of({f'lin_{i}': params[f'lin_{i}']})[f'lin.{i}.weight']
    for i in range(5)
  ]

  def unit(x):
    return x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10)

  for number, layer in enumerate(net):
    a, b = layer(a), layer(b)
    if number in taps:
      each = (unit(a) - unit(b)).square()
      total = total + (each * heads[taps.index(number)]).sum(1).mean((1, 2))
  return total
