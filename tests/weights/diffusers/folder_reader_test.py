"""Folders in the diffusers layout, read, written and read again."""

import json
import shutil
import tracemalloc

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from sdxl_jax.models import clip, layers, unet, vae
from sdxl_jax.weights import net_shapes, pretrained
from sdxl_jax.weights.diffusers import config_json, folder_reader, folder_writer
from tests.support import folders

MODELS = ['base', 'refiner']


def load_all(folder):
  """Loads {name: (config, params)} of all nets."""
  components = folder_reader.load_model_index(folder).components
  return {n: folders.load_component(folder, n) for n in components}


def tensors(folder):
  """{name: array} of all the safetensors of a component's folder."""
  arrays = {}
  for path in folder.glob('*.safetensors'):
    arrays |= safetensors.numpy.load_file(path)
  return arrays


def assert_same(actual, expected):
  assert actual.keys() == expected.keys()
  for name, array in expected.items():
    assert actual[name].dtype == array.dtype
    np.testing.assert_array_equal(actual[name], array, name)


@pytest.mark.parametrize('model', MODELS)
@pytest.mark.parametrize('max_shard_bytes', [10**10, 10**5])
def test_round_trip(golden, tmp_path, model, max_shard_bytes):
  source, target = golden / 'tiny' / model, tmp_path / 'written'
  components = load_all(source)
  folders.save_all(source, target, components, max_shard_bytes=max_shard_bytes)
  for name in components:
    assert_same(tensors(target / name), tensors(source / name))
    sharded = len(list((target / name).glob('*.safetensors'))) > 1
    assert sharded == (max_shard_bytes == 10**5)
  assert folder_reader.load_model_index(
    target
  ) == folder_reader.load_model_index(source)
  assert folder_reader.load_scheduler(target) == folder_reader.load_scheduler(
    source
  )
  again = load_all(target)
  for name, (config, params) in components.items():
    assert again[name][0] == config
    jax.tree.map(np.testing.assert_array_equal, again[name][1], params)
  for path in source.glob('tokenizer*/*'):
    copy = target / path.relative_to(source)
    assert copy.read_bytes() == path.read_bytes()


@pytest.mark.parametrize('model', MODELS)
def test_model_index_is_the_published_one(keys, model):
  folder = keys / 'configs' / model
  index = folder_reader.load_model_index(folder)
  assert index.refiner == (model == 'refiner')
  assert index.force_zeros == (model == 'base')
  published = json.loads((folder / 'model_index.json').read_text())
  del published['_diffusers_version']
  ours = folder_writer.model_index_json(index, 'EulerDiscreteScheduler')
  assert json.loads(json.dumps(ours)) == published


@pytest.mark.parametrize('variant', ['fp16', 'bf16'])
@pytest.mark.parametrize('max_shard_bytes', [10**10, 10**5])
def test_variants(golden, tmp_path, variant, max_shard_bytes):
  source = golden / 'tiny' / 'refiner'
  limit = {'max_shard_bytes': max_shard_bytes}
  components = load_all(source)
  folders.save_all(source, tmp_path / 'a', components, variant=variant, **limit)
  dtype = {'fp16': np.float16, 'bf16': ml_dtypes.bfloat16}[variant]
  expected = {k: v.astype(dtype) for k, v in tensors(source / 'vae').items()}
  assert_same(tensors(tmp_path / 'a' / 'vae'), expected)
  # fp16 is the default where plain files are missing, and is cast to the net's.
  asked = {'variant': variant if variant == 'bf16' else None}
  _, params = folders.load_component(tmp_path / 'a', 'vae', **asked)
  assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype('f4')}
  _, params = folders.load_component(
    tmp_path / 'a', 'vae', **asked, param_dtype=np.dtype(dtype).name
  )
  net = folders.net_of('vae', components['vae'][0], params)
  folder_writer.save_net(tmp_path / 'b', net, variant=variant)
  assert_same(tensors(tmp_path / 'b'), expected)


def test_plain_weights_come_first(golden, tmp_path):
  folder = tmp_path / 'vae'
  config, params = folders.load_component(golden / 'tiny' / 'base', 'vae')
  folder_writer.save_net(folder, folders.net_of('vae', config, params))
  zeros = jax.tree.map(np.zeros_like, params)
  net = folders.net_of('vae', config, zeros)
  folder_writer.save_net(tmp_path / 'b', net, variant='fp16')
  for path in (tmp_path / 'b').glob('*.safetensors'):
    shutil.copy(path, folder)
  for variant, expected in (None, params), ('fp16', zeros):
    _, read = folders.load_component(tmp_path, 'vae', variant)
    jax.tree.map(np.testing.assert_array_equal, read, expected)


@pytest.fixture
def folder(golden, tmp_path):
  """A copy of the tiny base to be damaged."""
  source = golden / 'tiny' / 'base'
  shutil.copytree(source, tmp_path / 'model')
  return tmp_path / 'model'


def test_what_is_missing_is_named(folder):
  weights = folder / 'vae' / 'diffusion_pytorch_model.safetensors'
  weights.rename(weights.with_suffix('.msgpack'))
  with pytest.raises(FileNotFoundError, match='vae has no weights.*convert'):
    folders.load_component(folder, 'vae')
  (folder / 'vae' / 'config.json').unlink()
  with pytest.raises(FileNotFoundError, match='vae/config.json not found'):
    folders.load_component(folder, 'vae')
  (folder / 'model_index.json').unlink()
  with pytest.raises(FileNotFoundError, match='model_index.json not found'):
    folder_reader.load_model_index(folder)


@pytest.mark.parametrize(
  'pipeline, message',
  [
    ('ORTStableDiffusionXLPipeline', 'weights of SDXL in the format of ONNX'),
    ('OVStableDiffusionXLPipeline', 'weights of SDXL in the .* OpenVINO'),
    ('FlaxStableDiffusionXLPipeline', 'weights of SDXL in .*msgpack'),
    ('KolorsPipeline', 'describes a KolorsPipeline, not an SDXL model: use'),
    (['pipeline', 'KolorsPipeline'], 'describes a KolorsPipeline, not'),
  ],
)
def test_other_pipelines(folder, pipeline, message):
  path = folder / 'model_index.json'
  index = json.loads(path.read_text())
  path.write_text(json.dumps(index | {'_class_name': pipeline}))
  with pytest.raises(ValueError, match=message):
    folder_reader.load_model_index(folder)


def test_which_model_a_folder_holds(folder):
  """Whatever class it has; a text encoder that is absent must not be."""
  path = folder / 'model_index.json'
  index = json.loads(path.read_text()) | {'requires_aesthetics_score': None}
  expected = folder_reader.load_model_index(folder)
  for pipeline in ['x', 'StableDiffusionXLMine'], 'DiffusionPipeline', None:
    path.write_text(json.dumps(index | {'_class_name': pipeline}))
    assert folder_reader.load_model_index(folder) == expected
  shutil.rmtree(folder / 'text_encoder')
  assert folder_reader.load_model_index(folder) == expected


def test_truncated_files_are_refused(folder, tmp_path):
  weights = folder / 'unet' / 'diffusion_pytorch_model.safetensors'
  content = weights.read_bytes()
  for size in (0, 1000, len(content) - 4):
    weights.write_bytes(content[:size])
    with pytest.raises(ValueError, match='model.safetensors is a truncated or'):
      folders.load_component(folder, 'unet')
  (folder / 'unet' / 'config.json').write_text('{"a": ')
  with pytest.raises(ValueError, match='config.json is not JSON'):
    folders.load_component(folder, 'unet')


def test_a_missing_shard_is_named(folder, tmp_path):
  config, params = folders.load_component(folder, 'vae')
  net = folders.net_of('vae', config, params)
  folder_writer.save_net(tmp_path / 'vae', net, max_shard_bytes=10**5)
  next((tmp_path / 'vae').glob('*-00002-of-*')).unlink()
  with pytest.raises(
    FileNotFoundError, match='00002-of-.*not found, but its index names'
  ):
    folders.load_component(tmp_path, 'vae')


def test_weights_of_another_architecture(folder):
  shutil.copy(
    folder / 'vae' / 'diffusion_pytorch_model.safetensors', folder / 'unet'
  )
  with pytest.raises(
    ValueError, match='unet: .*without a place in the net.*missing'
  ):
    folders.load_component(folder, 'unet')
  path = folder / 'text_encoder' / 'config.json'
  published = json.loads(path.read_text())
  width = published['intermediate_size']
  published['intermediate_size'] += 1
  path.write_text(json.dumps(published))
  message = rf'fc1.bias has the shape \({width},\).* requires \({width + 1},\)'
  with pytest.raises(ValueError, match=message):
    folders.load_component(folder, 'text_encoder')


def test_a_projection_that_the_config_leaves_out(folder):
  path = folder / 'text_encoder_2' / 'config.json'
  published = json.loads(path.read_text())
  published['architectures'] = ['CLIPTextModel']
  path.write_text(json.dumps(published))
  with pytest.raises(ValueError, match='has text_projection.weight.*WithProj'):
    folders.load_component(folder, 'text_encoder_2')


# Of runwayml/stable-diffusion-v1-5, unet/config.json.
SD_1_5 = {
  'act_fn': 'silu',
  'attention_head_dim': 8,
  'block_out_channels': [320, 640, 1280, 1280],
  'center_input_sample': False,
  'cross_attention_dim': 768,
  'down_block_types': ['CrossAttnDownBlock2D'] * 3 + ['DownBlock2D'],
  'downsample_padding': 1,
  'flip_sin_to_cos': True,
  'freq_shift': 0,
  'in_channels': 4,
  'layers_per_block': 2,
  'mid_block_scale_factor': 1,
  'norm_eps': 1e-05,
  'norm_num_groups': 32,
  'out_channels': 4,
  'sample_size': 64,
  'up_block_types': ['UpBlock2D'] + ['CrossAttnUpBlock2D'] * 3,
}


def test_configs_that_we_do_not_build_are_refused(golden):
  def read(name, change):
    path = golden / 'tiny' / 'base' / name / 'config.json'
    published = json.loads(path.read_text()) | change
    config_json.read(name, published, 'config.json')

  with pytest.raises(ValueError, match='config.json: addition_embed_type is'):
    config_json.read('unet', SD_1_5, 'config.json')
  with pytest.raises(ValueError, match='use_linear_projection is False'):
    read('unet', {'use_linear_projection': False})
  with pytest.raises(ValueError, match='up_block_types .* is not implemented'):
    read('unet', {'up_block_types': ['AttnUpBlock2D'] * 3})
  with pytest.raises(ValueError, match='unknown option flux_capacity = 1.21'):
    read('unet', {'flux_capacity': 1.21})
  with pytest.raises(ValueError, match='latents_mean is .* both'):
    read('vae', {'latents_mean': [0.0, 1.0, 2.0, 3.0]})
  with pytest.raises(ValueError, match="hidden_act 'relu' is not one of"):
    read('text_encoder', {'hidden_act': 'relu'})
  with pytest.raises(ValueError, match="lacks 'projection_class"):
    config_json.read('unet', config_json.UNET_FIXED, 'config.json')


def test_kinds_of_unets(golden):
  """With a mask as input; with guidance embedding; with settings of an EMA."""
  path = golden / 'tiny' / 'base' / 'unet' / 'config.json'
  change = {'in_channels': 9, 'time_cond_proj_dim': 256}
  average = {'decay': 0.9999, 'optimization_step': 37000, 'inv_gamma': 1.0}
  published = json.loads(path.read_text()) | change | average
  config = config_json.read('unet', published, 'config.json')
  assert config_json.write('unet', config).items() >= change.items()
  index = pretrained.ModelIndex(False, True, inpainting=True)
  written = folder_writer.model_index_json(index, 'EulerDiscreteScheduler')
  assert written['_class_name'] == 'StableDiffusionXLInpaintPipeline'


def test_latents_that_are_shifted(golden):
  path = golden / 'tiny' / 'base' / 'vae' / 'config.json'
  change = {'latents_mean': [0.0, 1.0, 2.0, 3.0], 'latents_std': [2.0] * 4}
  published = json.loads(path.read_text()) | change
  config = config_json.read('vae', published, 'config.json')
  assert config.latents_mean == (0.0, 1.0, 2.0, 3.0)
  assert config_json.write('vae', config).items() >= change.items()


def test_configs_without_a_counterpart_are_refused():
  config = unet.UNetConfig(mid_transformer_depth=3)
  with pytest.raises(ValueError, match='cannot be expressed in a diff'):
    config_json.write('unet', config)
  with pytest.raises(ValueError, match='identity autoencoder'):
    config_json.write('vae', vae.PatchConfig())


def test_save_never_overwrites(golden, folder, tmp_path):
  components = load_all(folder)
  with pytest.raises(FileExistsError, match='exists: remove it, write else'):
    folders.save_all(folder, folder, components)
  del components['vae']
  with pytest.raises(FileNotFoundError, match='text_encoder_2, no vae'):
    folders.save_all(folder, tmp_path / 'b', components)
  assert not (tmp_path / 'b').exists()


def test_a_failed_save_leaves_no_folder(golden, tmp_path):
  source = golden / 'tiny' / 'base'
  components = load_all(source)
  components['vae'] = vae.PatchConfig(), components['vae'][1]
  with pytest.raises(ValueError, match='identity'):
    folders.save_all(source, tmp_path / 'b', components)
  assert not list(tmp_path.iterdir())
  folders.save_all(source, tmp_path / 'b', load_all(source))
  assert [p.name for p in tmp_path.iterdir()] == ['b']


def test_tensors_pass_one_at_a_time(tmp_path):
  config = clip.CLIPTextConfig(
    hidden_size=128,
    intermediate_size=512,
    num_hidden_layers=8,
    num_attention_heads=2,
  )
  shapes = net_shapes.abstract_params(config)
  params = jax.tree.map(lambda x: np.ones(x.shape, x.dtype), shapes)
  sizes = [leaf.nbytes for leaf in jax.tree.leaves(params)]
  folder = tmp_path / 'text_encoder'
  tracemalloc.start()
  folder_writer.save_net(folder, folders.net_of('text_encoder', config, params))
  _, written = tracemalloc.get_traced_memory()
  tracemalloc.reset_peak()
  before, _ = tracemalloc.get_traced_memory()
  folders.load_component(tmp_path, 'text_encoder')
  _, loading = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  slack = 2e6  # names, headers
  assert written < max(sizes) + slack
  assert loading - before < sum(sizes) + max(sizes) + slack


@pytest.mark.torch
def test_diffusers_loads_what_we_wrote(golden, tmp_path, close):
  torch = pytest.importorskip('torch')
  diffusers = pytest.importorskip('diffusers')
  source = golden / 'tiny' / 'base'
  components = load_all(source)
  # Large nets in shards, the autoencoder in one file.
  folders.save_all(
    source, tmp_path / 'written', components, max_shard_bytes=10**6
  )
  pipeline = diffusers.StableDiffusionXLPipeline.from_pretrained(
    tmp_path / 'written'
  )
  path = min((golden / 'tiny' / 'fixtures').glob('unet_base_b1_*.npz'))
  case = {k: torch.tensor(v) for k, v in np.load(path).items()}
  added = {k: case[k] for k in ('text_embeds', 'time_ids')}
  with torch.no_grad():
    out = pipeline.unet(
      case['sample'],
      case['timestep'],
      case['encoder_hidden_states'],
      added_cond_kwargs=added,
    ).sample
  close(out, case['out'], 1e-5)
  config, params = components['unet']
  ids = added['time_ids'].numpy()
  sizes = layers.sinusoid(ids, config.size_embed_dim).reshape(len(ids), -1)
  ours = jax.jit(unet.UNet(config).apply)(
    {'params': params},
    case['sample'].numpy().transpose(0, 2, 3, 1),
    np.broadcast_to(case['timestep'].numpy(), len(case['sample'])),
    case['encoder_hidden_states'].numpy(),
    np.concatenate([added['text_embeds'].numpy(), sizes], axis=-1),
  )
  close(ours.transpose(0, 3, 1, 2), out, 1e-4)
