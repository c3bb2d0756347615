"""Files of all kinds that we write, in LyCORIS, PEFT and diffusers: samples."""

import numpy as np
import pytest

from sdxl_jax.sampling import generation, pipelines
from sdxl_jax.weights.lora import lora_names, lora_writer
from tests.support import adapters, golden_sets

BASE = golden_sets.SETS[0] / 'tiny' / 'base'
NOISE = np.random.default_rng(0).standard_normal((1, 8, 12, 4))
NOISE = NOISE.astype(np.float32)


def theirs(change):
  """Latents of diffusers from the tiny base, after a change of its pipeline."""
  torch = pytest.importorskip('torch')
  diffusers = pytest.importorskip('diffusers')
  pipeline = diffusers.StableDiffusionXLPipeline.from_pretrained(BASE)
  pipeline.set_progress_bar_config(disable=True)
  change(pipeline)
  settings = dict(num_inference_steps=3, height=64, width=96)
  return pipeline(
    'a fox',
    latents=torch.from_numpy(NOISE.transpose(0, 3, 1, 2).copy()),
    output_type='latent',
    **settings,
  ).images.numpy()


@pytest.fixture(scope='module')
def plain():
  """Latents of the base without a change."""
  return theirs(lambda pipeline: None)


@pytest.fixture(scope='module')
def ours():
  """ours(path): our latents from the tiny base with a file."""

  def sample(path):
    pipeline = pipelines.load(BASE, loras=[str(path)])
    settings = dict(size=(64, 96), steps=3, init_noise=NOISE)
    _, latents = generation.generate(pipeline, ['a fox'], **settings)
    return latents.transpose(0, 3, 1, 2)

  return sample


@pytest.fixture(scope='module')
def params():
  return pipelines.load(BASE).params


def check(close, ours, expected, plain, tolerances):
  limit = tolerances['pipeline_latents_each_step_and_final']
  assert np.abs(expected - plain).max() > 0.1 * np.abs(plain).max()
  close(ours, expected, limit)


@pytest.mark.slow
@pytest.mark.torch
@pytest.mark.parametrize('kind', list(adapters.KINDS)[1:])
def test_lycoris(kind, params, ours, plain, close, tolerances, tmp_path):
  modules = pytest.importorskip('lycoris.modules')
  torch = pytest.importorskip('safetensors.torch')
  path = tmp_path / f'{kind}.safetensors'
  made = adapters.made(params, kind)
  lora_writer.save(path, made, params, 'kohya_diffusers')
  tensors = torch.load_file(path)

  def merge(pipeline):
    merged = 0
    for net, prefix in lora_names.PREFIXES.items():
      for layer, module in list(getattr(pipeline, net).named_modules()):
        # transformers 5 drops this part of a name.
        head = 'text_model_' if layer.startswith('encoder.') else ''
        name = f'{prefix}_{head}{layer.replace(".", "_")}'
        found, parts = modules.get_module(tensors, name)
        if found is not None:
          # merge_to of LyCORIS 4.1.3 scales LoHa and LoKr twice, and a forward
          # pass once.
          modules.make_module(found, parts, name, module).apply_to()
          merged += 1
    assert merged == len(made.changes())

  check(close, ours(path), theirs(merge), plain, tolerances)


@pytest.mark.slow
@pytest.mark.torch
@pytest.mark.parametrize('kind', ['dora', 'loha', 'lokr', 'lokr_whole'])
def test_peft(kind, params, ours, plain, close, tolerances, tmp_path):
  peft = pytest.importorskip('peft')
  made = adapters.made(params, kind, layers=adapters.UNET)
  path = tmp_path / 'adapter_model.safetensors'
  lora_writer.save(path, made, params, 'peft')

  def merge(pipeline):
    wrapped = peft.PeftModel.from_pretrained(pipeline.unet, str(tmp_path))
    pipeline.unet = wrapped.merge_and_unload()

  check(close, ours(path), theirs(merge), plain, tolerances)


@pytest.mark.slow
@pytest.mark.torch
def test_diffusers(params, ours, plain, close, tolerances, tmp_path):
  pytest.importorskip('peft')
  made = adapters.made(params, 'dora', layers=r'unet/.*/(to_[qkv]|to_out_0)')
  path = tmp_path / 'x.safetensors'
  lora_writer.save(path, made, params, 'diffusers')
  expected = theirs(lambda pipeline: pipeline.load_lora_weights(path))
  check(close, ours(path), expected, plain, tolerances)
