"""Changes of all methods merged into the tiny base, in memory and in files."""

import numpy as np
import pytest
import safetensors.numpy

from sdxl_jax.weights.diffusers import folder_reader, tensor_names
from sdxl_jax.weights.lora import lora_file, lora_reader, lora_writer, merge


def other_changes(layers):
  """Returns a file's tensors, of several methods, for some layers of nets."""
  rng = np.random.default_rng(0)

  def random(*shape):
    return (0.2 * rng.standard_normal(shape)).astype(np.float32)

  block = 'down_blocks.1.attentions.0.transformer_blocks'
  out, inputs = layers['unet', f'{block}.0.attn1.to_q'].weight
  channels, _, *kernel = layers['unet', 'down_blocks.1.resnets.0.conv2'].weight
  norm = layers['unet', f'{block}.1.norm1'].weight
  tensors = {
    f'unet.{block}.0.attn1.to_q.lora_A.weight': random(3, inputs),
    f'unet.{block}.0.attn1.to_q.lora_B.weight': random(out, 3),
    f'unet.{block}.0.attn1.to_q.dora_scale': 1 + random(out, 1),
    f'unet.{block}.1.attn1.to_q.diff': random(out, inputs),
    f'unet.{block}.1.norm1.w_norm': random(*norm),
    f'unet.{block}.1.norm1.b_norm': random(*norm),
    f'unet.{block}.1.attn1.to_out.0.oft_blocks': random(2, out // 2, out // 2),
    f'unet.{block}.1.attn1.to_out.0.alpha': np.zeros(1, np.float32),
  }
  conv = 'unet.down_blocks.1.resnets.0.conv2'
  tensors |= {
    f'{conv}.lora_down.weight': random(2, channels, 1, 1),
    f'{conv}.lora_mid.weight': random(2, 2, *kernel),
    f'{conv}.lora_up.weight': random(channels, 2, 1, 1),
    f'{conv}.diff_b': random(channels),
  }
  text = 'text_encoder.text_model.encoder.layers.1.mlp.fc1'
  rows, columns = layers['text_encoder', text.partition('.')[2]].weight
  return tensors | {
    f'{text}.hada_w1_a': random(rows, 2),
    f'{text}.hada_w1_b': random(2, columns),
    f'{text}.hada_w2_a': random(rows, 2),
    f'{text}.hada_w2_b': random(2, columns),
    f'{text}.diff_b': random(rows),
  }


@pytest.mark.parametrize('scan', [True, False])
def test_other_methods(golden, tmp_path, scan):
  """Merging changes the same tensors in memory as it does on reading."""
  model = folder_reader.open_model(golden / 'tiny' / 'base')
  nets = {name: model.net(name) for name in ('unet', 'text_encoder')}
  fields = {'unet': {'scan_blocks': scan}, 'text_encoder': {}}
  params = {n: net.load(**fields[n])[1] for n, net in nets.items()}
  layers = lora_reader.layers_of(merge.tensors_of(params))
  path = tmp_path / 'x.safetensors'
  safetensors.numpy.save_file(other_changes(layers), path)
  loras = [(lora_file.load(path, params), 0.5)]
  changed = set(loras[0][0].changes())
  assert len(changed) == 9
  other = tmp_path / 'y.safetensors'
  with pytest.raises(ValueError, match='9 tensors are changed in other ways'):
    lora_writer.save(other, loras[0][0], params, 'diffusers_old')
  lora_writer.save(other, loras[0][0], params, 'kohya')
  loras = [(lora_file.load(other, params), 0.5)]
  assert set(loras[0][0].changes()) == changed
  merged = merge.merge(params, loras)
  for net, source in nets.items():
    published = merge.merge_published(source, loras).tensors()
    before = source.tensors()
    for name, tensor in tensor_names.tensors(merged[net]).items():
      array = tensor.read()
      np.testing.assert_allclose(array, published[name].read(), 1e-5, 1e-6)
      same = np.array_equal(array, before[name].read())
      assert same == ((net, name) not in changed), name
