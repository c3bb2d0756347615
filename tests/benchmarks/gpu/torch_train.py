"""Images per second of stage 3's step in PyTorch.

Autocast to bfloat16, gradient checkpointing, AdamW in one kernel, and an EMA;
parameters, moments and EMA are float32.
"""

import functools
import time

import diffusers
import torch

from tests.benchmarks.gpu import settings, torch_nets

WARM_UP = 2  # steps that are not counted


def measure(setting):
  """Reports a line for one batch."""
  batch = int(setting.choice)
  torch.set_float32_matmul_precision('high')
  with setting.attempt(batch=batch):
    spent, loss = take_steps(setting, batch)
    fields = settings.spread(spent[WARM_UP:])
    setting.report(
      remat='full',
      batch=batch,
      images_per_s=settings.rounded(batch / fields['s']),
      first_s=round(spent[0], 2),
      peak_gb=torch_nets.memory(setting),
      loss=round(loss, 4),
      torch=torch.__version__,
      diffusers=diffusers.__version__,
      **fields,
    )


def take_steps(setting, batch):
  """Takes some steps; returns (seconds of each, the last loss)."""
  unet = torch_nets.make_unet(setting).train()
  unet.enable_gradient_checkpointing()
  average = [p.detach().clone() for p in unet.parameters()]
  optimizer = torch.optim.AdamW(unet.parameters(), 1e-5, fused=not setting.tiny)
  net = unet if setting.tiny else torch.compile(unet, dynamic=False)
  # On a CPU bfloat16 would take minutes.
  autocast = functools.partial(
    torch.autocast,
    torch_nets.device_of(setting),
    torch.bfloat16,
    enabled=not setting.tiny,
  )
  spent = []
  for _ in range(WARM_UP + setting.turns):
    inputs, target = make_batch(setting, batch)
    torch_nets.wait(setting)
    started = time.perf_counter()
    with autocast():
      predicted = net(**inputs).sample.float()
      loss = (predicted - target).square().mean()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    with torch.no_grad():
      torch._foreach_lerp_(average, list(unet.parameters()), 1e-4)
    torch_nets.wait(setting)
    spent.append(time.perf_counter() - started)
  return spent, loss.item()


def make_batch(setting, batch):
  """Returns random (inputs of the UNet, target)."""
  device = torch_nets.device_of(setting)
  draw = functools.partial(torch.randn, device=device)
  side = setting.size[0] // 8
  inputs = dict(
    sample=draw(batch, 4, side, side),
    timestep=torch.randint(0, 1000, (batch,), device=device),
    encoder_hidden_states=draw(batch, torch_nets.TOKENS, torch_nets.CONTEXT),
    added_cond_kwargs=dict(
      text_embeds=draw(batch, torch_nets.POOLED),
      time_ids=torch.full((batch, 6), 1024.0, device=device),
    ),
  )
  return inputs, draw(batch, 4, side, side)
