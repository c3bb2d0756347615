"""Measures a folder of generated images, and writes what was measured."""

import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from sdxl_jax import atomic_write
from sdxl_jax.distributed import device_mesh, multihost
from sdxl_jax.evaluation import (
  bootstrap,
  clip_score,
  cmmd,
  features,
  frechet,
  image_folder,
  metrics,
  nearest,
  preprocessing,
  references,
)
from sdxl_jax.weights import metric_files

Path = str | os.PathLike
FILE = 'metrics.json'
# Below which FID says little: its bias is of the size of what is compared.
FEW_IMAGES = 5000


@dataclasses.dataclass(frozen=True)
class Request:
  """What to measure.

  Attributes:
    samples: folder of generated images.
    metrics: of metrics.NAMES.
    reference: folder of real images, or .npz of statistics (fid alone).
    prompts: one per image, in the order of the images' names, for 'clip'.
    clip: net of the CLIP score, of clip_score.NETS.
    weights: folder of the nets' weights; None: metric_files.default_folder.
    kept: folder for features of the reference; None: one in the default folder.
    resamples: for the intervals; 0: none.
    batch_size: on each device.
  """

  samples: Path
  metrics: Sequence[str]
  reference: Path | None = None
  prompts: Sequence[str] | None = None
  clip: str = 'ViT-B/32'
  weights: Path | None = None
  kept: Path | None = None
  resamples: int = bootstrap.RESAMPLES
  batch_size: int = 8


def check(request: Request) -> None:
  """Checks a request before any image is read.

  Raises:
    ValueError: for settings that do not fit each other.
    FileNotFoundError: where there are no such folders, or no weights.
  """
  metrics.check_names(request.metrics)
  compared = [n for n in request.metrics if n in metrics.BY_REFERENCE]
  if compared and not request.reference:
    raise ValueError(
      f'{", ".join(compared)} compare with real images: pass --reference, a '
      'folder of images or, for fid alone, an .npz of mu and sigma'
    )
  if request.reference and not compared:
    raise ValueError(
      f'{", ".join(request.metrics)} need no reference: leave --reference out'
    )
  check_clip(request)
  if request.resamples < 0 or request.batch_size < 1:
    raise ValueError(
      f'resamples {request.resamples} and batch_size {request.batch_size} must '
      'be at least 0 and 1'
    )
  check_paths(request, compared)
  for file in needed_files(request):
    metric_files.find(file, request.weights)


def check_clip(request: Request) -> None:
  """Checks what the CLIP score needs; see `check`."""
  if ('clip' in request.metrics) != (request.prompts is not None):
    raise ValueError(
      'the metric clip compares images with prompts: pass both clip among '
      '--metrics and --prompts, or neither'
    )
  if request.clip not in clip_score.NETS:
    raise ValueError(
      f'no net {request.clip!r} for the CLIP score: choose one of '
      f'{", ".join(clip_score.NETS)}'
    )


def check_paths(request: Request, compared: Sequence[str]) -> None:
  """Checks that the folders are there; see `check`."""
  if not os.path.isdir(request.samples):
    raise FileNotFoundError(f'--samples {request.samples}: no such folder')
  if not compared:
    return
  if references.is_statistics(request.reference):
    others = [name for name in compared if name != 'fid']
    if others:
      raise ValueError(
        f'--reference {request.reference} has mean and covariance, which are '
        f'enough for fid; {", ".join(others)} need a folder of the real images'
      )
    if not os.path.isfile(request.reference):
      raise FileNotFoundError(
        f'--reference {request.reference} does not exist. MLPerf publishes '
        f'val2014.npz at {metric_files.VAL2014.url}'
      )
  elif not os.path.isdir(request.reference):
    raise FileNotFoundError(
      f'--reference {request.reference}: no such folder, and no .npz'
    )


def needed_files(request: Request) -> list[metric_files.MetricFile]:
  """Returns the weights that the metrics need."""
  files = []
  if set(request.metrics) & set(metrics.BY_INCEPTION):
    files.append(metric_files.INCEPTION)
  if 'cmmd' in request.metrics:
    files.append(metric_files.CLIP[cmmd.NET])
  if 'clip' in request.metrics:
    files.append(metric_files.CLIP[request.clip])
  return files


def evaluate(
  request: Request,
  output: Path,
  say: Callable[[str], Any] = print,
  mesh: jax.sharding.Mesh | None = None,
  facts: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
  """Measures generated images, and writes OUTPUT/metrics.json.

  Args:
    request: what to measure.
    output: folder to write to.
    say: prints a line for the user.
    mesh: of the devices; None: all of this process.
    facts: {name: value} on the images, which are written too; 'notes' are
      added to those of the report.

  Returns:
    what is written, see `report`.

  Raises:
    ValueError, FileNotFoundError: see `check`; also unless there are as many
      prompts as images.
    images.UnreadableImage: for an image that is missing or broken.
  """
  check(request)
  pathlib.Path(output).mkdir(parents=True, exist_ok=True)
  mesh = mesh or device_mesh.make_mesh(devices=jax.local_devices())
  images = image_folder.list_images(request.samples)
  if request.prompts is not None and len(request.prompts) != len(images):
    raise ValueError(
      f'{request.samples} has {len(images)} images and --prompts '
      f'{len(request.prompts)} lines: the CLIP score needs a prompt for each '
      'image, in the order of the names of the images'
    )
  # The reference first: of a folder, its features are kept.
  extractors, clip = load(request)
  reference, real = measure_reference(request, extractors, mesh, say)
  found = features.compute_all(extractors, images, mesh, request.batch_size)
  if request.prompts is not None:
    found['texts'] = clip_score.embed(
      clip.pair, clip.params, request.prompts, mesh, request.batch_size
    )
  own = metrics.Features(**found)
  if 'memorised' in request.metrics:
    found['neighbours'] = metrics.find_nearest(own, reference)
    own = metrics.Features(**found)
  values = metrics.compute(request.metrics, own, reference, request.resamples)
  # Write the report.
  count = None if real is None else len(real)
  written = report(request, values, len(images), count)
  written |= dict(facts or {}) | {
    'notes': [*written['notes'], *(facts or {}).get('notes', ())]
  }
  if own.neighbours is not None:
    written['nearest'] = nearest.closest(own.neighbours, images, real)
  if multihost.is_primary():
    text = json.dumps(written, indent=2) + '\n'
    atomic_write.write_text(pathlib.Path(output) / FILE, text)
  say(describe(values, len(images)))
  for note in written['notes']:
    say(f'note: {note}')
  return written


def load(
  request: Request,
) -> tuple[dict[str, features.Extractor], features.LoadedCLIP | None]:
  """Loads {field of metrics.Features: extractor}, and CLIP for its score."""
  extractors, clip = {}, None
  if set(request.metrics) & set(metrics.BY_INCEPTION):
    extractors['inception'] = features.load_inception(request.weights)
  if 'cmmd' in request.metrics:
    loaded = features.load_clip(cmmd.NET, request.weights)
    extractors['cmmd'] = features.make_clip(loaded, preprocessing.cmmd_crop)
  if 'clip' in request.metrics:
    clip = features.load_clip(request.clip, request.weights)
    extractors['clip'] = features.make_clip(clip, preprocessing.clip_crop)
  return extractors, clip


def measure_reference(
  request: Request,
  extractors: Mapping[str, features.Extractor],
  mesh: jax.sharding.Mesh,
  say: Callable[[str], Any],
) -> tuple[metrics.Features, list[pathlib.Path] | None]:
  """Returns the reference's features, and its images if they are known."""
  if not request.reference:
    return metrics.Features(), None
  if references.is_statistics(request.reference):
    statistics = frechet.load_statistics(request.reference)
    return metrics.Features(statistics=statistics), None
  images = image_folder.list_images(request.reference)
  compared = {n: e for n, e in extractors.items() if n != 'clip'}
  found = references.compute_kept(
    compared, images, request.kept, mesh, request.batch_size, say
  )
  return metrics.Features(**found), images


def report(
  request: Request,
  values: Mapping[str, bootstrap.Metric],
  count: int,
  reference_count: int | None,
) -> dict[str, Any]:
  """Returns what metrics.json holds: values, and what they depend on."""
  return {
    'metrics': {
      name: {
        key: None if math.isnan(number) else number
        for key, number in metric._asdict().items()
      }
      for name, metric in values.items()
    },
    'samples': str(request.samples),
    'images': count,
    'reference': request.reference and str(request.reference),
    'reference_images': reference_count,
    'clip': request.clip if 'clip' in request.metrics else None,
    'interval': bootstrap.LEVEL,
    'resamples': request.resamples,
    'notes': notes(request, count, reference_count),
  }


def notes(
  request: Request, count: int, reference_count: int | None
) -> list[str]:
  """Returns what a reader of the values has to know."""
  found = []
  counts = [n for n in (count, reference_count) if n is not None]
  if 'fid' in request.metrics and min(counts) < FEW_IMAGES:
    found.append(
      f'FID of {min(counts):,} images is too large by an amount that depends '
      'on their number: compare it with FIDs of as many images alone'
    )
  return found


def describe(values: Mapping[str, bootstrap.Metric], count: int) -> str:
  """Formats the metrics of so many images."""
  lines = []
  for name, metric in values.items():
    text = f'{name} {metric.value:.6g}'
    if not math.isnan(metric.low):
      text += f' ({metric.low:.5g} to {metric.high:.5g})'
    lines.append(text)
  return f'{count:,} images: {", ".join(lines)}'
