"""All that drawing needs, from a diffusers folder or the workdir of a run."""

import dataclasses
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import config_dict

from sdxl_jax import averages
from sdxl_jax.conditioning import text_encoder, tokenizer
from sdxl_jax.diffusion import noise_levels, scheduler_config
from sdxl_jax.distributed import multihost, sharding
from sdxl_jax.training import checkpoint, diffusion_task
from sdxl_jax.training import task as tasks
from sdxl_jax.weights import files, lora, lora_files, perceptual

# Fields of a net's config that do not belong to its architecture.
RUNTIME = ('dtype', 'param_dtype', 'attention', 'remat', 'scan_blocks')
LATENTS = ('scaling_factor', 'latents_mean', 'latents_std')


@dataclasses.dataclass(frozen=True)
class Pipeline:
  """All that drawing needs; see `load`."""

  nets: diffusion_task.Nets
  params: Any  # {'unet', 'vae', 'text_encoder', 'text_encoder_2'}
  tokenize: tokenizer.Tokenizer
  scheduler: dict  # as in scheduler_config.json
  force_zeros: bool  # no negative prompt means zeros, not an encoded ''
  size: tuple[int, int]  # (height, width) in px where none is given
  mesh: jax.sharding.Mesh | None = None  # whose devices share out a batch


def load(folder, dtype='float32', average='ema', mesh=None, loras=()):
  """The Pipeline of a diffusers folder or of a workdir.

  Args:
    folder: path of either, or of one checkpoint of a workdir.
    dtype: compute, 'float32' or 'bfloat16'; parameters are held in it too.
    average: which parameters of a workdir: 'ema'; 'none', the last ones; or the
      width of an EMA that is put together from snapshots, such as '0.05'.
    mesh: whose devices share out a batch; the default device without it.
    loras: LoRA files to merge in, each as 'FILE' or 'FILE:WEIGHT'.
  """
  folder = pathlib.Path(folder)
  if is_published(folder):
    check_published(folder, average)
    pipeline = load_published(folder, dtype, mesh)
  else:
    config = saved_config(folder)
    nets = tasks.make_nets(config).replace(dtype=dtype, param_dtype=dtype)
    params = load_nets(folder, nets, nets.configs, mesh, average)
    pipeline = make_pipeline(config, nets, params, mesh)
  if not loras:
    return pipeline
  params = lora_files.add(pipeline.params, loras)
  return dataclasses.replace(pipeline, params=params)


def is_published(folder):
  return (pathlib.Path(folder) / 'model_index.json').is_file()


def check_source(folder):
  """Raises FileNotFoundError for what is no source of weights."""
  if not is_published(folder):
    checkpoint.find(folder)


def check_published(folder, average):
  if average != 'ema':
    raise ValueError(
      f'average is {average!r}, but {folder} is a diffusers folder, which has '
      'no averages to choose from: leave it out, or give a workdir'
    )


def saved_config(folder):
  """The config of a workdir's latest, or of one, checkpoint."""
  saved = checkpoint.read_config(checkpoint.find(folder))
  return config_dict.ConfigDict(saved)


def load_published(folder, dtype, mesh):
  index, scheduler = (
    files.load_model_index(folder),
    files.load_scheduler(folder),
  )
  configs, params = {'text_encoder': None}, {}
  for name in index.components:
    configs[name], params[name] = files.load_component(
      folder, name, place=placer(name, mesh), dtype=dtype, param_dtype=dtype
    )
  towers = configs['text_encoder'], configs['text_encoder_2']
  trained, _ = scheduler_config.read(scheduler, 'euler')
  nets = diffusion_task.Nets(
    unet=configs['unet'],
    vae=configs['vae'],
    text=text_encoder.TextEncoder(*towers),
    schedule=trained,
    refiner=index.refiner,
  )
  tokenize = tokenizer.load(folder)
  side = files.load_sample_size(folder) * configs['vae'].downscale
  return Pipeline(
    nets, params, tokenize, scheduler, index.force_zeros, (side, side), mesh
  )


def placer(name, mesh):
  """place(path, array) of a net's parameters on a mesh, or one device."""
  if mesh is None:
    return lambda path, array: jnp.asarray(array)
  return lambda path, array: sharding.put('/'.join((name, *path)), array, mesh)


def with_latents(config, source):
  """The config, how its latents are scaled told by who has the autoencoder.

  Args:
    config: of a run; where its vae.scaling_factor is a number it stays.
    source: diffusers folder, workdir, checkpoint; '': the autoencoder is new.

  Raises:
    ValueError: where nothing tells the scale of latents that a UNet is to see.
  """
  if config.vae.kind != 'kl' or config.vae.scaling_factor is not None:
    return config
  if not source:
    if config.task == 'autoencoder':
      return config
    raise ValueError(
      'config.vae.scaling_factor is None, and no config.init_from tells it: '
      "give one of them; SDXL's is 0.13025"
    )
  if is_published(source):
    theirs = files.load_config(source, 'vae')
  else:
    theirs = tasks.make_nets(saved_config(source)).vae
  config = config.copy_and_resolve_references().unlock()
  config.vae.update({name: getattr(theirs, name) for name in LATENTS})
  return config.lock()


def load_nets(source, nets, names, mesh=None, average='ema'):
  """{name: params} of some of the nets, each array straight to its place.

  Args:
    source: diffusers folder; workdir of a run or one of its checkpoints, of
      which the EMA parameters are taken. What that run did not train comes from
      where it started.
    nets: diffusion_task.Nets.
    names: of the nets to load.
    mesh: where to; the default device without it.
    average: as `load` has it, of what that run trained.

  Raises:
    ValueError: where the source's nets are not ours, naming the fields.
    FileNotFoundError: for no such source, or one that lacks a net.
  """
  if not source:
    raise ValueError(
      f'config.init_from is empty, and {", ".join(names)} must come from '
      'somewhere: give a diffusers folder or a workdir'
    )
  if is_published(source):
    check_published(source, average)
    return {name: load_net(source, nets, name, mesh) for name in names}
  folder = checkpoint.find(source)
  config = saved_config(folder)
  theirs, params = tasks.make_nets(config), {}
  from_here = [name for name in names if name in config.trained]
  for name in from_here:
    fields = fields_of(nets, name)
    fields.pop('scan_blocks', None)  # arrays are stacked as they were saved
    compared = dataclasses.replace(theirs.configs[name], **fields)
    check_same(name, nets.configs[name], compared, folder)
  if from_here:
    task = tasks.make_task(config, theirs)
    found = averages.restore(folder, task, mesh, from_here, average)
    dtypes = {name: nets.configs[name].param_dtype for name in from_here}
    params = {name: cast(found[name], dtypes[name]) for name in from_here}
  elsewhere = [name for name in names if name not in config.trained]
  if elsewhere:
    params |= load_nets(config.init_from, nets, elsewhere, mesh)
  if 'lora' in config.trained:
    made = load_trained_lora(folder, config, mesh, average)
    params = lora.merge(params, [(made.of(params), 1.0)])
  return params


def load_trained_lora(folder, config, mesh=None, average='ema'):
  """The lora.Lora of one checkpoint of a run that trained low-rank factors."""
  nets = tasks.make_nets(config)
  task = tasks.make_task(config, nets)
  found = averages.restore(folder, task, mesh, ['lora'], average)['lora']
  return lora.from_training(jax.tree.map(multihost.fetch, found), nets.targets)


def save_lora(workdir, path, dialect='kohya', average='ema', dtype='float32'):
  """Writes the low-rank factors that a run has trained as a file.

  Args:
    workdir: of the run, or one of its checkpoints.
    path: of the safetensors file.
    dialect: whose names it has, see weights/lora_names.py. 'kohya' is read by
      ComfyUI, AUTOMATIC1111's web UI, kohya's scripts and diffusers.
    average: as `load` has it.
    dtype: stored, 'float32', 'float16' or 'bfloat16'.

  Raises:
    ValueError: for a run that trained no low-rank factors.
  """
  folder = checkpoint.find(workdir)
  config = saved_config(folder)
  if 'lora' not in config.trained:
    raise ValueError(
      f'{workdir} trained {tuple(config.trained)} and no low-rank factors, '
      "which a LoRA file holds: give the workdir of a run with 'lora' in "
      'config.trained'
    )
  made = load_trained_lora(folder, config, average=average)
  nets = tasks.make_nets(config)
  shapes = jax.eval_shape(nets.init, jax.random.key(0))
  kind = {'eps': 'epsilon', 'v': 'v'}.get(nets.schedule.prediction)
  metadata = {'modelspec.title': pathlib.Path(path).stem}
  metadata |= {'modelspec.prediction_type': kind} if kind else {}
  if nets.refiner:
    metadata['modelspec.architecture'] = 'stable-diffusion-xl-v1-refiner/lora'
  lora_files.save(path, made, shapes, dialect, dtype, metadata)


def cast(params, dtype):
  return jax.tree.map(lambda x: x.astype(dtype), params)


def load_net(folder, nets, name, mesh):
  ours = nets.configs[name]
  fields = fields_of(nets, name)
  check_same(name, ours, files.load_config(folder, name, **fields), folder)
  place = placer(name, mesh)
  return files.load_component(folder, name, place=place, **fields)[1]


def load_lpips(config, nets, mesh):
  """LPIPS's params from where a config says that they are."""
  place = placer('lpips', mesh)
  return perceptual.load_lpips(config.autoencoder.lpips, nets.lpips, place)


def fields_of(nets, name):
  """The fields of a net's config that do not belong to its architecture."""
  config = nets.configs[name]
  return {f: getattr(config, f) for f in RUNTIME if hasattr(config, f)}


def check_same(name, ours, theirs, folder):
  rows = [
    f'{f.name}: {getattr(ours, f.name)} here, {getattr(theirs, f.name)} there'
    for f in dataclasses.fields(ours)
    if getattr(ours, f.name) != getattr(theirs, f.name)
  ]
  if rows:
    raise ValueError(
      f'{folder} has another {name} than config.{name}:\n  '
      + '\n  '.join(rows)
      + '\nChange these fields of the config, or take other weights'
    )


def make_pipeline(config, nets, params, mesh=None):
  """The Pipeline of a training config's nets."""
  # Only 'trailing' visits the last timestep, where zero SNR is.
  spacing = 'trailing' if nets.schedule.zero_terminal_snr else 'leading'
  return Pipeline(
    nets=nets,
    params=params,
    tokenize=tokenizer.load(origin(config.init_from)),
    scheduler=scheduler_config.write(
      nets.schedule, noise_levels.Spacing(spacing)
    ),
    force_zeros=config.uncond == 'zeros',
    size=tuple(config.samples.size),
    mesh=mesh,
  )


def origin(source):
  """The diffusers folder that a chain of runs started from, or None."""
  while source and not is_published(source):
    source = saved_config(source).init_from
  return source or None
