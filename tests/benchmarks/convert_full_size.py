"""Measures time and host memory of converting and loading full-size SDXL.

  python -m tests.benchmarks.convert_full_size --folder DIR

Writes a diffusers folder of random float32 weights of the base (13.9 GB) into
DIR, converts the folder to a single file and the file back to a folder,
compares the two folders byte by byte, and loads the folder as a pipeline of
sdxl_jax and of diffusers (if installed). Each step runs in its own process.
Prints the seconds of each step, its peak memory (VmHWM) and the part of it that
no file backs (RssAnon, sampled every 20 ms). Needs 45 GB of disk, freed at the
end, and 20 GB of memory for loading; --steps selects steps.
"""

import filecmp
import pathlib
import shutil
import subprocess
import sys
import time

import numpy as np
from absl import app, flags

from sdxl_jax.models import clip, unet, vae
from sdxl_jax.text import clip_vocabulary, tokenizer
from sdxl_jax.weights import net_shapes, pretrained, safetensors_file
from sdxl_jax.weights.diffusers import config_json, folder_writer, tensor_names

CONFIGS = {
  'unet': unet.BASE,
  'vae': vae.VAEConfig(),
  'text_encoder': clip.VIT_L,
  'text_encoder_2': clip.VIT_BIGG,
}
CONVERT = 'from sdxl_jax.convert import Source, Target, convert; convert'
THEIRS = 'x = diffusers.StableDiffusionXLPipeline.from_pretrained'
# diffusers maps a file of the right dtype and reads it on first use.
TOUCH = (
  'nets = x.unet, x.vae, x.text_encoder, x.text_encoder_2; '
  'sums = [p.sum() for net in nets for p in net.parameters()]'
)
STEPS = {
  'idle': 'import sdxl_jax.convert',
  'folder > file': (
    f"{CONVERT}(Source('folder'), Target('a.safetensors', 'single_file'))"
  ),
  'file > folder': (
    f"{CONVERT}(Source('a.safetensors'), Target('back', 'diffusers'))"
  ),
  'folder > orbax': f"{CONVERT}(Source('folder'), Target('orbax', 'orbax'))",
  'ours': "from sdxl_jax import sample; x = sample.load('folder', 'float32')",
  'ours, bfloat16': (
    "from sdxl_jax import sample; x = sample.load('folder', 'bfloat16')"
  ),
  'diffusers': f"import diffusers; {THEIRS}('folder'); {TOUCH}",
  'diffusers, bfloat16': (
    f"import diffusers, torch; {THEIRS}('folder', torch_dtype=torch.bfloat16); "
    f'{TOUCH}'
  ),
}
# Printed at the end of each step, for VmHWM.
REPORT = "print(*open('/proc/self/status'), sep='')"


def make(folder, dtype=None):
  """Writes a diffusers folder of random weights, float32 or of another dtype"""
  model = pretrained.Model(
    kind='random',
    path=folder,
    loaders={name: lambda name=name: random_net(name) for name in CONFIGS},
    index=pretrained.ModelIndex(refiner=False, force_zeros=True),
    scheduler=pretrained.SCHEDULER,
    tokenizers={
      name: lambda path, name=name: clip_vocabulary.save(path, name)
      for name in tokenizer.PADS
    },
  )
  folder_writer.save(folder, model, dtype=dtype)


def random_net(name):
  """Returns a net whose tensors are generated when they are written."""
  config = CONFIGS[name]
  noise = np.random.default_rng(0).normal(size=2**20).astype(np.float32)

  def tensor(shape):
    return safetensors_file.LazyTensor(
      shape, np.dtype('f4'), lambda: np.resize(0.02 * noise, shape)
    )

  shapes = tensor_names.tensors(net_shapes.abstract_params(config))
  tensors = {n: tensor(t.shape) for n, t in shapes.items()}
  content = config_json.write(name, config)
  return pretrained.Net(name, content, 'random', lambda: tensors)


def field(text, name):
  """Returns a field of /proc/PID/status in GB, 0 if the process has ended."""
  lines = [line for line in text.splitlines() if line.startswith(f'{name}:')]
  return int(lines[0].split()[1]) * 1024 / 1e9 if lines else 0.0


def run(code, cwd):
  """Runs a Python program: (seconds, output, VmHWM, peak RssAnon)."""
  root = pathlib.Path(__file__).parents[2]
  code = f'import sys; sys.path.insert(0, {str(root)!r}); {code}; {REPORT}'
  started = time.monotonic()
  anonymous = 0.0
  with open(cwd / 'errors', 'w+') as errors:
    process = subprocess.Popen(
      [sys.executable, '-c', code],
      cwd=cwd,
      stdout=subprocess.PIPE,
      stderr=errors,
      text=True,
    )
    # Sample the memory while the program runs.
    status = pathlib.Path(f'/proc/{process.pid}/status')
    while process.poll() is None:
      anonymous = max(anonymous, field(status.read_text(), 'RssAnon'))
      time.sleep(0.02)
    output, _ = process.communicate()
    if process.returncode:
      errors.seek(0)
      raise RuntimeError(errors.read()[-2000:])
  seconds = time.monotonic() - started
  return seconds, output, field(output, 'VmHWM'), anonymous


def is_same(one, other):
  """Returns whether all weights of two folders are equal, byte by byte."""
  paths = sorted(p.relative_to(one) for p in one.rglob('*.safetensors'))
  match, *others = filecmp.cmpfiles(one, other, paths, shallow=False)
  return len(match) == len(paths) and not any(others)


def main(argv):
  del argv
  folder = pathlib.Path(flags.FLAGS.folder)
  folder.mkdir(parents=True)
  # Run each step, and remove what later steps do not need.
  try:
    make(folder / 'folder')
    for name in flags.FLAGS.steps or STEPS:
      seconds, _, peak, anonymous = run(STEPS[name], folder)
      print(
        f'{name:20} {seconds:6.1f} s  VmHWM {peak:6.2f} GB  RssAnon '
        f'{anonymous:6.2f} GB',
        flush=True,
      )
      if name == 'file > folder':
        print('the same bytes:', is_same(folder / 'folder', folder / 'back'))
        shutil.rmtree(folder / 'back')
        (folder / 'a.safetensors').unlink()
      elif name == 'folder > orbax':
        shutil.rmtree(folder / 'orbax')
  finally:
    shutil.rmtree(folder)


if __name__ == '__main__':
  flags.DEFINE_string('folder', None, 'folder to work in; must not exist')
  flags.DEFINE_list('steps', None, f'some of {list(STEPS)}; default: all')
  flags.mark_flag_as_required('folder')
  app.run(main)
