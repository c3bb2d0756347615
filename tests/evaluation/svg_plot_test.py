"""Points lie where their values are."""

import re
import xml.etree.ElementTree

import pytest

from sdxl_jax.evaluation import svg_plot


def circles(picture):
  found = re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)"', picture)
  return [tuple(map(float, place)) for place in found]


def test_places():
  """Evenly spaced values are evenly spaced; y grows upwards."""
  values = [(1, 10, 9, 12), (2, 20, 20, 20), (3, 30, 25, 31)]
  points = [svg_plot.Point(*v, label=f'<{v[0]}>') for v in values]
  picture = svg_plot.plot(points, 'guidance & scale', 'fid', [(5, 15)])
  root = xml.etree.ElementTree.fromstring(picture)
  texts = [x.text for x in root.iter('text')]
  assert {'guidance & scale', 'fid', '<1>', '10', '30', '2'} <= set(texts)
  (x1, y1), (x2, y2), (x3, y3) = circles(picture)
  assert x3 - x2 == pytest.approx(x2 - x1, abs=0.2)
  assert y1 - y2 == pytest.approx(y2 - y3, abs=0.2) and y1 > y2
  assert svg_plot.LEFT < x1 and x3 < svg_plot.WIDTH - svg_plot.RIGHT
  # The band from 5 to 15 has as much height as ten units of y.
  (band,) = [x for x in root.iter('rect')]
  assert float(band.get('height')) == pytest.approx(y1 - y2, abs=0.2)
  assert float(band.get('y')) + float(band.get('height')) > y1
  # The interval of the second point is empty.
  assert picture.count('class="line" d=') == 2


@pytest.mark.parametrize('y', [0.0, -3.0, 1e-9, 1e12])
def test_one_point_has_axes(y):
  picture = svg_plot.plot([svg_plot.Point(0, y, y, y)], 'x', 'y')
  ((x, height),) = circles(picture)
  assert x == pytest.approx((svg_plot.LEFT + svg_plot.WIDTH - 20) / 2)
  assert svg_plot.TOP < height < svg_plot.HEIGHT - svg_plot.BOTTOM


@pytest.mark.parametrize(
  'low, high, ticks',
  [
    (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
    (1.9, 8.3, [2, 3, 4, 5, 6, 7, 8]),
    (-30, 120, [-20, 0, 20, 40, 60, 80, 100, 120]),
  ],
)
def test_ticks_are_round(low, high, ticks):
  assert svg_plot.Axis(low, high, 0, 1).ticks() == pytest.approx(ticks)


def test_values_that_are_no_place():
  with pytest.raises(ValueError, match='0 points'):
    svg_plot.plot([], 'x', 'y')
  with pytest.raises(ValueError, match='nan'):
    svg_plot.plot([svg_plot.Point(0, float('nan'), 0, 0)], 'x', 'y')
