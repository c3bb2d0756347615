"""Tests runs whose captions change in each pass: resuming, and the preview."""

import json

import jax
import numpy as np
import pytest

from sdxl_jax import preview_data, train
from sdxl_jax.checkpoints import loading
from sdxl_jax.data import captioning, dataset
from sdxl_jax.models import from_config
from tests.support import datasets, tiny_config

FIELDS = {
  'several': 'random',
  'enable_wildcard': True,
  'shuffle_caption': True,
  'keep_tokens': 1,
  'caption_tag_dropout_rate': 0.3,
  'caption_suffix': ', a photo',
}


@pytest.fixture(scope='module')
def images(tmp_path_factory):
  """Twelve images in two folders with repeats, a list of captions each."""
  folder = tmp_path_factory.mktemp('images')
  for name, start in (('2_dog', 0), ('1_cat', 6)):
    examples = [datasets.example(i, (20, 20)) for i in range(start, start + 6)]
    for i, example in enumerate(examples):
      example['text'] = [f'{name}, red, {{x|y}}, {i}', f'a, b\nc, d, {i}']
    datasets.write_folder(folder / name, examples)
  return folder


def get_config(images, **fields):
  config = tiny_config.get_config()
  config.data.update(source='folder', buckets=((16, 16),), index_workers=0)
  config.data.folder.path = str(images)
  config.data.folder.num_repeats_in_names = True
  config.data.captions.update(FIELDS)
  config.optimizer.cosine = False
  config.update_from_flattened_dict(fields)
  return config


def test_a_preview_shows_what_captions_become(images, tmp_path):
  config, lines = get_config(images), []
  config.uncond, config.data.folder.num_repeats_in_names = 'empty', False
  config.data.captions.caption_dropout_every_n_epochs = 3
  preview_data.preview(config, tmp_path, steps=1, say=lines.append)
  blocks = (tmp_path / 'captions.txt').read_text().split(f'{images}/')[1:]
  assert 1 <= len(blocks) <= 4  # those of a batch
  captions = captioning.Captioning(**FIELDS)
  source = dataset.make_source(config, str)
  for block in blocks:
    name, *rows = block.strip().split('\n')
    i = next(i for i in range(12) if source.name(i).endswith(name))
    example = source[i]
    assert rows[:2] == [f'  data: {text!r}' for text in example['captions']]
    assert rows[4] == '  pass 2: (none)'
    for data_pass in (0, 1, 3):
      text = captions.choose(example, config.seed, data_pass, i)['caption']
      assert rows[2 + data_pass] == f'  pass {data_pass}: {text!r}'
  assert any('captions.txt' in line for line in lines)


def test_a_preview_of_captions_as_they_are_is_as_before(images, tmp_path):
  config = get_config(images)
  config.data.captions.update(tiny_config.get_config().data.captions)
  preview_data.preview(config, tmp_path, steps=1, say=str)
  assert not (tmp_path / 'captions.txt').exists()


@pytest.mark.slow
def test_resuming_amid_a_pass_equals_no_stop(images, tmp_path):
  """Parameters and losses, bit for bit."""
  config = get_config(images, total_steps=6)
  assert train.train(config, tmp_path / 'whole') == 6
  for steps in (3, 6):
    config = get_config(images, total_steps=steps)
    assert train.train(config, tmp_path / 'parts') == steps
  nets = from_config.make_model(config)
  params, losses = [], []
  for name in ('whole', 'parts'):
    workdir = tmp_path / name
    params.append(loading.load_params(workdir, nets, nets.configs))
    rows = (workdir / 'metrics.jsonl').read_text().splitlines()
    losses.append([json.loads(row)['loss'] for row in rows])
  assert jax.tree.all(jax.tree.map(np.array_equal, *params))
  assert losses[0] == losses[1] and len(losses[0]) == 6
