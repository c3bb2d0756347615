"""Sampling with ControlNets against live pipelines of diffusers."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from sdxl_jax.distributed import device_mesh
from sdxl_jax.sampling import control_specs, generation, pipelines
from tests.support import control_nets

SIZE = 48, 80
PROMPTS = ['a red fox', 'snow']
STEPS = 4
CLASSES = {
  False: 'StableDiffusionXLControlNetPipeline',
  True: 'StableDiffusionXLControlNetUnionPipeline',
}


def noise():
  rng = np.random.default_rng(7)
  shape = 2, SIZE[0] // 8, SIZE[1] // 8, 4
  return rng.normal(size=shape).astype(np.float32)


def picture(seed):
  return np.float32(np.random.default_rng(seed).random((*SIZE, 3)))


def nchw(x):
  return np.ascontiguousarray(np.moveaxis(np.asarray(x), -1, 1))


@pytest.fixture(scope='module')
def nets(tmp_path_factory):
  """{name: (folder, config, params)}."""
  folder, found = tmp_path_factory.mktemp('nets'), {}
  for i, (name, union) in enumerate(
    (('a', False), ('b', False), ('u', True), ('v', True))
  ):
    config = control_nets.make_config(union)
    params = control_nets.random_params(config, seed=i)
    control_nets.write(folder / name, config, params)
    found[name] = folder / name, config, params
  return found


@functools.cache
def base():
  pipeline = pipelines.load(control_nets.TINY / 'base')
  return dataclasses.replace(pipeline, size=SIZE)


def load(nets, specs):
  """The tiny base with ControlNets, each as 'NAME:SCALE:START:END'."""
  texts = []
  for spec in specs:
    name, _, rest = spec.partition(':')
    texts.append(f'{nets[name][0]}:{rest}' if rest else str(nets[name][0]))
  pipeline = pipelines.load(control_nets.TINY / 'base', controlnets=texts)
  return dataclasses.replace(pipeline, size=SIZE)


def sample_theirs(nets, specs, images, types, **options):
  """Latents of diffusers' pipeline."""
  torch = pytest.importorskip('torch')
  diffusers = pytest.importorskip('diffusers')
  parsed = [control_specs.parse(spec) for spec in specs]
  names = list(dict.fromkeys(spec.path for spec in parsed))
  modules = [control_nets.in_diffusers(*nets[name][1:]) for name in names]
  union = bool(nets[names[0]][1].control_types)
  pipeline = getattr(diffusers, CLASSES[union]).from_pretrained(
    control_nets.TINY / 'base',
    controlnet=modules if len(modules) > 1 else modules[0],
  )
  pipeline.set_progress_bar_config(disable=True)
  tensors = [torch.from_numpy(nchw(x[None])) for x in images]
  # One net takes numbers; several, and a union net, take lists.
  fields = [[getattr(s, n) for s in parsed] for n in ('scale', 'start', 'end')]
  if len(modules) == 1 and not union:
    (tensors,), fields = tensors, [x for (x,) in fields]
  if union:
    options['control_mode'] = types
  image = {'control_image' if union else 'image': tensors}
  scale, start, end = fields
  latents = pipeline(
    prompt=PROMPTS,
    height=SIZE[0],
    width=SIZE[1],
    num_inference_steps=STEPS,
    latents=torch.from_numpy(nchw(noise())),
    controlnet_conditioning_scale=scale,
    control_guidance_start=start,
    control_guidance_end=end,
    output_type='latent',
    **image,
    **options,
  ).images
  return latents.detach().numpy()


def sample_ours(pipeline, images, **options):
  scheduler = {'sampler': 'euler'}
  return generation.generate(
    pipeline,
    PROMPTS,
    init_noise=noise(),
    control=images,
    steps=STEPS,
    **scheduler | options,
  )[1]


CASES = {
  'one': (['a:0.8'], [None], {}),
  'one from a quarter on': (['a:0.8:0.25:0.75'], [None], {}),
  'guess mode': (['b:0.7'], [None], {'guess_mode': True}),
  'no guidance': (
    ['b:1.0'],
    [None],
    {'guess_mode': True, 'guidance_scale': 1.0},
  ),
  'two': (['a:0.8:0:0.5', 'b:1.2'], [None, None], {}),
  'union': (['u:0.9:0:0.75'], [3], {}),
  'union of two images': (['u:0.9', 'u:0.4:0.5:1'], [3, 1], {}),
  # With guidance, diffusers' guess mode of a union net ends in an error.
  'union in guess mode': (
    ['u:0.9'],
    [0],
    {'guess_mode': True, 'guidance_scale': 1.0},
  ),
  'two unions': (['u:0.9', 'v:0.6'], [3, 5], {}),
}
QUICK = ('one',)


@pytest.mark.torch
@pytest.mark.filterwarnings('ignore:__array__ implementation')
@pytest.mark.parametrize(
  'name',
  [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in CASES],
)
def test_live_pipelines(nets, name, close, tolerances):
  specs, types, options = CASES[name]
  images = [picture(i) for i in range(len(specs))]
  guidance = {'guidance_scale': 5.0} | options
  expected = sample_theirs(nets, specs, images, types, **guidance)
  found = sample_ours(
    load(nets, specs),
    images,
    control_types=None if types[0] is None else types,
    **guidance,
  )
  limit = tolerances['pipeline_latents_each_step_and_final']
  assert limit <= 2e-4
  close(nchw(found), expected, limit)
  if name == 'two':  # the ControlNets matter
    plain = nchw(sample_ours(base(), None))
    assert np.abs(plain - expected).max() > 1e-2 * np.abs(expected).max()


@pytest.mark.slow
def test_an_image_depends_on_its_own_control(nets, close):
  """Not on its batch or on devices; with a text of two parts and all modes."""
  images = np.stack([picture(5), picture(6)])
  texts = ['a fox AND snow :0.5', 'a pig AND a :0.7']
  options = {
    'steps': STEPS,
    'sampler': 'euler',
    'guess_mode': True,
    'guidance_interval': (1.0, 8.0),
    'weighted_prompts': True,
    'control_types': [None, 2],
  }
  specs = [f'{nets["a"][0]}:0.8:0:0.5', f'{nets["u"][0]}:0.6']
  mesh = device_mesh.make_mesh(devices=jax.devices()[:2])
  shared, single = (
    dataclasses.replace(
      pipelines.load(control_nets.TINY / 'base', controlnets=specs, mesh=m),
      size=SIZE,
    )
    for m in (mesh, None)
  )
  _, both = generation.generate(
    shared, texts, init_noise=noise(), control=[images, images], **options
  )
  for i in range(2):
    _, alone = generation.generate(
      single,
      texts[i : i + 1],
      init_noise=noise()[i],
      control=[images[i], images[i]],
      **options,
    )
    close(both[i : i + 1], alone, 1e-4)
  assert np.abs(both[0] - both[1]).max() > 0.1


def test_inputs_that_do_not_fit(nets):
  """Before anything is compiled."""
  pipeline = load(nets, ['a', 'u'])
  assert pipeline.model.configs.keys() >= {'controlnet_1', 'controlnet_2'}
  good = [picture(1), picture(2)]
  for options, message in (
    ({}, 'ControlNets: 2, control images: 0'),
    ({'control': good[:1]}, 'ControlNets: 2, control images: 1'),
    ({'control': good}, 'is a union net: put the type'),
    (
      {'control': good, 'control_types': ['canny', 'canny']},
      'no union net, and has one type',
    ),
    (
      {'control': good, 'control_types': [None, 'tile']},
      "control type 'tile' is none of",
    ),
    (
      {'control': [good[0] * 255, good[1]], 'control_types': [None, 3]},
      r'control\[0\] has values from 0 to 25.*divide pixels',
    ),
  ):
    with pytest.raises(ValueError, match=message):
      generation.generate(pipeline, ['a'], **options)
  with pytest.raises(ValueError, match='guess_mode is set without'):
    generation.generate(base(), ['a'], guess_mode=True)
  with pytest.raises(ValueError, match='of another model: its channels'):
    config = control_nets.make_config(block_out_channels=(12, 24, 96))
    folder = nets['a'][0].with_name('wide')
    control_nets.write(folder, config, control_nets.random_params(config))
    pipelines.load(control_nets.TINY / 'base', controlnets=[str(folder)])
