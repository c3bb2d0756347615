"""Files of the command: the noise that it reads, and what it writes."""

import os
import pathlib
import tokenize
import zipfile
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import flags

from sdxl_jax.data import images
from sdxl_jax.sampling import validation, watermark

# What numpy raises on files that are cut off, broken or of other formats.
UNREADABLE = (
  ValueError,
  EOFError,
  OverflowError,
  tokenize.TokenError,
  zipfile.BadZipFile,
)


def read_noise(path: str, flag: str = 'init_noise') -> np.ndarray:
  """Reads the .npy of a flag, [n, h/8, w/8, 4].

  Raises:
    ValueError: for a file that is no .npy, or numbers that are not finite.
    OSError: for a file that cannot be read.
  """
  try:
    noise = np.load(path)
    if not isinstance(noise, np.ndarray) or noise.ndim != 4:
      raise ValueError('it holds no array of 4 axes')
  except UNREADABLE as error:
    raise ValueError(
      f'--{flag}={path} cannot be read ({error}): write it with '
      'numpy.save, as [n, h/8, w/8, 4]'
    ) from error
  validation.check_numbers(f'--{flag}={path}', noise)
  return noise


def check_arrays(
  requests: Sequence[Any],
  noise: np.ndarray | None,
  args: flags.FlagValues,
) -> None:
  """Raises ValueError for noise or latents that do not fit one array."""
  if noise is not None and len(noise) != len(requests):
    raise ValueError(
      f'--init_noise={args.init_noise} has noise for {len(noise)} images, and '
      f'{len(requests)} are to be sampled: pass one each'
    )
  # An image is resized to sides that are set.
  sizes = {
    (r.height, r.width, None if r.height and r.width else r.image)
    for r in requests
  }
  if args.save_latents and len(sizes) > 1:
    raise ValueError(
      f'--save_latents={args.save_latents} is one array, and the images may '
      'have several sizes: use one command for each size'
    )


def check_outputs(names: Sequence[str], args: flags.FlagValues) -> None:
  """Checks all files that will be written.

  Args:
    names: of the images.
    args: the flags.

  Raises:
    OSError: for one that could not be written.
    ValueError: for one that would be written twice.
  """
  flag_of = dict.fromkeys(map(os.path.abspath, names), 'output')
  for path in names:
    check_writable(pathlib.Path(path), 'output')
  for flag in ('grid', 'preview', 'save_latents'):
    path = args[flag].value
    if not path:
      continue
    if args.skip_existing and flag != 'preview':
      raise ValueError(
        f'--{flag}={path} is made of all images, and --skip_existing draws '
        'those alone that are missing: leave one of the two out'
      )
    check_writable(pathlib.Path(path), flag)
    first = flag_of.setdefault(os.path.abspath(path), flag)
    if first != flag:
      raise ValueError(
        f'--{flag}={path} is a file of --{first} as well: choose another'
      )


def check_writable(path: pathlib.Path, flag: str) -> None:
  """Raises OSError for the path of a flag that could not be written later."""
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    writable = os.access(path.parent, os.W_OK) and not path.is_dir()
  except OSError:
    writable = False
  if not writable:
    raise OSError(f'{path} cannot be written: choose another --{flag}')


def write_image(
  name: str,
  image: np.ndarray,
  text: dict[str, str],
  zoom: int,
  watermarked: bool,
) -> np.ndarray:
  """Writes an image; returns the pixels that were written.

  Args:
    name: of the file.
    image: float [h, w, 3] in [-1, 1].
    text: of the PNG.
    zoom: factor by which pixels are repeated.
    watermarked: whether to embed SDXL's watermark.
  """
  pixels = images.enlarge(images.to_uint8(image), zoom)
  if watermarked:
    pixels = watermark.embed(pixels)
  images.save(name, pixels, text)
  return pixels
