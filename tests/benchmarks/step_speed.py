"""Measures a step of the UNet on this CPU, and what optimisations save.

  python -m tests.benchmarks.step_speed

The middle model of sample_speed with SDXL's text of width 2048; float32, one
image with guidance. The step takes turns with the same step that projects the
text again to keys and values, with one whose attention takes the rows of the
batch together, with one whose attention is not split into chunks, and with
diffusers' UNet of that size. Prints the median over turns of the seconds of
each, by the clock and of CPU, and of their ratios to the step in the same turn:
on a machine with other load those of CPU are more even. Needs torch and
diffusers, or --notorch.
"""

import statistics
import time

import jax
import numpy as np
from absl import app, flags

from sdxl_jax.models import attention, unet
from sdxl_jax.planning import cost
from tests.benchmarks import sample_speed

CONFIG = unet.UNetConfig(
  block_out_channels=(96, 192, 384),
  transformer_depth=(0, 2, 4),
  mid_transformer_depth=4,
  num_heads=(2, 3, 6),
)
ROWS = 2  # without and with the prompt


def make_inputs(side, tokens):
  """Returns random inputs of the UNet for one image."""
  rng = np.random.default_rng(0)
  shapes = {
    'latents': (ROWS, side // 8, side // 8, CONFIG.in_channels),
    'timestep': (ROWS,),
    'context': (ROWS, tokens, CONFIG.context_dim),
    'vector': (ROWS, CONFIG.vector_dim),
  }
  return {name: np.float32(rng.normal(size=s)) for name, s in shapes.items()}


def make_params():
  """Returns random parameters; the initial ones of a net are partly zero."""
  rng = np.random.default_rng(0)

  def random(x):
    return np.float32(np.prod(x.shape[:-1]) ** -0.5 * rng.normal(size=x.shape))

  shapes = jax.eval_shape(
    lambda: unet.UNet(CONFIG).init(jax.random.key(0), **make_inputs(64, 1))
  )
  return jax.device_put(jax.tree.map(random, shapes['params']))


def make_steps(params, inputs):
  """Returns {name: (step without arguments, its FLOPs)}."""
  net = unet.UNet(CONFIG)
  params = {'params': params}
  # Keys and values of cross-attention, computed once per image.
  _, cached = jax.jit(
    lambda p, inputs: net.apply(p, **inputs, mutable=['context'])
  )(params, inputs)
  without_context = inputs | {'context': None}

  def make(variables, inputs, limits=attention.CPU_LIMITS):
    kept, attention.CPU_LIMITS = attention.CPU_LIMITS, limits
    step = jax.jit(lambda variables, inputs: net.apply(variables, **inputs))
    traced = step.trace(variables, inputs)
    compiled = traced.lower().compile()
    attention.CPU_LIMITS = kept

    def call():
      jax.block_until_ready(compiled(variables, inputs))

    return call, cost.flops(traced.jaxpr)

  whole = params | cached, without_context
  together = attention.CPU_LIMITS._replace(apart=False)
  return {
    'as it is': make(*whole),
    'text projected again': make(params, inputs),
    'rows of attention together': make(*whole, together),
    # The limits of accelerators, so that the CPU's attention takes no chunks.
    'attention without chunks': make(*whole, attention.LIMITS),
  }


def make_torch_step(inputs):
  """Returns the step of diffusers' UNet, which projects the text too."""
  import diffusers
  import torch

  found = diffusers.UNet2DConditionModel.load_config(sample_speed.TINY / 'unet')
  config = dict(found) | sample_speed.MIDDLE
  config |= {
    'cross_attention_dim': CONFIG.context_dim,
    'projection_class_embeddings_input_dim': CONFIG.vector_dim,
    'addition_time_embed_dim': CONFIG.size_embed_dim,
  }
  net = diffusers.UNet2DConditionModel.from_config(config).eval()
  latents, timestep, context, vector = (
    torch.from_numpy(inputs[name])
    for name in ('latents', 'timestep', 'context', 'vector')
  )
  latents = latents.permute(0, 3, 1, 2).contiguous()
  conditions = {
    'text_embeds': vector[:, : -6 * CONFIG.size_embed_dim],
    'time_ids': torch.ones(ROWS, 6),
  }

  def call():
    with torch.no_grad():
      net(latents, timestep, context, added_cond_kwargs=conditions)

  return call


def compare(params, side, tokens, args):
  """Prints the lines of one size and length of the text."""
  inputs = make_inputs(side, tokens)
  made = make_steps(params, inputs)
  steps = {name: step for name, (step, _) in made.items()}
  if args.torch:
    steps["diffusers'"] = make_torch_step(inputs)
  spent = {name: [] for name in steps}  # (seconds, those of CPU) of each turn
  for turn in range(args.turns + 1):
    for name, step in steps.items():
      started, cpu = time.perf_counter(), time.process_time()
      step()
      if turn:  # the first turn warms up
        now = time.perf_counter(), time.process_time()
        spent[name].append((now[0] - started, now[1] - cpu))
  print(f'{side} x {side} px, {tokens} tokens:', flush=True)
  for name, measured in spent.items():
    turns = list(zip(spent['as it is'], measured))
    seconds = [statistics.median(own[i] for own in measured) for i in (0, 1)]
    clock, cpu = (
      statistics.median(own[i] / first[i] for first, own in turns)
      for i in (0, 1)
    )
    flops = f'; {made[name][1] / 1e9:.1f} GFLOP' if name in made else ''
    print(
      f'  {name}: {seconds[0]:.3f} s, {clock:.2f} times; {seconds[1]:.3f} s of '
      f'CPU, {cpu:.2f} times{flops}',
      flush=True,
    )


def main(argv):
  del argv
  args = flags.FLAGS
  params = make_params()
  count = sum(leaf.size for leaf in jax.tree.leaves(params))
  print(f'{count / 1e6:.0f} M parameters')
  for side in map(int, args.sides):
    for tokens in map(int, args.words):
      compare(params, side, tokens, args)


if __name__ == '__main__':
  flags.DEFINE_list('sides', ['128', '256', '512'], 'sides of the image, px')
  flags.DEFINE_list('words', ['77', '154'], 'lengths of the text, tokens')
  flags.DEFINE_integer('turns', 9, 'turns of each')
  flags.DEFINE_bool('torch', True, "diffusers' step too")
  app.run(main)
