"""An image of each prompt of a file, at fixed seeds, to be measured.

What was drawn before a stop is not drawn again.
"""

import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from sdxl_jax.distributed import multihost
from sdxl_jax.sampling import (
  command_files,
  drawing,
  drawn_already,
  prompts_file,
  request_checks,
  sample_request,
)
from sdxl_jax.sampling.located import Located, naming
from sdxl_jax.weights import torch_pickle

TORCH = ('.pt', '.pth')  # suffixes of files by torch.save


def make_requests(
  lines: Sequence[prompts_file.Line],
  settings: dict[str, Any],
  count: int | None = None,
) -> list[Located]:
  """Makes a request of each line, image i with seed + i.

  Args:
    lines: of prompts_file.read; their own settings come first.
    settings: {field: value} of all requests; their seed is that of the first.
    count: of the first lines; None: all.

  Raises:
    ValueError: for fewer lines than `count`, and for values that do not fit.
  """
  if count is not None and len(lines) < count:
    raise ValueError(
      f'{len(lines)} prompts are fewer than the {count} that are asked for: '
      'pass a file with more, or a smaller number of images'
    )
  located, first = [], settings.get('seed', 0)
  for i, (location, fields) in enumerate(lines[:count]):
    with naming(location):
      request = sample_request.Request(
        **(settings | {'seed': first + i} | fields)
      )
    located.append(Located(location, request))
  return located


def file_names(folder: pathlib.Path, count: int) -> list[str]:
  """Returns the file of each image; they sort as the prompts are ordered."""
  return [str(folder / f'{i:06}.png') for i in range(count)]


def draw(
  located: Sequence[Located],
  folder: pathlib.Path,
  models: dict[str, Any],
  latents: np.ndarray | None = None,
  options: drawing.Options = drawing.DEFAULT,
  say: Callable[[str], Any] = print,
) -> list[str]:
  """Draws the images that are not in a folder; returns the files of all.

  Of several processes each draws its share, to one folder that all see.

  Args:
    located: the requests.
    folder: of the images, and of nothing else.
    models: {flag: value} of model_flags.MODEL_OPTIONS.
    latents: N(0, 1), [1, h/8, w/8, 4] for all images, or [n, ...]; None: those
      of the seeds.
    options: of the drawing.
    say: prints a line for the user.

  Raises:
    ValueError, OSError: for requests, files or weights that do not fit.
  """
  names = file_names(folder, len(located))
  command_files.check_writable(pathlib.Path(names[0]), 'output')
  check_strangers(folder, names)
  noise = None
  if latents is not None:
    if len(latents) not in (1, len(located)):
      raise ValueError(
        f'latents of {len(latents)} images, and {len(located)} are drawn: pass '
        'those of one image, which all share, or of each'
      )
    noise = np.broadcast_to(latents, (len(located), *latents.shape[1:]))
  missing = drawn_already.find(located, names, models)
  say(f'{len(names) - len(missing)} of {len(names)} images are in {folder}')
  if jax.process_count() > 1:
    # No process draws before all have seen what is there.
    multihost.check_equal_across_hosts(
      {'set of requests': f'{located} {models}', 'missing images': f'{missing}'}
    )
  if own := [missing[i] for i in multihost.share(len(missing))]:
    chosen = [located[i] for i in own]
    for line in request_checks.before_loading(chosen, models):
      options.warn(line)
    drawing.draw(
      chosen,
      [names[i] for i in own],
      models,
      noise if noise is None else noise[own],
      options,
    )
  if jax.process_count() > 1:
    multihost.barrier(f'all images are in {folder}')
    check_shared(names)
  return names


def check_shared(names: Sequence[str]) -> None:
  """Raises ValueError where images of other processes are not seen."""
  lacking = [name for name in names if not os.path.exists(name)]
  if lacking:
    raise ValueError(
      f'{len(lacking)} of {len(names)} images are not there after all '
      f'processes drew theirs, {lacking[0]} first: pass an --output on a disk '
      'that all processes share'
    )


def check_strangers(folder: pathlib.Path, names: Sequence[str]) -> None:
  """Raises ValueError for files in a folder that would be measured too."""
  known = {pathlib.Path(name).name for name in names}
  others = sorted(p.name for p in folder.iterdir() if p.name not in known)
  if others:
    raise ValueError(
      f'{folder} has {len(others)} files beside the {len(names)} images of '
      f'these prompts, {others[0]} first: choose another folder, or remove them'
    )


def read_latents(path: str) -> np.ndarray:
  """Reads latents, [n, h/8, w/8, 4].

  Args:
    path: .npy in that shape, or .pt with a tensor [n, 4, h/8, w/8], as MLPerf
      publishes latents.pt.

  Raises:
    ValueError: for another file or shape, or numbers that are not finite.
    OSError: for a file that cannot be read.
  """
  if pathlib.Path(path).suffix.lower() not in TORCH:
    return command_files.read_noise(path, 'latents')
  found = torch_pickle.load(path)
  if not isinstance(found, np.ndarray) or found.ndim != 4:
    raise ValueError(
      f'--latents={path} holds no tensor [n, 4, h/8, w/8]: pass latents.pt of '
      "MLPerf's text_to_image"
    )
  if not np.isfinite(found).all():
    raise ValueError(f'--latents={path} has NaN or infinity: download it again')
  return np.ascontiguousarray(found.transpose(0, 2, 3, 1), np.float32)
