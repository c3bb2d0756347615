"""Figures of the page as SVG: a point for each seed, a bar for their spread."""

import math
from collections.abc import Mapping

from sdxl_jax.evaluation import svg_plot
from tests.benchmarks.miniature import results

WIDTH, ROW, TOP, BOTTOM, RIGHT = 640, 34, 14, 46, 20
CHARACTER = 7.0  # px of a letter of the labels
INK, GREY, BLUE = '#1c1f24', '#8a939c', '#2a62b8'


def row_marks(statistic, y, x) -> list[str]:
  """Draws the points of one row, their mean, and a deviation to each side."""
  parts = []
  mean, deviation = statistic.mean, statistic.deviation
  if not math.isnan(deviation):
    low, high = x(mean - deviation), x(mean + deviation)
    parts.append(
      f'<path d="M{low:.1f} {y}H{high:.1f}" stroke="{BLUE}" stroke-width="3"/>'
    )
  parts.append(
    f'<path d="M{x(mean):.1f} {y - 8}v16" stroke="{BLUE}" stroke-width="3"/>'
  )
  for value in statistic.values.values():
    parts.append(
      f'<circle cx="{x(value):.1f}" cy="{y}" r="4" fill="none" stroke="{INK}"/>'
    )
  return parts


def draw(rows: Mapping[str, results.Statistic], title: str) -> str:
  """Draws a metric of several rows.

  Args:
    rows: {label: values}, from above; one or more.
    title: of the axis.

  Raises:
    ValueError: without rows.
  """
  if not rows:
    raise ValueError(f'no figures of {title}')
  left = 20 + CHARACTER * max(map(len, rows))
  ends = [v for s in rows.values() for v in s.values.values()]
  for statistic in rows.values():
    if not math.isnan(statistic.deviation):
      mean, deviation = statistic.mean, statistic.deviation
      ends += [mean - deviation, mean + deviation]
  x = svg_plot.make_axis(ends, left, WIDTH - RIGHT)
  bottom = TOP + ROW * len(rows)
  parts = []
  for tick in x.ticks():
    at = x(tick)
    parts.append(
      f'<path d="M{at:.1f} {TOP}V{bottom}" stroke="{GREY}" stroke-width="0.5"/>'
    )
    label = f'{tick:.6g}'
    parts.append(svg_plot.write(label, at, bottom + 16, 'middle'))
  for i, (label, statistic) in enumerate(rows.items()):
    y = TOP + ROW * i + ROW // 2
    parts.append(svg_plot.write(label, left - 10, y + 4, 'end'))
    parts += row_marks(statistic, y, x)
  middle = (left + WIDTH - RIGHT) / 2
  parts.append(svg_plot.write(title, middle, bottom + 36, 'middle'))
  height = bottom + BOTTOM
  return (
    f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
    f'width="{WIDTH}" height="{height}" role="img" '
    f'font-family="system-ui, sans-serif" font-size="12" fill="{INK}">'
    f'<rect width="100%" height="100%" fill="#ffffff"/>{"".join(parts)}</svg>\n'
  )
