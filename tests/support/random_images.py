"""Random images with structure, which nets tell apart better than noise."""

import numpy as np
from PIL import Image


def make(sizes, seed=0):
  """Patches of random colours and of random sizes, uint8 [h, w, 3] each."""
  rng = np.random.default_rng(seed)
  made = []
  for height, width in sizes:
    cells = tuple(rng.integers(1, 6, 2))
    coarse = rng.integers(0, 256, (*cells, 3), np.uint8)
    image = Image.fromarray(coarse).resize((width, height), Image.BICUBIC)
    noise = rng.normal(0, 10, (height, width, 3))
    made.append((np.asarray(image) + noise).clip(0, 255).astype(np.uint8))
  return made


def write(folder, sizes, seed=0):
  """Writes such images as 000.png, 001.png, ...; returns their paths."""
  folder.mkdir(parents=True, exist_ok=True)
  paths = []
  for i, image in enumerate(make(sizes, seed)):
    paths.append(folder / f'{i:03}.png')
    Image.fromarray(image).save(paths[-1])
  return paths
