"""Parameters of nets that were never trained, for tests and benchmarks."""

import jax
import numpy as np


def draw(fresh):
  """Random ones in the shapes of a new net's, whose residual blocks do nothing.

  Layers keep the variance of what they are given; norms and biases are not
  what they are in a new net.
  """
  rng = np.random.default_rng(0)

  def one(x):
    noise = rng.normal(size=x.shape).astype(np.float32)
    if x.ndim == 1:
      return x + 0.2 * noise
    return noise / np.sqrt(np.prod(x.shape[:-1]), dtype=np.float32)

  return jax.tree.map(one, fresh)
