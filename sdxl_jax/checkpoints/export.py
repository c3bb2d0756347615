"""Opens any source of weights, also a run, as a pretrained model to export."""

import dataclasses
import functools
import pathlib
from collections.abc import Collection

import jax
from ml_collections import config_dict

from sdxl_jax.checkpoints import (
  loading,
  orbax_checkpoint,
  quantized_nets,
  run_sources,
  source_checks,
  source_configs,
)
from sdxl_jax.models import from_config, lora, sdxl
from sdxl_jax.weights import (
  formats,
  other_vae,
  pretrained,
  read_options,
)
from sdxl_jax.weights.diffusers import config_json, scheduler_config

Source = str | pathlib.Path


def open_source(
  path: Source,
  base: Source | None = None,
  average: str = 'ema',
  options: read_options.ReadOptions = read_options.DEFAULT,
) -> pretrained.Model:
  """Opens the weights at a path lazily.

  Args:
    path: pretrained weights in any format, a workdir or one of its checkpoints.
    base: source of the nets that the path lacks.
    average: which parameters of a workdir, see run_params.restore.
    options: what the user decided; the prediction is that of the path.

  Raises:
    ValueError: if the weights are broken, or do not match the base.
    FileNotFoundError: if the path holds no known format.
  """
  if base:
    base = open_source(base, options=formats.for_other(base, options))
  # A folder of no known format can only be a workdir.
  if pathlib.Path(path).is_dir() and not formats.is_published(path):
    source_checks.check_run(path, options)
    model = open_run(path, average, options)
    notes = (*model.notes, *words_left_out(source_configs.saved_config(path)))
    model = dataclasses.replace(model, notes=notes)
  else:
    model = formats.open_model(path, base, options)
    source_configs.check_published(path, average)
  if not base:
    return model
  model = pretrained.join(model, base)
  # Of a part alone, what its UNet predicts may not be known.
  return dataclasses.replace(model, scheduler=options.schedule(model.scheduler))


def open_run(
  source: Source,
  average: str = 'ema',
  options: read_options.ReadOptions = read_options.DEFAULT,
) -> pretrained.Model:
  """Opens a run: the nets that it trained, and those that it started from."""
  folder = orbax_checkpoint.find(source)
  config = source_configs.saved_config(folder)
  nets = quantized_nets.unquantized(from_config.make_model(config))
  changed = set(config.trained)
  if 'lora' in changed:  # factors are merged into their nets
    changed |= set(lora.NETS)
  trained = [
    n for n in pretrained.COMPONENTS if n in nets.configs and n in changed
  ]
  loaders = {
    n: functools.partial(open_trained, config, folder, nets, n, average)
    for n in trained
  }
  step = f'step {folder.name}, average {average}'
  if config.task == 'autoencoder':
    kind = f'a run that trained an autoencoder, {step}'
    return pretrained.Model(kind, folder, loaders, None, {})
  if 'vae' not in nets.configs:
    config_json.write('vae', nets.vae)  # raises: no format has such a VAE
  # The other nets are those of the weights that the run started from.
  index = pretrained.ModelIndex(config.refiner, config.uncond == 'zeros')
  frozen = [n for n in index.components if n not in trained]
  model = pretrained.Model(
    kind=f'a run, {step}',
    path=folder,
    loaders={},
    index=index,
    scheduler=scheduler_config.for_run(nets.schedule),
  )
  if config.init_from and frozen:
    start = open_start(config, frozen, options)
    loaders |= {
      n: functools.partial(open_frozen, start, nets, n) for n in frozen
    }
    model = dataclasses.replace(
      model,
      tokenizers=start.tokenizers,
      added_tokens=start.added_tokens,
      notes=start.notes,
      passed_over=start.passed_over,
    )
  loaders = {n: loaders[n] for n in index.components if n in loaders}
  return dataclasses.replace(model, loaders=loaders)


def words_left_out(config: config_dict.ConfigDict) -> list[str]:
  """Returns a line on the words of a run, which a model does not hold."""
  words = [repr(w.token_string) for w in from_config.make_words(config)]
  if not words:
    return []
  return [
    f'the run learned {", ".join(words)}, which a model does not hold: write '
    'them by --to embedding'
  ]


def open_start(
  config: config_dict.ConfigDict,
  frozen: Collection[str],
  options: read_options.ReadOptions,
) -> pretrained.Model:
  """Opens what a run started from: pretrained weights, or another run.

  Args:
    config: of the run, which has an init_from.
    frozen: nets that it did not train.
    options: what the user decided.
  """
  options = run_sources.reading(config, options)
  if formats.is_published(config.init_from):
    start = formats.open_model(config.init_from, options=options)
  else:
    # What a user decides of the prediction is refused where the command opens a
    # run; here the config of each run has it.
    start = open_run(config.init_from, options=options)
  other = run_sources.vae_source(config)
  if 'vae' in frozen and other != config.init_from:
    start = other_vae.replace(start, other, options)
  return start


def open_trained(
  config: config_dict.ConfigDict,
  folder: pathlib.Path,
  nets: loading.Nets,
  name: str,
  average: str,
) -> pretrained.Net:
  """Opens a net that a run trained."""

  def restore(target):
    # The tree is stacked as it was saved, also if the target is not.
    dtype = jax.tree.leaves(target)[0].dtype.name
    cast = nets.replace(param_dtype=dtype)
    return loading.load_params(folder, cast, [name], None, average)[name]

  # diffusers reads the UNet's image size from its config.
  net = pretrained.from_params(name, nets.configs[name], restore)
  if name != 'unet':
    return net
  side = config.samples.size[0] // nets.vae.downscale
  published = net.published | {'sample_size': side}
  return dataclasses.replace(net, published=published)


def open_frozen(
  start: pretrained.Model, nets: sdxl.SDXL, name: str
) -> pretrained.Net:
  """Opens a net that a run loaded from where it started."""
  net = start.net(name)
  config = net.config(**loading.runtime_fields(nets, name))
  source_checks.check_same(name, nets.configs[name], config, net.location)
  return net
