"""Draws an image of each prompt, and measures them: one run, or one per scale.

  OUT/images/000000.png ...       or OUT/guidance_5/images/000000.png ...
  OUT/metrics.json                or OUT/guidance_5/metrics.json ...
  OUT/report.html                 all of it on one page

A command that was stopped goes on where it was.
"""

import dataclasses
import importlib.metadata
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from sdxl_jax import atomic_write
from sdxl_jax.data import figures
from sdxl_jax.distributed import multihost
from sdxl_jax.evaluation import (
  benchmark_layouts,
  image_folder,
  presets,
  report_page,
  sample_report,
)
from sdxl_jax.sampling import drawing, prompt_set, prompts_file
from sdxl_jax.sampling.located import Located

PAGE = 'report.html'
SHOWN = 24  # images on the page, evenly spaced over the prompts
VARIED = 'guidance_scale'
PACKAGES = 'jax', 'jaxlib', 'flax', 'numpy'


@dataclasses.dataclass(frozen=True)
class Drawing:
  """What is drawn.

  Attributes:
    lines: of prompts_file.read.
    settings: {field: value} of all images, a preset's among them.
    models: {flag: value} of model_flags.MODEL_OPTIONS.
    count: of the first lines; None: all.
    scales: of guidance, each with all images; (): that of the settings.
    latents: see prompt_set.draw.
    options: of the drawing.
  """

  lines: Sequence[prompts_file.Line]
  settings: Mapping[str, Any]
  models: Mapping[str, Any]
  count: int | None = None
  scales: tuple[float, ...] = ()
  latents: np.ndarray | None = None
  options: drawing.Options = drawing.DEFAULT

  def requests(self) -> dict[float | None, list[Located]]:
    """Returns {guidance scale: requests}; None: that of the settings.

    Raises:
      ValueError: for values that do not fit, naming the line.
    """
    return {
      scale: prompt_set.make_requests(
        self.lines,
        dict(self.settings) | ({} if scale is None else {VARIED: scale}),
        self.count,
      )
      for scale in self.scales or (None,)
    }


def measure(
  drawn: Drawing,
  request: sample_report.Request,
  output: str | pathlib.Path,
  preset: presets.Preset | None = None,
  say: Callable[[str], Any] = print,
) -> list[dict[str, Any]]:
  """Draws and measures images, and writes the page.

  Args:
    drawn: what is drawn.
    request: what is measured of it; its samples and prompts are replaced.
    output: folder to write to.
    preset: whose protocol it is; what departs from it is noted.
    say: prints a line for the user.

  Returns:
    what metrics.json of each scale holds.

  Raises:
    ValueError, OSError: for requests, files, weights that do not fit, before
      the first image if they are known then.
  """
  output, runs, pictures = pathlib.Path(output), [], []
  by_scale = drawn.requests()
  # What measuring needs is looked for before hours of drawing.
  prompts = () if 'clip' in request.metrics else None
  sample_report.check(
    dataclasses.replace(request, samples=make_folder(output), prompts=prompts)
  )
  for scale, located in by_scale.items():
    folder = output if scale is None else output / f'guidance_{scale:g}'
    names = prompt_set.draw(
      located,
      make_folder(folder / 'images'),
      dict(drawn.models),
      drawn.latents,
      drawn.options,
      say,
    )
    texts = [item.request.prompt for item in located]
    own = dataclasses.replace(
      request,
      samples=folder / 'images',
      prompts=None if prompts is None else texts,
    )
    facts = describe_run(drawn, located, preset)
    runs.append(sample_report.evaluate(own, folder, say, facts=facts))
    pictures = choose_pictures(names, texts)
  write_page(output, runs, pictures, describe(drawn, request))
  say(f'wrote {output / PAGE}')
  return runs


def describe_run(
  drawn: Drawing, located: Sequence[Located], preset: presets.Preset | None
) -> dict[str, Any]:
  """Returns what metrics.json says of how the images were made."""
  settings = dict(drawn.settings)
  settings[VARIED] = located[0].request.guidance_scale
  facts = {'settings': settings, 'models': dict(drawn.models)}
  if preset is None:
    return facts
  has_latents = drawn.latents is not None
  departs = preset.departures(settings, len(located), has_latents)
  note = f'not the protocol of the preset: {", ".join(departs)}'
  return facts | {'bands': preset.bands, 'notes': [note] if departs else []}


def measure_folder(
  request: sample_report.Request,
  output: str | pathlib.Path,
  say: Callable[[str], Any] = print,
) -> dict[str, Any]:
  """Measures images that are there, and writes the page; see sample_report."""
  written = sample_report.evaluate(request, output, say)
  paths = image_folder.list_images(request.samples)
  captions = request.prompts or [path.name for path in paths]
  settings = {'reference': request.reference} | versions()
  pictures = choose_pictures(paths, captions)
  write_page(pathlib.Path(output), [written], pictures, settings)
  say(f'wrote {pathlib.Path(output) / PAGE}')
  return written


def draw_benchmark(
  name: str,
  items: Sequence[benchmark_layouts.Item],
  drawn: Drawing,
  output: str | pathlib.Path,
  say: Callable[[str], Any] = print,
) -> None:
  """Draws a benchmark's prompts, and writes the folder that its tool scores.

  Args:
    name: of benchmark_layouts.BENCHMARKS.
    items: its prompts.
    drawn: of which the lines are replaced.
    output: folder to write to.
    say: prints a line for the user.
  """
  output = pathlib.Path(output)
  count = benchmark_layouts.BENCHMARKS[name].images
  lines = [
    prompts_file.Line(item.name, {'prompt': item.prompt})
    for item in items
    for _ in range(count)
  ]
  located = prompt_set.make_requests(lines, dict(drawn.settings))
  files = prompt_set.draw(
    located,
    make_folder(output / 'images'),
    dict(drawn.models),
    drawn.latents,
    drawn.options,
    say,
  )
  if multihost.is_primary():
    benchmark_layouts.write(name, items, files, output / name)
  say(f'wrote {output / name}, which the tool of {name} scores')


def make_folder(path: pathlib.Path) -> pathlib.Path:
  """Makes a folder, if it is not there."""
  path.mkdir(parents=True, exist_ok=True)
  return path


def choose_pictures(
  names: Sequence[str | pathlib.Path], captions: Sequence[str]
) -> list[report_page.Picture]:
  """Loads some images, evenly spaced, with their captions."""
  places = np.unique(np.linspace(0, len(names) - 1, SHOWN).round().astype(int))
  return [(load(names[i]), captions[i]) for i in places]


def nearest_pairs(written: Mapping[str, Any]) -> list[report_page.Picture]:
  """Loads the images most like a training image, each beside that one."""
  pictures = []
  for pair in written.get('nearest', ()):
    both = load(pair['sample']), load(pair['training_image'])
    caption = (
      f'{pathlib.Path(pair["sample"]).name} and '
      f'{pathlib.Path(pair["training_image"]).name}: similarity '
      f'{pair["similarity"]:.3f}, ratio {pair["ratio"]:.3f}'
    )
    pictures.append((figures.grid(both, columns=2), caption))
  return pictures


def load(path: str | pathlib.Path) -> np.ndarray:
  """Loads an image, uint8 [h, w, 3]."""
  return np.asarray(image_folder.open_rgb(path))


def describe(drawn: Drawing, request: sample_report.Request) -> dict[str, Any]:
  """Returns {name: value} of what all runs share, for the page."""
  settings = {k: v for k, v in drawn.settings.items() if v is not None}
  if drawn.scales:
    settings.pop(VARIED, None)
  models = {k: v for k, v in drawn.models.items() if v not in (None, (), False)}
  return models | settings | {'reference': request.reference} | versions()


def versions() -> dict[str, str]:
  """Returns {package: version} of those that numbers may depend on."""
  return {name: importlib.metadata.version(name) for name in PACKAGES}


def write_page(
  output: pathlib.Path,
  runs: Sequence[Mapping[str, Any]],
  pictures: Sequence[report_page.Picture],
  settings: Mapping[str, Any],
) -> None:
  """Writes OUT/report.html, in the primary process.

  Args:
    output: folder to write to.
    runs: what was measured, see report_page.render.
    pictures: images of the last run.
    settings: {name: value} of all runs.
  """
  if not multihost.is_primary():
    return
  count, source = runs[0]['images'], settings.get('weights', runs[0]['samples'])
  galleries = {
    'Images': pictures,
    'Most like a training image': nearest_pairs(runs[-1]),
  }
  page = report_page.render(
    f'{count:,} images of {source}',
    runs,
    galleries,
    settings,
    VARIED if len(runs) > 1 else None,
  )
  atomic_write.write_text(output / PAGE, page)


def settings_of(
  preset: presets.Preset | None, passed: Mapping[str, Any]
) -> dict[str, Any]:
  """Returns {field: value}: those passed before those of a preset."""
  return (preset.settings if preset else {}) | dict(passed)
