"""Inception v3 of FID a second time, in PyTorch, from the published figures.

Names are those of the published weights, so that a state dict of one fits the
other. Szegedy et al. 2015, and what pytorch-fid 0.3.0 changes: averages without
the padding, a maximum in the last block, 1,008 classes.
"""

import torch
from torch import nn
from torch.nn import functional

ONE, ROW7, COLUMN7, ROW3, COLUMN3 = (1, 1), (1, 7), (7, 1), (1, 3), (3, 1)


class Conv(nn.Module):
  def __init__(self, inputs, outputs, size, stride=1, padding=None):
    super().__init__()
    if padding is None:
      padding = tuple(n // 2 for n in size) if stride == 1 else 0
    self.conv = nn.Conv2d(inputs, outputs, size, stride, padding, bias=False)
    self.bn = nn.BatchNorm2d(outputs, eps=0.001)

  def forward(self, x):
    return functional.relu(self.bn(self.conv(x)))


class Mixed(nn.Module):
  """Branches of layers by name, joined; `pool` is what begins the last."""

  def __init__(self, inputs, branches, pool, pooled=None):
    super().__init__()
    self.branches, self.pool = [], pool
    for layers in branches:
      names, channels = [], inputs
      for name, outputs, size, *stride in layers:
        setattr(self, name, Conv(channels, outputs, size, *stride))
        names.append(name)
        channels = outputs
      self.branches.append(names)
    if pooled:
      self.branch_pool = Conv(inputs, pooled, ONE)

  def forward(self, x):
    out = []
    for names in self.branches:
      y = x
      for name in names:
        y = getattr(self, name)(y)
      out.append(y)
    y = self.pool(x)
    out.append(self.branch_pool(y) if hasattr(self, 'branch_pool') else y)
    return torch.cat(out, 1)


class Forked(nn.Module):
  """The blocks whose branches end in a row beside a column."""

  def __init__(self, inputs, pool):
    super().__init__()
    self.pool = pool
    self.branch1x1 = Conv(inputs, 320, ONE)
    self.branch3x3_1 = Conv(inputs, 384, ONE)
    self.branch3x3_2a = Conv(384, 384, ROW3)
    self.branch3x3_2b = Conv(384, 384, COLUMN3)
    self.branch3x3dbl_1 = Conv(inputs, 448, ONE)
    self.branch3x3dbl_2 = Conv(448, 384, (3, 3))
    self.branch3x3dbl_3a = Conv(384, 384, ROW3)
    self.branch3x3dbl_3b = Conv(384, 384, COLUMN3)
    self.branch_pool = Conv(inputs, 192, ONE)

  def forward(self, x):
    a = self.branch3x3_1(x)
    b = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
    out = [self.branch1x1(x), self.branch3x3_2a(a), self.branch3x3_2b(a)]
    out += [self.branch3x3dbl_3a(b), self.branch3x3dbl_3b(b)]
    return torch.cat([*out, self.branch_pool(self.pool(x))], 1)


def average(x):
  return functional.avg_pool2d(x, 3, 1, 1, count_include_pad=False)


def maximum(x):
  return functional.max_pool2d(x, 3, 1, 1)


def shrink(x):
  return functional.max_pool2d(x, 3, 2)


def block_a(inputs, pooled):
  five = [('branch5x5_1', 48, ONE), ('branch5x5_2', 64, (5, 5))]
  three = [
    ('branch3x3dbl_1', 64, ONE),
    ('branch3x3dbl_2', 96, (3, 3)),
    ('branch3x3dbl_3', 96, (3, 3)),
  ]
  return Mixed(inputs, [[('branch1x1', 64, ONE)], five, three], average, pooled)


def block_b(inputs):
  three = [
    ('branch3x3dbl_1', 64, ONE),
    ('branch3x3dbl_2', 96, (3, 3)),
    ('branch3x3dbl_3', 96, (3, 3), 2),
  ]
  return Mixed(inputs, [[('branch3x3', 384, (3, 3), 2)], three], shrink)


def block_c(inputs, width):
  seven = [
    ('branch7x7_1', width, ONE),
    ('branch7x7_2', width, ROW7),
    ('branch7x7_3', 192, COLUMN7),
  ]
  double = [
    ('branch7x7dbl_1', width, ONE),
    ('branch7x7dbl_2', width, COLUMN7),
    ('branch7x7dbl_3', width, ROW7),
    ('branch7x7dbl_4', width, COLUMN7),
    ('branch7x7dbl_5', 192, ROW7),
  ]
  return Mixed(inputs, [[('branch1x1', 192, ONE)], seven, double], average, 192)


def block_d(inputs):
  three = [('branch3x3_1', 192, ONE), ('branch3x3_2', 320, (3, 3), 2)]
  seven = [
    ('branch7x7x3_1', 192, ONE),
    ('branch7x7x3_2', 192, ROW7),
    ('branch7x7x3_3', 192, COLUMN7),
    ('branch7x7x3_4', 192, (3, 3), 2),
  ]
  return Mixed(inputs, [three, seven], shrink)


class Inception(nn.Module):
  """[b, 3, h, w] in [0, 1] of any size > features [b, 2048]."""

  def __init__(self):
    super().__init__()
    self.Conv2d_1a_3x3 = Conv(3, 32, (3, 3), 2, 0)
    self.Conv2d_2a_3x3 = Conv(32, 32, (3, 3), 1, 0)
    self.Conv2d_2b_3x3 = Conv(32, 64, (3, 3), 1, 1)
    self.Conv2d_3b_1x1 = Conv(64, 80, ONE)
    self.Conv2d_4a_3x3 = Conv(80, 192, (3, 3), 1, 0)
    self.Mixed_5b = block_a(192, 32)
    self.Mixed_5c = block_a(256, 64)
    self.Mixed_5d = block_a(288, 64)
    self.Mixed_6a = block_b(288)
    self.Mixed_6b = block_c(768, 128)
    self.Mixed_6c = block_c(768, 160)
    self.Mixed_6d = block_c(768, 160)
    self.Mixed_6e = block_c(768, 192)
    self.Mixed_7a = block_d(768)
    self.Mixed_7b = Forked(1280, average)
    self.Mixed_7c = Forked(2048, maximum)
    self.fc = nn.Linear(2048, 1008)

  def forward(self, x):
    x = functional.interpolate(x, (299, 299), mode='bilinear')
    x = 2 * x - 1
    x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
    x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(shrink(x)))
    x = shrink(x)
    for name in '5b 5c 5d 6a 6b 6c 6d 6e 7a 7b 7c'.split():
      x = getattr(self, f'Mixed_{name}')(x)
    return x.mean((2, 3))


def make(seed=0):
  """A net with random weights whose features have a usual spread."""
  torch.manual_seed(seed)
  net = Inception().eval()
  for module in net.modules():
    if isinstance(module, nn.Conv2d):
      nn.init.kaiming_normal_(module.weight)
    if isinstance(module, nn.BatchNorm2d):
      nn.init.uniform_(module.weight, 0.8, 1.2)
      nn.init.normal_(module.bias, 0, 0.2)
      nn.init.normal_(module.running_mean, 0, 0.2)
      nn.init.uniform_(module.running_var, 0.8, 1.5)
  return net
