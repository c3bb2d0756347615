"""Optimizers of PyTorch packages, on gradients that do not depend on them."""

import importlib

import numpy as np

# What the packages' and our optimizers are called with.
SETTINGS = {
  'adafactor': dict(learning_rate=1e-2),
  'adafactor, scaled': dict(learning_rate=1e-2, scale_parameter=True),
  'adamw': dict(learning_rate=1e-2),
  'came': dict(learning_rate=1e-2),
  'dadapt_adam': dict(learning_rate=1.0, d0=1e-3),
  'lion': dict(learning_rate=1e-2, b2=0.99),
  'muon': dict(learning_rate=1e-2),
  'prodigy': dict(learning_rate=1.0, d0=1e-3, d_coef=2.0),
  'schedule_free_adamw': dict(learning_rate=1e-2),
}
B1, B2, EPS, WEIGHT_DECAY, STEPS = 0.9, 0.999, 1e-8, 0.1, 10


def make_params():
  """A kernel large enough for Adafactor's factors, and a bias: float32."""
  rng = np.random.default_rng(0)
  return {
    'kernel': rng.normal(0, 0.1, (128, 130)).astype(np.float32),
    'bias': rng.normal(0, 0.1, 130).astype(np.float32),
  }


def make_gradients(step):
  """Gradients of a step, of one direction and noise, so that estimates grow."""
  rng, common = np.random.default_rng([1, step]), np.random.default_rng(2)
  return {
    name: (
      common.normal(0, 1, x.shape) + rng.normal(0, 0.5, x.shape)
    ).astype(np.float32)
    for name, x in make_params().items()
  }  # fmt: skip


def make(name, groups):
  """Makes an optimizer of a package.

  Args:
    name: in SETTINGS.
    groups: parameters with their weight decay, as PyTorch takes them.
  """
  import torch

  name, settings = name.split(',')[0], SETTINGS[name]
  rate = settings['learning_rate']
  betas = B1, settings.get('b2', B2)
  adam = dict(lr=rate, betas=betas, eps=EPS)
  if name == 'adafactor':
    from transformers import optimization

    return optimization.Adafactor(
      groups,
      lr=rate,
      relative_step=False,
      warmup_init=False,
      scale_parameter=settings.get('scale_parameter', False),
    )
  if name == 'adamw':
    return torch.optim.AdamW(groups, **adam)
  if name == 'came':
    betas = (*betas, 0.9999)
    return importlib.import_module('came_pytorch').CAME(
      groups, lr=rate, betas=betas
    )
  if name == 'dadapt_adam':
    return importlib.import_module('dadaptation').DAdaptAdam(
      groups,
      **adam,
      use_bias_correction=True,
      decouple=True,
      d0=settings['d0'],
    )
  if name == 'lion':
    return importlib.import_module('lion_pytorch').Lion(
      groups, lr=rate, betas=betas
    )
  if name == 'muon':  # matrices only
    return torch.optim.Muon(groups[:1], rate, adjust_lr_fn='match_rms_adamw')
  if name == 'prodigy':
    return importlib.import_module('prodigyopt').Prodigy(
      groups,
      **adam,
      use_bias_correction=True,
      d0=settings['d0'],
      d_coef=settings['d_coef'],
    )
  return importlib.import_module('schedulefree').AdamWScheduleFree(
    groups, **adam
  )


def run(name):
  """Returns {'kernel', 'bias'} after STEPS steps of a package's optimizer.

  Of schedule-free AdamW there is the average too, as 'kernel, average'.
  """
  import torch

  tensors = {n: torch.nn.Parameter(torch.tensor(x)) for n, x in
             make_params().items()}  # fmt: skip
  optimizer = make(
    name,
    [
      {'params': [tensors['kernel']], 'weight_decay': WEIGHT_DECAY},
      {'params': [tensors['bias']], 'weight_decay': 0.0},
    ],
  )
  if hasattr(optimizer, 'train'):
    optimizer.train()
  for step in range(STEPS):
    for n, g in make_gradients(step).items():
      tensors[n].grad = torch.tensor(g)
    optimizer.step()
  found = {n: x.detach().numpy().copy() for n, x in tensors.items()}
  if hasattr(optimizer, 'eval'):
    optimizer.eval()
    found['kernel, average'] = tensors['kernel'].detach().numpy()
  return found
