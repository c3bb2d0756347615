"""What a run has learned, as a published model; and any other source as one."""

import dataclasses
import functools
import pathlib

import jax

from sdxl_jax import pipelines
from sdxl_jax.training import checkpoint
from sdxl_jax.training import task as tasks
from sdxl_jax.weights import config_json, published, recognise


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
  if pathlib.Path(path).is_dir() and not recognise.is_published(path):
    model = open_run(path, average)
  else:
    model = recognise.open_model(path, base)
    pipelines.check_published(path, average)
  return published.join(model, base) if base else model


def open_run(source, average='ema'):
  """The published.Model of a run: what it trained, and what it started from."""
  folder = checkpoint.find(source)
  config = pipelines.saved_config(folder)
  nets = tasks.make_nets(config)
  step = f'step {folder.name}, average {average}'
  mine = [n for n in published.COMPONENTS if n in nets.configs]
  mine = [n for n in mine if n in config.trained]
  openers = {
    n: functools.partial(open_trained, config, folder, nets, n, average)
    for n in mine
  }
  if config.task == 'autoencoder':
    kind = f'a run that trained an autoencoder, {step}'
    return published.Model(kind, folder, openers, None, {})
  if 'vae' not in nets.configs:
    config_json.write('vae', nets.vae)  # which says that no format has it
  index = published.ModelIndex(config.refiner, config.uncond == 'zeros')
  tokenizers = {}
  if config.init_from and set(index.components) - set(mine):
    start = open_source(config.init_from)
    tokenizers = start.tokenizers
    openers |= {
      n: functools.partial(open_frozen, start, nets, n)
      for n in index.components
      if n not in mine
    }
  return published.Model(
    kind=f'a run, {step}',
    path=folder,
    openers={n: openers[n] for n in index.components if n in openers},
    index=index,
    scheduler=pipelines.scheduler_of(nets),
    tokenizers=tokenizers,
  )


def open_trained(config, folder, nets, name, average):
  """The Net that a run trained."""

  def restore(target):
    # The tree is stacked as it was saved, whatever the target's form.
    ours = nets.replace(param_dtype=jax.tree.leaves(target)[0].dtype.name)
    return pipelines.load_nets(folder, ours, [name], None, average)[name]

  net = published.of_tree(name, nets.configs[name], restore)
  if name != 'unet':
    return net
  side = config.samples.size[0] // nets.vae.downscale
  told = net.published | {'sample_size': side}
  return dataclasses.replace(net, published=told)


def open_frozen(start, nets, name):
  """The Net that a run took from where it started."""
  net = start.net(name)
  theirs = net.config(**pipelines.fields_of(nets, name))
  pipelines.check_same(name, nets.configs[name], theirs, net.where)
  return net
