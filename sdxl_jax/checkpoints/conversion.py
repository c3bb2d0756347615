"""What a conversion reads and writes: the arguments of `convert`."""

import dataclasses
import pathlib
from collections.abc import Sequence

from sdxl_jax.weights import read_options
from sdxl_jax.weights.lora import lora_file, low_rank


@dataclasses.dataclass(frozen=True)
class Source:
  """The weights to convert."""

  path: str | pathlib.Path
  base: str | pathlib.Path | None = None  # source of nets that `path` lacks
  average: str = 'ema'  # of a workdir, see run_params.AVERAGES
  loras: Sequence[str] = ()  # to merge, each as 'FILE' or 'FILE:WEIGHT'
  options: read_options.ReadOptions = read_options.DEFAULT
  vae: str | pathlib.Path | None = None  # replaces the autoencoder

  @property
  def files(self) -> list[str | pathlib.Path]:
    """Paths that are read."""
    loras = [lora_file.parse(spec)[0] for spec in self.loras]
    paths = (self.path, self.base, self.vae, *loras)
    return [path for path in paths if path]


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
  # Of a LoRA file, see lora_names.KEY_FORMATS, or embedding_writer.LAYOUTS.
  key_format: str = 'kohya'
  word: str | None = None  # of several that SOURCE learned
  ranks: low_rank.Ranks | None = None  # of a LoRA file; None: as they are
  overwrite: bool = False  # whether a model at `path` may be replaced


def refuse_of_models(source: Source, target: Target, what: str) -> None:
  """Raises ValueError for options of models where none is written."""
  options = source.options
  flags = {
    'vae': source.vae,
    'prediction': options.prediction,
    'zero_snr': options.zero_snr,
    'source_variant': options.variant,
    'variant': target.variant,
  }
  if target.to != 'lora':  # which joins LoRAs
    flags['lora'] = ' '.join(source.loras) or None
    flags['rank'] = target.ranks and target.ranks.rank
  for name, value in flags.items():
    if value is not None:
      raise ValueError(
        f'--{name}={value} is of models, and --to={target.to} writes {what}: '
        'leave it out'
      )
