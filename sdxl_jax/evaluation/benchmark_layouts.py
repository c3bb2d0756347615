"""Prompts of other benchmarks, and the folders that their own tools score.

geneval  evaluation_metadata.jsonl > 00000/metadata.jsonl and
         00000/samples/00000.png to 00003.png
         (Ghosh et al. 2023, arXiv 2310.11513)
dpg      prompts/NAME.txt > NAME.png, four images in two rows
         (DPG-Bench, Hu et al. 2024, arXiv 2403.05135)
hpsv2    STYLE.json, a list of prompts > STYLE/00000.jpg
         (Wu et al. 2023, arXiv 2306.09341)
"""

import json
import os
import pathlib
import shutil
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from sdxl_jax.evaluation import image_folder

Path = str | os.PathLike[str]
QUALITY = 95  # of JPEG
COLUMNS = 2  # of images in a file of DPG-Bench


class Item(NamedTuple):
  """A prompt of a benchmark.

  Attributes:
    prompt: text.
    name: of its file or folder.
    metadata: object of GenEval, which its tool reads.
  """

  prompt: str
  name: str
  metadata: dict[str, Any] | None = None


class Benchmark(NamedTuple):
  """How a benchmark's prompts are read and its images written.

  Attributes:
    images: of each prompt.
    read: (path of the prompts) -> items.
    write: (item, its image files, output folder) writes them.
  """

  images: int
  read: Callable[[pathlib.Path], list[Item]]
  write: Callable[[Item, Sequence[Path], pathlib.Path], None]


def read(name: str, path: Path) -> list[Item]:
  """Reads the prompts of a benchmark.

  Args:
    name: of BENCHMARKS.
    path: GenEval: evaluation_metadata.jsonl; dpg: a folder of .txt; hpsv2: a
      folder of .json, or one of them.

  Raises:
    ValueError: for files that are no such prompts.
    FileNotFoundError: where there is nothing.
  """
  path = pathlib.Path(path)
  if not path.exists():
    raise FileNotFoundError(
      f'{path} does not exist: pass the prompts of {name}'
    )
  items = BENCHMARKS[name].read(path)
  if not items:
    raise ValueError(f'{path} has no prompts of {name}')
  for item in items:
    if not isinstance(item.prompt, str) or not item.prompt.strip():
      raise ValueError(
        f'{path}: {item.name} has the prompt {item.prompt!r}, which is no text'
      )
  return items


def write(
  name: str, items: Sequence[Item], files: Sequence[Path], output: Path
) -> None:
  """Writes images where the benchmark's own tool looks for them.

  Args:
    name: of BENCHMARKS.
    items: of `read`.
    files: images, those of the first prompt first.
    output: folder to write to; what its files hold is replaced.

  Raises:
    ValueError: for another number of images.
  """
  benchmark = BENCHMARKS[name]
  count = benchmark.images
  if len(files) != count * len(items):
    raise ValueError(
      f'{len(files)} images; {name} takes {count} of each of {len(items)} '
      'prompts'
    )
  for i, item in enumerate(items):
    benchmark.write(
      item, files[i * count : (i + 1) * count], pathlib.Path(output)
    )


def read_geneval(path: pathlib.Path) -> list[Item]:
  """Reads objects with a prompt, one on each line."""
  items = []
  lines = [x for x in path.read_text('utf-8').splitlines() if x.strip()]
  for i, line in enumerate(lines):
    try:
      metadata = json.loads(line)
      items.append(Item(metadata['prompt'], f'{i:05}', metadata))
    except (ValueError, TypeError, KeyError) as error:
      raise ValueError(
        f'{path}, line {i + 1} is no object with a "prompt" ({error}): pass '
        "GenEval's evaluation_metadata.jsonl"
      ) from error
  return items


def write_geneval(
  item: Item, files: Sequence[Path], output: pathlib.Path
) -> None:
  """Writes the folder of a prompt."""
  folder = output / item.name
  (folder / 'samples').mkdir(parents=True, exist_ok=True)
  (folder / 'metadata.jsonl').write_text(json.dumps(item.metadata), 'utf-8')
  for i, file in enumerate(files):
    shutil.copyfile(file, folder / 'samples' / f'{i:05}.png')


def read_dpg(path: pathlib.Path) -> list[Item]:
  """Reads files of one prompt each."""
  return [
    Item(file.read_text('utf-8').strip(), file.stem)
    for file in sorted(path.glob('*.txt'))
  ]


def write_dpg(item: Item, files: Sequence[Path], output: pathlib.Path) -> None:
  """Writes the images of a prompt as one."""
  output.mkdir(parents=True, exist_ok=True)
  arrays = [np.asarray(image_folder.open_rgb(file)) for file in files]
  rows = [
    np.concatenate(arrays[i : i + COLUMNS], axis=1)
    for i in range(0, len(arrays), COLUMNS)
  ]
  Image.fromarray(np.concatenate(rows)).save(output / f'{item.name}.png')


def read_hpsv2(path: pathlib.Path) -> list[Item]:
  """Reads lists of prompts, one file for each style."""
  files = sorted(path.glob('*.json')) if path.is_dir() else [path]
  items = []
  for file in files:
    try:
      prompts = json.loads(file.read_text('utf-8'))
    except ValueError as error:
      raise ValueError(f'{file} is not JSON: {error}') from error
    if not isinstance(prompts, list):
      raise ValueError(f'{file} is no list of prompts, as those of HPSv2 are')
    items += [
      Item(prompt, f'{file.stem}/{i:05}') for i, prompt in enumerate(prompts)
    ]
  return items


def write_hpsv2(
  item: Item, files: Sequence[Path], output: pathlib.Path
) -> None:
  """Writes the image of a prompt as JPEG, which the tool asks for."""
  path = output / f'{item.name}.jpg'
  path.parent.mkdir(parents=True, exist_ok=True)
  image = image_folder.open_rgb(files[0])
  image.save(path, quality=QUALITY, subsampling=0)


BENCHMARKS = {
  'geneval': Benchmark(4, read_geneval, write_geneval),
  'dpg': Benchmark(4, read_dpg, write_dpg),
  'hpsv2': Benchmark(1, read_hpsv2, write_hpsv2),
}
