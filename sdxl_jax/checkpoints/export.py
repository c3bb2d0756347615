"""What a run has learned, as a published model; and any other source as one."""

import dataclasses
import functools
import pathlib

import jax

from sdxl_jax.checkpoints import loading, orbax_checkpoint
from sdxl_jax.models import clip, from_config, lora, unet
from sdxl_jax.weights import formats, pretrained
from sdxl_jax.weights.diffusers import config_json, scheduler_config
from sdxl_jax.weights.lora import lora_file


def open_source(path, base=None, average='ema'):
  """The published.Model at a path, of whose weights nothing is read.

  Args:
    path: published weights in any format, a workdir or one of its checkpoints.
    base: another one, for the nets that are not at the path.
    average: which parameters of a workdir, see pipelines.load.

  Raises:
    ValueError: for what is broken, or does not fit the base.
    FileNotFoundError: where nothing is that we know.
  """
  base = open_source(base) if base else None
  if pathlib.Path(path).is_dir() and not formats.is_published(path):
    model = open_run(path, average)
  else:
    model = formats.open_model(path, base)
    loading.check_published(path, average)
  return pretrained.join(model, base) if base else model


def open_run(source, average='ema'):
  """The published.Model of a run: what it trained, and what it started from."""
  folder = orbax_checkpoint.find(source)
  config = loading.saved_config(folder)
  nets = from_config.make_model(config)
  step = f'step {folder.name}, average {average}'
  changed = set(config.trained)
  if 'lora' in changed:  # low-rank factors go into their nets
    changed |= set(lora.NETS)
  mine = [n for n in pretrained.COMPONENTS if n in nets.configs]
  mine = [n for n in mine if n in changed]
  loaders = {
    n: functools.partial(open_trained, config, folder, nets, n, average)
    for n in mine
  }
  if config.task == 'autoencoder':
    kind = f'a run that trained an autoencoder, {step}'
    return pretrained.Model(kind, folder, loaders, None, {})
  if 'vae' not in nets.configs:
    config_json.write('vae', nets.vae)  # which says that no format has it
  index = pretrained.ModelIndex(config.refiner, config.uncond == 'zeros')
  tokenizers = {}
  if config.init_from and set(index.components) - set(mine):
    start = open_source(config.init_from)
    tokenizers = start.tokenizers
    loaders |= {
      n: functools.partial(open_frozen, start, nets, n)
      for n in index.components
      if n not in mine
    }
  return pretrained.Model(
    kind=f'a run, {step}',
    path=folder,
    loaders={n: loaders[n] for n in index.components if n in loaders},
    index=index,
    scheduler=scheduler_config.for_run(nets.schedule),
    tokenizers=tokenizers,
  )


def open_trained(config, folder, nets, name, average):
  """The Net that a run trained."""

  def restore(target):
    # The tree is stacked as it was saved, whatever the target's form.
    ours = nets.replace(param_dtype=jax.tree.leaves(target)[0].dtype.name)
    return loading.load_params(folder, ours, [name], None, average)[name]

  net = pretrained.from_params(name, nets.configs[name], restore)
  if name != 'unet':
    return net
  side = config.samples.size[0] // nets.vae.downscale
  told = net.published | {'sample_size': side}
  return dataclasses.replace(net, published=told)


def open_frozen(start, nets, name):
  """The Net that a run took from where it started."""
  net = start.net(name)
  theirs = net.config(**loading.runtime_fields(nets, name))
  loading.check_same(name, nets.configs[name], theirs, net.location)
  return net


def open_lora(path, base=None, average='ema'):
  """(lora.Lora, {net: shapes} of its base model) at a path.

  Args:
    path: LoRA file, or its folder; or a workdir that trained low-rank factors.
    base: source of the model that a file is for; None: SDXL.
    average: which of a workdir's.

  Raises:
    ValueError: for a file that is broken or of another base model, or a run
      that trained no low-rank factors.
  """
  if is_lora(path):
    shapes = shapes_of(base)
    return lora_file.load(path, shapes), shapes
  folder = orbax_checkpoint.find(path)
  config = loading.saved_config(folder)
  if 'lora' not in config.trained:
    raise ValueError(
      f'{path} trained {tuple(config.trained)} and no low-rank factors, which '
      "a LoRA file holds: give the workdir of a run with 'lora' in "
      'config.trained'
    )
  nets = from_config.make_model(config)
  shapes = jax.eval_shape(nets.init, jax.random.key(0))
  made = loading.load_trained_lora(folder, config, average=average)
  return dataclasses.replace(made, metadata=spec_of(nets)), shapes


def is_lora(path):
  """Whether a path holds a LoRA file, and no workdir."""
  try:
    return bool(lora_file.find(path))
  except FileNotFoundError:
    return False


def spec_of(nets):
  """What a LoRA's metadata tell of the nets that it was trained beside."""
  kind = {'eps': 'epsilon', 'v': 'v'}.get(nets.schedule.prediction)
  told = {'modelspec.prediction_type': kind} if kind else {}
  if nets.refiner:
    told['modelspec.architecture'] = 'stable-diffusion-xl-v1-refiner/lora'
  return told


def shapes_of(base):
  """{net: shapes} of the nets of a source that a LoRA may change."""
  configs = {
    'unet': unet.BASE,
    'text_encoder': clip.VIT_L,
    'text_encoder_2': clip.VIT_BIGG,
  }
  if base:
    model = open_source(base)
    names = [n for n in lora.NETS if n in model.loaders]
    configs = {name: model.net(name).config() for name in names}
  return {n: pretrained.abstract_params(c) for n, c in configs.items()}
