"""Blocks of a net are counted before it is built."""

import pytest

from sdxl_jax.models import tiny_vae, vae
from sdxl_jax.weights import nearest_config

WIDE = 512  # channels, which are no blocks


@pytest.mark.parametrize(
  'config,blocks',
  [
    (vae.VAEConfig(norm_num_groups=WIDE), 4 * 2),
    (tiny_vae.TinyConfig(features=WIDE), 10 + 10),
    (tiny_vae.TinyConfig(encoder_blocks=(), decoder_blocks=(999,)), 999),
  ],
)
def test_blocks_of_autoencoders(config, blocks):
  assert nearest_config.count_blocks(config) == blocks
