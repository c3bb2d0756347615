"""Lines of metrics hold means over the steps since the line before."""

import json

import numpy as np
import pytest

from sdxl_jax.training import metrics, metrics_writer


class Batches:
  """What the reporter asks of the data."""

  def record_names(self, micro_step):
    return [f'{2 * micro_step}.png', f'{2 * micro_step + 1}.png']

  def counts(self):
    return {'substituted': 7}


def report(
  workdir, losses, *, every, start=0, total=100, skip=0, scale=None, norms=()
):
  """Reports steps of two micro-batches each, and ends as a run does.

  Args:
    workdir: of the metrics.
    losses: of both micro-batches of each step.
    every: steps between two lines.
    start, total: steps of the run.
    skip: config.skip_non_finite.
    scale: of the first step in float16; it is halved as the program does.
    norms: {step: norm of the gradient}, where it is not the step.
  """
  writer = metrics_writer.Writer(workdir, start, total)
  reporter = metrics.Reporter(
    writer,
    every=every,
    batch_size=4,
    learning_rate=lambda step: step / 10,
    batches=Batches(),
    skip_non_finite=skip,
  )
  skipped = 0
  for i, pair in enumerate(losses):
    step = start + i
    for part, loss in enumerate(pair):
      result = {'loss': np.float32(loss), 'mse': np.float32(2 * loss)}
      reporter.add_micro_batch(2 * step + part, (16, 16 + 8 * part), result)
    more = {}
    if skip:  # as the program of such a task counts them
      skipped += not np.isfinite(pair).all()
      more = {'skipped': np.int32(skipped)}
    norm = dict(norms).get(step, step)
    if scale is not None:
      more = {'loss_scale': np.float32(scale)}
      is_good = np.isfinite([*pair, norm]).all()
      scale = scale if is_good else max(1.0, scale / 2)
    reporter.end_step(step, {'grad_norm': np.float32(norm)} | more)
  reporter.close()
  writer.close()
  lines = (workdir / 'metrics.jsonl').read_text().splitlines()
  return [json.loads(line) for line in lines]


def test_means_since_the_last_line(tmp_path):
  """Of all steps and micro-batches, not those of the step of the line."""
  losses = [(1, 3), (5, 7), (10, 20), (0, 0), (4, 8)]
  lines = report(tmp_path, losses, every=2)
  assert [line['step'] for line in lines] == [2, 4, 5]
  assert [line['loss'] for line in lines] == [4.0, 7.5, 6.0]
  assert [line['mse'] for line in lines] == [8.0, 15.0, 12.0]
  assert [line['grad_norm'] for line in lines] == [0.5, 2.5, 4.0]
  # These are of the last step, or counted from the start.
  assert [line['learning_rate'] for line in lines] == [0.1, 0.3, 0.4]
  assert {line['substituted'] for line in lines} == {7}


def test_the_mean_over_lines_is_that_over_steps(tmp_path):
  """Lines weighed by their steps lose nothing."""
  losses = np.random.default_rng(0).exponential(size=(23, 2))
  lines = report(tmp_path, losses, every=5)
  steps = np.diff([0, *(line['step'] for line in lines)])
  mean = np.average([line['loss'] for line in lines], weights=steps)
  assert mean == pytest.approx(losses.mean(), rel=1e-5)


def test_a_line_for_each_step(tmp_path):
  lines = report(tmp_path, [(1, 3), (5, 7)], every=1)
  assert [line['loss'] for line in lines] == [2.0, 6.0]


def test_a_run_that_is_shorter_than_an_interval(tmp_path):
  (line,) = report(tmp_path, [(1, 3), (5, 7)], every=50)
  assert (line['step'], line['loss']) == (2, 4.0)


def test_a_run_that_stops_and_goes_on(tmp_path):
  """Each line holds the steps since the line before, across the stop too."""
  report(tmp_path, [(1, 1), (2, 2), (6, 6)], every=2)
  lines = report(tmp_path, [(8, 8), (9, 9)], every=2, start=3)
  assert [line['step'] for line in lines] == [2, 3, 4, 5]
  assert [line['loss'] for line in lines] == [1.5, 6.0, 8.0, 9.0]


def test_lines_of_earlier_runs_stay(tmp_path):
  """Whatever they hold, as long as they have a step."""
  old = '{"step": 1, "loss": 0.5}\n{"step": 2, "loss": 0.25, "extra": 1}\n'
  (tmp_path / 'metrics.jsonl').write_text(old)
  report(tmp_path, [(1, 1)], every=1, start=2)
  assert (tmp_path / 'metrics.jsonl').read_text().startswith(old)


def test_a_step_that_is_not_finite_is_in_no_line(tmp_path):
  with pytest.raises(
    metrics.NonFiniteLoss, match=r'step 1 .*\n  4.png\n  5.png\n'
  ):
    report(tmp_path, [(1, 1), (float('nan'), 1), (1, 1)], every=3)
  assert (tmp_path / 'metrics.jsonl').read_text() == ''


NAN = float('nan')


def test_skipped_steps_are_counted_and_in_no_mean(tmp_path, capsys):
  losses = [(1, 1), (NAN, 1), (1, NAN), (3, 3), (NAN, NAN), (5, 7)]
  lines = report(tmp_path, losses, every=2, skip=2)
  assert [line['step'] for line in lines] == [2, 4, 6]
  assert [line['loss'] for line in lines] == [1.0, 3.0, 6.0]
  assert [line['skipped'] for line in lines] == [1, 2, 3]
  said = capsys.readouterr().out
  assert '1 in a row of at most 2: step 1 gave' in said
  assert '2 in a row of at most 2: step 2 gave' in said
  assert '1 in a row of at most 2: step 4 gave' in said and '16.png' in said


def test_an_interval_of_skipped_steps_has_no_line(tmp_path):
  losses = [(NAN, 1), (NAN, 1), (2, 2), (NAN, 1)]
  lines = report(tmp_path, losses, every=2, skip=2)
  assert [(line['step'], line['loss']) for line in lines] == [(4, 2.0)]


def test_too_many_in_a_row(tmp_path):
  losses = [(1, 1), (NAN, 1), (2, 2), (NAN, 1), (NAN, 1), (NAN, 1)]
  with pytest.raises(metrics.NonFiniteLoss, match='step 5 '):
    report(tmp_path, losses, every=1, skip=2)


def test_an_overflow_is_no_fault_of_the_records(tmp_path, capsys):
  """It is named, is in no mean, and is not one of the steps that may fail."""
  norms = {1: np.inf, 2: NAN, 4: np.inf}
  losses = [(1, 1), (9, 9), (9, 9), (3, 3), (9, 9), (5, 7)]
  lines = report(tmp_path, losses, every=2, scale=8.0, norms=norms)
  assert [(line['step'], line['loss']) for line in lines] == [
    (2, 1.0),
    (4, 3.0),
    (6, 6.0),
  ]
  assert [line['loss_scale'] for line in lines] == [8.0, 2.0, 1.0]
  said = capsys.readouterr().out
  assert 'step 1 left out: its gradients overflow at the loss scale 8;' in said
  assert 'step 4 left out' in said and 'scale 2; the next has 1\n' in said
  assert '.png' not in said


@pytest.mark.parametrize(
  'losses, scale, norms',
  [
    ([(1, 1), (2, 2)], 1.0, {1: np.inf}),  # no smaller scale is left
    ([(1, 1), (NAN, 2)], 2.0**15, {1: NAN}),  # a loss is not scaled yet
  ],
)
def test_what_no_scale_mends(tmp_path, losses, scale, norms):
  message = (
    r'step 1 gave .*\n  4.png\n  5.png\n(.|\n)*'
    r'wider range than float16 \(config.unet.dtype\)'
  )
  with pytest.raises(metrics.NonFiniteLoss, match=message):
    report(tmp_path, losses, every=1, scale=scale, norms=norms)


def test_an_overflow_ends_no_row_of_steps_that_fail(tmp_path):
  losses = [(1, 1), (NAN, 1), (2, 2), (NAN, 1)]
  with pytest.raises(metrics.NonFiniteLoss, match='step 3 '):
    report(tmp_path, losses, every=1, skip=1, scale=2.0**15, norms={2: np.inf})


def test_the_host_has_what_data_and_device_leave(tmp_path, monkeypatch):
  """On a clock by which fetching a result takes 5 s, and a step 2 s more.

  A checkpoint within takes 8 s of its own, and no time of the host's.
  """
  now = [100.0]

  def fetch(result):
    now[0] += 5
    return result

  monkeypatch.setattr(metrics.time, 'monotonic', lambda: now[0])
  monkeypatch.setattr(metrics.jax, 'device_get', fetch)
  writer = metrics_writer.Writer(tmp_path, 0, 4)
  reporter = metrics.Reporter(
    writer,
    every=4,
    batch_size=6,
    learning_rate=lambda step: 0.1,
    batches=Batches(),
  )
  for step in range(4):
    now[0] += 3
    reporter.waited(3)
    now[0] += 2
    reporter.add_micro_batch(step, (16, 16), {'loss': np.float32(1)})
    reporter.end_step(step, {'grad_norm': np.float32(1)})
    if step == 1:
      reporter.flush()
      with reporter.aside():
        now[0] += 8
  reporter.close()
  writer.close()
  line = json.loads((tmp_path / 'metrics.jsonl').read_text())
  names = 'step_s', 'data_wait_s', 'host_s', 'aside_s', 'images_per_s'
  assert [line[name] for name in names] == [12, 3, 2, 2, 0.5]


def test_a_line_of_a_step_is_found(tmp_path):
  """By which a start knows that validation was done already."""
  path = tmp_path / metrics_writer.FILE
  assert not metrics_writer.has_line(path, 0, 'validation/loss')
  lines = [
    {'step': 5, 'loss': 1.0},
    {'step': 5, 'validation/loss': 2.0},
    {'step': 15, 'loss': 1.0},
  ]
  path.write_text(''.join(json.dumps(line) + '\n' for line in lines))
  found = [metrics_writer.has_line(path, n, 'validation/loss') for n in (5, 15)]
  assert found == [True, False]
