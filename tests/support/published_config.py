"""Training the reference's tiny base, KL autoencoder and all."""

import dataclasses

from tests.support import folders, golden_sets, tiny_config

WEIGHTS = golden_sets.SETS[0] / 'tiny' / 'base'


def get_config():
  config = tiny_config.get_config()
  config.unlock()
  for name in ('unet', 'vae', 'text_encoder', 'text_encoder_2'):
    fields = dataclasses.asdict(folders.load_config(WEIGHTS, name))
    config[name] = fields
  config.vae.kind = 'kl'
  config.update(init_from=str(WEIGHTS), trained=('unet',))
  config.data.buckets = ((32, 48), (48, 32))
  config.schedule.update(prediction='eps', zero_terminal_snr=False)
  return config.lock()
