"""Opens the sources of a LoRA file: files, runs, and pairs of models."""

import collections
import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import jax

from sdxl_jax.checkpoints import (
  export,
  loading,
  lora_metadata,
  orbax_checkpoint,
  quantized_nets,
  source_configs,
)
from sdxl_jax.models import clip, from_config, lora, unet
from sdxl_jax.weights import formats, net_shapes, read_options, tensor_files
from sdxl_jax.weights.lora import (
  combining,
  lora_file,
  lora_names,
  low_rank,
  merge,
  published_parts,
)

Shapes = dict[str, Any]  # {net: shapes} of a base model


@dataclasses.dataclass(frozen=True)
class Request:
  """What a LoRA file is written from.

  Attributes:
    path: LoRA file or its folder, 'FILE:WEIGHT' among them; a workdir that
      trained factors; or a model that is tuned.
    base: the model that a file is for, None: SDXL; of a tuned model, the one
      before.
    average: of a workdir, see run_params.restore.
    loras: further files to join, each as 'FILE' or 'FILE:WEIGHT'.
    ranks: how ranks are chosen; None: they stay.
    skip_unsupported: whether to leave out tensors that cannot be applied.
  """

  path: str | pathlib.Path
  base: str | pathlib.Path | None = None
  average: str = 'ema'
  loras: Sequence[str] = ()
  ranks: low_rank.Ranks | None = None
  skip_unsupported: bool = False


def open_all(
  request: Request, progress: combining.Progress = iter
) -> tuple[merge.Lora, Shapes]:
  """Opens (LoRA, {net: shapes} of its base model) as it is asked for.

  Raises:
    ValueError: if a file is broken or of another base model, a run trained no
      factors, or what is asked for cannot be done.
    FileNotFoundError: if there is no such file.
  """
  path, weight = request.path, 1.0
  if not pathlib.Path(path).exists():
    path, weight = lora_file.parse(path)
  if is_tuned_model(path) and request.ranks:
    made, shapes = extract(dataclasses.replace(request, path=path), progress)
  else:
    made, shapes = open_lora(
      path, request.base, request.average, request.skip_unsupported
    )
  # Of a whole model the ranks are chosen already.
  is_resized = request.ranks and not is_tuned_model(path)
  if request.loras or weight != 1:
    others = lora_file.load_all(shapes, request.loras, request.skip_unsupported)
    loras = [(made, weight), *others]
    ranks = request.ranks
    made = combining.join(loras, tensor_shapes(shapes), ranks)
    is_resized = ranks is not None
  if is_resized:
    made = combining.resize(
      made, tensor_shapes(shapes), request.ranks, progress
    )
  return made, shapes


def tensor_shapes(shapes: Shapes) -> combining.Shapes:
  """Returns {(net, tensor): published shape} of a base model."""
  return {k: at.shape for k, at in merge.tensors_of(shapes).items()}


def open_lora(
  path: str | pathlib.Path,
  base: str | pathlib.Path | None = None,
  average: str = 'ema',
  skip_unsupported: bool = False,
) -> tuple[merge.Lora, Shapes]:
  """Loads (LoRA, {net: shapes} of its base model) from a file or a run.

  Args: see Request.

  Raises:
    ValueError: if the file is broken or of another base model, or the run
      trained no low-rank factors.
  """
  if is_lora(path):
    shapes = base_shapes(base)
    return lora_file.load(path, shapes, skip_unsupported), shapes
  folder = orbax_checkpoint.find(path)
  config = source_configs.saved_config(folder)
  if 'lora' not in config.trained:
    raise ValueError(
      f'{path} trained {tuple(config.trained)} and no low-rank factors, which '
      "a LoRA file holds: pass the workdir of a run with 'lora' in "
      'config.trained, or --rank and --base to extract them from the weights'
    )
  # The base model of a run is the model of its config.
  nets = quantized_nets.unquantized(from_config.make_model(config))
  shapes = jax.eval_shape(nets.init, jax.random.key(0))
  made = loading.load_trained_lora(folder, config, average=average)
  metadata = lora_metadata.of_run(config, nets, int(folder.name))
  return dataclasses.replace(made, metadata=metadata), shapes


def is_lora(path: str | pathlib.Path) -> bool:
  """Checks whether a path holds a LoRA file, rather than a workdir."""
  try:
    return bool(lora_file.find(path))
  except FileNotFoundError:
    return False


def is_tuned_model(path: str | pathlib.Path) -> bool:
  """Checks whether a path holds a model, rather than a LoRA."""
  if is_lora(path):
    names = tensor_files.open_file(lora_file.find(path)).tensors
    return not any(map(lora_names.parse, names))
  if formats.is_published(path):
    return True
  return 'lora' not in source_configs.saved_config(path).trained


def extract(
  request: Request, progress: combining.Progress
) -> tuple[merge.Lora, Shapes]:
  """Extracts a LoRA from a tuned model and the one before.

  Raises:
    ValueError: if there is no base, or the two are of different architectures.
  """
  if request.base is None:
    raise ValueError(
      f'{request.path} is a model, and a LoRA is extracted from the difference '
      'between two models: pass the model before training as --base'
    )
  options = read_options.ReadOptions(skip_unsupported=request.skip_unsupported)
  base = export.open_source(request.base, options=options)
  tuned = export.open_source(
    request.path, request.base, request.average, options
  )
  names = [n for n in lora.NETS if n in tuned.loaders and n in base.loaders]
  nets = {n: (tuned.net(n), base.net(n)) for n in names}
  configs = {n: b.config() for n, (_, b) in nets.items()}
  for name, (other, _) in nets.items():
    if from_config.comparable(other.config()) != from_config.comparable(
      configs[name]
    ):
      raise ValueError(
        f'{name} of {request.path} has another architecture than that of '
        f'{request.base}: pass the model that it was tuned from as --base'
      )
  shapes = {n: net_shapes.abstract_params(c) for n, c in configs.items()}
  made = combining.extract(
    {n: t.tensors() for n, (t, _) in nets.items()},
    {n: b.tensors() for n, (_, b) in nets.items()},
    [(net, f'{layer}.weight') for net, layer in merge.kernels_of(shapes)],
    request.ranks,
    progress,
  )
  return made, shapes


def base_shapes(base: str | pathlib.Path | None) -> Shapes:
  """Returns {net: shapes} of the nets of a source that a LoRA can change."""
  # Without a base the file must be for SDXL itself.
  configs = {
    'unet': unet.BASE,
    'text_encoder': clip.VIT_L,
    'text_encoder_2': clip.VIT_BIGG,
  }
  if base:
    model = export.open_source(base)
    names = [n for n in lora.NETS if n in model.loaders]
    configs = {name: model.net(name).config() for name in names}
  return {n: net_shapes.abstract_params(c) for n, c in configs.items()}


def describe(path: str | pathlib.Path, made: merge.Lora) -> str:
  """Describes the changes of a LoRA in a line: kinds, nets and ranks."""
  changes = made.changes()
  kinds = collections.Counter(map(published_parts.kind_of, changes.values()))
  ranks = {published_parts.rank_of(delta) for delta in changes.values()}
  ranks = sorted(ranks - {None})
  text = ', '.join(f'{n:,} layers of {kind}' for kind, n in kinds.items())
  text += f' in {" and ".join(sorted({net for net, _ in changes}))}'
  if ranks:
    least, *_, most = ranks * 2
    text += f', rank {least}' + (f' to {most}' if most > least else '')
  return f'{path}: a LoRA in the names of {made.key_format}, {text}'
