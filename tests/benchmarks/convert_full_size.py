"""Full-size SDXL base, converted and loaded: seconds and host memory.

  python -m tests.benchmarks.convert_full_size --folder DIR

Writes a diffusers folder of random float32 weights (13.9 GB) into DIR, converts
it to a single file and that back to a folder, compares the two folders byte by
byte, and loads it as a pipeline, ours and diffusers' (where that is installed).
Each step is a process of its own. Prints its seconds, the most memory that it
had (VmHWM) and what of that was no file's (RssAnon, looked at often). Needs 45
GB on the disk, which are free again in the end, and 20 GB of memory for
loading; --steps chooses.
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
from sdxl_jax.text import tokenizer
from sdxl_jax.weights import pretrained, safetensors_file
from sdxl_jax.weights.diffusers import config_json, folder_writer, tensor_names

CONFIGS = {
  'unet': unet.BASE,
  'vae': vae.VAEConfig(),
  'text_encoder': clip.VIT_L,
  'text_encoder_2': clip.VIT_BIGG,
}
CONVERT = 'from sdxl_jax.convert import Source, Target, convert; convert'
THEIRS = 'x = diffusers.StableDiffusionXLPipeline.from_pretrained'
# diffusers maps a file of the right type, and reads it when it is used.
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
  'ours': "from sdxl_jax import sample; x = sample.load('folder')",
  'ours, bfloat16': (
    "from sdxl_jax import sample; x = sample.load('folder', 'bfloat16')"
  ),
  'diffusers': f"import diffusers; {THEIRS}('folder'); {TOUCH}",
  'diffusers, bfloat16': (
    f"import diffusers, torch; {THEIRS}('folder', torch_dtype=torch.bfloat16); "
    f'{TOUCH}'
  ),
}
# At the end of each step: the most memory that it had.
REPORT = "print(*open('/proc/self/status'), sep='')"


def make(folder):
  """A folder of random weights, tensor by tensor."""
  model = pretrained.Model(
    kind='random',
    path=folder,
    loaders={name: lambda name=name: random_net(name) for name in CONFIGS},
    index=pretrained.ModelIndex(refiner=False, force_zeros=True),
    scheduler=pretrained.SCHEDULER,
    tokenizers={
      name: lambda path, name=name: tokenizer.save(path, name)
      for name in tokenizer.PADS
    },
  )
  folder_writer.save(folder, model)


def random_net(name):
  config, rng = CONFIGS[name], np.random.default_rng(0)
  noise = rng.normal(size=2**20).astype(np.float32)
  draw = lambda shape: lambda: np.resize(0.02 * noise, shape)
  shapes = tensor_names.tensors(pretrained.abstract_params(config))
  found = {
    n: safetensors_file.LazyTensor(t.shape, np.dtype('f4'), draw(t.shape))
    for n, t in shapes.items()
  }
  told = config_json.write(name, config)
  return pretrained.Net(name, told, 'random', lambda: found)


def field(text, name):
  """A field of /proc/PID/status, in GB."""
  lines = [line for line in text.splitlines() if line.startswith(f'{name}:')]
  return int(lines[0].split()[1]) * 1024 / 1e9 if lines else 0.0


def measure(code, cwd):
  """(seconds, VmHWM, most RssAnon) of a Python program."""
  root = pathlib.Path(__file__).parents[2]
  code = f'import sys; sys.path.insert(0, {str(root)!r}); {code}; {REPORT}'
  started, anonymous = time.monotonic(), 0.0
  with open(cwd / 'errors', 'w+') as errors:
    process = subprocess.Popen(
      [sys.executable, '-c', code],
      cwd=cwd,
      stdout=subprocess.PIPE,
      stderr=errors,
      text=True,
    )
    status = pathlib.Path(f'/proc/{process.pid}/status')
    while process.poll() is None:
      anonymous = max(anonymous, field(status.read_text(), 'RssAnon'))
      time.sleep(0.02)
    output, _ = process.communicate()
    if process.returncode:
      errors.seek(0)
      raise RuntimeError(errors.read()[-2000:])
  return time.monotonic() - started, field(output, 'VmHWM'), anonymous


def same(one, other):
  """Whether all weights of two folders are the same bytes."""
  paths = sorted(p.relative_to(one) for p in one.rglob('*.safetensors'))
  match, *others = filecmp.cmpfiles(one, other, paths, shallow=False)
  return len(match) == len(paths) and not any(others)


def main(argv):
  del argv
  folder = pathlib.Path(flags.FLAGS.folder)
  folder.mkdir(parents=True)
  try:
    make(folder / 'folder')
    for name in flags.FLAGS.steps or STEPS:
      seconds, most, anonymous = measure(STEPS[name], folder)
      print(
        f'{name:20} {seconds:6.1f} s  VmHWM {most:6.2f} GB  RssAnon '
        f'{anonymous:6.2f} GB',
        flush=True,
      )
      if name == 'file > folder':
        print('the same bytes:', same(folder / 'folder', folder / 'back'))
        shutil.rmtree(folder / 'back')
        (folder / 'a.safetensors').unlink()
      elif name == 'folder > orbax':
        shutil.rmtree(folder / 'orbax')
  finally:
    shutil.rmtree(folder)


if __name__ == '__main__':
  flags.DEFINE_string('folder', None, 'to work in; it must not be there')
  flags.DEFINE_list('steps', None, f'of {list(STEPS)}')
  flags.mark_flag_as_required('folder')
  app.run(main)
