"""Whole images: recorded runs of diffusers, and options of generate."""

import dataclasses
import json
import pathlib

import jax
import numpy as np
import pytest

from sdxl_jax.diffusion import samplers
from sdxl_jax.distributed import batch_padding, device_mesh
from sdxl_jax.models import text_encoder
from sdxl_jax.sampling import (
  denoising_loop,
  generation,
  pipelines,
  prompt_encoding,
  prompt_plan,
  settings,
  vae_batches,
  validation,
)
from sdxl_jax.sampling.noise_streams import NoiseStream
from tests.support import golden_sets, schedulers

RUNS = {
  (folder, name): run
  for folder in golden_sets.SETS
  for name, run in json.loads(
    (folder / 'pipeline' / 'index.json').read_text()
  ).items()
}


# One of each kind.
QUICK = {
  't2i_euler_g8_r07_micro',
  't2i_ddim_eta05',
  'img2img_base_s05_batch',
  'inpaint_euler_s60',
  'handoff_euler_batch',
}


def cases(*kinds):
  """Parametrizes by recorded runs whose names begin with one of `kinds`.

  Each run compiles programs of its own, so that all but QUICK are slow.
  """
  params = []
  for folder, name in RUNS:
    if name.startswith(kinds):
      marks = () if name in QUICK else pytest.mark.slow
      case = pytest.param(
        (folder, name), id=f'{folder.name}-{name}', marks=marks
      )
      params.append(case)
  return pytest.mark.parametrize('case', params)


@pytest.fixture(scope='module')
def loaded():
  return {f: pipelines.load(f / 'tiny' / 'base') for f in golden_sets.SETS}


@pytest.fixture(scope='module')
def refiners():
  return {f: pipelines.load(f / 'tiny' / 'refiner') for f in golden_sets.SETS}


def arguments(call):
  """Arguments of the diffusers call as ours."""
  kwargs = dict(call['kwargs'])
  each = kwargs.get('num_images_per_prompt', 1)

  def listed(value):
    if value is None:
      return None
    value = value if isinstance(value, list) else [value]
    return [v for v in value for _ in range(each)]

  negative = {
    ours: kwargs.get(f'negative_{theirs}')
    for ours, theirs in (
      ('original_size', 'original_size'),
      ('crop_top_left', 'crops_coords_top_left'),
      ('target_size', 'target_size'),
    )
  }
  return dict(
    prompts=listed(kwargs['prompt']),
    negative_prompts=listed(kwargs.get('negative_prompt')),
    prompts_2=listed(kwargs.get('prompt_2')),
    negative_prompts_2=listed(kwargs.get('negative_prompt_2')),
    size=call['hw'],
    steps=call['steps'],
    guidance_scale=call['gs'],
    guidance_rescale=call['gr'],
    original_size=kwargs.get('original_size'),
    crop_top_left=kwargs.get('crops_coords_top_left', (0, 0)),
    target_size=kwargs.get('target_size'),
    negative_sizes={k: v for k, v in negative.items() if v is not None},
    clip_skip=kwargs.get('clip_skip') or 0,
  )


def nhwc(x):
  return np.moveaxis(x, -3, -1)


def check_sampled(sampled, arrays, close, tolerances, name):
  images, latents = sampled
  limit = tolerances['pipeline_latents_each_step_and_final']
  close(latents, nhwc(arrays['final_latents']), limit, name)
  u8 = np.rint((images + 1) * 127.5)
  difference = np.abs(u8 - arrays['image_u8']).max()
  assert difference <= tolerances['pipeline_image_u8_max_diff']


@cases('t2i_')
def test_recorded_run(case, loaded, close, tolerances, monkeypatch):
  run, (folder, name) = RUNS[case], case
  arrays = np.load(folder / 'pipeline' / f'{name}.npz')
  noise = [nhwc(arrays[k]) for k in sorted(arrays.files) if 'noise/' in k]
  if noise:
    replay = samplers.run_steps

    def recorded(*args, keys, **kwargs):
      del keys
      return replay(*args, noise=np.stack(noise), **kwargs)

    monkeypatch.setattr(samplers, 'run_steps', recorded)
    denoising_loop.take_steps.clear_cache()  # it holds the real sampler
  sampled = generation.generate(
    dataclasses.replace(loaded[folder], scheduler=run['scheduler']),
    **arguments(run['call']),
    sampler=schedulers.sampler_of(run['scheduler']),
    eta=run['call']['kwargs'].get('eta'),
    init_noise=nhwc(arrays['init_latents']),
  )
  if noise:
    denoising_loop.take_steps.clear_cache()  # it holds the recorded noise
  check_sampled(sampled, arrays, close, tolerances, name)


def sampled_cells(mask):
  """The mask [b, h, w] as diffusers reads it: the corner of each 8 x 8 px.

  Ours repaints a cell if any of its pixels is to be, so where the recorded
  masks end within a cell, only this gives the same cells.
  """
  return mask[:, ::8, ::8].repeat(8, 1).repeat(8, 2)


@cases('img2img_', 'inpaint_')
def test_recorded_start_from_a_picture(
  case, loaded, refiners, close, tolerances, monkeypatch
):
  """The reference draws for the encoding first, then the noise laid on it."""
  run, (folder, name) = RUNS[case], case
  arrays = np.load(folder / 'pipeline' / f'{name}.npz')
  call = run['call']
  pipelines = refiners if call['pipe'] == 'refiner' else loaded
  posterior = nhwc(arrays['noise/00'])
  rows = [row[None] for row in posterior]  # encoded one by one

  def recorded(keys, number, shape):
    is_encoding = (
      isinstance(number, int) and number == NoiseStream.IMAGE_ENCODING
    )
    return rows.pop(0) if is_encoding else np.zeros(shape, np.float32)

  monkeypatch.setattr(samplers, 'draw_noise', recorded)
  monkeypatch.setattr(vae_batches, 'encode', vae_batches.encode.__wrapped__)
  sampled = generation.generate(
    dataclasses.replace(pipelines[folder], scheduler=run['scheduler']),
    **arguments(call),
    sampler=schedulers.sampler_of(run['scheduler']),
    image=2 * nhwc(arrays['image']) - 1,
    mask=sampled_cells(arrays['mask'][:, 0]) if 'mask' in arrays else None,
    strength=call['kwargs']['strength'],
    init_noise=nhwc(arrays['noise/01']),
  )
  check_sampled(sampled, arrays, close, tolerances, name)


@cases('handoff_')
def test_recorded_handover(case, loaded, refiners, close, tolerances):
  """Base to refiner, without new noise."""
  run, (folder, name) = RUNS[case], case
  arrays = np.load(folder / 'pipeline' / f'{name}.npz')
  call, told = run['call'], run['call']['refiner_kwargs'] or {}
  config = run['base/scheduler']
  sampled = generation.generate(
    dataclasses.replace(loaded[folder], scheduler=config),
    **arguments(call),
    sampler=schedulers.sampler_of(config),
    init_noise=nhwc(arrays['init_latents']),
    refiner=refiners[folder],
    refiner_start=call['cut'],
    aesthetic_score=told.get('aesthetic_score', 6.0),
    negative_aesthetic_score=told.get('negative_aesthetic_score', 2.5),
  )
  check_sampled(sampled, arrays, close, tolerances, name)


def test_a_refiner_that_does_not_fit(loaded, refiners):
  base, refiner = loaded[golden_sets.SETS[0]], refiners[golden_sets.SETS[0]]

  def sample(base, refiner, **options):
    return generation.generate(
      base, ['a'], size=(64, 64), steps=2, refiner=refiner, **options
    )

  with pytest.raises(ValueError, match='refiner must be a refiner model'):
    sample(base, base)
  with pytest.raises(ValueError, match='refiner_start is 1.5; it must be from'):
    sample(base, refiner, refiner_start=1.5)
  vae = dataclasses.replace(base.model.vae, scaling_factor=1.0)
  model = dataclasses.replace(base.model, vae=vae)
  with pytest.raises(ValueError, match='scaling_factor of the base is 1.0'):
    sample(dataclasses.replace(base, model=model), refiner)


def test_bad_size_names_the_nearest(loaded):
  pipeline = next(iter(loaded.values()))
  with pytest.raises(ValueError, match='nearest such size is 64 x 96'):
    generation.generate(pipeline, ['a'], size=(60, 100), steps=1)


def test_folder_without_weights(tmp_path):
  with pytest.raises(FileNotFoundError, match='is no diffusers folder, no sin'):
    pipelines.load(pathlib.Path(tmp_path))


SMALL = dict(size=(64, 64), steps=4)


@pytest.fixture
def base(loaded):
  return loaded[golden_sets.SETS[0]]


@pytest.fixture
def refiner(refiners):
  return refiners[golden_sets.SETS[0]]


@pytest.fixture
def image():
  return np.random.default_rng(0).uniform(-1, 1, (64, 64, 3)).astype(np.float32)


def test_one_program_for_all_prompts_seeds_scales_and_strengths(base, image):
  jitted = (
    denoising_loop.take_steps,
    denoising_loop.precompute_context,
    prompt_encoding.vector,
    vae_batches.encode,
    vae_batches.decode,
  )
  counts = []
  for i in range(10):
    generation.generate(
      base,
      [f'picture {i}', 'another ' * i],
      negative_prompts=['', 'bad ' * i],
      seeds=[i, 100 - i],
      guidance_scale=2 + i if i % 2 else 2.5 + i,
      guidance_rescale=i / 10,
      crop_top_left=(i, 2 * i),
      sampler='ddim',
      eta=i / 10,
      spacing=('leading', 'trailing')[i % 2],
      image=image,
      strength=0.25 + i / 20,
      **SMALL,
    )
    counts.append([f._cache_size() for f in jitted])
  assert counts[0] == counts[-1], counts


def test_a_picture_is_the_same_in_any_batch_and_on_any_devices(base):
  """To the last bit of float32 sums: XLA orders them by the shape."""
  folder = golden_sets.SETS[0] / 'tiny' / 'base'
  mesh = device_mesh.make_mesh()
  assert mesh.size == 4
  spread = pipelines.load(folder, mesh=mesh)
  chosen = dict(sampler='dpmpp_2m_sde', **SMALL)
  prompts = [f'picture {i}' for i in range(8)]
  _, alone = generation.generate(base, prompts[5:6], seeds=[5], **chosen)
  _, together = generation.generate(base, prompts, **chosen)
  _, shared = generation.generate(spread, prompts, **chosen)
  _, few = generation.generate(spread, prompts[3:6], seeds=[3, 4, 5], **chosen)
  scale = np.abs(alone).max()
  for other in (together[5:6], shared[5:6], few[2:3]):
    assert np.abs(other - alone).max() < 2e-6 * scale
  assert np.abs(together[4] - alone[0]).max() > 0.1 * scale


def test_a_batch_is_shared_out_and_never_gathered(base):
  """Each device computes its own rows, and none asks for another's."""
  folder = golden_sets.SETS[0] / 'tiny' / 'base'
  spread = pipelines.load(folder, mesh=device_mesh.make_mesh())
  seen = {}

  def watched(name):
    whole = getattr(denoising_loop, name)

    def call(*args, **kwargs):
      seen.setdefault(name, whole.lower(*args, **kwargs).compile().as_text())
      return whole(*args, **kwargs)

    return call

  with pytest.MonkeyPatch.context() as patch:
    for name in ('take_steps', 'precompute_context'):
      patch.setattr(denoising_loop, name, watched(name))
    generation.generate(spread, ['a'] * 4, **SMALL)
  for name, text in seen.items():
    for collective in ('all-gather', 'all-reduce', 'all-to-all', 'permute('):
      assert collective not in text, f'{name}: {collective}'
  # Keys and values of the words are computed once, and not at every step.
  steps, context = seen['take_steps'], seen['precompute_context']
  assert 'attn2/to_k' in context and 'attn2/to_q' in steps
  assert 'attn2/to_k' not in steps
  assert 'attn2/to_q' not in context


@pytest.mark.slow
def test_previews_lead_to_the_picture(base, refiner):
  seen = []

  def watch(done, total, preview):
    seen.append((done, total, preview()))

  images, _ = generation.generate(
    base, ['a', 'b'], refiner=refiner, watch=watch, size=(64, 64), steps=10
  )
  assert [s[:2] for s in seen] == [(i + 1, 10) for i in range(10)]
  assert {s[2].shape for s in seen} == {(2, 64, 64, 3)}
  away = [np.abs(s[2] - images).mean() for s in seen]
  assert away[0] > 3 * away[-1]
  assert away[-1] < 1e-5  # the last step ends at what the net sees


@pytest.mark.slow
@pytest.mark.parametrize('sampler', ['lms', 'unipc', 'dpmpp_2m', 'heun'])
def test_watching_changes_nothing(base, sampler):
  chosen = dict(sampler=sampler, size=(64, 64), steps=6)
  _, unseen = generation.generate(base, ['a'], **chosen)
  _, seen = generation.generate(
    base, ['a'], watch=lambda *args: None, watch_every=2, **chosen
  )
  assert (seen == unseen).all()


def test_inpainting_keeps_what_is_not_under_the_mask(base, image):
  mask = np.zeros((64, 64))
  mask[:, 32:] = 1
  latents = np.random.default_rng(1).normal(size=(8, 8, 4)).astype(np.float32)
  for strength in (0.5, 1.0):
    _, found = generation.generate(
      base, ['a'], latents=latents, mask=mask, strength=strength, **SMALL
    )
    assert np.abs(found[0, :, :4] - latents[:, :4]).max() < 1e-6
    assert np.abs(found[0, :, 4:] - latents[:, 4:]).max() > 0.1


def test_tiles_give_the_same_picture(base):
  chosen = dict(size=(128, 192), steps=2)
  whole, _ = generation.generate(base, ['a'], **chosen)
  tiled, _ = generation.generate(base, ['a'], tile=64, **chosen)
  assert np.abs(tiled - whole).max() < 1e-4
  with pytest.raises(ValueError, match='tile is 7 px'):
    generation.generate(base, ['a'], tile=7, **chosen)


@pytest.mark.slow
def test_a_refiner_goes_over_a_picture_with_new_noise(base, refiner):
  both = dict(size=(64, 64), steps=10)
  _, plain = generation.generate(base, ['a'], **both)
  _, gone_over = generation.generate(
    base, ['a'], refiner=refiner, refiner_strength=0.3, **both
  )
  by_hand = generation.generate(
    refiner,
    ['a'],
    latents=plain,
    strength=0.3,
    init_noise=np.asarray(
      samplers.draw_noise(
        jax.random.key(0)[None], NoiseStream.REFINER_NOISE, plain.shape
      )
    ),
    **both,
  )[1]
  # Not the noise that the base began with, nor any of its steps'.
  assert NoiseStream.REFINER_NOISE not in range(1001)
  assert np.abs(gone_over - by_hand).max() < 1e-5 * np.abs(by_hand).max()


@pytest.mark.slow
def test_weighted_and_long_prompts_reach_the_net(base):
  def sample(prompt, **options):
    return generation.generate(base, [prompt], **SMALL, **options)[1]

  plain = sample('a red fox')
  assert (sample('a red fox', weighted_prompts=True) == plain).all()
  assert np.abs(sample('a (red:1.5) fox', weighted_prompts=True) - plain).max()
  words = 'a red fox ' * 40
  with pytest.warns(match='longer than 77 tokens'):
    cut = sample(words)
  assert np.abs(sample(words, long_prompts=True) - cut).max() > 1e-3


def test_prompts_of_several_lengths_are_refused(base):
  with pytest.raises(ValueError, match='some prompts take 1 and some 2 chunks'):
    generation.generate(base, ['a', 'fox ' * 76], long_prompts=True, **SMALL)


@pytest.mark.parametrize('scale, calls', [(1.0, 1), (5.0, 2)])
def test_text_that_nothing_reads_is_not_encoded(
  base, scale, calls, monkeypatch
):
  seen, encode = [], text_encoder.TextEncoder.encode_chunks
  monkeypatch.setattr(
    text_encoder.TextEncoder,
    'encode_chunks',
    lambda *args: seen.append(args) or encode(*args),
  )
  chosen = settings.SampleSettings(guidance_scale=scale, long_prompts=True)
  texts = prompt_plan.Prompts(['a'], ['fox ' * 76])
  ((_, (context, vector)),) = prompt_encoding.make_conditioning(
    base,
    batch_padding.Rows(None, 1),
    prompt_plan.make_plan(texts, chosen, 1),
    settings.micro_conditions(chosen, (64, 64)),
    chosen,
  )
  assert len(seen) == calls == len(context) == len(vector)
  assert context.shape[1] == 77 * calls  # nor do its chunks lengthen the other


@pytest.mark.parametrize(
  'change, message',
  [
    (dict(strength=0.0), 'strength 0.0 takes none of 4 steps'),
    (dict(strength=0.2), 'pass at least 0.25, or more steps'),
    (dict(strength=1.1), 'strength is 1.1; it must be from 0 to 1'),
    (dict(mask=np.ones((64, 32))), r'mask has shape \(64, 32\)'),
    (dict(image=np.zeros((64, 64, 4))), r'image has shape \(64, 64, 4\)'),
    (dict(image=None), 'mask is given without an image'),
    (dict(latents=np.zeros((8, 8, 4))), 'image and latents are both given'),
    (dict(image=None, mask=None, strength=0.5), 'strength is given without'),
    (dict(size=(64, 128)), r'image has shape .* take \(64, 128, 3\)'),
    (dict(size=(0, 64)), 'size 0 x 64 .* must be positive multiples of 8'),
    (dict(height=0), 'size 0 x 64 .* must be positive multiples of 8'),
    (dict(seeds=[1, 2]), '2 seeds for 1 prompts'),
    *(
      ({name: ['b', 'c']}, f'2 {name} for 1 prompts: pass one each')
      for name in ('negative_prompts', 'prompts_2', 'negative_prompts_2')
    ),
    (
      dict(prompts_2=['a AND b'] * 2, weighted_prompts=True),
      '2 prompts_2 for 1 prompts',
    ),
    (dict(sampler='plms'), "sampler is 'plms'; choose one of"),
    (dict(eta=0.5), 'eta is 0.5, but euler has none'),
    (dict(seeds=5), 'seeds is 5; pass a list'),
    (dict(size=(64,)), r'size is \(64,\); pass \(height, width\)'),
    (dict(steps=0), 'steps is 0; the limit of euler is 1 to 1000'),
    (dict(spacing='even'), "spacing is 'even'; choose one of"),
  ],
)
def test_what_does_not_fit(base, image, change, message):
  chosen = dict(image=image, mask=np.ones((64, 64)), steps=4) | change
  with pytest.raises(ValueError, match=message):
    generation.generate(base, ['a'], **chosen)


@pytest.mark.parametrize('prompts', ['a fox', []])
def test_prompts_are_a_list(base, prompts):
  with pytest.raises(ValueError, match='pass a list with one string'):
    generation.generate(base, prompts)


@pytest.mark.parametrize(
  'texts, message',
  [
    ({'negative_prompts': 'bad'}, "is 'bad'; pass a list with one string"),
    ({'negative_prompts': [None]}, r'negative_prompts\[0\] is None; pass'),
    ({'prompts_2': [3]}, r'prompts_2\[0\] is 3; pass a string'),
    ({'prompts_2': ['a \ud83d']}, r'half a character, .* as character 3'),
  ],
)
def test_texts_are_strings(base, texts, message):
  with pytest.raises(ValueError, match=message):
    generation.generate(base, ['a'], **texts)


def test_one_step(base):
  images, _ = generation.generate(base, ['a'], size=(64, 64), steps=1)
  assert np.isfinite(images).all()


@pytest.mark.filterwarnings(
  'error::sdxl_jax.sampling.validation.UntrainedSizeWarning'
)
def test_sizes_that_sdxl_was_not_trained_on(base):
  full = dataclasses.replace(base, size=(1024, 1024))
  with pytest.warns(
    validation.UntrainedSizeWarning, match='1024 x 520 is none that SDXL'
  ):
    validation.check_size((1024, 520), full)
  for size in ((1024, 1024), (512, 2048), (1728, 576), (768, 1344)):
    validation.check_size(size, full)
  validation.check_size((512, 512), dataclasses.replace(full, size=(512, 512)))
  validation.check_size((64, 96), base)  # too small for the rule


@pytest.mark.filterwarnings(
  'error::sdxl_jax.sampling.validation.UntrainedSizeWarning'
)
def test_sizes_that_a_run_was_not_trained_on(base):
  buckets = (512, 512), (384, 640), (64, 48)
  ours = dataclasses.replace(base, size=(512, 512), buckets=buckets)
  for size in buckets:
    assert validation.check_size(size, ours) == size
  for size, near in (((512, 704), '384 x 640'), ((1024, 960), '512 x 512')):
    with pytest.warns(
      validation.UntrainedSizeWarning, match=f'the nearest .* {near}'
    ):
      validation.check_size(size, ours)


@pytest.mark.slow
def test_prompts_that_change_reach_the_net(base):
  def sample(*prompts, **options):
    options = SMALL | {'weighted_prompts': True, 'seeds': [0]} | options
    return generation.generate(base, prompts, **options)[1]

  plain, other = sample('a fox'), sample('a blue pig')
  close_to = dict(rtol=0, atol=1e-5 * np.abs(plain).max())
  # A switch behind the last step, or before the first one, is none.
  np.testing.assert_array_equal(sample('[a fox:a blue pig:99]'), plain)
  np.testing.assert_array_equal(sample('a [fox:blue pig:0]'), other)
  edited = sample('a [fox:blue pig:0.5]')
  assert np.abs(edited - plain).max() > 1e-3
  assert np.abs(edited - other).max() > 1e-3
  # The second half by hand: euler's steps keep no history.
  steps, states = SMALL['steps'], []
  take_steps = denoising_loop.take_steps
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(
      denoising_loop,
      'take_steps',
      lambda model, params, state, inputs, start, stop, **options: (
        states.append((int(start), int(stop), inputs))
        or take_steps(model, params, state, inputs, start, stop, **options)
      ),
    )
    sample('a fox'), sample('a blue pig'), sample('a [fox:blue pig:0.5]')
  (_, _, fox), (_, _, pig), (_, half, first), (begin, end, second) = states
  assert (half, begin, end) == (steps // 2, steps // 2, steps)
  for found, expected in ((first, fox), (second, pig)):
    jax.tree.map(
      np.testing.assert_array_equal,
      found.conditioning.context,
      expected.conditioning.context,
    )
  # Guidance towards one prompt by parts.
  halves = sample('a fox :0.5 AND a fox :0.5')
  np.testing.assert_allclose(halves, plain, **close_to)
  alone = sample('a fox AND a blue pig :0')
  np.testing.assert_allclose(alone, plain, **close_to)
  both = sample('a fox AND a blue pig')
  assert np.abs(both - plain).max() > 1e-3
  # No image depends on another one of its batch.
  together = sample('a fox AND x :0', '[a|b] AND c', seeds=[0, 1])
  np.testing.assert_allclose(together[:1], plain, **close_to)
  with pytest.raises(ValueError, match='AND combines prompts by'):
    sample('a AND b', guidance_scale=1.0)
