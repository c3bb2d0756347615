"""Writes configs/claims/README.md and its figures from the runs that exist."""

import math
import pathlib
import textwrap
from typing import Any

from sdxl_jax import atomic_write
from tests.benchmarks.miniature import experiments, figures, results

ROOT = pathlib.Path(__file__).parents[3]
PAGE = 'configs/claims/README.md'
FIGURES = '.github/claims'
FROM_PAGE = '../../'
LOAD = """\
Of each seed, on two CPU cores. The load is the mean number of processes that \
waited for them, this one included: above 2, a run took longer than it would \
alone."""
SEEDS = 3  # of each arm
WIDTH = 100  # characters of a line
MISSING = 'not run yet'
INTRODUCTION = """\
The claims of SDXL's paper (arXiv 2307.01952) on the source `scenes`, whose \
truth is known: images of {side} px, a UNet and text encoders as small as \
those of [tiny.py](../tiny.py), minutes for each run. They test whether \
each mechanism has the effect that the paper reports, and do not measure the \
quality of SDXL. The configs of all arms are in this folder. The command \
below trains and measures all of them and writes this page; a run that is \
finished is not run again, so that it goes on after a stop:"""
COMMAND = """\
```bash
python -m tests.benchmarks.claims --workdir DIR
python -m tests.benchmarks.claims --workdir DIR --experiments refiner --seeds 0
```"""
METRICS = """\
Values are means ± standard deviations over seeds; the figures show each \
seed as a circle. Rows are compared seed by seed: the miniature agrees where \
the mean difference is more than two of its standard errors. FID is that of a \
small net, trained on `scenes` to tell objects, backgrounds and counts apart, \
of {samples} samples and {references} scenes: its values compare with each \
other, and not with the paper's. IS is that of the same net, at most 9, the \
number of objects. Right: object, background and count are those of the \
prompt, by the same net. Cut off: an object reaches an edge of the image. \
Sharpness: the mean absolute Laplacian, of that of scenes, \
so that 100 % is best."""


def format_value(statistic: results.Statistic | None, digits: int) -> str:
  """Formats mean and standard deviation."""
  if statistic is None:
    return MISSING
  value = f'{statistic.mean:.{digits}f}'
  if math.isnan(statistic.deviation):
    return f'{value} (1 seed)'
  return f'{value} ± {statistic.deviation:.{digits}f}'


def rows_of(experiment, table) -> list[str]:
  """Returns the rows of a table: those found, and arms that are not."""
  arms = [] if len(experiment.arms) == 1 or table else [*experiment.arms]
  named = {row for row in table if row in experiment.arms}
  if named:
    arms = [arm for arm in experiment.arms if arm not in table]
  return [*table, *arms]


def make_table(experiment, table) -> str:
  """Returns the Markdown table of an experiment."""
  columns = experiment.columns
  lines = [
    f'| miniature | {" | ".join(c.title for c in columns)} |',
    f'|---|{"---|" * len(columns)}',
  ]
  for row in rows_of(experiment, table):
    found = table.get(row, {})
    cells = [format_value(found.get(c.metric), c.digits) for c in columns]
    lines.append(f'| {row} | {" | ".join(cells)} |')
  return '\n'.join(lines)


def verdict(expectation, columns, table) -> str:
  """Returns whether the miniature agrees with one expectation, in words.

  Args:
    expectation: of two rows.
    columns: of the table, which have the digits.
    table: of the experiment.
  """
  e = expectation
  pair = [table.get(row, {}).get(e.metric) for row in (e.better, e.worse)]
  better, worse = (set(s.values) if s else set() for s in pair)
  seeds = sorted(better & worse)
  if not seeds:
    return f'{e.what} of `{e.better}` against `{e.worse}`: {MISSING}.'
  sign = -1 if e.lower else 1
  gains = [sign * (pair[0].values[s] - pair[1].values[s]) for s in seeds]
  gain = results.Statistic(dict(zip(seeds, gains)))
  wins = sum(g > 0 for g in gains)
  means = [results.Statistic({s: p.values[s] for s in seeds}) for p in pair]
  digits = max(c.digits for c in columns if c.metric == e.metric)
  values = ' against '.join(format_value(m, digits) for m in means)
  facts = (
    f'{e.what} of `{e.better}` is {values} of `{e.worse}`, better in {wins} of '
    f'{len(seeds)} {"seed" if len(seeds) == 1 else "seeds"}'
  )
  if len(seeds) == 1:
    return f'One seed says nothing yet: {facts}.'
  limit = 2 * gain.deviation / math.sqrt(len(seeds))
  if gain.mean > limit:
    return f'The miniature agrees: {facts}.'
  if gain.mean < -limit:
    return f'The miniature contradicts it: {facts}.'
  return f'The miniature does not show it: {facts}, within the error.'


def size_curve(table) -> str:
  """Returns the line on sharpness under original_size, '' without figures."""
  found = table.get('size_cond', {})
  prefix = 'sharpness_'
  sides = sorted(int(n[len(prefix) :]) for n in found if n.startswith(prefix))
  if not sides:
    return ''
  cells = [format_value(found[f'{prefix}{side}'], 1) for side in sides]
  return (
    f'\n| `size_cond` at `original_size` | '
    f'{" | ".join(f"{side} px" for side in sides)} |\n'
    f'|---|{"---|" * len(sides)}\n| sharpness, % | {" | ".join(cells)} |\n\n'
    f'{fill(rise(found, sides))}\n'
  )


def rise(found, sides) -> str:
  """Returns whether sharpness follows original_size, in words."""
  low, high = (found[f'sharpness_{side}'] for side in (sides[0], sides[-1]))
  gains = [high.values[s] - low.values[s] for s in sorted(low.values)]
  wins = sum(gain > 0 for gain in gains)
  return (
    f'From `original_size` {sides[0]} to {sides[-1]} px sharpness goes from '
    f'{format_value(low, 1)} to {format_value(high, 1)} %; it rises in {wins} '
    f'of {len(gains)} {"seed" if len(gains) == 1 else "seeds"}.'
  )


def section(name, experiment, found: list[dict[str, Any]]) -> str:
  """Returns the section of an experiment."""
  table = results.tabulate(found, name)
  first = experiment.columns[0]
  parts = [
    f'## ({experiment.letter}) {experiment.title}\n',
    f'{fill(experiment.claim)}\n',
    f'{experiment.paper}\n',
    f'{make_table(experiment, table)}\n'
    if table
    else f'{fill(sentence_missing(name, experiment))}\n',
  ]
  if name == 'size_conditioning' and (curve := size_curve(table)):
    parts.append(curve.lstrip('\n'))
  if table:
    file = f'{FROM_PAGE}{FIGURES}/{name}.svg'
    parts.append(f'![{first.title} of each row, all seeds]({file})\n')
    sentences = [
      verdict(e, experiment.columns, table) for e in experiment.expectations
    ]
    parts.append(f'{fill(" ".join(sentences))}\n')
  if experiment.tried:
    parts.append(f'{fill(experiment.tried)}\n')
  return '\n'.join(parts)


def sentence_missing(name, experiment) -> str:
  """Returns what stands in place of a table that has no run."""
  return f'`{name}` is {MISSING}: there are no figures.'


def fill(text: str) -> str:
  """Breaks a paragraph into lines."""
  return textwrap.fill(
    text, WIDTH, break_long_words=False, break_on_hyphens=False
  )


def status(found: list[dict[str, Any]]) -> str:
  """Returns how many of the runs are finished."""
  arms = [
    (name, arm)
    for name, experiment in experiments.EXPERIMENTS.items()
    for arm in experiment.arms
  ]
  total = SEEDS * len(arms)
  if len(found) >= total:
    return f'All {total} runs are finished, {SEEDS} seeds of {len(arms)} arms.'
  return (
    f'**{len(found)} of {total} runs are finished**, of {SEEDS} seeds of '
    f'{len(arms)} arms. Nothing is known of the others: `{MISSING}` or '
    '`(1 seed)` stands where they are missing.'
  )


def costs(found: list[dict[str, Any]]) -> str:
  """Returns the table of seconds, one row for each arm."""
  lines = [
    '| arm | seeds | trained, s | measured, s | load |',
    '|---|---|---|---|---|',
  ]
  arms = dict.fromkeys((run['experiment'], run['arm']) for run in found)
  for experiment, arm in arms:
    runs = [
      r for r in found if (r['experiment'], r['arm']) == (experiment, arm)
    ]
    seeds = ', '.join(str(r['seed']) for r in runs)
    trained = ', '.join(f'{r["train_s"]:.0f}' for r in runs)
    measured = ', '.join(f'{r["measure_s"]:.0f}' for r in runs)
    load = ', '.join(f'{r["load"]:.1f}' for r in runs)
    lines.append(
      f'| {experiment}:{arm} | {seeds} | {trained} | {measured} | {load} |'
    )
  return '\n'.join(lines)


def make_page(folder: pathlib.Path, head: dict[str, Any]) -> str:
  """Returns the page of all runs that a folder has.

  Args:
    folder: of the runner.
    head: side, samples and references of the first paragraph.
  """
  found = results.read(folder)
  parts = [
    "# The paper's claims in miniature\n",
    f'{fill(INTRODUCTION.format(**head))}\n',
    f'{COMMAND}\n',
    f'{fill(METRICS.format(**head))}\n',
    f'{fill(status(found))}\n',
  ]
  parts += [section(n, e, found) for n, e in experiments.EXPERIMENTS.items()]
  accuracy = folder / 'features.txt'
  if accuracy.is_file():
    parts.append(f'## The net of FID\n\n{fill(accuracy.read_text())}\n')
  if found:
    parts.append(f'## Seconds\n\n{fill(LOAD)}\n\n{costs(found)}\n')
  return '\n'.join(parts)


def write(
  folder: pathlib.Path, head: dict[str, Any], root: pathlib.Path = ROOT
) -> None:
  """Writes the page and a figure of each experiment that has runs."""
  found = results.read(folder)
  for name, experiment in experiments.EXPERIMENTS.items():
    table = results.tabulate(found, name)
    column = experiment.columns[0]
    rows = {
      row: metrics[column.metric]
      for row, metrics in table.items()
      if column.metric in metrics
    }
    if rows:
      atomic_write.write_text(
        root / FIGURES / f'{name}.svg', figures.draw(rows, column.title)
      )
  atomic_write.write_text(root / PAGE, make_page(folder, head))
