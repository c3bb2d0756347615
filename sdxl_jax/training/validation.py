"""Measures the loss of records that are held out, and of some that are not.

The gap of the two shows memorisation: records, crops, texts and noise are the
same each time, so that only the parameters differ. Nothing here touches the
State, the order of the data or a random stream of training.
"""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from ml_collections import config_dict

from sdxl_jax.data import buckets, dataset, validation_records
from sdxl_jax.data.sources import held_out
from sdxl_jax.data.validation_records import HELD_OUT, TRAINED
from sdxl_jax.distributed import device_mesh, sharding
from sdxl_jax.programs import compile_progress
from sdxl_jax.text import tokenizer
from sdxl_jax.training import compilation, tasks, train_state

Params = dict[str, Any]  # {net: parameters}
Spec = dict[str, jax.ShapeDtypeStruct]
LOSS = 'loss'


@dataclasses.dataclass(frozen=True)
class Validation:
  """The records and programs of validation; there is a program per bucket.

  Args:
    task: of the run.
    mesh: of all devices.
    frozen: {net: parameters} of the nets that are not trained.
    records: that are validated on.
    rows: of a batch, of all hosts, at most.
    by_bucket: whether the losses of each bucket are reported as well.
  """

  task: train_state.Task
  mesh: jax.sharding.Mesh
  frozen: Params
  records: validation_records.ValidationRecords
  rows: int
  by_bucket: bool = False

  @functools.cached_property
  def specs(self) -> dict[buckets.Size, Spec]:
    """{bucket: shapes of its batches}: full, or of all records it has."""
    devices = device_mesh.row_devices(self.mesh)
    specs = {}
    for bucket, records in self.records.by_bucket.items():
      size = devices * math.ceil(min(self.rows, len(records)) / devices)
      specs[bucket] = {
        name: jax.ShapeDtypeStruct((size, *s.shape[1:]), s.dtype)
        for name, s in self.task.batch_spec(bucket).items()
      }
    return specs

  def batches(self) -> Iterable[validation_records.Batch]:
    """Yields the batches of all buckets, with the rows of this process."""
    sizes = {b: len(spec['target_size']) for b, spec in self.specs.items()}
    own = {b: sharding.local_rows(self.mesh, n) for b, n in sizes.items()}
    return self.records.batches(sizes, own, self.specs)

  @property
  def batch_count(self) -> int:
    """Number of batches."""
    return sum(
      math.ceil(len(records) / len(self.specs[bucket]['target_size']))
      for bucket, records in self.records.by_bucket.items()
    )

  @functools.cached_property
  def _program(self) -> Callable:
    """Losses of a batch in all processes; compiled for each bucket."""
    platform = device_mesh.platform(self.mesh)

    def validate(params, frozen, batch):
      readable = batch['readable']
      return self.task.validate(params, frozen, batch), readable

    return jax.jit(
      validate,
      out_shardings=sharding.replicated(self.mesh),
      compiler_options=compilation.OPTIONS.get(platform),
    )

  def measure(
    self,
    params: Mapping[str, Params],
    wrap: Callable[[Iterable], Iterable] = iter,
    interrupted: Callable[[], bool] = compilation.never,
  ) -> dict[str, 'Losses'] | None:
    """Measures the losses of some parameters, each batch read once for all.

    Args:
      params: {name: {net: trained parameters}}.
      wrap: around the batches, as to show progress.
      interrupted: whether to give up before the next batch.

    Returns:
      {name: losses}, the same in all processes; None if it was given up.
    """
    found = {name: [] for name in params}
    for batch in wrap(self.batches()):
      if interrupted():
        return None
      spec = self.specs[batch.bucket]
      size = len(spec['target_size'])
      spec = spec | {
        'key': jax.ShapeDtypeStruct((size, 2), np.uint32),
        'readable': jax.ShapeDtypeStruct((size,), bool),
      }
      placed = sharding.put_batch(batch.rows, self.mesh, spec)
      for name, tree in params.items():
        values, readable = self._run(tree, placed, batch.bucket)
        found[name].append((batch.records, values, readable))
    return {name: Losses.of(results) for name, results in found.items()}

  def _run(self, params, batch, bucket):
    """Runs the program of a bucket; returns its results on the host."""
    # As in training: fused kernels need the mesh, activations their sharding.
    keep_rows = sharding.keep_rows(self.mesh, len(batch['key']))
    name = f'validation {bucket[0]}x{bucket[1]}'
    with contextlib.ExitStack() as stack:
      stack.enter_context(jax.set_mesh(self.mesh))
      stack.enter_context(nn.intercept_methods(keep_rows))
      stack.enter_context(compile_progress.naming(name))
      results = self._program(params, self.frozen, batch)
    return jax.device_get(results)


@dataclasses.dataclass(frozen=True)
class Losses:
  """The losses of each record that could be read."""

  records: list[validation_records.Record]
  values: dict[str, np.ndarray]  # float64 [n] by name, as Task.validate has

  @classmethod
  def of(cls, results: list[tuple[list, dict, np.ndarray]]) -> 'Losses':
    """Joins the results of batches: (records, values, readable)."""
    records, columns = [], {}
    for batch_records, values, readable in results:
      count = len(batch_records)
      there = np.flatnonzero(readable[:count])
      records += [batch_records[i] for i in there]
      for name, value in values.items():
        column = np.asarray(value, np.float64)[:count][there]
        columns.setdefault(name, []).append(column)
    joined = {name: np.concatenate(parts) for name, parts in columns.items()}
    return cls(records, joined)

  def means(
    self, group: str, bucket: buckets.Size | None = None
  ) -> dict[str, float]:
    """Returns {name: mean} of a group, {} if no record of it was read.

    Args:
      group: HELD_OUT or TRAINED.
      bucket: whose records count; None: all.
    """
    chosen = np.array(
      [
        record.group == group and bucket in (None, record.bucket)
        for record in self.records
      ],
      bool,
    )
    if not chosen.any():
      return {}
    return {n: float(x[chosen].mean()) for n, x in self.values.items()}

  def metrics(self, by_bucket: bool = False) -> dict[str, float]:
    """Returns the metrics of these parameters.

    `loss` and its parts are of the records held out; `trained_loss` is of as
    many that are trained on, and `gap` what the first is above it.

    Args:
      by_bucket: whether to add the `loss` and `gap` of each bucket.
    """
    metrics = self.means(HELD_OUT) | self._gap()
    if by_bucket:
      for bucket in dict.fromkeys(record.bucket for record in self.records):
        own = self.means(HELD_OUT, bucket)
        own = {LOSS: own[LOSS]} if own else {}
        own |= self._gap(bucket)
        own.pop('trained_loss', None)
        name = f'{bucket[0]}x{bucket[1]}'
        metrics |= {f'{key}_{name}': value for key, value in own.items()}
    return metrics

  def _gap(self, bucket=None):
    """Returns trained_loss and gap, {} where one of the groups is empty."""
    held, trained = (
      self.means(group, bucket).get(LOSS) for group in (HELD_OUT, TRAINED)
    )
    if held is None or trained is None:
      return {}
    return {'trained_loss': trained, 'gap': held - trained}


def make(
  config: config_dict.ConfigDict,
  task: train_state.Task,
  mesh: jax.sharding.Mesh,
  frozen: Params,
  split: held_out.Split,
  tokenize: tokenizer.Tokenizer,
  rows: int | None = None,
) -> Validation | None:
  """Makes the Validation of a config, None if no record is held out.

  Args:
    config: of the run.
    task: of the run.
    mesh: of all devices.
    frozen: {net: parameters} of the nets that are not trained.
    split: of the records.
    tokenize: of the model.
    rows: of a batch, of all hosts, at most; None: those of a micro-batch.
  """
  if not split.held_out:
    return None
  c = config.validation
  limits = validation_records.Limits(c.records, c.buckets)
  chosen = validation_records.choose(split, config.data.buckets, limits)
  if not any(record.group == HELD_OUT for record in chosen):
    return None
  records = validation_records.ValidationRecords(
    chosen, dataset.make_tokenize(config, tokenize), dataset.options_of(config)
  )
  rows = rows or tasks.micro_batch_size(config)
  return Validation(task, mesh, frozen, records, rows, c.by_bucket)
