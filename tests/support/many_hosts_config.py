"""configs/tiny.py:stage3, small enough for several processes at a time."""

from tests.support import tiny_config


def get_config():
  config = tiny_config.get_config()
  config.unlock()
  config.total_steps = 24
  config.global_batch_size = 8
  config.checkpoint.every = 1000
  config.optimizer.cosine = False
  config.loss.offset_noise = 0.05
  config.data.prefetch = 1
  config.data.scenes.resolution = 48
  config.data.scenes.aspects = (0.5, 0.66, 1.0, 1.5, 2.0, 3.0)
  config.data.buckets = (
    (16, 16),
    (16, 24),
    (24, 16),
    (16, 32),
    (32, 16),
    (24, 8),
  )
  config.mesh.data, config.mesh.fsdp = 1, -1
  return config.lock()
