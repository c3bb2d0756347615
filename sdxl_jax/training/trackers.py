"""Writers of metrics and images beside TensorBoard's: W&B and MLflow.

Their packages are imported only where config.log_with names them. A run that is
resumed goes on in the same run of theirs, whose id the workdir keeps. What a
tracker cannot take is said once and not sent again: the run goes on, and
metrics.jsonl has all of it.
"""

import dataclasses
import importlib
import json
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from sdxl_jax import atomic_write

NAMES = ('tensorboard', 'wandb', 'mlflow')
FILE = 'trackers.json'  # in the workdir: {tracker: id of its run}
PROJECT = 'sdxl_jax'


@dataclasses.dataclass(frozen=True)
class Start:
  """A start of a run, as trackers are opened for it."""

  project: str
  name: str  # of the run, for a new one
  config: dict[str, Any]  # of the run, as JSON
  workdir: pathlib.Path
  run_id: str | None = None  # of an earlier start; None: a new run


class Tracker(Protocol):
  """What board.Board and the classes below have."""

  def scalars(self, values: dict[str, float], step: int) -> None:
    """Writes the value of each name."""

  def image(self, name: str, image: np.ndarray, step: int) -> None:
    """Writes an image, uint8 [h, w, 3]."""

  def close(self) -> None:
    """Ends what is written by this start."""


class Wandb:
  """A run of Weights & Biases.

  Its own steps only grow, and a resumed run takes some steps a second time, so
  that `optimizer_step` is a metric, over which the others are shown.
  """

  def __init__(self, start: Start):
    self._wandb = load('wandb')
    self._run = self._wandb.init(
      project=start.project,
      name=start.name,
      id=start.run_id,
      resume='allow',
      config=start.config,
      dir=str(start.workdir),
    )
    self.run_id = self._run.id
    self._run.define_metric('*', step_metric='optimizer_step')

  def scalars(self, values: dict[str, float], step: int) -> None:
    self._run.log(values | {'optimizer_step': step})

  def image(self, name: str, image: np.ndarray, step: int) -> None:
    picture = self._wandb.Image(image)
    self._run.log({name: picture, 'optimizer_step': step})

  def close(self) -> None:
    self._run.finish()


class MLflow:
  """A run of MLflow, at MLFLOW_TRACKING_URI or where MLflow keeps runs itself.

  The project is an experiment there.
  """

  def __init__(self, start: Start):
    self._mlflow = load('mlflow')
    self._client = self._mlflow.MlflowClient()
    self.run_id = start.run_id or self._create(start)
    if start.run_id:
      self._client.update_run(self.run_id, status='RUNNING')
    self._client.log_dict(self.run_id, start.config, 'config.json')

  def _create(self, start):
    """Creates a run, and its experiment where that is new; returns the id."""
    experiment = self._client.get_experiment_by_name(start.project)
    experiment_id = (
      experiment.experiment_id
      if experiment
      else self._client.create_experiment(start.project)
    )
    run = self._client.create_run(experiment_id, run_name=start.name)
    return run.info.run_id

  def scalars(self, values: dict[str, float], step: int) -> None:
    now = int(1000 * time.time())  # ms
    metrics = [
      self._mlflow.entities.Metric(name, value, now, step)
      for name, value in values.items()
    ]
    self._client.log_batch(self.run_id, metrics)

  def image(self, name: str, image: np.ndarray, step: int) -> None:
    file = f'{name}/{step:07d}.png'
    self._client.log_image(self.run_id, image, artifact_file=file)

  def close(self) -> None:
    self._client.set_terminated(self.run_id)


KINDS = {'wandb': Wandb, 'mlflow': MLflow}


def load(name: str) -> Any:
  """Imports the package of a tracker.

  Raises:
    ValueError: if it is not installed.
  """
  try:
    return importlib.import_module(name)
  except ImportError as error:
    raise ValueError(
      f'config.log_with has {name!r}, whose package cannot be imported '
      f'({error}): pip install {name}, or remove it'
    ) from None


class Guarded:
  """A tracker whose failures end neither the run nor the other writers.

  Args:
    name: of the tracker.
    tracker: to write to.
    say: prints a line for the user.
  """

  def __init__(self, name: str, tracker: Tracker, say: Callable[[str], Any]):
    self.name, self._tracker, self._say = name, tracker, say
    self._has_failed = False

  def _try(self, action: Callable, *args: Any):
    try:
      action(*args)
    # Their packages raise errors of many kinds, of networks and servers.
    except Exception as error:
      if not self._has_failed:
        text = ' '.join(str(error).split())[:300]
        self._say(
          f'warning: {self.name} did not take some metrics or images '
          f'({type(error).__name__}: {text}); metrics.jsonl has all metrics, '
          'and the run goes on'
        )
      self._has_failed = True

  def scalars(self, values: dict[str, float], step: int) -> None:
    """Writes the value of each name."""
    self._try(self._tracker.scalars, values, step)

  def image(self, name: str, image: np.ndarray, step: int) -> None:
    """Writes an image, uint8 [h, w, 3]."""
    self._try(self._tracker.image, name, image, step)

  def close(self) -> None:
    """Ends what is written by this start."""
    self._try(self._tracker.close)


def open_all(
  names: Sequence[str],
  project: str,
  config: dict[str, Any],
  workdir: pathlib.Path,
  say: Callable[[str], Any],
) -> list[Guarded]:
  """Opens the trackers of a run, in the process that writes.

  Args:
    names: of KINDS; others are passed over.
    project: of the run, '' for PROJECT.
    config: of the run, as JSON.
    workdir: whose name the run gets, and which keeps the ids.
    say: prints a line for the user.

  Raises:
    ValueError: if a package is not installed, or its tracker cannot be opened.
  """
  path, opened = workdir / FILE, []
  ids = json.loads(path.read_text()) if path.exists() else {}
  for name in [name for name in names if name in KINDS]:
    load(name)
    try:
      tracker = KINDS[name](
        Start(project or PROJECT, workdir.name, config, workdir, ids.get(name))
      )
    except Exception as error:  # of any kind, as above
      text = ' '.join(str(error).split())[:300]
      raise ValueError(
        f'config.log_with has {name!r}, which cannot be opened '
        f'({type(error).__name__}: {text}): correct its settings, or remove it'
      ) from error
    opened.append(Guarded(name, tracker, say))
    ids[name] = tracker.run_id
    atomic_write.write_text(path, json.dumps(ids) + '\n')
  return opened
