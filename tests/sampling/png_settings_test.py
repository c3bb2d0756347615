"""Settings of images that other programs wrote."""

import json
import pathlib

import pytest
from PIL import ExifTags, Image, PngImagePlugin

from sdxl_jax.sampling import png_settings, sample_request

A1111 = (
  'a (fox:1.2), <lora:my style:0.8>\nin snow, Steps: two\n'
  'Negative prompt: blurry,\nbad\n'
  'Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7, '
  'Seed: 4294967296, Size: 832x1216, Model hash: 31e35c80fc, '
  'Model: sd_xl_base_1.0, Denoising strength: 0.35, Clip skip: 2, '
  'Lora hashes: "my style: 1, other: 2", Version: v1.10.1'
)


def png(path, **texts):
  info = PngImagePlugin.PngInfo()
  for key, text in texts.items():
    info.add_text(key, text)
  Image.new('RGB', (8, 8)).save(path, pnginfo=info)
  return path


def test_a1111(tmp_path):
  found = png_settings.load(png(tmp_path / 'a.png', parameters=A1111))
  assert found.fields == {
    'prompt': 'a (fox:1.2), <lora:my style:0.8>\nin snow, Steps: two',
    'negative_prompt': 'blurry,\nbad',
    'weighted_prompts': True,
    'prompt_syntax': 'a1111',
    'long_prompts': True,
    'steps': 20,
    'guidance_scale': 7.0,
    'seed': 2**32,
    'width': 832,
    'height': 1216,
    'sampler': 'dpmpp_2m',
    'spacing': 'linspace',
    'sigmas': 'karras',
  }
  sample_request.Request(**found.fields)
  assert found.models == {} and found.made_with == 'sd_xl_base_1.0'
  assert 'Model: sd_xl_base_1.0 (pass it as --weights)' in found.note
  assert 'Denoising strength: 0.35' in found.note
  assert 'Clip skip: 2 (without effect' in found.note
  assert 'hash' not in found.note and '\n' not in found.note


@pytest.mark.parametrize(
  'settings, expected',
  [
    ('Sampler: Euler a', {'sampler': 'euler_ancestral', 'spacing': 'linspace'}),
    ('Sampler: DPM++ 2M Karras', {'sampler': 'dpmpp_2m', 'sigmas': 'karras'}),
    (
      'Sampler: DPM++ 2M, Schedule type: Automatic',
      {'sampler': 'dpmpp_2m', 'sigmas': 'karras'},
    ),
    (
      'Sampler: Euler, Schedule type: Simple',
      {'sampler': 'euler', 'spacing': 'trailing', 'sigmas': 'trained'},
    ),
    # Versions before 1.9 wrote no schedule type.
    ('Sampler: DPM++ 2M', {'sampler': 'dpmpp_2m', 'sigmas': 'trained'}),
    ('Sampler: DDIM', {'sampler': 'ddim', 'spacing': 'leading'}),
    ('Sampler: Restart', {'left': "Sampler: Restart (the model's own is"}),
    ('Sampler: Euler, Schedule type: KL Optimal', {'left': 'KL Optimal'}),
    (
      'Sampler: UniPC',
      {'sampler': 'unipc', 'left': 'UniPC variant: bh1 (bh2 is taken)'},
    ),
  ],
)
def test_samplers_of_a1111(tmp_path, settings, expected):
  text = f'a fox\nSteps: 4, {settings}, Seed: 1, CFG scale: 2'
  found = png_settings.load(png(tmp_path / 'a.png', parameters=text))
  assert found.fields['prompt'] == 'a fox'
  assert found.fields['negative_prompt'] is None
  assert expected.pop('left', '') in found.note
  assert {name: found.fields[name] for name in expected} == expected


@pytest.mark.parametrize('more', ['UniPC variant: bh2', 'App: SD.Next'])
def test_the_variant_of_unipc_that_is_ours(tmp_path, more):
  text = f'a fox\nSteps: 4, Sampler: UniPC, Seed: 1, {more}'
  found = png_settings.load(png(tmp_path / 'a.png', parameters=text))
  assert found.fields['sampler'] == 'unipc' and 'bh1' not in found.note


def test_lines_behind_the_settings_of_a1111(tmp_path):
  text = 'a fox\nSteps: 4, Seed: 1, CFG scale: 2\nTemplate: a {fox|pig}'
  found = png_settings.load(png(tmp_path / 'a.png', parameters=text))
  assert found.fields['prompt'] == 'a fox' and found.fields['steps'] == 4
  assert 'left out Template: a {fox|pig}' in found.note


def test_exif_of_a1111(tmp_path):
  for order, kind in (('utf-16-be', 'jpg'), ('utf-16-le', 'webp')):
    exif = Image.Exif()
    comment = b'UNICODE\0' + A1111.encode(order)
    exif[ExifTags.IFD.Exif] = {0x9286: comment}
    path = tmp_path / f'a.{kind}'
    Image.new('RGB', (8, 8)).save(path, exif=exif)
    assert png_settings.load(path).fields['steps'] == 20


GRAPH = {
  '3': {
    'class_type': 'KSampler',
    'inputs': {
      'seed': ['12', 0],
      'steps': 25,
      'cfg': 8.0,
      'sampler_name': 'dpmpp_2m_sde_gpu',
      'scheduler': 'karras',
      'denoise': 1.0,
      'model': ['10', 0],
      'positive': ['6', 0],
      'negative': ['7', 0],
      'latent_image': ['5', 0],
    },
  },
  '4': {
    'class_type': 'CheckpointLoaderSimple',
    'inputs': {'ckpt_name': 'xl/base.safetensors'},
  },
  '5': {
    'class_type': 'EmptyLatentImage',
    'inputs': {'width': 832, 'height': 1216, 'batch_size': 1},
  },
  '6': {
    'class_type': 'CLIPTextEncode',
    'inputs': {'text': ['11', 0], 'clip': ['10', 1]},
  },
  '7': {'class_type': 'CLIPTextEncode', 'inputs': {'text': '', 'clip': 0}},
  '9': {
    'class_type': 'LoraLoader',
    'inputs': {
      'lora_name': 'xl\\style.v2.safetensors',
      'strength_model': 0.8,
      'strength_clip': 1.0,
      'model': ['4', 0],
    },
  },
  '10': {
    'class_type': 'LoraLoaderModelOnly',
    'inputs': {
      'lora_name': 'b.safetensors',
      'strength_model': -1,
      'model': ['9', 0],
    },
  },
  '11': {'class_type': 'StringNode', 'inputs': {'string': 'a (fox:1.1)'}},
  '12': {'class_type': 'Seed', 'inputs': {'seed': 2**63}},
}


def test_comfyui(tmp_path):
  path = png(tmp_path / 'a.png', prompt=json.dumps(GRAPH), workflow='{}')
  found = png_settings.load(path)
  assert found.fields == {
    'prompt': 'a (fox:1.1) <lora:xl/style.v2:0.8> <lora:b:-1>',
    'negative_prompt': '',
    'weighted_prompts': True,
    'prompt_syntax': 'comfyui',
    'long_prompts': True,
    'seed': 2**63,
    'steps': 25,
    'guidance_scale': 8.0,
    'sampler': 'dpmpp_2m_sde',
    'spacing': 'linspace',
    'sigmas': 'karras',
    'width': 832,
    'height': 1216,
  }
  sample_request.Request(**found.fields)
  assert found.made_with == 'xl/base.safetensors'
  assert 'model xl/base.safetensors (pass it as --weights)' in found.note
  assert 'strength_clip 1.0 of xl' in found.note


def test_nodes_of_comfyui_that_pass_both_conditionings(tmp_path):
  """Each side keeps its own text; nodes that nothing was read of are named."""
  graph = json.loads(json.dumps(GRAPH))
  sides = {
    side: graph['3']['inputs'][side] for side in ('positive', 'negative')
  }
  graph['40'] = {'class_type': 'ControlNetApplyAdvanced', 'inputs': sides}
  graph['3']['inputs'] |= {'positive': ['40', 0], 'negative': ['40', 1]}
  graph['41'] = {
    'class_type': 'Face Detailer (x)',
    'inputs': {'image': ['8', 0], 'seed': 3},
  }
  graph['42'] = {'class_type': 'SaveText', 'inputs': {'text': ['41', 0]}}
  path = png(tmp_path / 'a.png', prompt=json.dumps(graph))
  plain = png_settings.load(png(tmp_path / 'b.png', prompt=json.dumps(GRAPH)))
  found = png_settings.load(path)
  for name in ('prompt', 'negative_prompt'):
    assert found.fields[name] == plain.fields[name]
  assert 'ControlNetApplyAdvanced 40' in found.note
  assert found.note.count('Face Detailer (x) 41') == 1


def test_other_nodes_of_comfyui(tmp_path):
  graph = json.loads(json.dumps(GRAPH))
  graph['3']['class_type'] = 'KSamplerAdvanced'
  graph['3']['inputs'] |= {
    'noise_seed': 5,
    'scheduler': 'kl_optimal',
    'latent_image': ['20', 0],
    'denoise': 0.5,
    'end_at_step': 20,
    'positive': ['21', 0],
    'negative': ['22', 0],
  }
  del graph['3']['inputs']['seed']
  graph['20'] = {'class_type': 'VAEEncode', 'inputs': {'pixels': ['30', 0]}}
  graph['21'] = {
    'class_type': 'ControlNetApply',
    'inputs': {'conditioning': ['23', 0]},
  }
  graph['22'] = {
    'class_type': 'ConditioningZeroOut',
    'inputs': {'conditioning': ['23', 0]},
  }
  graph['23'] = {
    'class_type': 'CLIPTextEncodeSDXL',
    'inputs': {
      **{'text_l': 'l', 'text_g': 'g', 'width': 1024, 'height': 768},
      **{'crop_w': 0, 'crop_h': 8, 'target_width': 512, 'target_height': 640},
    },
  }
  found = png_settings.load(png(tmp_path / 'a.png', prompt=json.dumps(graph)))
  tags = '<lora:xl/style.v2:0.8> <lora:b:-1>'
  assert found.fields['prompt'] == f'l {tags}'
  assert found.fields['prompt_2'] == 'g' and found.fields['seed'] == 5
  assert 'negative_prompt' not in found.fields
  assert found.fields['original_size'] == (768, 1024)
  assert found.fields['crop_top_left'] == (8, 0)
  assert found.fields['target_size'] == (640, 512)
  graph['24'] = {
    'class_type': 'CLIPSetLastLayer',
    'inputs': {'stop_at_clip_layer': -2, 'clip': ['4', 1]},
  }
  graph['3']['inputs']['cfg'] = True
  path = png(tmp_path / 'a.png', prompt=json.dumps(graph))
  found = png_settings.load(path)
  assert found.note.count('ControlNetApply') == 1
  assert 'guidance_scale' not in found.fields
  for part in (
    'CLIPSetLastLayer 24',
    'cfg of KSamplerAdvanced 3',
    'ControlNetApply 21',
    'VAEEncode 20 (pass --image)',
    'denoise 0.5',
    'scheduler kl_optimal',
    'end_at_step 20',
  ):
    assert part in found.note


@pytest.mark.parametrize(
  'texts, message',
  [
    ({'prompt': '{"3": {"class_type": "KSampler"}}'}, 'no text can be found'),
    ({'prompt': '{"3": {"class_type": "Note"}}'}, r"no KSampler .*\['Note'\]"),
    ({'prompt': '{"3": '}, 'is cut off or was changed'),
    ({'prompt': '[]'}, 'no graph of ComfyUI'),
    ({'parameters': 'a fox'}, 'has no settings such as'),
    (
      {'parameters': 'portrait: a fox, style: oil, light: soft'},
      'has no settings such as',
    ),
    ({'sdxl_jax': '{"prompt": '}, "under 'sdxl_jax' is cut off"),
    ({'sdxl_jax': '[]'}, 'is not an object'),
    ({'sdxl_jax': '{"models": null}'}, 'its models are no object'),
    ({'sdxl_jax': '{"models": {"weights": 5}}'}, 'weights of its models is 5'),
    ({'sdxl_jax': '{"models": {"a": 5}}'}, "has an option 'a' of models"),
    ({'invokeai_metadata': '{}'}, 'text of InvokeAI, which is not read'),
    (
      {'other': 'x'},
      r"a\.png: no text under \['sdxl_jax'\], but under \['other'\]",
    ),
    ({}, r"no text under \['sdxl_jax'\]"),
  ],
)
def test_text_that_cannot_be_used(tmp_path, texts, message):
  path = png(tmp_path / 'a.png', **texts)
  with pytest.raises(ValueError, match=message) as caught:
    png_settings.load(path)
  assert str(path) in str(caught.value)


def test_files_without_text(tmp_path):
  Image.new('RGB', (8, 8)).save(tmp_path / 'a.jpg')
  with pytest.raises(ValueError, match='a JPEG file; only PNG files hold'):
    png_settings.load(tmp_path / 'a.jpg')
  for text, message in (
    ('version https://git-lfs.github.com/spec/v1', 'a git-lfs pointer'),
    ('', 'the file is empty'),
  ):
    (tmp_path / 'b.png').write_text(text)
    with pytest.raises(ValueError, match=f'b.png: not a read.*{message}'):
      png_settings.load(tmp_path / 'b.png')
  (tmp_path / 'b.png').write_text('no image')
  with pytest.raises(ValueError, match='not a readable image'):
    png_settings.load(tmp_path / 'b.png')
  with pytest.raises(FileNotFoundError):
    png_settings.load(tmp_path / 'none.png')


def test_the_file_is_read_once(tmp_path, monkeypatch):
  path, reads = png(tmp_path / 'a.png', sdxl_jax='{}'), []
  read = pathlib.Path.read_bytes
  monkeypatch.setattr(
    pathlib.Path, 'read_bytes', lambda file: reads.append(file) or read(file)
  )
  png_settings.load(path)
  assert reads == [path]


def test_ours(tmp_path):
  asked = sample_request.Request(prompt='a <lora:b:1>', seed=3)
  text = sample_request.to_png_metadata(asked, {'weights': 'W'}, (8, 8, 3))
  found = png_settings.load(png(tmp_path / 'a.png', parameters='x', **text))
  assert found.fields['prompt'] == 'a <lora:b:1>' and not found.note
  assert found.models == {'weights': 'W'}
