"""Converts weights from any known format to another, LoRAs included.

  python -m sdxl_jax.convert SOURCE TARGET \
    --to diffusers|single_file|orbax|lora|embedding

SOURCE is a diffusers folder, a single safetensors file, an orbax export, the
workdir of a run or one of its WORKDIR/checkpoints/STEP; its format is detected.
A file or folder with only a UNet or a VAE replaces that of --base. TARGET is
written atomically. --dry_run prints what would be read and written. --lora
merges LoRAs into a model. --to lora writes a LoRA file, from another one or
from the workdir that trained it, with the names of --dialect; --lora joins
others with it, --rank resizes it, or extracts one from a model and its --base.
--to embedding writes a learned word in the layout of --dialect.

Not preserved: metadata of a file, in a folder; and position_ids and
logit_scale, which no net reads and which every single file gets anew.
"""

import functools
import pathlib
from collections.abc import Callable
from typing import Any

import tqdm
from absl import flags

from sdxl_jax import atomic_write, cli
from sdxl_jax.checkpoints import (
  completion,
  conversion,
  export,
  lora_sources,
  run_params,
  word_export,
)
from sdxl_jax.weights import (
  checked_cast,
  description,
  other_vae,
  output_path,
  pretrained,
  read_options,
)
from sdxl_jax.weights.diffusers import (
  folder_reader,
  folder_writer,
)
from sdxl_jax.weights.lora import lora_names, lora_writer, low_rank
from sdxl_jax.weights.single_file import ldm_writer

FORMATS = ('diffusers', 'single_file', 'orbax', 'lora', 'embedding')
FOLDERS = ('diffusers', 'orbax')  # formats that are folders
DTYPES = ('float32', 'float16', 'bfloat16')
Source, Target = conversion.Source, conversion.Target
Say = Callable[[str], Any]  # prints a line for the user


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
  if target.ranks:
    raise ValueError(
      f'--rank={target.ranks.rank} is of --to=lora, and this is '
      f'--to={target.to}: leave it out'
    )
  if target.variant and (target.to != 'diffusers' or target.dtype):
    raise ValueError(
      f'variant is {target.variant!r}, which is of diffusers folders and is '
      'itself a dtype: leave out the variant, or the other format or dtype'
    )
  output_path.check_replaceable(
    target.path, target.to in FOLDERS, target.overwrite, source.files
  )
  # Open the model; its tensors are read when they are written.
  model = completion.with_tokenizers(
    export.open_source(source.path, source.base, source.average, source.options)
  )
  model = other_vae.replace(model, source.vae, source.options)
  pretrained.check_complete(model)
  skip_unsupported = source.options.skip_unsupported
  model = completion.with_loras(model, source.loras, skip_unsupported)
  if target.to == 'single_file':
    model = completion.with_added_tokens(model)
  dtype = target.dtype
  if target.variant:
    dtype = folder_reader.VARIANTS[target.variant]
  size = description.describe(model, dtype, say)
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
    except checked_cast.NotFiniteError:
      raise  # its message names the file
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
  """Converts, joins, resizes or extracts a LoRA; see lora_sources.

  Key format 'kohya' is read by ComfyUI, AUTOMATIC1111's web UI, kohya's scripts
  and diffusers; for others see weights/lora/lora_names.py. A file for a model
  of other sizes than SDXL's needs that model as the source's base.

  Args, Raises: see `convert`.
  """
  output_path.check_replaceable(target.path, False, target.overwrite)
  conversion.refuse_of_models(source, target, 'a LoRA')
  adapter, shapes = lora_sources.open_all(
    lora_sources.Request(
      source.path,
      source.base,
      source.average,
      source.loras,
      target.ranks,
      source.options.skip_unsupported,
    ),
    functools.partial(tqdm.tqdm, unit='tensor'),
  )
  say(lora_sources.describe(source.path, adapter))
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


def main(args: flags.FlagValues, source: str, target: str) -> None:
  """Runs the command with its flags and two paths."""
  others = {'lora': convert_lora, 'embedding': word_export.convert}
  others.get(args.to, convert)(
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
      args.vae,
    ),
    Target(
      target,
      args.to,
      dtype=args.dtype,
      variant=args.variant,
      shard_gb=args.shard_gb,
      title=args.title,
      key_format=args.dialect,
      ranks=low_rank.chosen(
        args.rank, args.conv_rank, args.dynamic_method, args.dynamic_param
      ),
      word=args.word,
      overwrite=args.overwrite,
    ),
    args.dry_run,
  )


if __name__ == '__main__':
  flags.DEFINE_enum('to', None, FORMATS, 'format of TARGET')
  flags.DEFINE_string('base', None, 'source of the nets that SOURCE lacks')
  flags.DEFINE_string('vae', None, 'source of another autoencoder')
  flags.DEFINE_string('average', 'ema', run_params.HELP)
  flags.DEFINE_string(
    'source_variant', None, 'of a folder that is read: fp16, bf16, non_ema'
  )
  flags.DEFINE_enum(
    'prediction',
    None,
    read_options.PREDICTIONS,
    'what the UNet predicts, where SOURCE has no mark of it',
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
  flags.DEFINE_enum(
    'dialect', 'kohya', key_formats, 'key format of a LoRA, or an embedding'
  )
  flags.DEFINE_integer('rank', None, 'of a LoRA to resize or to extract', 1)
  flags.DEFINE_integer('conv_rank', None, 'of kernels above 1 x 1; 0: none', 0)
  flags.DEFINE_enum(
    'dynamic_method', None, low_rank.METHODS, 'by which rank is chosen'
  )
  flags.DEFINE_float('dynamic_param', None, 'of --dynamic_method, as 0.95')
  flags.DEFINE_string('word', None, 'that is written, of several learned ones')
  flags.DEFINE_bool('overwrite', False, 'replace the model at TARGET')
  flags.DEFINE_bool('dry_run', False, 'print what would be done, do nothing')
  flags.mark_flag_as_required('to')
  cli.run(main, 'SOURCE', 'TARGET')
