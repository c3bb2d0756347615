"""Words from training to file to sample, alone and beside low-rank factors."""

import json
import re
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

from sdxl_jax import train
from sdxl_jax.checkpoints import orbax_checkpoint, run_params, run_words
from sdxl_jax.data import dataset, figures, images
from sdxl_jax.distributed import device_mesh
from sdxl_jax.models import from_config
from sdxl_jax.sampling import generation, pipelines
from sdxl_jax.training import diffusion_task, run_setup
from tests.support import conversions, word_runs

pytestmark = pytest.mark.slow
PROMPT = 'a <toy> in <style>'


@pytest.fixture(scope='module')
def base(tmp_path_factory):
  return word_runs.save_base(tmp_path_factory.mktemp('base'))


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return word_runs.save_images(tmp_path_factory.mktemp('images'))


@pytest.fixture(scope='module')
def workdir(base, folder, tmp_path_factory):
  """The workdir of a finished run."""
  workdir = tmp_path_factory.mktemp('words')
  prompts = workdir / 'prompts.txt'
  prompts.write_text(f'{PROMPT} --d 0 --l 3\n{PROMPT} --d 5 --l 3 --n a fox\n')
  config = word_runs.get_config(base, folder)
  config.samples.prompts_file = str(prompts)
  assert train.train(config, workdir) == 40
  return workdir


@pytest.fixture(scope='module')
def loaded(workdir):
  return pipelines.load(workdir)


def tables(pipeline):
  return {
    name: np.asarray(
      pipeline.params[name]['text_model']['embeddings']['token_embedding'][
        'embedding'
      ]
    )
    for name in ('text_encoder', 'text_encoder_2')
  }


def sample(pipeline, prompt=PROMPT, **more):
  settings = dict(steps=2, size=(16, 24), guidance_scale=3.0, **more)
  return generation.generate(pipeline, [prompt], **settings)[0]


def test_a_run_trains_the_vectors_alone(base, workdir):
  """Beside factors; the vectors move from those of the words they begin with"""
  saved = orbax_checkpoint.find(workdir) / 'state' / '_METADATA'
  arrays = json.loads(saved.read_text())['tree_metadata']
  params = [name for name in arrays if "'params'" in name]
  assert all(re.search("'(lora|words)'", name) for name in params)
  start = tables(pipelines.load(base))
  words = {w.name: w.vectors for w in run_words.load(workdir, average='none')}
  tokenize = pipelines.load(base).tokenize
  for name, init_word, count in [('<toy>', 'fox', 2), ('<style>', 'red', 1)]:
    for row, (net, vectors) in enumerate(words[name].items()):
      assert vectors.shape == (count, (8, 12)[row])
      first = start[net][tokenize([init_word])[0, row, 1]]
      # Adam's steps are of the size of the rate at most, 0.05.
      assert (0.01 < np.abs(vectors - first).mean(1)).all()
      assert (np.abs(vectors - first) < 40 * 0.05).all()
    # Vectors that begin alike go different ways.
    assert count == 1 or (vectors[0] != vectors[1]).any()


def test_the_words_have_learned(base, folder, workdir):
  """Their loss is lower than that of the vectors that they began with.

  On the images of the run and the same noise, beside the same factors.
  """
  config = word_runs.get_config(base, folder)
  mesh = device_mesh.make_mesh(devices=jax.local_devices()[:1])
  model = from_config.make_model(config)
  source = dataset.make_source(config, list)
  batches = dataset.make_batches(
    config, source, run_setup.load_tokenizer(config), range(4)
  )
  params = run_setup.load_weights(config, model, mesh)
  trained = run_params.restore(
    orbax_checkpoint.find(workdir), mesh, ['words', 'lora'], 'none'
  )
  loss = jax.jit(diffusion_task.DiffusionLoss(model, text_dropout=0.0).loss)
  found = []
  for i, (_, batch) in zip(range(24), batches):
    for words in (params['words'], trained['words']):
      key = jax.random.key(100 + i)
      one, _ = loss(trained | {'words': words}, params, batch, key)
      found.append(float(one))
  batches.close()
  before, after = np.reshape(found, (-1, 2)).T
  # A random net depends little on its text; by chance, 18 of 24 are one in 90.
  assert after.mean() < before.mean()
  assert (after < before).sum() >= 18, (before, after)


def test_resuming_equals_no_stop(base, folder, workdir, tmp_path):
  shutil.copytree(workdir, tmp_path / 'run')
  shutil.rmtree(tmp_path / 'run' / 'checkpoints' / '40')
  config = word_runs.get_config(base, folder)
  config.samples.every = 0
  assert train.train(config, tmp_path / 'run') == 40
  for average in ('ema', 'none'):
    ours = run_words.load(workdir, average=average)
    again = run_words.load(tmp_path / 'run', average=average)
    for one, other in zip(ours, again, strict=True):
      assert one.name == other.name
      for net, vectors in one.vectors.items():
        np.testing.assert_array_equal(vectors, other.vectors[net])


def test_samples_during_and_after_training(base, workdir, loaded):
  """Vectors beside the tables sample as those within them, unlike the base."""
  with Image.open(workdir / 'samples' / '0000040.png') as image:
    grid = images.to_float(np.asarray(image.convert('RGB')))
  cell = grid[figures.GAP :, figures.GAP :][: 16 * 3 : 3, : 24 * 3 : 3]
  alone = sample(loaded)[0]
  assert np.abs(cell - alone).max() < 0.02
  left = 2 * figures.GAP + 24 * 3
  other = grid[figures.GAP :, left:][: 16 * 3 : 3, : 24 * 3 : 3]
  expected = sample(loaded, negative_prompts=['a fox'], seeds=[5])[0]
  assert np.abs(other - expected).max() < 0.02
  assert np.abs(other - cell).max() > 0.05
  assert np.abs(sample(loaded, 'a fox in red')[0] - alone).max() > 0.05
  assert "the word '<toy>', vectors: 2 for text_encoder, 2" in loaded.notes[-1]
  assert [len(table) for table in tables(loaded).values()] == [49411] * 2


def test_files_of_a_run(base, workdir, loaded, tmp_path):
  """Both layouts, found by name, give the tables and ids of the run."""
  files = []
  for word, dialect, name in [
    ('<toy>', 'kohya', 'mine.safetensors'),
    ('<style>', 'diffusers', 'style'),
  ]:
    lines = conversions.run_embedding(
      workdir, tmp_path / name, dialect, word=word
    )
    assert f'the word {word!r}, vectors: ' in lines
    files.append(str(tmp_path / name))
  pipeline = pipelines.load(base, embeddings=files[::-1])
  for name, table in tables(pipeline).items():
    np.testing.assert_array_equal(table, tables(loaded)[name])
  ids = pipeline.tokenize([PROMPT, 'a embedding:mine'])
  np.testing.assert_array_equal(ids[0], loaded.tokenize([PROMPT])[0])
  np.testing.assert_array_equal(ids[1], loaded.tokenize(['a <toy>'])[0])
  # From one layout to the other, and back to the same numbers.
  conversions.run_embedding(files[0], tmp_path / 'toy', 'diffusers', base=base)
  again = tmp_path / 'again.safetensors'
  conversions.run_embedding(tmp_path / 'toy', again, base=base)
  tensors = conversions.tensors(tmp_path / 'mine.safetensors')
  conversions.check_same(conversions.tensors(again), tensors)
  assert {name for _, name in tensors} == {'clip_l', 'clip_g'}
  with pytest.raises(ValueError, match="has the words '<style>', '<toy>', and"):
    conversions.run_embedding(workdir, tmp_path / 'x.safetensors')
  with pytest.raises(ValueError, match="no word 'toy', but '<style>', '<toy>'"):
    conversions.run_embedding(workdir, tmp_path / 'x', 'kohya', word='toy')
  with pytest.raises(ValueError, match="dialect is 'peft', which embeddings"):
    conversions.run_embedding(workdir, tmp_path / 'x', 'peft', word='<toy>')
  with pytest.raises(ValueError, match='trained no|learned no words'):
    conversions.run_embedding(base, tmp_path / 'x.safetensors')
