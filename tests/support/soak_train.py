"""sdxl_jax.train with a note of each step's records, and faults on request.

Environment:
  SOAK_NOTES     file for a JSON line per step: step, bucket, names, passes
  SOAK_SLEEP     seconds between two steps
  SOAK_NAN       end of the name of a record whose image becomes NaN
  SOAK_FULL      step after which files cannot grow, as on a full disk
  SOAK_BYTES     size that files may have from then on
"""

import json
import os
import resource
import time

import numpy as np

from sdxl_jax import cli, train
from sdxl_jax.data import transforms
from sdxl_jax.training import loop


def limit_files(size):
  """Limits the size to which this process can write files."""
  _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (size, most))


def main():
  take_step, transform = loop.take_step, transforms.transform
  nan, full = os.environ.get('SOAK_NAN'), os.environ.get('SOAK_FULL')

  def noted_step(run, state, step, *args):
    state = take_step(run, state, step, *args)
    bucket, _, passes = run.batches.schedule.records(step)
    note = {
      'step': step,
      'bucket': bucket,
      'names': run.batches.record_names(step),
      'passes': passes.tolist(),
    }
    limit_files(resource.RLIM_INFINITY)
    with open(os.environ['SOAK_NOTES'], 'a') as file:
      file.write(json.dumps(note) + '\n')
    time.sleep(float(os.environ.get('SOAK_SLEEP', 0)))
    if full and step >= int(full):
      limit_files(int(os.environ['SOAK_BYTES']))
    return state

  def noted_transform(example, *args, **settings):
    row = transform(example, *args, **settings)
    if nan and example['name'].endswith(nan):
      row['image'] = np.full_like(row['image'], np.nan)
    return row

  loop.take_step, transforms.transform = noted_step, noted_transform
  train.define_flags()
  cli.run(train.main)


if __name__ == '__main__':
  main()
