"""The paper's claims in miniature: trains, measures, and writes the page.

  python -m tests.benchmarks.claims --workdir DIR

Five experiments with three seeds each, see experiments.py and configs/claims.
Each run is a `python -m sdxl_jax.train` of its own, which goes on where it was
stopped. Its figures are in DIR/results, a JSON file for each run, which is then
not run again. After each run configs/claims/README.md and its figures are
written anew, with `not run yet` where figures are missing; --page writes only
these. --experiments and --seeds choose runs.
"""

import json
import os
import pathlib
import subprocess
import sys
import time

from absl import app, flags, logging

from configs.claims import multi_aspect, small
from sdxl_jax import atomic_write
from tests.benchmarks.miniature import (
  experiments,
  feature_net,
  measure,
  page,
  results,
  scenes,
  scores,
)

LOG_LINES = 20  # of a failed run that are shown


def plan(names, seeds) -> list[results.Run]:
  """Lists the runs, seed by seed, so that all claims have a first figure soon.

  Raises:
    ValueError: for an unknown experiment.
  """
  known = experiments.EXPERIMENTS
  unknown = [name for name in names if name not in known]
  if unknown:
    raise ValueError(f'--experiments has {unknown[0]!r}; choose of {[*known]}')
  return [
    results.Run(name, arm, int(seed))
    for seed in seeds
    for name in known
    if name in names
    for arm in known[name].arms
  ]


def command(folder, run) -> list[str]:
  """Returns the command that trains a run."""
  experiment = experiments.EXPERIMENTS[run.experiment]
  words = [
    sys.executable,
    '-m',
    'sdxl_jax.train',
    f'--config={experiment.config(run.experiment, run.arm)}',
    f'--workdir={results.workdir(folder, run)}',
    f'--config.seed={run.seed}',
  ]
  if experiment.base:
    base = results.Run(*experiment.base, run.seed)
    words.append(f'--config.init_from={results.workdir(folder, base)}')
  return words


def train(folder, run) -> dict[str, float]:
  """Trains a run in a process of its own, with its output in a log.

  Returns:
    What it took, also where it was trained before: seconds, those of all CPUs,
    and the mean load.

  Raises:
    RuntimeError: if training failed.
  """
  workdir = results.workdir(folder, run)
  trained = workdir.with_suffix('.json')
  if trained.is_file():
    return json.loads(trained.read_text())
  workdir.parent.mkdir(parents=True, exist_ok=True)
  log = workdir.with_suffix('.log')
  load, cpu, started = os.getloadavg()[0], cpu_seconds(), time.monotonic()
  with open(log, 'a') as file:
    code = subprocess.call(
      command(folder, run), stdout=file, stderr=file, cwd=page.ROOT
    )
  if code:
    last = '\n'.join(log.read_text().splitlines()[-LOG_LINES:])
    raise RuntimeError(f'{run} ended with {code}; the end of {log}:\n{last}')
  took = {
    'train_s': time.monotonic() - started,
    'train_cpu_s': cpu_seconds() - cpu,
    'load': (load + os.getloadavg()[0]) / 2,
  }
  atomic_write.write_text(trained, json.dumps(took) + '\n')
  return took


def load_kit(folder) -> measure.Kit:
  """Loads the net of FID, which the first call trains."""
  vocabulary = measure.vocabulary_of(small.get_config())
  sizes = measure.SQUARE, multi_aspect.TALL, multi_aspect.WIDE
  features = feature_net.load_or_train(
    folder / 'features.msgpack', vocabulary, sizes
  )
  shares = ', '.join(
    f'{100 * share:.1f} % of {name}s'
    for name, share in features.accuracy.items()
  )
  known = measure.reference(vocabulary, measure.SQUARE).images
  others = scenes.make(vocabulary, measure.SQUARE, measure.SAMPLES, seed=9)
  least = scores.fid(features, others.images, known)
  line = (
    f'It is right for {shares} on {feature_net.TESTED:,} scenes that it was '
    f'not trained on. The FID of {measure.SAMPLES} other scenes in place of '
    f'samples is {least:.1f}: no model can be expected to have less.'
  )
  (folder / 'features.txt').write_text(f'{line}\n')
  print(f'feature net: {line}', flush=True)
  return measure.Kit(features, vocabulary)


def cpu_seconds() -> float:
  """Returns the CPU seconds of this process and of those it has waited for."""
  times = os.times()
  return sum(times[:4])


def finish(folder, run, kit) -> None:
  """Trains and measures a run, and writes its figures."""
  experiment = experiments.EXPERIMENTS[run.experiment]
  took = train(folder, run)
  started, cpu = time.monotonic(), cpu_seconds()
  arguments = {}
  if experiment.base:
    base = results.Run(*experiment.base, run.seed)
    arguments['base'] = results.workdir(folder, base)
  workdir = results.workdir(folder, run)
  rows = experiment.measure(kit, run.arm, run.seed, workdir, **arguments)
  found = took | {
    'rows': rows,
    'measure_s': time.monotonic() - started,
    'measure_cpu_s': cpu_seconds() - cpu,
  }
  results.write(folder, run, found)
  cpu = found['train_cpu_s'] + found['measure_cpu_s']
  print(
    f'{run}: trained in {found["train_s"]:.0f} s, measured in '
    f'{found["measure_s"]:.0f} s, {cpu:.0f} s of CPU; {rows}',
    flush=True,
  )


def run_all(folder, runs, kit_of=load_kit, finish=finish, report=None) -> int:
  """Finishes all runs that are not finished; returns how many were not.

  Args:
    folder: of all runs.
    runs: in order; a base is before what starts from it.
    kit_of: makes what measurements need, if there is a run to finish.
    finish: finishes a run.
    report: called after each run.
  """
  waiting = [run for run in runs if not results.path(folder, run).is_file()]
  print(f'{len(runs) - len(waiting)} of {len(runs)} runs are there', flush=True)
  kit = kit_of(folder) if waiting else None
  for i, run in enumerate(waiting):
    print(f'run {i + 1} of {len(waiting)}: {run}', flush=True)
    finish(folder, run, kit)
    if report:
      report()
  return len(waiting)


def main(argv):
  del argv
  args = flags.FLAGS
  logging.set_verbosity(logging.WARNING)  # orbax logs much
  folder = pathlib.Path(args.workdir).absolute()
  folder.mkdir(parents=True, exist_ok=True)
  head = {
    'side': small.SIDE,
    'samples': measure.SAMPLES,
    'references': f'{measure.REFERENCES:,}',
  }

  def report():
    page.write(folder, head, pathlib.Path(args.root))

  if not args.page:
    run_all(folder, plan(args.experiments, args.seeds), report=report)
  report()


if __name__ == '__main__':
  flags.DEFINE_string('workdir', None, 'folder of all runs and their figures')
  flags.DEFINE_list(
    'experiments', [*experiments.EXPERIMENTS], 'experiments to run'
  )
  flags.DEFINE_list('seeds', ['0', '1', '2'], 'seeds to run')
  flags.DEFINE_bool('page', False, 'only write the page')
  flags.DEFINE_string(
    'root', str(page.ROOT), 'folder of the repository to write the page to'
  )
  flags.mark_flag_as_required('workdir')
  app.run(main)
