"""The cases of gpu_speed: which there are, in which order, what measures them.

A case is PART/CHOICE. The modules of ours import no torch, and those of torch
no jax.
"""

import importlib

# In the order of their worth, should time run out.
PARTS = {
  'ceiling': 'ceiling',
  'ours_sample': 'ours_sample',
  'ours_train': 'ours_train',
  'torch_sample': 'torch_sample',
  'torch_train': 'torch_train',
  'ours_lora': 'ours_train',
}
DEVICES = 'devices'  # the case before all others, see devices.py


def in_order(parts, choices):
  """Returns the cases: the first choices of all parts, the second ones, ...

  Args:
    parts: names.
    choices: {part: its choices}; a part without an entry has one, ''.

  Raises:
    ValueError: for an unknown part.
  """
  for part in parts:
    if part not in PARTS:
      raise ValueError(f'no part is named {part!r}; there are {list(PARTS)}')
  lists = {part: choices.get(part, ['']) for part in parts}
  longest = max(map(len, lists.values()), default=0)
  return [
    f'{part}/{lists[part][i]}'
    for i in range(longest)
    for part in parts
    if i < len(lists[part])
  ]


def peer_batches(train):
  """Returns the batches that PyTorch trains: those with full remat of ours."""
  pairs = [parse_train(choice) for choice in train]
  return list(dict.fromkeys(str(b) for remat, b in pairs if remat == 'full'))


def parse_train(choice):
  """Returns (rematerialisation, batch) of REMAT:BATCH.

  Raises:
    ValueError: for anything else.
  """
  remat, _, batch = choice.partition(':')
  if remat not in ('none', 'dots', 'full') or not batch.isdecimal():
    raise ValueError(f'{choice!r} is not REMAT:BATCH, such as full:4')
  return remat, int(batch)


def measure(setting):
  """Measures the setting's case in this process."""
  part = setting.case.partition('/')[0]
  name = part if part == DEVICES else PARTS[part]
  module = importlib.import_module(f'tests.benchmarks.gpu.{name}')
  module.measure(setting)
