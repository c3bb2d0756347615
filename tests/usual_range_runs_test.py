"""The early warning in a real run, which learns first and then diverges."""

import json
import re

import pytest

from sdxl_jax import train
from sdxl_jax.training import metrics
from tests.support import tiny_config


@pytest.mark.slow
def test_a_run_whose_rate_grows_too_large(tmp_path, capsys):
  config = tiny_config.get_config()
  config.unlock()
  config.total_steps, config.checkpoint.every = 120, 1000
  config.data.buckets = ((16, 16),)
  config.log_every = 3
  config.optimizer.update(
    learning_rate=1.0, warmup_steps=119, cosine=False, clip_norm=0.0
  )
  # It ends with a gradient that is not finite, unless it ends before.
  try:
    train.train(config.lock(), tmp_path)
  except metrics.NonFiniteLoss as error:
    assert 'gave' in str(error)
  text = ''.join(capsys.readouterr())
  rows = (tmp_path / 'metrics.jsonl').read_text().splitlines()
  rows = [json.loads(row) for row in rows]
  assert all('ema_distance' in row for row in rows)
  assert max(row['loss'] for row in rows) > 2 * rows[0]['loss']
  steps = re.findall(r'warning: \w+ is \S+ at step (\d+), above its', text)
  assert steps and len(steps) <= 6
  assert int(steps[0]) < rows[-1]['step']
