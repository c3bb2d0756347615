"""What a step of the UNet costs on this CPU, and what saves how much of it.

  python -m tests.benchmarks.step_speed

The middle model of sample_speed with SDXL's text, 2048 wide; float32, one
picture with guidance. A step as it is takes turns with the same step that
projects the words once more, and with one whose attention has all weights at
once. What is told is the median over turns of the seconds of each, and of how
many times as long as the step as it is they took in the same turn.
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


def make_inputs(side, words):
  draw = np.random.default_rng(0).normal
  shapes = {
    'latents': (ROWS, side // 8, side // 8, CONFIG.in_channels),
    'timestep': (ROWS,),
    'context': (ROWS, words, CONFIG.context_dim),
    'vector': (ROWS, CONFIG.vector_dim),
  }
  return {name: np.float32(draw(size=s)) for name, s in shapes.items()}


def make_params():
  """Random ones; a net's own would do nothing, and take longer to draw."""
  init = lambda: unet.UNet(CONFIG).init(jax.random.key(0), **make_inputs(64, 1))
  rng = np.random.default_rng(0)
  scale = lambda x: np.prod(x.shape[:-1]) ** -0.5
  draw = lambda x: np.float32(scale(x) * rng.normal(size=x.shape))
  shapes = jax.eval_shape(init)['params']
  return jax.device_put(jax.tree.map(draw, shapes))


def make_steps(params, inputs):
  """{name: (compiled step, its arguments, its FLOPs)}."""
  net, params = unet.UNet(CONFIG), {'params': params}
  _, kept = jax.jit(
    lambda p, inputs: net.apply(p, **inputs, mutable=['context'])
  )(params, inputs)
  told = inputs | {'context': None}

  def make(variables, inputs):
    step = jax.jit(lambda variables, inputs: net.apply(variables, **inputs))
    traced = step.trace(variables, inputs)
    flops = cost.flops(traced.jaxpr)
    return traced.lower().compile(), (variables, inputs), flops

  steps = {
    'as it is': make(params | kept, told),
    'words projected': make(params, inputs),
  }
  limits, attention.CPU_LIMITS = attention.CPU_LIMITS, attention.LIMITS
  steps['attention at once'] = make(params | kept, told)
  attention.CPU_LIMITS = limits
  return steps


def compare(params, side, words, turns):
  """Prints a line for one size and length of the text."""
  steps = make_steps(params, make_inputs(side, words))
  spent = {name: [] for name in steps}
  for turn in range(turns + 1):
    for name, (step, arguments, _) in steps.items():
      began = time.perf_counter()
      jax.block_until_ready(step(*arguments))
      if turn:  # the first one warms up
        spent[name].append(time.perf_counter() - began)
  ours = spent['as it is']
  ratio = lambda other: statistics.median(b / a for a, b in zip(ours, other))
  print(f'{side} x {side} px, {words} tokens:', flush=True)
  for name, seconds in spent.items():
    print(
      f'  {name}: {statistics.median(seconds):.3f} s, {ratio(seconds):.2f} '
      f'times; {steps[name][2] / 1e9:.1f} GFLOP',
      flush=True,
    )


def main(argv):
  del argv
  args = flags.FLAGS
  params = make_params()
  count = sum(leaf.size for leaf in jax.tree.leaves(params))
  print(f'{count / 1e6:.0f} M parameters')
  for side in map(int, args.sides):
    for words in map(int, args.words):
      compare(params, side, words, args.turns)


if __name__ == '__main__':
  flags.DEFINE_list('sides', ['128', '256', '512'], 'of the picture, px')
  flags.DEFINE_list('words', ['77', '154'], 'tokens')
  flags.DEFINE_integer('turns', 9, 'that each takes')
  app.run(main)
