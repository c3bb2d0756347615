"""Explains why a path that was given as weights holds none."""

import os
import pathlib
import re

from sdxl_jax.weights import companions, pretrained

# Of a model on the Hugging Face hub: its owner and its name.
HUB_NAME = re.compile(r'[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*')
URL = re.compile(r'(https?|hf|s3|gs):/')
HUB_URL = re.compile(r'https?:/+huggingface\.co/([\w.-]+/[\w.-]+)')
DOWNLOAD = '`hf download {} --local-dir DIR`, and pass DIR'
WEIGHTS = ('*.safetensors', '*.ckpt', '*.pt', '*.bin', '*.gguf', '*.onnx')


def explain(path: str | os.PathLike[str]) -> str:
  """Describes in one line what a path is, and what to pass in its place.

  Args:
    path: that holds no weights of a known format and no run, as it was given.
  """
  given = os.fspath(path)
  path = pathlib.Path(path)
  if URL.match(given):
    return explain_url(given)
  if not path.exists():
    return explain_missing(given)
  if path.is_file():
    return f'{path} is a file, and the workdir of a run is a folder'
  return explain_folder(path)


def explain_url(url: str) -> str:
  """Describes an address, which may lack a slash that pathlib.Path drops."""
  hub = HUB_URL.match(url)
  if hub and '/resolve/' not in url and '/blob/' not in url:
    return f'{url} is an address: download it with {DOWNLOAD.format(hub[1])}'
  return (
    f'{url} is an address, and weights are read from files: download it, and '
    'pass the file'
  )


def explain_missing(given: str) -> str:
  """Describes a path where nothing is."""
  parent = pathlib.Path(given).parent
  if HUB_NAME.fullmatch(given) and not parent.is_dir():
    return (
      f'{given} does not exist here; if it is a model on the Hugging Face hub, '
      f'download it with {DOWNLOAD.format(given)}'
    )
  if not parent.is_dir():
    return f'{given} does not exist, nor its folder: check the path'
  names = sorted(p.name for p in parent.iterdir() if p.name[:1] != '.')
  has = companions.format_list(names) if names else 'nothing'
  return f'{given} does not exist; {parent} has {has}'


def explain_folder(folder: pathlib.Path) -> str:
  """Describes a folder that is of no known format."""
  snapshots = sorted(folder.glob('snapshots/*'))
  if snapshots:
    return (
      f'{folder} is an entry of the cache of the Hugging Face hub: pass '
      f'{snapshots[-1]}'
    )
  names = [path.name for path in folder.iterdir()]
  nets = [name for name in pretrained.COMPONENTS if name in names]
  if nets:
    return (
      f'{folder} has {", ".join(nets)} and no model_index.json, which a model '
      'has: download that file too, or pass the folder of one net to convert '
      'with --base'
    )
  files = sorted(path for glob in WEIGHTS for path in folder.glob(glob))
  if files:
    return (
      f'{folder} has no model_index.json, which a folder of a model has: pass '
      f'the file itself, such as {files[0]}'
    )
  inner = sorted(folder.glob('*/model_index.json'))
  if inner:
    return f'{folder} is not the folder of a model: pass {inner[0].parent}'
  if 'config.json' in names:
    return (
      f'{folder}/config.json describes none of the nets of SDXL: pass the '
      'folder of a model, which has model_index.json'
    )
  return (
    f'{folder} is no diffusers folder, no single file, no workdir of a '
    'training run and no checkpoints/STEP in one: check the path'
  )
