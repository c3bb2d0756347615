"""Converts weights from any known format to another, LoRAs included.

  python -m sdxl_jax.convert SOURCE TARGET --to diffusers|single_file|orbax|lora

SOURCE is a diffusers folder, a single safetensors file, an orbax export, the
workdir of a run or one of its WORKDIR/checkpoints/STEP; its format is detected.
A file or folder with only a UNet or a VAE replaces that of --base. TARGET is
written atomically. --dry_run prints what would be read and written. --lora
merges LoRAs into a model. --to lora writes a LoRA file, from another one or
from the workdir that trained it, with the key format of --dialect.

Not preserved: metadata of a file, in a folder; and position_ids and
logit_scale, which no net reads and which every single file gets anew.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import tqdm
from absl import flags

from sdxl_jax import atomic_write, cli
from sdxl_jax.checkpoints import export, run_params
from sdxl_jax.text import tokenizer
from sdxl_jax.weights import (
  output_path,
  pretrained,
  read_options,
  safetensors_file,
)
from sdxl_jax.weights.diffusers import (
  folder_reader,
  folder_writer,
  scheduler_config,
  tensor_names,
)
from sdxl_jax.weights.lora import lora_file, lora_names, lora_writer, merge
from sdxl_jax.weights.single_file import ldm_writer

FORMATS = ('diffusers', 'single_file', 'orbax', 'lora')
FOLDERS = ('diffusers', 'orbax')  # formats that are folders
DTYPES = ('float32', 'float16', 'bfloat16')
Say = Callable[[str], Any]  # prints a line for the user


@dataclasses.dataclass(frozen=True)
class Source:
  """The weights to convert."""

  path: str | pathlib.Path
  base: str | pathlib.Path | None = None  # source of nets that `path` lacks
  average: str = 'ema'  # of a workdir, see run_params.AVERAGES
  loras: Sequence[str] = ()  # to merge, each as 'FILE' or 'FILE:WEIGHT'
  options: read_options.ReadOptions = read_options.DEFAULT

  @property
  def files(self) -> list[str | pathlib.Path]:
    """Paths that are read."""
    loras = [lora_file.parse(spec)[0] for spec in self.loras]
    return [path for path in (self.path, self.base, *loras) if path]


@dataclasses.dataclass(frozen=True)
class Target:
  """The file or folder to write."""

  path: str | pathlib.Path
  to: str  # one of FORMATS
  dtype: str | None = None  # None: the stored one
  # 'fp16' or 'bf16', of a diffusers folder: that dtype, and a mark in the
  # names of its files.
  variant: str | None = None
  shard_gb: float = 10.0  # largest file of a diffusers folder
  title: str = ''  # metadata of a single file or a LoRA file
  key_format: str = 'kohya'  # of a LoRA file, see lora_names.KEY_FORMATS
  overwrite: bool = False  # whether a model at `path` may be replaced


def convert(
  source: Source, target: Target, dry_run: bool = False, say: Say = print
) -> None:
  """Converts a model.

  Args:
    source: to read.
    target: to write, in another format than 'lora'.
    dry_run: whether to write nothing.
    say: prints a line.

  Raises:
    ValueError: if weights are broken, or of another architecture.
    OSError: if a path cannot be read or written.
  """
  # Refuse what cannot be written before anything is read.
  if target.variant and (target.to != 'diffusers' or target.dtype):
    raise ValueError(
      f'variant is {target.variant!r}, which is of diffusers folders and is '
      'itself a dtype: leave out the variant, or the other format or dtype'
    )
  output_path.check_replaceable(
    target.path, target.to in FOLDERS, target.overwrite, source.files
  )
  # Open the model; its tensors are read when they are written.
  model = with_tokenizers(
    export.open_source(source.path, source.base, source.average, source.options)
  )
  pretrained.check_complete(model)
  skip_unsupported = source.options.skip_unsupported
  model = with_loras(model, source.loras, skip_unsupported)
  dtype = target.dtype
  if target.variant:
    dtype = folder_reader.VARIANTS[target.variant]
  size = describe(model, dtype, say)
  if target.to == 'single_file':
    size = ldm_writer.size(model, dtype)
    ldm_writer.metadata(model, target.title)  # raises if it cannot be written
    for note in ldm_writer.notes(model):
      say(f'note: {note}')
  say(f'to {target.path}: {target.to}, {size / 1e9:.3g} GB')
  if dry_run:
    return
  # Write.
  output_path.check_disk_space(target.path, size)
  bar = tqdm.tqdm(total=size, unit='B', unit_scale=True)
  atomic = atomic_write.atomic_path(target.path, target.overwrite)
  with bar, atomic as partial:
    try:
      save(partial, model, target, bar.update)
    except ValueError as error:
      raise ValueError(f'{model.path}: {error}') from error
  say(f'wrote {target.path}')


def save(
  path: pathlib.Path,
  model: pretrained.Model,
  target: Target,
  watch: Callable[[int], Any],
) -> None:
  """Writes a model to a new path, in the format of the target."""
  if target.to == 'single_file':
    ldm_writer.save(path, model, target.dtype, target.title, watch)
  elif target.to == 'orbax':
    folder_writer.save(
      path, model, form='orbax', dtype=target.dtype, watch=watch
    )
  else:
    folder_writer.save(
      path,
      model,
      dtype=target.dtype,
      variant=target.variant,
      max_shard_bytes=int(target.shard_gb * 1e9),
      watch=watch,
    )


def convert_lora(
  source: Source, target: Target, dry_run: bool = False, say: Say = print
) -> None:
  """Converts a LoRA file, or the factors that a workdir trained.

  Key format 'kohya' is read by ComfyUI, AUTOMATIC1111's web UI, kohya's scripts
  and diffusers; for others see weights/lora/lora_names.py. A file for a model
  of other sizes than SDXL's needs that model as the source's base.

  Args, Raises: see `convert`.
  """
  output_path.check_replaceable(target.path, False, target.overwrite)
  # Describe the factors.
  adapter, shapes = export.open_lora(
    source.path,
    source.base,
    source.average,
    source.options.skip_unsupported,
  )
  ranks = sorted({len(factors.down) for factors in adapter.factors.values()})
  nets = sorted({net for net, _ in adapter.factors})
  say(
    f'{source.path}: a LoRA in the names of {adapter.key_format}, '
    f'{len(adapter.factors):,} layers of {" and ".join(nets)}, rank '
    f'{" and ".join(map(str, ranks))}'
  )
  for note in adapter.notes:
    say(f'note: {note}')
  say(
    f'to {target.path}: in the names of {target.key_format}, '
    f'{target.dtype or "types as they are"}'
  )
  if dry_run:
    return
  title = target.title or pathlib.Path(target.path).stem
  lora_writer.save(
    target.path,
    adapter,
    shapes,
    target.key_format,
    target.dtype,
    metadata=adapter.metadata | {'modelspec.title': title},
    overwrite=target.overwrite,
  )
  say(f'wrote {target.path}')


def with_tokenizers(model: pretrained.Model) -> pretrained.Model:
  """Adds the vocabulary of this package where the model has no tokenizer."""
  tokenizers = {}
  for component, name in pretrained.TOKENIZERS.items():
    if component in model.loaders:
      ours = functools.partial(tokenizer.save, name=name)
      tokenizers[name] = model.tokenizers.get(name, ours)
  return dataclasses.replace(model, tokenizers=tokenizers)


def with_loras(
  model: pretrained.Model,
  specs: Sequence[str],
  skip_unsupported: bool = False,
) -> pretrained.Model:
  """Merges LoRA files, each as 'FILE' or 'FILE:WEIGHT', into a model.

  Args:
    model: to merge them into.
    specs: of the files.
    skip_unsupported: whether to leave out tensors that cannot be applied.
  """
  if not specs:
    return model
  # Files are loaded now; their factors are added as tensors are read.
  nets = {name: model.net(name) for name in model.index.components}
  shapes = {n: net.shapes(net.config()) for n, net in nets.items()}
  loras = lora_file.load_all(shapes, specs, skip_unsupported)
  loaders = {
    name: functools.partial(merge.merge_published, net, loras)
    for name, net in nets.items()
  }
  return dataclasses.replace(
    model,
    loaders=model.loaders | loaders,
    notes=model.notes + lora_file.notes(specs, loras),
  )


def describe(model: pretrained.Model, dtype: str | None, say: Say) -> int:
  """Prints the contents of a model; returns the bytes that will be written."""
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
  kind = 'refiner' if model.index.refiner else 'base'
  zero_snr = model.scheduler.get('rescale_betas_zero_snr')
  say(
    f'  {kind}, predicts {model.scheduler["prediction_type"]}'
    f'{", down to zero SNR" if zero_snr else ""}'
  )
  for note in model.notes:
    say(f'  note: {note}')
  if model.unused_tensors:
    unused = tensor_names.format_list(list(model.unused_tensors))
    say(f'  belong to no net: {unused}')
  return total


def main(args: flags.FlagValues, source: str, target: str) -> None:
  """Runs the command with its flags and two paths."""
  run = convert_lora if args.to == 'lora' else convert
  run(
    Source(
      source,
      args.base,
      args.average,
      args.lora,
      read_options.ReadOptions(
        args.source_variant,
        args.prediction,
        args.zero_snr,
        args.skip_unsupported,
      ),
    ),
    Target(
      target,
      args.to,
      dtype=args.dtype,
      variant=args.variant,
      shard_gb=args.shard_gb,
      title=args.title,
      key_format=args.dialect,
      overwrite=args.overwrite,
    ),
    args.dry_run,
  )


if __name__ == '__main__':
  flags.DEFINE_enum('to', None, FORMATS, 'format of TARGET')
  flags.DEFINE_string('base', None, 'source of the nets that SOURCE lacks')
  flags.DEFINE_string('average', 'ema', run_params.HELP)
  flags.DEFINE_string(
    'source_variant', None, 'of a folder that is read: fp16, bf16, non_ema'
  )
  flags.DEFINE_enum(
    'prediction',
    None,
    scheduler_config.PREDICTION_TYPES,
    'what the UNet predicts, where SOURCE does not say it',
  )
  flags.DEFINE_bool(
    'zero_snr', None, "whether the UNet's noise schedule ends in zero SNR"
  )
  flags.DEFINE_bool(
    'skip_unsupported',
    False,
    'leave out tensors that would change the image, but cannot be applied',
  )
  flags.DEFINE_enum('dtype', None, DTYPES, 'to write; default: the stored one')
  flags.DEFINE_enum(
    'variant',
    None,
    folder_reader.VARIANTS,
    'of a diffusers folder: dtype, and mark in the names of its files',
  )
  flags.DEFINE_float(
    'shard_gb', 10.0, 'largest file of a diffusers folder', 1e-3
  )
  flags.DEFINE_string('title', '', 'in the metadata of a file; default: name')
  flags.DEFINE_multi_string('lora', [], 'FILE or FILE:WEIGHT to merge')
  key_formats = lora_names.KEY_FORMATS
  flags.DEFINE_enum('dialect', 'kohya', key_formats, 'key format of a LoRA')
  flags.DEFINE_bool('overwrite', False, 'replace the model at TARGET')
  flags.DEFINE_bool('dry_run', False, 'print what would be done, do nothing')
  flags.mark_flag_as_required('to')
  cli.run(main, 'SOURCE', 'TARGET')
