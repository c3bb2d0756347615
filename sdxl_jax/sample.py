"""Draw pictures: prompt > tokens > context > latents > image.

  python -m sdxl_jax.sample --weights DIR --prompt "..." --output out.png

DIR is a diffusers folder or the workdir of a training run.
"""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from sdxl_jax import command, pipelines
from sdxl_jax.data import images
from sdxl_jax.diffusion import denoiser, samplers, schedule, scheduler_config
from sdxl_jax.distributed import multihost


def generate(
  pipeline,
  prompts,
  *,
  negative_prompts=None,
  prompts_2=None,
  negative_prompts_2=None,
  size=None,
  seeds=None,
  steps=50,
  sampler='euler',
  guidance_scale=5.0,
  guidance_rescale=0.0,
  original_size=None,
  crop_top_left=(0, 0),
  target_size=None,
  negative_sizes=None,
  aesthetic_score=6.0,
  negative_aesthetic_score=2.5,
  clip_skip=0,
  refiner=None,
  refiner_start=0.8,
  init_noise=None,
):
  """Draws one picture per prompt.

  A picture depends on weights, prompt, seed and settings, not on its batch.

  Args:
    pipeline: pipelines.Pipeline.
    prompts: list of strings, one per picture.
    negative_prompts: list of strings, or None for no text at all.
    prompts_2, negative_prompts_2: what bigG reads instead, where given.
    size: (height, width) in px; the pipeline's own by default.
    seeds: list of ints, one per picture; 0, 1, ... by default.
    steps: sampler steps.
    sampler: name, see samplers.SAMPLERS.
    guidance_scale: 1 or less for no guidance, at half the cost.
    guidance_rescale: 0..1, see denoiser.rescale_guidance.
    original_size, crop_top_left, target_size: what the net is told, px; the
      sizes are `size` by default.
    negative_sizes: dict of the same three names for the unconditional branch;
      as the conditional by default.
    aesthetic_score, negative_aesthetic_score: what a refiner is told of both.
    clip_skip: text encoder blocks left out, see TextEncoder.encode.
    refiner: pipelines.Pipeline that takes over, without new noise.
    refiner_start: share of the noise levels after which it does.
    init_noise: N(0, 1) float32 [b, h/8, w/8, 4] in place of the seeds' own.

  Returns:
    (images, latents): float32 [b, h, w, 3] in [-1, 1], clipped, and float32
    [b, h/8, w/8, 4], numpy.

  Raises:
    ValueError: on sizes, counts or names that do not fit; it says which.
  """
  nets, count = pipeline.nets, len(prompts)
  size = check_size(size or pipeline.size, nets.vae.downscale)
  trained, spacing = scheduler_config.read(pipeline.scheduler, sampler)
  levels = schedule.make_levels(trained, spacing, sampler, steps)
  seeds = list(range(count)) if seeds is None else list(seeds)
  check_count('seeds', seeds, count)
  keys = jnp.stack([jax.random.key(seed) for seed in seeds])
  shape = latent_shape(nets, size, count)

  sizes = {
    'original_size': original_size or size,
    'crop_top_left': crop_top_left,
    'target_size': target_size or size,
    'aesthetic_score': aesthetic_score,
  }
  opposite = sizes | (negative_sizes or {})
  opposite['aesthetic_score'] = negative_aesthetic_score
  texts = dict(
    prompts=prompts,
    negative_prompts=negative_prompts,
    prompts_2=prompts_2,
    negative_prompts_2=negative_prompts_2,
    clip_skip=clip_skip,
  )
  guided = guidance_scale > 1
  x = levels.init_scale * initial_noise(init_noise, keys, shape)
  both = (pipeline, refiner) if refiner else (pipeline,)
  told = [condition(p, texts, sizes, opposite, guided) for p in both]
  for who, method, *span in turns(both, sampler, levels, refiner_start):
    x = denoise_latents(
      both[who].nets,
      {'unet': both[who].params['unet']},
      x,
      *told[who],
      levels,
      keys,
      span,
      guidance_scale,
      guidance_rescale,
      sampler=method,
      guided=guided,
    )
  latents = levels.final_scale * x
  # One by one: decoding takes more memory than all before.
  vae = {'vae': pipeline.params.get('vae', {})}
  decoded = [decode(nets, vae, latents[i : i + 1]) for i in range(count)]
  return (
    np.concatenate([multihost.fetch(image) for image in decoded]),
    multihost.fetch(latents),
  )


def turns(pipelines, sampler, levels, refiner_start):
  """[(which pipeline, sampler, first step, step after its last)] of a run."""
  steps = len(levels.timesteps)
  if len(pipelines) == 1:
    return [(0, sampler, 0, steps)]
  check_fit(*pipelines)
  cut = schedule.steps_until(levels, refiner_start)
  if sampler != 'heun' or not cut:
    return [(0, sampler, 0, cut), (1, sampler, cut, steps)]
  # The reference stops between Heun's two calls, after Euler's step, and its
  # refiner takes that step once more.
  first = (0, sampler, 0, cut - 1), (0, 'euler', cut - 1, cut)
  return [*first, (1, sampler, cut - 1, steps)]


def check_fit(base, refiner):
  """Raises ValueError where the second cannot go on from the first."""
  if base.nets.refiner or not refiner.nets.refiner:
    raise ValueError(
      'refiner must be a refiner, which has one text encoder, and the pipeline '
      'before it a base'
    )
  facts = [
    {name: getattr(p.nets.vae, name) for name in pipelines.LATENTS}
    | {'schedule': p.nets.schedule, 'channels': p.nets.unet.in_channels}
    for p in (base, refiner)
  ]
  for name, ours in facts[0].items():
    if ours != facts[1][name]:
      raise ValueError(
        f'base and refiner do not fit together: {name} is {ours} of the one '
        f'and {facts[1][name]} of the other'
      )


def condition(pipeline, texts, sizes, negative_sizes, guided):
  """Context and vector of all rows, those without prompt first if guided."""
  nets = pipeline.nets
  positive, negative = nets.text.encode_prompts(
    *(pipeline.params, pipeline.tokenize),
    force_zeros=pipeline.force_zeros,
    **texts,
  )
  branches = [(*positive, sizes)]
  if guided:
    branches.insert(0, (*negative, negative_sizes))
  rows = lambda value, count: jnp.tile(jnp.array(value), (count, 1))
  contexts, vectors = [], []
  for context, pooled, told in branches:
    told = {name: rows(told[name], len(pooled)) for name in told}
    told['aesthetic_score'] = told['aesthetic_score'][:, 0]
    contexts.append(context)
    vectors.append(nets.vector(pooled, told))
  return jnp.concatenate(contexts), jnp.concatenate(vectors)


@functools.partial(jax.jit, static_argnames=('nets', 'sampler', 'guided'))
def denoise_latents(
  nets,
  params,
  x,
  context,
  vector,
  levels,
  keys,
  span,
  guidance_scale,
  guidance_rescale,
  *,
  sampler,
  guided,
):
  """x at step span[0] to step span[1].

  Compiled once per shape, sampler and number of all steps.
  """
  net = nets.denoiser(params, context, vector)
  if guided:
    net = denoiser.guide(net, guidance_scale, guidance_rescale)
  denoise = denoiser.make_denoiser(net, levels)
  start, stop = span
  return samplers.sample(
    *(denoise, x, levels.sigmas, samplers.SAMPLERS[sampler]),
    keys=keys,
    start=start,
    stop=stop,
  )


@functools.partial(jax.jit, static_argnames='nets')
def decode(nets, params, latents):
  return jnp.clip(nets.decode(params, latents), -1, 1)


def latent_shape(nets, size, count):
  f = nets.vae.downscale
  return count, size[0] // f, size[1] // f, nets.unet.in_channels


def initial_noise(given, keys, shape):
  if given is None:
    return samplers.draw_noise(keys, 0, shape)
  if given.shape != shape:
    raise ValueError(
      f'init_noise has shape {given.shape}; this batch and size take {shape}, '
      'as [batch, height / 8, width / 8, channels]'
    )
  return jnp.asarray(given, jnp.float32)


def check_size(size, factor):
  """(height, width) as ints, or an error with the nearest that fit."""
  h, w = size
  if h < factor or w < factor or h % factor or w % factor:
    near = tuple(max(factor, round(s / factor) * factor) for s in size)
    raise ValueError(
      f'size {h} x {w} (height x width): both must be positive multiples of '
      f'{factor}; the nearest such size is {near[0]} x {near[1]}'
    )
  return int(h), int(w)


def check_count(name, values, count):
  if len(values) != count:
    raise ValueError(f'{len(values)} {name} for {count} prompts: give one each')


def define_flags():
  flags.DEFINE_string('weights', None, 'diffusers folder or workdir')
  flags.DEFINE_string('prompt', None, 'what to draw')
  flags.DEFINE_string('output', 'out.png', 'PNG to write')
  flags.DEFINE_string('negative_prompt', None, 'what not to draw')
  flags.DEFINE_integer('height', None, 'px; default: what the net was made for')
  flags.DEFINE_integer('width', None, 'px')
  flags.DEFINE_integer('steps', 50, 'sampler steps')
  flags.DEFINE_enum('sampler', 'euler', list(samplers.SAMPLERS), 'sampler')
  flags.DEFINE_float('guidance_scale', 5.0, '1 or less: no guidance')
  flags.DEFINE_float('guidance_rescale', 0.0, '0..1')
  flags.DEFINE_integer('seed', 0, 'of the first picture; the next has seed + 1')
  flags.DEFINE_integer('batch', 1, 'pictures to draw')
  for name in ('original_size', 'crop_top_left', 'target_size'):
    flags.DEFINE_list(name, None, 'H,W in px; what the net is told')
  flags.DEFINE_string('refiner', None, 'its diffusers folder or workdir')
  flags.DEFINE_float('refiner_start', 0.8, 'share of the way that base goes')
  flags.DEFINE_enum('dtype', 'float32', ['float32', 'bfloat16'], 'compute type')
  flags.DEFINE_string('average', 'ema', pipelines.AVERAGE_HELP)
  flags.DEFINE_string('init_noise', None, '.npy, N(0, 1) [b, h/8, w/8, 4]')
  flags.DEFINE_string('save_latents', None, '.npy to write the latents to')
  flags.mark_flags_as_required(['weights', 'prompt'])


def settings_of(args):
  """The flags as arguments of `generate`, apart from the size."""
  pair = lambda name: parse_pair(name, args[name].value)
  noise, count = args['init_noise'].value, args['batch'].value
  if count < 1:
    raise ValueError(f'batch is {count}; it must be at least 1')
  negative = args['negative_prompt'].value
  first = args['seed'].value
  return dict(
    prompts=[args['prompt'].value] * count,
    negative_prompts=None if negative is None else [negative] * count,
    seeds=range(first, first + count),
    steps=args['steps'].value,
    sampler=args['sampler'].value,
    guidance_scale=args['guidance_scale'].value,
    guidance_rescale=args['guidance_rescale'].value,
    original_size=pair('original_size'),
    crop_top_left=pair('crop_top_left') or (0, 0),
    target_size=pair('target_size'),
    init_noise=None if noise is None else np.load(noise),
  )


def parse_pair(name, value):
  if value is None:
    return None
  try:
    first, second = map(int, value)
  except ValueError:
    raise ValueError(
      f'--{name}={",".join(value)} must be two whole numbers in px, as '
      '1024,1024'
    ) from None
  return first, second


def write(output, pictures):
  """One PNG, or a grid and each picture by itself beside it."""
  path = pathlib.Path(output)
  if len(pictures) == 1:
    images.save(path, pictures[0])
    return
  images.save(path, images.grid(pictures, columns=int(len(pictures) ** 0.5)))
  for i, picture in enumerate(pictures):
    images.save(path.with_stem(f'{path.stem}-{i}'), picture)


def main(args):
  settings = settings_of(args)
  for path in filter(None, (args.output, args.save_latents)):
    pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
  print(f'loading {args.weights}', flush=True)
  pipeline = pipelines.load(args.weights, args.dtype, args.average)
  if args.refiner:
    print(f'loading {args.refiner}', flush=True)
    settings |= dict(
      refiner=pipelines.load(args.refiner, args.dtype, args.average),
      refiner_start=args.refiner_start,
    )
  height, width = pipeline.size
  size = (args.height or height, args.width or width)
  print(f'drawing {args.batch} x {args.prompt!r}', flush=True)
  pictures, latents = generate(pipeline, size=size, **settings)
  if args.save_latents:
    np.save(args.save_latents, latents)
  write(args.output, pictures)
  print(f'wrote {args.output}')


if __name__ == '__main__':
  define_flags()
  command.run(main)
