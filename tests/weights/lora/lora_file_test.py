"""LoRA files of all dialects, and what they make of the tiny base."""

import functools
import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from flax import traverse_util

from sdxl_jax.models import clip, layers, unet
from sdxl_jax.weights import net_shapes, safetensors_file
from sdxl_jax.weights.lora import (
  layer_parts,
  lora_file,
  lora_names,
  lora_writer,
  merge,
)
from tests.support import folders

# Full-size lists of the reference, and what we call their dialects.
LISTS = {
  'kohya.sdxl.rank4': 'kohya',
  'kohya.sdxl.rank4.conv4': 'kohya',
  'diffusers.sdxl.rank4.attn': 'diffusers_old',
  'peft.sdxl.rank4.attn': 'diffusers',
  'peft.sdxl.rank4.all_linear': 'diffusers',
}
FILES = ['kohya', 'peft']


@pytest.fixture(scope='module')
def full_size():
  """The layers of SDXL, and the layout of its UNet."""
  configs = unet.BASE, clip.VIT_L, clip.VIT_BIGG
  nets = 'unet', 'text_encoder', 'text_encoder_2'
  layers = merge.kernels_of(
    {n: net_shapes.abstract_params(c) for n, c in zip(nets, configs)}
  )
  names = lora_names.names_by_net(layers)
  return layers, names, lora_names.unet_block_layout(names['unet'])


@pytest.fixture
def base(golden):
  """Fresh for each test: merging spends them."""
  nets = 'unet', 'text_encoder', 'text_encoder_2'
  folder = golden / 'tiny' / 'base'
  return {n: folders.load_component(folder, n)[1] for n in nets}


@pytest.fixture(params=FILES)
def file(golden, request):
  return golden / 'tiny' / 'lora' / f'{request.param}.safetensors'


def test_kohyas_names_are_those_of_the_reference(keys, full_size):
  """But for layers that no trainer of the reference has: embeddings, ends."""
  layers, _, layout = full_size
  path = keys / 'lora' / 'map.kohya_to_diffusers_module.json'
  expected = {tuple(v): k for k, v in json.loads(path.read_text()).items()}
  ours = {
    (net, layer): lora_names.key_prefix('kohya', net, layer, layout)
    for net, layer in layers
  }
  assert len(expected) == 1052 and expected.items() <= ours.items()
  ends = {name.rpartition('_')[0] for key, name in ours.items()
          if key not in expected}  # fmt: skip
  assert ends == {
    'lora_unet_time_embed',
    'lora_unet_label_emb_0',
    'lora_unet_out',
    'lora_unet_input_blocks_0',
    'lora_te2_text',
  }


def test_a_layer_that_the_original_lacks(full_size):
  """Of a UNet that has a guidance embedding."""
  _, names, layout = full_size
  layer = 'time_embedding.cond_proj'
  known = lora_names.key_prefixes({'unet': [*names['unet'], layer]})
  stem = lora_names.key_prefix('kohya', 'unet', layer, layout)
  assert known[stem] == {('unet', layer)}


@pytest.mark.parametrize('file', LISTS)
def test_full_size_names_and_shapes(keys, full_size, file):
  layers, names, layout = full_size
  expected = json.loads((keys / 'lora' / f'{file}.json').read_text())
  assert lora_names.detect_key_format(expected) == LISTS[file]
  known, parts = lora_names.key_prefixes(names), {}
  for name, entry in expected.items():
    stem, part, _ = lora_names.parse(name)
    ((net, layer),) = known[stem]
    parts.setdefault((net, layer), {})[part] = np.empty(entry['shape'])
    end = '.alpha'
    if part != 'alpha':
      end = lora_names.key_suffix(LISTS[file], net, part)
    assert name == lora_names.key_prefix(LISTS[file], net, layer, layout) + end
  for key, given in parts.items():
    shapes = {part: x.shape for part, x in given.items()}
    layer = layer_parts.Layer(layers[key].shape)
    assert shapes['down'][0] == 4
    assert layer_parts.check_shapes(shapes, layer) is None
    assert ('alpha' in given) == (LISTS[file] == 'kohya')


def read(path):
  return {n: t.read() for n, t in safetensors_file.load(path).tensors.items()}


def assert_same(actual, expected):
  assert actual.keys() == expected.keys()
  for name, array in expected.items():
    assert actual[name].dtype == array.dtype, name
    np.testing.assert_array_equal(actual[name], array, name, strict=True)


def rename(dialect, base, tensors):
  """A file's tensors in another dialect, by its names alone."""
  names = lora_names.names_by_net(merge.kernels_of(base))
  known = lora_names.key_prefixes(names)
  layout = lora_names.unet_block_layout(names['unet'])
  renamed = {}
  for name, array in tensors.items():
    stem, part, _ = lora_names.parse(name)
    ((net, layer),) = known[stem]
    end = '.alpha'
    if part != 'alpha':
      end = lora_names.key_suffix(dialect, net, part)
    renamed[lora_names.key_prefix(dialect, net, layer, layout) + end] = array
  return renamed


@pytest.mark.parametrize('dtype', ['float32', 'float16', 'bfloat16'])
def test_a_round_trip_changes_nothing(base, file, tmp_path, dtype):
  given = {n: x.astype(jnp.dtype(dtype)) for n, x in read(file).items()}
  dialects = {
    'kohya': ['kohya', 'kohya_diffusers'],
    'peft': ['diffusers', 'diffusers_old'],
  }[file.stem]
  for dialect in dialects:
    tensors = rename(dialect, base, given)
    path = tmp_path / f'{dialect}.safetensors'
    write(path, tensors, {'ss_note': 'kept'})
    made = lora_file.load(path, base)
    assert made.key_format == dialect
    lora_writer.save(tmp_path / 'again.safetensors', made, base, overwrite=True)
    assert_same(read(tmp_path / 'again.safetensors'), tensors)
    again = lora_file.load(tmp_path / 'again.safetensors', base)
    assert again.metadata['ss_note'] == 'kept'


def test_a_round_trip_of_peft(base, golden, tmp_path):
  """One net in a folder, its alpha beside it."""
  source = golden / 'tiny' / 'lora' / 'kohya.safetensors'
  all_nets = lora_file.load(source, base)
  for net in base:
    made = all_nets.of([net])
    path = tmp_path / net / 'adapter_model.safetensors'
    path.parent.mkdir()
    lora_writer.save(path, made, base, 'peft')
    assert all(name.startswith('base_model.model.') for name in read(path))
    config = json.loads((path.parent / 'adapter_config.json').read_text())
    assert (config['r'], config['lora_alpha']) == (4, 2.0)
    again = lora_file.load(path.parent, base)
    assert (
      again.key_format == 'peft' and again.factors.keys() == made.factors.keys()
    )
    for key, factors in made.factors.items():
      jax.tree.map(np.testing.assert_array_equal, again.factors[key], factors)
    lora_writer.save(path.with_stem('again'), again, base)
    assert_same(read(path.with_stem('again')), read(path))
  # Patterns, and the other scale that PEFT knows: alpha / sqrt(r).
  layer = next(iter(made.factors))[1]
  config |= {'use_rslora': True, 'alpha_pattern': {layer: 6.0}}
  (path.parent / 'adapter_config.json').write_text(json.dumps(config))
  scales = {
    k[1]: f.scale for k, f in lora_file.load(path, base).factors.items()
  }
  assert scales.pop(layer) == 3.0 and set(scales.values()) == {1.0}


def product(factors):
  """Returns scale * up @ down."""
  return factors.scale * np.tensordot(factors.up, factors.down, ((1,), (0,)))


def test_other_key_formats_are_equivalent(base, golden, tmp_path):
  """From kohya's, whose scale the others have in `up`."""
  source = golden / 'tiny' / 'lora' / 'kohya.safetensors'
  made = lora_file.load(source, base)
  path = tmp_path / 'other.safetensors'
  for dialect in 'kohya_diffusers', 'diffusers', 'diffusers_old':
    lora_writer.save(path, made, base, dialect, overwrite=True)
    other = lora_file.load(path, base)
    assert other.key_format == dialect
    assert other.factors.keys() == made.factors.keys()
    for key, factors in made.factors.items():
      np.testing.assert_array_equal(
        product(other.factors[key]), product(factors)
      )
  with pytest.raises(ValueError, match='PEFT keeps one net in a file'):
    lora_writer.save(path, made, base, 'peft')
  with pytest.raises(ValueError, match="'comfy'; choose one of"):
    lora_writer.save(path, made, base, 'comfy')


def test_alpha_beside_the_names_of_diffusers(base, golden, tmp_path):
  source = golden / 'tiny' / 'lora' / 'peft.safetensors'
  settings = {'unet.lora_alpha': 8, 'unet.r': 4}
  settings['text_encoder_2.lora_alpha'] = 2
  path = tmp_path / 'pytorch_lora_weights.safetensors'
  metadata = {'lora_adapter_metadata': json.dumps(settings)}
  write(path, read(source), metadata)
  made = lora_file.load(tmp_path, base)
  scales = {net: f.scale for (net, _), f in made.factors.items()}
  assert scales == {'unet': 2.0, 'text_encoder': 1.0, 'text_encoder_2': 0.5}
  lora_writer.save(
    path, made, base, overwrite=True
  )  # now in the tensors, for all readers
  assert 'lora_adapter_metadata' not in safetensors_file.load(path).metadata
  again = lora_file.load(path, base)
  for key, factors in again.factors.items():
    assert factors.scale == 1
    up = made.factors[key].scale * made.factors[key].up
    np.testing.assert_array_equal(factors.up, up)


@pytest.fixture(scope='module')
def nets(golden):
  """{net: compiled function of its parameters}, on the recorded inputs."""
  recorded = np.load(golden / 'tiny' / 'lora' / 'lora.npz')
  config = folders.load_config(golden / 'tiny' / 'base', 'unet')
  sizes = layers.sinusoid(recorded['time_ids'], config.size_embed_dim)
  inputs = (
    recorded['sample'].transpose(0, 2, 3, 1),
    recorded['timestep'],
    recorded['encoder_hidden_states'],
    np.concatenate([recorded['text_embeds'], sizes.reshape(2, -1)], axis=1),
  )
  net = unet.UNet(config)
  applied = {'unet': jax.jit(lambda p: net.apply({'params': p}, *inputs))}
  ids_of = {'text_encoder': 'input_ids', 'text_encoder_2': 'input_ids_2'}
  for name, ids in ids_of.items():
    encoder = clip.CLIPText(folders.load_config(golden / 'tiny' / 'base', name))
    applied[name] = jax.jit(
      lambda p, e=encoder, ids=recorded[ids]: e.apply({'params': p}, ids)
    )
  return recorded, applied


@pytest.mark.parametrize('weight', ['1', '0.6'])
def test_merged_outputs(base, file, nets, weight, close, tolerances):
  recorded, applied = nets
  prefix = f'{file.stem}/{weight}'
  specs = [str(file) if weight == '1' else f'{file}:{weight}']
  merged = merge.merge(base, lora_file.load_all(base, specs))
  limit = tolerances['lora_outputs']
  out = np.asarray(applied['unet'](merged['unet'])).transpose(0, 3, 1, 2)
  close(out, recorded[f'{prefix}/unet_out'], limit, 'unet')
  hidden, _ = applied['text_encoder'](merged['text_encoder'])
  close(hidden[-2], recorded[f'{prefix}/te1_penultimate'], limit, 'CLIP-L')
  hidden, pooled = applied['text_encoder_2'](merged['text_encoder_2'])
  close(hidden[-2], recorded[f'{prefix}/te2_penultimate'], limit, 'bigG')
  close(pooled, recorded[f'{prefix}/te2_text_embeds'], limit, 'pooled')


def test_merged_into_bfloat16_is_rounded_once(base, golden):
  paths = [golden / 'tiny' / 'lora' / f'{f}.safetensors' for f in FILES]
  loras = [lora_file.load(p, base) for p in paths]
  half = jax.tree.map(lambda x: x.astype(ml_dtypes.bfloat16), base)
  wide = jax.tree.map(np.float32, half)
  merged = merge.merge(half, [(loras[0], 0.5), (loras[1], -2.0)])
  exact = merge.merge(wide, [(loras[0], 0.5)])
  exact = merge.merge(exact, [(loras[1], -2.0)])
  flat = traverse_util.flatten_dict(exact)
  changed = 0
  for path, array in traverse_util.flatten_dict(merged).items():
    assert array.dtype == jnp.bfloat16
    same = np.asarray(flat[path].astype(jnp.bfloat16)) == np.asarray(array)
    # Two orders of summation may round apart at the middle of two numbers.
    assert np.mean(same) > 0.999, path
    changed += not np.array_equal(np.float32(array), flat[path])
  assert changed > 50


def write(path, tensors, metadata=None):
  safetensors.numpy.save_file(tensors, path, metadata)
  return path


@pytest.mark.parametrize(
  'changes, message',
  [
    ({'.dora_scale': (1,)}, r'dora_scale would have to be \(1, \d+\)'),
    (
      {'.lora_mid.weight': (1,)},
      'lora_mid.weight would have to be of 4 axes',
    ),
    ({'.hada_w1_a': (1,)}, 'proj_in has parts of two methods, LoRA and LoHa'),
    ({'.lokr_w1': (1,)}, 'LoKr'),
    ({'.diff': (1,)}, 'LoRA and a whole difference'),
    ({'x.alpha': ()}, r'1 of \d+ .* no layer.*: lora_unet_\w+_proj_inx.alpha'),
    ({'.lora_up.weight': None}, 'proj_in has no up: .* incomplete'),
    ({'.lora_down.weight': (4, 7)}, r'\(4, 7\) and .*another base'),
    ({'.lora_up.weight': (9, 4)}, r'\(9, 4\), and the layer is \(\d+, \d+\)'),
    ({'.lora_down.weight': (5, 12)}, 'another base'),
  ],
  ids=str,
)
def test_files_that_do_not_fit(base, golden, tmp_path, changes, message):
  tensors = read(golden / 'tiny' / 'lora' / 'kohya.safetensors')
  up = next(n for n in tensors if n.endswith('_proj_in.lora_up.weight'))
  for end, shape in changes.items():
    name = up.removesuffix('.lora_up.weight') + end
    tensors.pop(name, None)
    if shape is not None:
      tensors[name] = np.zeros(shape, np.float32)
  with pytest.raises(ValueError, match=message):
    lora_file.load(write(tmp_path / 'x.safetensors', tensors), base)


def test_a_layer_by_two_names(base, golden, tmp_path):
  tensors = read(golden / 'tiny' / 'lora' / 'kohya.safetensors')
  tensors |= rename('kohya_diffusers', base, tensors)
  path = write(tmp_path / 'x.safetensors', tensors)
  with pytest.raises(ValueError, match='has the layer unet.* twice.*lora_unet'):
    lora_file.load(path, base)


@pytest.mark.parametrize('name', ['style.pt', 'pytorch_lora_weights.bin'])
def test_pickles(base, golden, tmp_path, name):
  torch = pytest.importorskip('torch')
  file = golden / 'tiny' / 'lora' / 'kohya.safetensors'
  tensors = safetensors.numpy.load_file(file)
  torch.save({n: torch.tensor(x) for n, x in tensors.items()}, tmp_path / name)
  is_folder = name.endswith('.bin')
  made = lora_file.load(tmp_path if is_folder else tmp_path / name, base)
  expected = lora_file.load(file, base)
  assert set(made.factors) == set(expected.factors)
  for key, factors in expected.factors.items():
    assert np.array_equal(made.factors[key].down, factors.down)


def test_linear_layers_stored_as_convolutions(base, golden, tmp_path):
  tensors = read(golden / 'tiny' / 'lora' / 'kohya.safetensors')
  other = {
    name: x[..., None, None] if x.ndim == 2 else x
    for name, x in tensors.items()
  }
  loras = [
    lora_file.load(write(tmp_path / f'{i}.safetensors', t), base)
    for i, t in enumerate((tensors, other))
  ]
  copy = jax.tree.map(np.copy, base)
  twice = merge.merge(base, [(made, 0.5) for made in loras])
  once = merge.merge(copy, [(loras[0], 1.0)])
  near = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
  jax.tree.map(near, twice, once)


def test_files_of_other_models(base, tmp_path):
  name = 'lora_unet_double_blocks_0_img_attn_proj.alpha'
  metadata = {'ss_base_model_version': 'flux1'}
  path = write(tmp_path / 'x.safetensors', {name: np.ones(1)}, metadata)
  with pytest.raises(ValueError, match=r'1 of 1 tensors.*another one: flux1'):
    lora_file.load(path, base)
  with pytest.raises(FileNotFoundError, match='no such file, nor a folder'):
    lora_file.load(tmp_path / 'none.safetensors', base)


def test_metadata_of_kohyas_files(base, golden, tmp_path):
  source = golden / 'tiny' / 'lora' / 'peft.safetensors'
  path = tmp_path / 'x.safetensors'
  made = lora_file.load(source, base)
  lora_writer.save(path, made, base, 'kohya', 'float16', {'ss_title': 'mine'})
  again = lora_file.load(path, base)
  assert again.metadata['ss_network_module'] == 'networks.lora'
  assert again.metadata['ss_network_dim'] == '4'
  assert again.metadata['ss_network_alpha'] == '4'
  assert again.metadata['ss_base_model_version'] == 'sdxl_base_v1-0'
  assert again.metadata['ss_title'] == 'mine'
  assert all(x.dtype == np.float16 for x in read(path).values())


def test_parse():
  assert lora_file.parse('a.safetensors') == ('a.safetensors', 1.0)
  assert lora_file.parse('a.safetensors:0.5') == ('a.safetensors', 0.5)
  assert lora_file.parse('c:/a.safetensors:-1') == ('c:/a.safetensors', -1.0)
  assert lora_file.parse('c:/a.safetensors') == ('c:/a.safetensors', 1.0)


@pytest.mark.parametrize('text', ['nan', 'inf', '-Infinity'])
def test_weights_that_are_no_numbers(text):
  with pytest.raises(ValueError, match=f'weight is {text}, not a finite'):
    lora_file.parse(f'a.safetensors:{text}')


def test_paths_of_windows():
  for spec, expected in {
    r'C:\loras\a.safetensors:1e-1': (r'C:\loras\a.safetensors', 0.1),
    r'C:\loras\a.safetensors': (r'C:\loras\a.safetensors', 1.0),
    r'C:\loras\a.safetensors#b:-.5': (r'C:\loras\a.safetensors#b', -0.5),
    'a.safetensors:': ('a.safetensors:', 1.0),
    'a.safetensors:x': ('a.safetensors:x', 1.0),
  }.items():
    assert lora_file.parse(spec) == expected


@pytest.fixture
def lora_dir(tmp_path):
  for name in (
    'Style.safetensors', 'style.SAFETENSORS', 'a/fox.safetensors',
    'b/fox.safetensors', 'b/My Cat v1.5.safetensors', 'notes.txt',
    'trained/pytorch_lora_weights.safetensors', 'b/My Cat v1.5.pt',
    'old.pt',
  ):  # fmt: skip
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
  return tmp_path


@pytest.mark.parametrize('name, file', {
  'Style': 'Style.safetensors',
  'style': 'style.SAFETENSORS',
  'a/fox': 'a/fox.safetensors',
  r'B\FOX': 'b/fox.safetensors',
  'my cat V1.5': 'b/My Cat v1.5.safetensors',
  'My Cat v1.5.safetensors': 'b/My Cat v1.5.safetensors',
  'old': 'old.pt',
  'trained': 'trained/pytorch_lora_weights.safetensors',
}.items())  # fmt: skip
def test_found_by_name(lora_dir, name, file):
  assert lora_file.find_by_name(lora_dir, name) == lora_dir / file


def test_not_found_by_name(lora_dir):
  with pytest.raises(ValueError, match="2 LoRA .* 'fox': a/fox, b/fox. Write"):
    lora_file.find_by_name(lora_dir, 'fox')
  with pytest.raises(ValueError, match="2 LoRA .* 'STYLE': Style, style"):
    lora_file.find_by_name(lora_dir, 'STYLE')
  for name in 'my cat', 'fix', '../x':
    with pytest.raises(FileNotFoundError, match=f"'{name}' among 7 in "):
      lora_file.find_by_name(lora_dir, name)
  with pytest.raises(FileNotFoundError, match='nearest are b/My Cat v1.5'):
    lora_file.find_by_name(lora_dir, 'my cat')
  with pytest.raises(FileNotFoundError, match='none: no such folder'):
    lora_file.find_by_name(lora_dir / 'none', 'fox')
