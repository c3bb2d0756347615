"""A plot of points and their intervals as SVG, for a page without scripts."""

import dataclasses
import html
import math
from collections.abc import Sequence

WIDTH, HEIGHT = 560, 360  # px of the picture
LEFT, RIGHT, TOP, BOTTOM = 70, 20, 20, 50  # px around the axes
TICKS = 8  # intervals between ticks, at most
STEPS = 1, 2, 5, 10  # of the leading digit of a distance between ticks


@dataclasses.dataclass(frozen=True)
class Point:
  """A value of y, its interval, and what it is called.

  Attributes:
    x: where it is.
    y: its value.
    low, high: ends of its interval; both y without one.
    label: text beside the point.
  """

  x: float
  y: float
  low: float
  high: float
  label: str = ''


@dataclasses.dataclass(frozen=True)
class Axis:
  """Maps values to px along one side of a plot."""

  low: float
  high: float
  begin: float  # px of low
  end: float  # px of high

  def __call__(self, value: float) -> float:
    share = (value - self.low) / (self.high - self.low)
    return self.begin + share * (self.end - self.begin)

  def ticks(self) -> list[float]:
    """Returns round values between the ends."""
    step = tick_step((self.high - self.low) / TICKS)
    first, last = math.ceil(self.low / step), math.floor(self.high / step)
    return [i * step for i in range(first, last + 1)]


def tick_step(length: float) -> float:
  """Returns the least 1, 2 or 5 times a power of ten of at least a length."""
  power = 10.0 ** math.floor(math.log10(length))
  return power * next(s for s in STEPS if s * power >= length * (1 - 1e-9))


def make_axis(values: Sequence[float], begin: float, end: float) -> Axis:
  """Makes an axis that holds all values, and a little more on both sides."""
  low, high = min(values), max(values)
  margin = 0.08 * (high - low) or 0.08 * abs(low) or 1.0
  return Axis(low - margin, high + margin, begin, end)


def plot(
  points: Sequence[Point],
  x_name: str,
  y_name: str,
  bands: Sequence[tuple[float, float]] = (),
) -> str:
  """Draws points in the order that a line connects them in.

  Args:
    points: one or more, all of their numbers finite.
    x_name, y_name: of the axes.
    bands: (low, high) of y that are shaded.

  Raises:
    ValueError: without points, or for numbers that are not finite.
  """
  numbers = [n for p in points for n in (p.x, p.y, p.low, p.high)]
  if not numbers or not all(map(math.isfinite, numbers)):
    raise ValueError(f'{len(points)} points with values {numbers}')
  heights = [n for p in points for n in (p.y, p.low, p.high)]
  heights += [n for band in bands for n in band]
  x = make_axis([p.x for p in points], LEFT, WIDTH - RIGHT)
  y = make_axis(heights, HEIGHT - BOTTOM, TOP)
  parts = [
    *(draw_band(band, x, y) for band in bands),
    *draw_axes(x, y, x_name, y_name),
    draw_line(points, x, y),
    *(draw_point(p, x, y) for p in points),
  ]
  return (
    f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" role="img" '
    f'aria-label="{html.escape(y_name)} over {html.escape(x_name)}">'
    f'{"".join(parts)}</svg>'
  )


def draw_band(band: tuple[float, float], x: Axis, y: Axis) -> str:
  """Shades a range of y."""
  top, bottom = y(band[1]), y(band[0])
  return (
    f'<rect class="band" x="{x.begin}" y="{top:.1f}" '
    f'width="{x.end - x.begin}" height="{bottom - top:.1f}"/>'
  )


def draw_axes(x: Axis, y: Axis, x_name: str, y_name: str) -> list[str]:
  """Draws both axes with ticks and names."""
  parts = [
    f'<path class="axis" d="M{x.begin} {y.end}V{y.begin}H{x.end}"/>',
    write(x_name, (x.begin + x.end) / 2, HEIGHT - 8, 'middle'),
    f'<g transform="rotate(-90)">'
    f'{write(y_name, -(y.begin + y.end) / 2, 14, "middle")}</g>',
  ]
  for tick in x.ticks():
    place = x(tick)
    parts.append(f'<path class="axis" d="M{place:.1f} {y.begin}v5"/>')
    parts.append(write(f'{tick:.6g}', place, y.begin + 18, 'middle'))
  for tick in y.ticks():
    place = y(tick)
    parts.append(f'<path class="axis" d="M{x.begin} {place:.1f}h-5"/>')
    parts.append(write(f'{tick:.6g}', x.begin - 8, place + 4, 'end'))
  return parts


def draw_line(points: Sequence[Point], x: Axis, y: Axis) -> str:
  """Connects points in their order."""
  places = ' '.join(f'{x(p.x):.1f},{y(p.y):.1f}' for p in points)
  return f'<polyline class="line" points="{places}"/>'


def draw_point(point: Point, x: Axis, y: Axis) -> str:
  """Draws a point with its interval and its label."""
  at, height = x(point.x), y(point.y)
  interval = ''
  if point.low < point.high:
    interval = (
      f'<path class="line" d="M{at:.1f} {y(point.low):.1f}'
      f'V{y(point.high):.1f}"/>'
    )
  return (
    f'{interval}<circle cx="{at:.1f}" cy="{height:.1f}" r="4"/>'
    f'{write(point.label, at + 7, height - 7, "start")}'
  )


def write(text: str, x: float, y: float, anchor: str) -> str:
  """Writes text at a place."""
  return (
    f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">'
    f'{html.escape(text)}</text>'
  )
