"""Where the files lie that metrics of images need, and where to get them.

They lie in one folder: the one that is passed, or that of the environment
variable SDXL_JAX_METRICS, or ~/.cache/sdxl_jax/metrics. Nothing is downloaded
here.
"""

import dataclasses
import os
import pathlib

VARIABLE = 'SDXL_JAX_METRICS'


@dataclasses.dataclass(frozen=True)
class MetricFile:
  """A published file.

  Attributes:
    what: it is, for errors.
    names: paths in the folder under which it is looked for, the first that
      exists is taken.
    url: where it is published.
    command: downloads it; FOLDER stands for the folder.
  """

  what: str
  names: tuple[str, ...]
  url: str
  command: str


def of_hub(what: str, repository: str, *files: str) -> MetricFile:
  """Describes weights that a repository of the Hugging Face hub publishes.

  Args:
    what: the weights are.
    repository: owner/name.
    files: of the repository; the first one is advised, all are read.
  """
  folder = repository.split('/')[1]
  return MetricFile(
    what,
    tuple(f'{folder}/{file}' for file in files),
    f'https://huggingface.co/{repository}',
    f'hf download {repository} {files[0]} --local-dir FOLDER/{folder}',
  )


_RELEASE = 'https://github.com/mseitzer/pytorch-fid/releases/download'
_MLPERF = 'https://github.com/mlcommons/inference/raw/master/text_to_image'
TRANSFORMERS = ('model.safetensors', 'pytorch_model.bin')
OPEN_CLIP = ('open_clip_model.safetensors', 'open_clip_pytorch_model.bin')
INCEPTION = MetricFile(
  'Inception v3 of FID',
  (
    'pt_inception-2015-12-05-6726825d.pth',
    'pt_inception-2015-12-05.pth',
    'pt_inception-2015-12-05-6726825d.safetensors',
    'pt_inception-2015-12-05.safetensors',
  ),
  f'{_RELEASE}/fid_weights/pt_inception-2015-12-05-6726825d.pth',
  f'curl -L --output-dir FOLDER --create-dirs -O {_RELEASE}/fid_weights/'
  'pt_inception-2015-12-05-6726825d.pth',
)
# Mean and covariance of Inception's features of COCO 2014's validation images,
# with which MLPerf Inference compares.
VAL2014 = MetricFile(
  'reference statistics of COCO 2014',
  ('val2014.npz',),
  f'{_MLPERF}/tools/val2014.npz',
  f'curl -L --output-dir FOLDER --create-dirs -O {_MLPERF}/tools/val2014.npz',
)
CLIP = {
  'ViT-B/32': of_hub(
    'CLIP ViT-B/32',
    'openai/clip-vit-base-patch32',
    *reversed(TRANSFORMERS),
    *OPEN_CLIP,
  ),
  'ViT-L/14': of_hub(
    'CLIP ViT-L/14',
    'openai/clip-vit-large-patch14',
    *TRANSFORMERS,
    *OPEN_CLIP,
  ),
  'ViT-L/14@336': of_hub(
    'CLIP ViT-L/14@336',
    'openai/clip-vit-large-patch14-336',
    *reversed(TRANSFORMERS),
    *OPEN_CLIP,
  ),
  'ViT-H-14': of_hub(
    'OpenCLIP ViT-H-14',
    'laion/CLIP-ViT-H-14-laion2B-s32B-b79K',
    *reversed(OPEN_CLIP),
    *TRANSFORMERS,
  ),
}


def default_folder() -> pathlib.Path:
  """Returns the folder of the files, see above."""
  if chosen := os.environ.get(VARIABLE):
    return pathlib.Path(chosen)
  base = os.environ.get('XDG_CACHE_HOME', '')
  if not os.path.isabs(base):  # as XDG's specification asks
    base = pathlib.Path.home() / '.cache'
  return pathlib.Path(base) / 'sdxl_jax' / 'metrics'


def find(
  file: MetricFile, path: str | pathlib.Path | None = None
) -> pathlib.Path:
  """Returns the path of a file.

  Args:
    file: to find.
    path: of the file itself, or of the folder of the files; None: the default
      folder.

  Raises:
    FileNotFoundError: with the name of the file, where it is published, how to
      download it, and where it is looked for.
  """
  folder = default_folder() if path is None else pathlib.Path(path)
  if folder.is_file():
    return folder
  candidates = [folder / name for name in file.names]
  # A folder of one model alone, as the hub's are.
  candidates += [folder / pathlib.Path(name).name for name in file.names]
  for candidate in candidates:
    if candidate.is_file():
      return candidate
  command = file.command.replace('FOLDER', str(folder))
  others = ' or '.join(str(folder / name) for name in file.names[1:])
  raise FileNotFoundError(
    f'{file.what}: {folder / file.names[0]} does not exist'
    f'{f" (nor {others})" if others else ""}. It is published at {file.url}: '
    f'{command}'
  )


def fingerprint(path: str | os.PathLike) -> str:
  """Returns the path, size and time of change of a file, to know it again."""
  path = pathlib.Path(path)
  stat = path.stat()
  return f'{path.resolve()} {stat.st_size} {stat.st_mtime_ns}'
