"""Runs that the soak disturbs: their starts, their images, what they did."""

import os
import random
import subprocess
import sys
import threading
import time

import numpy as np
from PIL import Image

from tests.support import xla_flags

STEPS = 150
EVERY = 10  # steps between checkpoints
SLEEP = 0.02  # seconds between steps, so that faults hit all parts of a run
SHAPES = {(16, 16): (20, 20), (16, 24): (20, 30)}  # image of each bucket
ONE_DEVICE = {
  'JAX_PLATFORMS': 'cpu',
  'XLA_FLAGS': xla_flags.flags(devices=1),
}


class Dataset:
  """A folder of images with captions, and what it held at some moments."""

  def __init__(self, folder, rng):
    self.folder, self.rng, self.count = folder, rng, 0
    folder.mkdir()
    for _ in range(24):
      self.add()

  def add(self):
    """Adds an image with a caption."""
    shape = list(SHAPES.values())[self.count % 2]
    pixels = np.random.default_rng(self.count).integers(0, 256, (*shape, 3))
    path = self.folder / f'{self.count:03}.png'
    Image.fromarray(pixels.astype(np.uint8)).save(path)
    path.with_suffix('.txt').write_text(f'image {self.count}')
    self.count += 1

  def choose(self):
    return self.rng.choice(sorted(self.folder.glob('*.png')))

  def remove(self):
    path = self.choose()
    path.unlink()
    path.with_suffix('.txt').unlink()

  def edit(self):
    path = self.choose().with_suffix('.txt')
    path.write_text(path.read_text() + ' edited')

  def cut(self):
    """Makes the pixels of an image unreadable; its header stays."""
    path = self.choose()
    data = path.read_bytes()
    path.write_bytes(data[: max(100, len(data) - 40)])

  def held(self):
    """Returns {name: content} of the records."""
    return {
      path.name: path.read_bytes() + path.with_suffix('.txt').read_bytes()
      for path in self.folder.glob('*.png')
    }


def differences(old, new):
  """Counts (added, removed, changed) between two `held`."""
  changed = sum(old[name] != new[name] for name in old.keys() & new.keys())
  return len(new.keys() - old.keys()), len(old.keys() - new.keys()), changed


class Soak:
  """One run: its workdir, its data, and what its starts did."""

  def __init__(self, folder, number, rng, changes_data, patience):
    self.folder, self.rng, self.changes_data = folder, rng, changes_data
    self.patience = patience  # seconds for a start to end in
    folder.mkdir()
    self.workdir = folder / 'run'
    self.notes, self.log = folder / 'notes.jsonl', folder / 'log'
    # All runs have the same data at first, so that they can be compared.
    self.data = Dataset(folder / 'images', random.Random(number))
    self.batch, self.saved, self.saved_batch = 4, None, 4
    self.copies = {}  # {process id: thread that copies its output}
    self.segments = []  # first step of each stretch of the same records

  def latest(self):
    """Returns the step of the last complete checkpoint, 0 if there is none."""
    folder = self.workdir / 'checkpoints'
    names = [p.name for p in folder.iterdir()] if folder.exists() else []
    return max([int(name) for name in names if name.isdigit()], default=0)

  def start(self, *extra, **variables):
    """Starts the run; its output goes to self.log."""
    command = [
      sys.executable,
      '-m',
      'tests.support.soak_train',
      '--config=tests/support/tiny_config.py',
      f'--workdir={self.workdir}',
      '--config.data.source=folder',
      f'--config.data.folder.path={self.data.folder}',
      '--config.data.index_workers=0',
      f'--config.total_steps={STEPS}',
      f'--config.checkpoint.every={EVERY}',
      f'--config.global_batch_size={self.batch}',
      *extra,
    ]
    variables = {'SOAK_SLEEP': SLEEP, 'SOAK_NOTES': self.notes} | variables
    environment = os.environ | {k: str(v) for k, v in variables.items()}
    self.log.write_bytes(b'')  # until the thread below has begun
    process = subprocess.Popen(
      command,
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      env=environment | ONE_DEVICE,
    )
    # Through a pipe: a process whose files cannot grow still has last words.
    copy = threading.Thread(target=copy_lines, args=(process.stdout, self.log))
    copy.start()
    self.copies[process.pid] = copy
    return process

  def end(self, process):
    """Waits for a process and for its output; returns the exit code."""
    try:
      code = process.wait(self.patience)
    except subprocess.TimeoutExpired:
      process.kill()
      expect(False, 'still running', self)
    self.copies.pop(process.pid).join()
    return code

  def wait_for(self, words, process):
    """Waits until the log has these words; returns whether it does."""
    while process.poll() is None:
      if words in self.log.read_text():
        return True
      time.sleep(0.05)
    return words in self.log.read_text()


def copy_lines(stream, path):
  """Copies what a process prints to a file."""
  with open(path, 'ab') as file:
    for line in iter(lambda: stream.read1(4096), b''):
      file.write(line)
      file.flush()


def expect(condition, what, soak):
  """Ends the benchmark with the log of the start that differs."""
  if not condition:
    log = soak.log.read_text()[-4000:]
    sys.exit(f'{what}; workdir {soak.workdir}, its log ends with:\n{log}')
