"""The tiny config with some records held out, in one bucket."""

from tests.support import tiny_config


def get_config():
  config = tiny_config.get_config()
  config.unlock()
  config.data.buckets = ((16, 16),)
  config.data.scenes.length = 200
  config.optimizer.cosine = False
  config.validation.share = 0.1
  config.validation.every = 2
  config.validation.records = 6
  return config.lock()
