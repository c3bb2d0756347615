"""Measures a step of the UNet on this CPU, and what two optimisations save.

  python -m tests.benchmarks.step_speed

The middle model of sample_speed with SDXL's text of width 2048; float32, one
image with guidance. The step takes turns with the same step that projects the
text again to keys and values, and with one whose attention is not split into
chunks. Prints the median over turns of the seconds of each, and of its ratio to
the step in the same turn.
"""

import statistics
import time

import jax
import numpy as np
from absl import app, flags

from sdxl_jax.models import attention, unet
from sdxl_jax.planning import cost

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
  """Returns {name: (compiled step, its arguments, its FLOPs)}."""
  net = unet.UNet(CONFIG)
  params = {'params': params}
  # Keys and values of cross-attention, computed once per image.
  _, cached = jax.jit(
    lambda p, inputs: net.apply(p, **inputs, mutable=['context'])
  )(params, inputs)
  without_context = inputs | {'context': None}

  def make(variables, inputs):
    step = jax.jit(lambda variables, inputs: net.apply(variables, **inputs))
    traced = step.trace(variables, inputs)
    flops = cost.flops(traced.jaxpr)
    return traced.lower().compile(), (variables, inputs), flops

  steps = {
    'as it is': make(params | cached, without_context),
    'text projected again': make(params, inputs),
  }
  # The limits of accelerators, so that the CPU's attention takes no chunks.
  cpu_limits = attention.CPU_LIMITS
  attention.CPU_LIMITS = attention.LIMITS
  steps['attention without chunks'] = make(params | cached, without_context)
  attention.CPU_LIMITS = cpu_limits
  return steps


def compare(params, side, tokens, turns):
  """Prints a line for one size and length of the text."""
  steps = make_steps(params, make_inputs(side, tokens))
  seconds = {name: [] for name in steps}
  for turn in range(turns + 1):
    for name, (step, arguments, _) in steps.items():
      started = time.perf_counter()
      jax.block_until_ready(step(*arguments))
      if turn:  # the first turn warms up
        seconds[name].append(time.perf_counter() - started)
  print(f'{side} x {side} px, {tokens} tokens:', flush=True)
  for name, measured in seconds.items():
    ratio = statistics.median(
      b / a for a, b in zip(seconds['as it is'], measured)
    )
    print(
      f'  {name}: {statistics.median(measured):.3f} s, {ratio:.2f} times; '
      f'{steps[name][2] / 1e9:.1f} GFLOP',
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
      compare(params, side, tokens, args.turns)


if __name__ == '__main__':
  flags.DEFINE_list('sides', ['128', '256', '512'], 'sides of the image, px')
  flags.DEFINE_list('words', ['77', '154'], 'lengths of the text, tokens')
  flags.DEFINE_integer('turns', 9, 'turns of each')
  app.run(main)
