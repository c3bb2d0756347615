"""Sampling with ControlNets against live pipelines of diffusers."""

import dataclasses
import functools

import numpy as np
import pytest

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
  # One net takes numbers or, of a union net, a list for its images; several
  # take lists, of lists for union nets.
  fields = [[getattr(s, n) for s in parsed] for n in ('scale', 'start', 'end')]
  if len(modules) == 1 and not union:
    (tensors,), fields = tensors, [x for (x,) in fields]
  if union:
    options['control_mode'] = types
    if len(modules) > 1:
      tensors, options['control_mode'] = (
        [[x] for x in tensors],
        [[t] for t in types],
      )
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
  'union in guess mode': (['u:0.9'], [0], {'guess_mode': True}),
  'two unions': (['u:0.9', 'v:0.6'], [3, 5], {}),
}
QUICK = 'one', 'union of two images'


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
  plain = nchw(sample_ours(base(), None, **options | {'guess_mode': False}))
  assert np.abs(plain - expected).max() > 1e-2 * np.abs(expected).max()
