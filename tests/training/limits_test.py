"""Configs that must be refused, and what may change on resuming."""

import pytest

from configs import default
from sdxl_jax.models import clip, unet, vae
from sdxl_jax.training import limits, task
from tests import tiny_config


def test_default_config_is_sdxl():
  nets = task.make_nets(default.get_config())
  runtime = dict(dtype='float32', remat='none')
  nets = nets.replace(**runtime)
  assert nets.unet == unet.BASE
  assert nets.vae == vae.VAEConfig()
  assert nets.text.text_encoder_2 == clip.VIT_BIGG
  assert nets.text.text_encoder == clip.VIT_L


@pytest.mark.parametrize(
  'field, value, message',
  [
    ('total_steps', 0, 'total_steps is 0; it must be at least 1'),
    ('caption_dropout', 1.5, 'caption_dropout is 1.5; it must be 0 to 1'),
    ('uncond', 'nothing', "uncond is 'nothing'; choose one of"),
    ('data.buckets', ((18, 16),), r'\(18, 16\).*multiples of 4'),
    ('optimizer.ema_decay', -1, 'ema_decay is -1'),
    ('optimizer.warmup_steps', 4, 'warmup_steps is 4.*total_steps, 4'),
  ],
)
def test_out_of_range(field, value, message):
  config = tiny_config.get_config()
  config.update_from_flattened_dict({field: value})
  with pytest.raises(ValueError, match=message):
    limits.check(config)


def test_unknown_field():
  config = tiny_config.get_config()
  with pytest.raises((AttributeError, KeyError), match='learning_rat'):
    config.optimizer.learning_rat = 1


def test_changed_fields():
  old = tiny_config.get_config().to_dict()
  new = tiny_config.get_config()
  new.checkpoint.every = 9
  assert limits.changed(old, new.to_dict()) == []
  new.total_steps = 9
  assert limits.changed(old, new.to_dict()) == ['total_steps: 4 > 9']
  new.optimizer.cosine = old['optimizer']['cosine'] = False
  assert limits.changed(old, new.to_dict()) == []
  new.optimizer.b1 = 0.5
  assert limits.changed(old, new.to_dict()) == ['optimizer.b1: 0.9 > 0.5']
