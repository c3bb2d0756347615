"""The figures of finished runs, a JSON file each, and means over seeds."""

import json
import math
import pathlib
from typing import Any, NamedTuple

import numpy as np

from sdxl_jax import atomic_write


class Run(NamedTuple):
  """A training run: one arm of an experiment at one seed."""

  experiment: str
  arm: str
  seed: int

  def __str__(self) -> str:
    return f'{self.experiment}:{self.arm} seed {self.seed}'


class Statistic(NamedTuple):
  """Values of a metric, by seed."""

  values: dict[int, float]

  @property
  def mean(self) -> float:
    return float(np.mean([*self.values.values()]))

  @property
  def deviation(self) -> float:
    """Standard deviation over seeds, of n - 1; NaN of a single seed."""
    values = [*self.values.values()]
    return float(np.std(values, ddof=1)) if len(values) > 1 else math.nan


# {row: {metric: Statistic}} of an experiment
Table = dict[str, dict[str, Statistic]]


def workdir(folder: pathlib.Path, run: Run) -> pathlib.Path:
  """Returns the folder that a run is trained in."""
  return folder / run.experiment / run.arm / f'seed{run.seed}'


def path(folder: pathlib.Path, run: Run) -> pathlib.Path:
  """Returns the file of a run's figures."""
  name = f'{run.experiment}-{run.arm}-seed{run.seed}.json'
  return folder / 'results' / name


def write(folder: pathlib.Path, run: Run, found: dict[str, Any]) -> None:
  """Writes the figures of a finished run.

  Args:
    folder: of all runs.
    run: which.
    found: 'rows' {row: {metric: value}}, and what else is known, as seconds.
  """
  text = json.dumps(run._asdict() | found, indent=2) + '\n'
  atomic_write.write_text(path(folder, run), text)


def read(folder: pathlib.Path) -> list[dict[str, Any]]:
  """Reads the figures of all finished runs."""
  files = sorted((folder / 'results').glob('*-seed*.json'))
  return [json.loads(file.read_text()) for file in files]


def tabulate(found: list[dict[str, Any]], experiment: str) -> Table:
  """Collects the figures of an experiment over its seeds."""
  table = {}
  for run in found:
    if run['experiment'] != experiment:
      continue
    for row, metrics in run['rows'].items():
      for name, value in metrics.items():
        statistic = table.setdefault(row, {}).setdefault(name, Statistic({}))
        statistic.values[run['seed']] = value
  return table
