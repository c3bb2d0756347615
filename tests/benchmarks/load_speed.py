"""Measures loading of full-size weights, ours beside diffusers.

  python -m tests.benchmarks.load_speed --folder NEW --stored float16

Writes a diffusers folder of random weights of the base (13.9 GB in float32,
6.9 GB in float16), and loads it in fresh processes, ours and diffusers' in
turns: sample.load up to the last array on its device; from_pretrained, then the
sum of each parameter, since diffusers maps a file of the right dtype and reads
it on first use; and, as a limit, the files read into new memory and nothing
else, by a thread for each core. All files are read through before each process,
so that they lie in the page cache as far as memory allows.

Prints for each process the seconds of its imports and of loading, the CPU
seconds of loading in the program and in the kernel, its peak memory (VmHWM,
which counts mapped files), the part of it that no file backs (RssAnon), and
what came from the disk in spite of the page cache; at the end the ratio of the
medians. --part takes one net alone.
Needs as much memory as weights and page cache together, and diffusers.
"""

import pathlib
import shutil
import statistics

from absl import app, flags

from sdxl_jax.weights.diffusers import folder_writer
from tests.benchmarks import convert_full_size

# Each program has imported its libraries, then loads `x`.
START = (
  'import resource, time; '
  'cpu = lambda: resource.getrusage(resource.RUSAGE_SELF)[:2]; '
  'begin = time.monotonic(); '
)
MIDDLE = 'loaded = time.monotonic(); before = cpu(); '
END = (
  "; disk = open('/proc/self/io').read().split('read_bytes: ')[1].split()[0]; "
  'print("FIGURES", loaded - begin, time.monotonic() - loaded, '
  '*(b - a for a, b in zip(before, cpu())), int(disk) / 1e9)'
)
OURS = (
  'import jax; from sdxl_jax import sample; ',
  "x = sample.load('{folder}', '{dtype}', vae_dtype='{vae_dtype}'); "
  'jax.block_until_ready(x.params)',
)
OUR_PART = (
  'import jax; from sdxl_jax import sample; '
  'from sdxl_jax.checkpoints import loading; '
  'from sdxl_jax.weights.diffusers import folder_reader; ',
  "net = folder_reader.open_net('{folder}/{part}', '{part}'); "
  "x = net.load(loading.make_sharding_fn(None), param_dtype='{dtype}'); "
  'jax.block_until_ready(x[1])',
)
THEIRS = (
  'import torch; from diffusers import StableDiffusionXLPipeline as pipeline; ',
  "x = pipeline.from_pretrained('{folder}', torch_dtype=torch.{dtype}); "
  'nets = x.unet, x.vae, x.text_encoder, x.text_encoder_2; '
  'sums = [p.sum() for net in nets for p in net.parameters()]',
)
COPY = (
  'import os, pathlib; from concurrent.futures import ThreadPoolExecutor; '
  'import numpy as np; ',
  "paths = [*pathlib.Path('{folder}/{part}').rglob('*.safetensors')]; "
  'arrays = [np.empty(path.stat().st_size, np.uint8) for path in paths]; '
  'jobs = [(path, x[i : i + 2**26], i) for path, x in zip(paths, arrays) '
  'for i in range(0, len(x), 2**26)]; '
  'read = lambda job: os.preadv(os.open(job[0], 0), [job[1]], job[2]); '
  'counts = list(ThreadPoolExecutor(os.cpu_count()).map(read, jobs))',
)
CLASSES = {
  'unet': 'diffusers.UNet2DConditionModel',
  'vae': 'diffusers.AutoencoderKL',
  'text_encoder': 'transformers.CLIPTextModel',
  'text_encoder_2': 'transformers.CLIPTextModelWithProjection',
}
THEIR_PART = (
  'import torch; from {library} import {net_class}; ',
  "x = {net_class}.from_pretrained('{folder}/{part}', "
  'torch_dtype=torch.{dtype}); '
  'sums = [p.sum() for p in x.parameters()]',
)


def program(steps, folder, part, dtype):
  """Returns the code that loads a folder, or a part of it, and its figures."""
  library, _, net_class = CLASSES[part or 'unet'].partition('.')
  code = START + steps[0] + MIDDLE + steps[1] + END
  return code.format(
    folder=folder,
    part=part or '',
    dtype=dtype,
    # float16 is refused, since the published autoencoder overflows in it.
    vae_dtype='bfloat16' if dtype == 'float16' else dtype,
    library=library,
    net_class=net_class,
  )


def warm(folder):
  """Reads all files through, so that they lie in the page cache."""
  buffer = bytearray(2**24)
  for path in folder.rglob('*.safetensors'):
    with path.open('rb', buffering=0) as file:
      while file.readinto(buffer):
        pass


def measure(name, code, folder):
  """Loads in a fresh process, prints its figures, returns (s, CPU s)."""
  warm(folder)
  _, output, peak, anonymous = convert_full_size.run(code, folder.parent)
  figures = output.split('FIGURES ')[1].split('\n')[0].split()
  imports, seconds, user, system, disk = map(float, figures)
  print(
    f'{name:9} imports {imports:5.1f} s  loading {seconds:6.2f} s  CPU '
    f'{user:6.2f} s, kernel {system:6.2f} s  VmHWM {peak:6.2f} GB  RssAnon '
    f'{anonymous:6.2f} GB  from disk {disk:5.2f} GB',
    flush=True,
  )
  return seconds, user + system


def main(argv):
  del argv
  args = flags.FLAGS
  folder = pathlib.Path(args.folder)
  folder.mkdir(parents=True, exist_ok=args.keep)
  weights, part = folder / args.stored, args.part
  steps = {
    'ours': OUR_PART if part else OURS,
    'diffusers': THEIR_PART if part else THEIRS,
    'copy': COPY,
  }
  found = {name: [] for name in steps}
  try:
    if part and not (weights / part).exists():
      weights.mkdir(exist_ok=True)
      net = convert_full_size.random_net(part)
      folder_writer.save_net(weights / part, net, dtype=args.stored)
    elif not weights.exists():
      convert_full_size.make(weights, dtype=args.stored)
    for dtype in args.dtypes:
      print(f'{args.stored} on disk, loaded as {dtype}')
      for name in list(steps) * args.turns:
        code = program(steps[name], weights, part, dtype)
        found[name].append(measure(name, code, weights))
      for i, unit in enumerate(('seconds', 'CPU seconds')):
        ours, theirs = (
          statistics.median(figures[i] for figures in found[name])
          for name in ('ours', 'diffusers')
        )
        print(f'ours / diffusers, median of {unit}: {ours / theirs:.2f}')
      found = {name: [] for name in steps}
  finally:
    if not args.keep:
      shutil.rmtree(folder)


if __name__ == '__main__':
  flags.DEFINE_string('folder', None, 'folder to work in; must not exist')
  flags.DEFINE_enum('stored', 'float32', ['float32', 'float16'], 'on disk')
  flags.DEFINE_list('dtypes', ['float32'], 'to load as, one after the other')
  flags.DEFINE_enum('part', None, list(CLASSES), 'net to load; default: all')
  flags.DEFINE_integer('turns', 3, 'processes of each program')
  flags.DEFINE_bool('keep', False, 'keep the folder, which may exist then')
  flags.mark_flag_as_required('folder')
  app.run(main)
