"""Convert weights: any format that is known > any other, LoRAs too.

  python -m sdxl_jax.convert SOURCE TARGET --to diffusers|single_file|orbax|lora

SOURCE is told by looking: a diffusers folder, a single safetensors file, an
orbax export, a workdir of a run or one of its WORKDIR/checkpoints/STEP. A file
or folder with a UNet or an autoencoder alone replaces that of --base. TARGET
appears whole or not at all. --dry_run says what would be read and written.
--lora adds LoRAs to a model. --to lora writes a LoRA file, of another one or of
the workdir that trained it, in the names of --dialect.

What does not come back: metadata of a file, from a folder; and position_ids and
logit_scale, which nothing reads and which a single file gets anew.
"""

import dataclasses
import functools
import os
import pathlib
import shutil

import tqdm
from absl import flags

from sdxl_jax import atomic_write, cli
from sdxl_jax.checkpoints import export, run_params
from sdxl_jax.text import tokenizer
from sdxl_jax.weights import pretrained, safetensors_file
from sdxl_jax.weights.diffusers import (
  folder_reader,
  folder_writer,
  tensor_names,
)
from sdxl_jax.weights.lora import lora_file, lora_names, merge
from sdxl_jax.weights.single_file import ldm_file

FORMATS = ('diffusers', 'single_file', 'orbax', 'lora')
DTYPES = ('float32', 'float16', 'bfloat16')


def convert(
  source,
  target,
  to,
  *,
  base=None,
  average='ema',
  dtype=None,
  variant=None,
  shard_gb=10.0,
  title='',
  loras=(),
  overwrite=False,
  dry_run=False,
  say=print,
):
  """Writes the model at one path to another, in another format.

  Args:
    source: see above.
    target: path of the folder or file to write.
    to: 'diffusers', 'single_file' or 'orbax'.
    base: source of the nets that `source` lacks.
    average: which parameters of a workdir, see pipelines.load.
    dtype: of what is written; None: as it is stored.
    variant: 'fp16' or 'bf16', of a diffusers folder: that dtype, and its mark
      in the names of files.
    shard_gb: size of a file in a diffusers folder, at most.
    title: of a single file, in its metadata.
    loras: LoRA files to add, each as 'FILE' or 'FILE:WEIGHT'.
    overwrite: whether a model at `target` may be replaced.
    dry_run: whether nothing is to be written.
    say: takes a line for the user.

  Raises:
    ValueError: for weights that are broken or of another kind.
    OSError: for paths that cannot be read or written.
  """
  if variant and (to != 'diffusers' or dtype):
    raise ValueError(
      f'variant is {variant!r}, which is of diffusers folders and is itself a '
      'dtype: leave it out, or the other'
    )
  files_of_loras = [lora_file.parse(spec)[0] for spec in loras]
  inputs = [path for path in (source, base, *files_of_loras) if path]
  check_target(target, to, overwrite, inputs)
  model = with_tokenizers(export.open_source(source, base, average))
  pretrained.check_complete(model)
  model = with_loras(model, loras)
  dtype = folder_reader.VARIANTS[variant] if variant else dtype
  size = describe(model, dtype, say)
  if to == 'single_file':
    size = ldm_file.size(model, dtype)
    ldm_file.metadata(model, title)  # which says what a file cannot tell
    for note in ldm_file.notes(model):
      say(f'note: {note}')
  say(f'to {target}: {to}, {size / 1e9:.3g} GB')
  if dry_run:
    return
  check_disk_space(target, size)
  bar = tqdm.tqdm(total=size, unit='B', unit_scale=True)
  with bar, atomic_write.atomic_path(target, overwrite) as partial:
    settings = dict(dtype=dtype, watch=bar.update)
    try:
      if to == 'single_file':
        ldm_file.save(partial, model, title=title, **settings)
      elif to == 'orbax':
        folder_writer.save(partial, model, form='orbax', **settings)
      else:
        limit = int(shard_gb * 1e9)
        settings |= dict(variant=variant, max_shard_bytes=limit)
        folder_writer.save(partial, model, **settings)
    except ValueError as error:
      raise ValueError(f'{model.path}: {error}') from error
  say(f'wrote {target}')


def check_target(target, to, overwrite, inputs=()):
  """Checks that a format may be written to a path.

  Args:
    target: path of the file or folder to write.
    to: one of FORMATS.
    overwrite: whether a file, or a folder with a model, may be replaced.
    inputs: paths that are read, and so must not be replaced.

  Raises:
    FileExistsError: if it may not.
  """
  path = pathlib.Path(target).absolute()
  if not os.path.lexists(path):
    return
  if not overwrite:
    raise FileExistsError(
      f'{path} exists: remove it, write elsewhere, or pass --overwrite'
    )
  if path.is_dir() and not (path / 'model_index.json').is_file():
    raise FileExistsError(f'{path} is a folder without a model: remove it')
  if path.is_dir() != (to in ('diffusers', 'orbax')):
    kind = 'folder' if path.is_dir() else 'file'
    raise FileExistsError(
      f'{path} is a {kind}, which {to} does not replace: remove it, or write '
      'elsewhere'
    )
  for read in map(pathlib.Path, inputs):
    if path.resolve() in (read.resolve(), *read.resolve().parents):
      raise FileExistsError(
        f'{path} holds {read}, which is read: write elsewhere'
      )


def check_disk_space(target, size):
  """Raises OSError if `size` bytes do not fit on the disk of a path."""
  path = pathlib.Path(target).absolute()
  folder = next(parent for parent in path.parents if parent.exists())
  free = shutil.disk_usage(folder).free
  if free < size:
    raise OSError(
      f'{folder} has {free / 1e9:.3g} GB left, and {path.name} takes '
      f'{size / 1e9:.3g} GB: make room, or choose a shorter dtype'
    )


def with_tokenizers(model):
  """The model, with the vocabulary that comes with us where it has none."""
  wanted = [n for c, n in pretrained.TOKENIZERS.items() if c in model.loaders]
  ours = {n: functools.partial(tokenizer.save, name=n) for n in wanted}
  found = {n: model.tokenizers.get(n, ours[n]) for n in wanted}
  return dataclasses.replace(model, tokenizers=found)


def with_loras(model, specs):
  """The model, with LoRA files added, as 'FILE' or 'FILE:WEIGHT'."""
  if not specs:
    return model
  nets = {name: model.net(name) for name in model.index.components}
  shapes = {n: net.shapes(net.config()) for n, net in nets.items()}
  pairs = [lora_file.parse(spec) for spec in specs]
  loras = [(lora_file.load(file, shapes), weight) for file, weight in pairs]
  added = {n: merge.merge_published(net, loras) for n, net in nets.items()}
  loaders = {n: functools.partial(lambda net: net, x) for n, x in added.items()}
  return dataclasses.replace(model, loaders=model.loaders | loaders)


def convert_lora(
  source,
  target,
  dialect='kohya',
  *,
  base=None,
  average='ema',
  dtype=None,
  title='',
  overwrite=False,
  dry_run=False,
  say=print,
):
  """Writes a LoRA file; arguments as `convert` has them.

  Dialect 'kohya' is read by ComfyUI, AUTOMATIC1111's web UI, kohya's scripts
  and diffusers; for others see weights/lora/lora_names.py. For a file made
  for a model of other sizes than SDXL's, `base` is that model.
  """
  check_target(target, 'lora', overwrite)
  made, shapes = export.open_lora(source, base, average)
  ranks = sorted({len(factors.down) for factors in made.factors.values()})
  nets = sorted({net for net, _ in made.factors})
  say(
    f'{source}: a LoRA in the names of {made.dialect}, {len(made.factors):,} '
    f'layers of {" and ".join(nets)}, rank {" and ".join(map(str, ranks))}'
  )
  say(f'to {target}: in the names of {dialect}, {dtype or "types as they are"}')
  if dry_run:
    return
  told = {'modelspec.title': title or pathlib.Path(target).stem}
  lora_file.save(
    *(target, made, shapes, dialect, dtype, made.metadata | told, overwrite)
  )
  say(f'wrote {target}')


def describe(model, dtype, say):
  """Says what was recognised; returns the bytes that will be written."""
  say(f'{model.path}: {model.kind}')
  total = 0
  for name in model.index.components:
    net = model.net(name)
    tensors = net.tensors()
    size = sum(safetensors_file.sizes(tensors, dtype).values())
    stored = sorted({tensor.dtype.name for tensor in tensors.values()})
    say(
      f'  {name}: {len(tensors):,} tensors, {" and ".join(stored)} > '
      f'{dtype or "the same"}, from {net.location}'
    )
    total += size
  predicted = model.scheduler['prediction_type']
  zero_snr = model.scheduler.get('rescale_betas_zero_snr')
  say(
    f'  {"refiner" if model.index.refiner else "base"}, predicts {predicted}'
    + ', down to zero SNR' * bool(zero_snr)
  )
  if model.unused_tensors:
    unused = tensor_names.format_list(list(model.unused_tensors))
    say(f'  belong to no net: {unused}')
  return total


def main(args, source, target):
  if args.to == 'lora':
    convert_lora(
      *(source, target, args.dialect),
      base=args.base,
      average=args.average,
      dtype=args.dtype,
      title=args.title,
      overwrite=args.overwrite,
      dry_run=args.dry_run,
    )
    return
  convert(
    source,
    target,
    args.to,
    base=args.base,
    average=args.average,
    dtype=args.dtype,
    variant=args.variant,
    shard_gb=args.shard_gb,
    title=args.title,
    loras=args.lora,
    overwrite=args.overwrite,
    dry_run=args.dry_run,
  )


if __name__ == '__main__':
  flags.DEFINE_enum('to', None, FORMATS, 'format of TARGET')
  flags.DEFINE_string('base', None, 'weights, for the nets that SOURCE lacks')
  flags.DEFINE_string('average', 'ema', run_params.HELP)
  flags.DEFINE_enum('dtype', None, DTYPES, 'default: as it is stored')
  flags.DEFINE_enum(
    'variant', None, folder_reader.VARIANTS, 'of a diffusers folder'
  )
  flags.DEFINE_float('shard_gb', 10.0, 'of a file in a folder, at most', 1e-3)
  flags.DEFINE_string('title', '', 'of a single file; default: its name')
  flags.DEFINE_multi_string('lora', [], 'FILE or FILE:WEIGHT to add')
  dialects = lora_names.KEY_FORMATS
  flags.DEFINE_enum('dialect', 'kohya', dialects, 'names in a LoRA file')
  flags.DEFINE_bool('overwrite', False, 'replace the model at TARGET')
  flags.DEFINE_bool('dry_run', False, 'say what would be done, and do nothing')
  flags.mark_flag_as_required('to')
  cli.run(main, 'SOURCE', 'TARGET')
