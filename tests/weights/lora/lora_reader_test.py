"""Names, alphas and companions of LoRA files, read for the tiny base."""

import json

import numpy as np
import pytest
import safetensors.numpy

from sdxl_jax.weights import stored_array
from sdxl_jax.weights.diffusers import folder_reader
from sdxl_jax.weights.lora import lora_file, merge
from tests.support import golden_sets

BASE = golden_sets.SETS[0] / 'tiny' / 'base'
ATTENTION = 'attentions.0.transformer_blocks.0.attn1.to_q'
LAYER = f'down_blocks.1.{ATTENTION}'
ORIGINAL = LAYER.replace('down_blocks.1.attentions.0', 'input_blocks.4.1')
KOHYA = f'lora_unet_{ORIGINAL.replace(".", "_")}'
TEXT = 'text_model.encoder.layers.0.mlp.fc1'
CONV = 'down_blocks.1.resnets.0.conv_shortcut'
NORM = 'down_blocks.1.resnets.0.norm1'


@pytest.fixture(scope='module')
def shapes():
  model = folder_reader.open_model(BASE)
  nets = {name: model.net(name) for name in model.index.components}
  return {name: net.shapes(net.config()) for name, net in nets.items()}


@pytest.fixture(scope='module')
def layers(shapes):
  return {key: place.shape for key, place in merge.kernels_of(shapes).items()}


@pytest.fixture
def load(shapes, tmp_path):
  """Returns (tensors, metadata, ...) -> Lora, by way of a file."""

  def load(tensors, metadata=None, choose='', **options):
    path = tmp_path / 'x.safetensors'
    tensors = {n: np.require(x, requirements='C') for n, x in tensors.items()}
    safetensors.numpy.save_file(tensors, path, metadata)
    return lora_file.load(f'{path}{choose}', shapes, **options)

  return load


def factors(shape, rank=2, seed=0):
  """Returns random (down, up) of a weight."""
  rng = np.random.default_rng(seed)
  outputs, *rest = shape
  down, up = rng.normal(size=(rank, *rest)), rng.normal(size=(outputs, rank))
  up = up.reshape(*up.shape, *[1] * (len(rest) - 1))
  return np.float32(down), np.float32(up)


def named(prefix, pair, ends=('lora_down', 'lora_up'), adapter=''):
  """Returns {name: factor} of a layer."""
  return {f'{prefix}.{end}{adapter}.weight': x for end, x in zip(ends, pair)}


PEFT = ('lora_A', 'lora_B')
OLD = ('lora.down', 'lora.up')
UNDERSCORED = LAYER.replace('.', '_')
PREFIXES = {
  # kohya, and what A1111 and ComfyUI read
  KOHYA: ('lora_down', 'lora_up'),
  f'lora_unet_{UNDERSCORED}': ('lora_down', 'lora_up'),
  # OMI and OneTrainer
  f'unet.{ORIGINAL}': ('lora_down', 'lora_up'),
  f'unet.{LAYER}': ('lora_down', 'lora_up'),
  # ComfyUI
  f'diffusion_model.{ORIGINAL}': ('lora_down', 'lora_up'),
  f'diffusion_model.{LAYER}': PEFT,
  f'model.diffusion_model.{ORIGINAL}': ('lora_down', 'lora_up'),
  # LyCORIS
  f'lycoris_{UNDERSCORED}': ('lora_down', 'lora_up'),
  f'lycoris_{ORIGINAL.replace(".", "_")}': ('lora_down', 'lora_up'),
  # diffusers and PEFT
  f'unet.base_model.model.{LAYER}': PEFT,
  f'base_model.model.{LAYER}': PEFT,
  f'base_model.model.unet.{LAYER}': PEFT,
  LAYER: PEFT,
  ORIGINAL: PEFT,
}


@pytest.mark.parametrize('prefix', PREFIXES)
def test_names_of_the_unet(load, layers, prefix):
  pair = factors(layers['unet', LAYER])
  made = load(named(prefix, pair, PREFIXES[prefix]))
  assert set(made.factors) == {('unet', LAYER)} and not made.notes
  np.testing.assert_array_equal(made.factors['unet', LAYER].down, pair[0])
  np.testing.assert_array_equal(made.factors['unet', LAYER].up, pair[1])


@pytest.mark.parametrize('prefix', [
  f'unet._orig_mod.{LAYER}', f'_orig_mod.{LAYER}', f'module.unet.{LAYER}',
])  # fmt: skip
def test_names_of_wrapped_modules(load, layers, prefix):
  made = load(named(prefix, factors(layers['unet', LAYER]), PEFT))
  assert set(made.factors) == {('unet', LAYER)} and not made.notes


@pytest.mark.parametrize('old', ['processor.to_q_lora', 'to_q_lora'])
def test_oldest_names_of_diffusers(load, layers, old):
  prefix = f'unet.{LAYER}'.replace('to_q', old)
  made = load(named(prefix, factors(layers['unet', LAYER]), ('down', 'up')))
  assert set(made.factors) == {('unet', LAYER)}
  key = 'text_encoder', 'text_model.encoder.layers.0.self_attn.q_proj'
  prefix = '.'.join(key).replace('q_proj', 'to_q_lora')
  made = load(named(prefix, factors(layers[key]), ('down', 'up')))
  assert set(made.factors) == {key}


@pytest.mark.parametrize('head', [
  'lora_{te}_', 'lycoris_{te}_', 'clip_{x}.', 'clip_{x}.transformer.', '{net}.',
  'text_encoders.clip_{x}.transformer.', '{net}.base_model.model.',
  'base_model.model.{net}.', '', 'base_model.model.', 'lycoris_',
])  # fmt: skip
@pytest.mark.parametrize('net', ['text_encoder', 'text_encoder_2'])
def test_names_of_text_encoders(load, layers, net, head):
  te, x = ('te1', 'l') if net == 'text_encoder' else ('te2', 'g')
  head = head.format(te=te, x=x, net=net)
  for layer in TEXT, TEXT.removeprefix('text_model.'):
    layer = layer.replace('.', '_') if head.endswith('_') else layer
    made = load(named(head + layer, factors(layers[net, TEXT])))
    assert set(made.factors) == {(net, TEXT)}


def test_one_text_encoder(load, layers):
  prefix = f'lora_te_{TEXT.replace(".", "_")}'
  made = load(named(prefix, factors(layers['text_encoder', TEXT])))
  assert set(made.factors) == {('text_encoder', TEXT)}


def test_adapters_of_peft(load, layers):
  pair = factors(layers['unet', LAYER])
  other = factors(layers['unet', LAYER], 3, seed=1)
  for name in 'default', 'default_0', 'my style':
    made = load(named(f'unet.{LAYER}', pair, PEFT, f'.{name}'))
    assert set(made.factors) == {('unet', LAYER)}
  both = named(LAYER, pair, PEFT, '.a') | named(LAYER, other, PEFT, '.b')
  with pytest.raises(ValueError, match='2 adapters in one file: a, b.*FILE#a'):
    load(both)
  for name, (down, _) in {'a': pair, 'b': other}.items():
    made = load(both, choose=f'#{name}')
    np.testing.assert_array_equal(made.factors['unet', LAYER].down, down)
  with pytest.raises(ValueError, match="no adapter 'c', there are: a, b"):
    load(both, choose='#c')


@pytest.mark.parametrize('dtype', ['float16', 'bfloat16', 'float64'])
def test_linear_and_convolution(load, layers, dtype):
  """A convolution of size one may be stored as a matrix, and back."""
  for layer, axes in (LAYER, (1, 1)), (CONV, ()):
    pair = [x.astype(np.dtype(dtype)) for x in factors(layers['unet', layer])]
    pair = [x.reshape(*x.shape[:2], *axes) for x in pair]
    made = load(named(layer, pair))
    assert set(made.factors) == {('unet', layer)}


@pytest.mark.parametrize('alpha, scale', [
  (np.float32(1), 0.5), (np.ones(1, np.float32), 0.5), (np.int64(1), 0.5),
  (np.ones((1, 1), np.float16), 0.5), (None, 1.0), (np.float32(0), 0.0),
])  # fmt: skip
@pytest.mark.parametrize('name', ['alpha', 'lora_alpha'])
def test_alpha(load, layers, alpha, scale, name):
  tensors = named(KOHYA, factors(layers['unet', LAYER]))
  if alpha is not None:
    tensors[f'{KOHYA}.{name}'] = np.asarray(alpha)
  made = load(tensors)
  assert made.factors['unet', LAYER].scale == scale
  assert bool(made.notes) == (scale == 0)


def test_alpha_in_metadata(load, layers):
  """As PEFT and diffusers have it; kohya's is a note, for nobody reads it."""
  tensors = named(f'unet.{LAYER}', factors(layers['unet', LAYER]), PEFT)
  patterns = {r'.*attn1\.to_q': 3, 'other': 4}
  for settings, scale in [
    ({'unet.lora_alpha': 8}, 4.0),
    ({'lora_alpha': 8}, 4.0),
    ({'lora_alpha': 8, 'alpha_pattern': patterns}, 1.5),
    ({'lora_alpha': 8, 'use_rslora': True}, 8 / 2**0.5),
    ({'text_encoder.lora_alpha': 8}, 1.0),
  ]:
    made = load(tensors, {'lora_adapter_metadata': json.dumps(settings)})
    np.testing.assert_allclose(made.factors['unet', LAYER].scale, scale, 1e-6)
  made = load(tensors, {'ss_network_alpha': '1'})
  assert made.factors['unet', LAYER].scale == 1
  assert 'ss_network_alpha 1, which would make it 0.5' in made.notes[0]
  assert not load(tensors, {'ss_network_alpha': '2'}).notes
  with pytest.raises(ValueError, match='lora_adapter_metadata .* is not JSON'):
    load(tensors, {'lora_adapter_metadata': '{'})


def test_companions_are_passed_over(load, layers):
  tensors = named(KOHYA, factors(layers['unet', LAYER]))
  others = {
    'lora_unet_middle_block_1_proj_in.alpha': np.float32(1),
    'lora_te1_text_model_embeddings_position_ids': np.arange(77)[None],
    'text_encoder.text_model.embeddings.position_ids': np.arange(77)[None],
    f'{KOHYA}.scale_record': np.ones(3),
    '__step__': np.int64(4),
    'v_pred': np.zeros(0),
    'ztsnr': np.zeros(0),
    'alphas_cumprod': np.ones(1000),
  }
  made = load(tensors | {n: np.asarray(x) for n, x in others.items()})
  assert set(made.factors) == {('unet', LAYER)}
  (note,) = made.notes
  assert 'passed over 8 tensors that change nothing: ' in note


@pytest.mark.parametrize('name, method', [
  (f'{KOHYA}.bias_values', 'sparse differences of biases'),
  (f'{KOHYA}.set_weight', 'weights that replace a layer'),
  (f'{KOHYA}.oft_diag', 'OFT in the old form'),
  (f'{LAYER}.oft_r.default', 'OFT in the form of PEFT'),
  (f'{KOHYA}.bm.weight', 'GLoRA with a core'),
  (f'{KOHYA}.on_input', 'IA3'),
  (f'{LAYER}.lora_embedding_A', 'LoRA of an embedding'),
  (f'{NORM}.weight', 'whole weights in place of the old'),
  (f'base_model.model.{NORM}.base_layer.bias', 'whole weights'),
  (f'{KOHYA}.lora_up.bias', 'biases of layers that have none'),
])  # fmt: skip
def test_what_cannot_be_applied(load, layers, name, method):
  tensors = named(KOHYA, factors(layers['unet', LAYER]))
  tensors[name] = np.ones(layers['unet', LAYER][0], np.float32)
  with pytest.raises(ValueError, match=f'1 of 3 tensors would.*: {method}'):
    load(tensors)
  made = load(tensors, skip_unsupported=True)
  assert set(made.factors) == {('unet', LAYER)}
  assert (
    f'left out 1 tensor that would change the image: {method}'
    in (made.notes[0])
  )


def test_learned_words_are_for_another_flag(load, layers):
  words = {'bundle_emb.cat.clip_l': np.ones((1, 12), np.float32)}
  made = load(named(KOHYA, factors(layers['unet', LAYER])) | words)
  assert set(made.factors) == {('unet', LAYER)}
  (note,) = made.notes
  assert note == (
    'passed over 1 tensor of learned words (bundle_emb.cat.clip_l): pass this '
    'file as --embedding, too'
  )
  with pytest.raises(ValueError, match='words, pass it as --embedding instead'):
    load(words)


def test_what_cannot_be_applied_is_found_before_reading(
  load, layers, monkeypatch
):
  reads = []
  monkeypatch.setattr(stored_array, 'read_array', lambda *a: reads.append(a))
  tensors = named(KOHYA, factors(layers['unet', LAYER]))
  with pytest.raises(ValueError, match='1 of 3 tensors would .*: IA3'):
    load(tensors | {f'{KOHYA}.on_input': np.ones(1)})
  assert not reads


def test_a_bias_of_zeros_where_there_is_none(load, layers):
  pair = factors(layers['unet', LAYER])
  tensors = named(KOHYA, pair)
  tensors[f'{KOHYA}.diff_b'] = np.zeros_like(pair[1][:, 0])
  made = load(tensors)
  assert not made.others and not made.notes


def test_ia3_is_no_model(load):
  tensors = {f'{KOHYA}.weight': np.ones(24), f'{KOHYA}.on_input': np.ones(1)}
  with pytest.raises(ValueError, match=r'2 of 2 tensors would.*: IA3 \('):
    load(tensors)


FOREIGN = {
  'lora_unet_down_blocks_0_attentions_0_proj_in': 'Stable Diffusion 1.x or 2.x',
  'lora_unet_double_blocks_0_img_attn_proj': 'Flux',
  'transformer.single_transformer_blocks.0.attn.to_q': 'Flux',
  'transformer.transformer_blocks.0.attn.add_k_proj': 'Stable Diffusion 3',
  'lora_unet_joint_blocks_0_x_block_attn_proj': 'Stable Diffusion 3',
  'lora_te3_encoder_block_0_layer_0_SelfAttention_k': 'a T5 as text encoder',
  'diffusion_model.blocks.0.self_attn.q': 'Wan',
  'transformer.transformer_blocks.0.attn1.to_k': 'a diffusion transformer',
  'lora_prior_unet_blocks_0_attn': 'Stable Cascade',
  'unet.down_blocks.1.motion_modules.0.proj_in': 'AnimateDiff',
  '1.to_q_lora.down': 'an IP-Adapter',
  'lora_controlnet_input_blocks_1_0': 'a ControlNet',
}


@pytest.mark.parametrize('prefix', FOREIGN)
def test_other_architectures(load, prefix):
  tensors = named(prefix, factors((320, 320)))
  message = f'2 of 2 tensors belong to no layer.*: {prefix}.*{FOREIGN[prefix]}'
  for skip in False, True:
    with pytest.raises(ValueError, match=message):
      load(tensors, skip_unsupported=skip)


def test_the_context_shows_the_other_base(load, layers):
  prefix = 'lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2'
  with pytest.raises(ValueError, match='768 numbers, as in Stable Diffusion 1'):
    load(named(f'{prefix}_to_k', factors((320, 768))))
  # A layer that both have, with other shapes.
  layer = LAYER.replace('attn1', 'attn2').replace('to_q', 'to_k')
  tensors = named(f'unet.{layer}', factors((layers['unet', layer][0], 1024)))
  with pytest.raises(ValueError, match='another base model, Stable Diff.* 2'):
    load(tensors)


@pytest.mark.parametrize('names, message', [
  ([f'{KOHYA}s.lora_down.weight'],
   f'1 of 3 .*: {KOHYA}s.lora_down.weight. The nearest layer is {KOHYA}'),
  ([f'unet.{LAYER}x.lora_A.weight'], f'The nearest layer is unet.{LAYER}'),
  ([f'{KOHYA}.lora_side.weight'],
   f"There is the layer {KOHYA}, and no part 'lora_side.weight'"),
  (['lora_te2_text_model_encoder_layers_99_mlp_fc1.alpha'],
   'nearest layer is lora_te2_text_model_encoder_layers_'),
])  # fmt: skip
def test_unknown_names(load, layers, names, message):
  pair = factors(layers['unet', LAYER])
  tensors = named(KOHYA, pair) | {name: pair[0] for name in names}
  with pytest.raises(ValueError, match=message):
    load(tensors)
  made = load(tensors, skip_unsupported=True)
  assert set(made.factors) == {('unet', LAYER)}
  assert '1 tensor that would change the image: unknown' in made.notes[0]


def test_files_that_are_no_lora(load, layers):
  pair = factors(layers['unet', LAYER])
  with pytest.raises(ValueError, match='is a model, no LoRA; pass it as'):
    load({f'model.diffusion_model.{ORIGINAL}.weight': pair[0]})
  with pytest.raises(ValueError, match='textual inversion, .* as --embedding'):
    load({'clip_l': pair[0], 'clip_g': pair[1]})
  for name in 'decoder.conv_in.weight', '<cat>':
    with pytest.raises(ValueError, match='no tensor of a LoRA.* as --vae, wor'):
      load({name: pair[0]})
  with pytest.raises(ValueError, match=r': weights that replace a layer \('):
    load({f'diffusion_model.{LAYER}.set_weight': pair[0]})
  with pytest.raises(ValueError, match='the file has no tensors'):
    load({})
  with pytest.raises(ValueError, match='no tensor of it changes this base'):
    load({f'{KOHYA}.alpha': np.float32(1)[None]})


@pytest.mark.parametrize('changes, message', [
  ({'lora_down.weight': np.nan}, 'lora_down.weight contains NaN or infinity'),
  ({'lora_up.weight': np.float64(1e300)}, 'overflows float32: re-download'),
  ({'alpha': np.inf}, r'\.alpha contains NaN or infinity'),
  ({'alpha': (2,)}, r'alpha has the shape \(2,\), and an alpha is one number'),
  ({'lora_down.weight': np.int8}, 'lora_down.weight is stored as int8: quant'),
  ({'lora_down.weight': (0, 24), 'lora_up.weight': (24, 0)}, 'has rank 0, '),
  ({'lora_down.weight': (3, 24)}, 'of the same rank as down; write the file'),
  ({'lora_down.weight': (2, 7)}, r'to be \(r, 24\); .* another base'),
  ({'lora_down.weight': (24, 2)}, r'to be \(r, 24\); write the file again'),
  ({'lora_up.weight': None}, 'has no up: the file is incomplete'),
  ({'dora_scale': (7, 1)}, r'dora_scale would have to be \(24,\)'),
  ({'oft_blocks': (4, 6, 6)}, 'parts of two methods, LoRA and OFT'),
  ({'a1.weight': (24, 4)}, 'parts of two methods, LoRA and GLoRA'),
])  # fmt: skip
def test_broken_files(load, layers, changes, message):
  tensors = named(KOHYA, factors(layers['unet', LAYER]))
  tensors[f'{KOHYA}.alpha'] = np.float32(1)
  for end, value in changes.items():
    name = f'{KOHYA}.{end}'
    if isinstance(value, tuple):
      tensors[name] = np.ones(value, np.float32)
    elif isinstance(value, float):
      tensors[name] = np.asarray(value * tensors[name])
    elif value is None:
      del tensors[name]
    else:
      tensors[name] = tensors[name].astype(value)
  with pytest.raises(ValueError, match=message) as caught:
    load(tensors)
  assert str(caught.value).count('x.safetensors') == 1
