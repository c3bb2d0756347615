"""The page shows values, intervals, pictures and settings by itself."""

import base64
import html.parser
import io
import re

import numpy as np
import pytest
from PIL import Image

from sdxl_jax.evaluation import report_page


def run(scale, fid, clip, **fields):
  values = {'fid': (fid, fid - 1, fid + 1), 'clip': (clip, clip, clip)}
  keys = 'value', 'low', 'high'
  metrics = {name: dict(zip(keys, v)) for name, v in values.items()}
  return {'metrics': metrics, 'settings': {'guidance_scale': scale}} | fields


class Checker(html.parser.HTMLParser):
  """Collects the tags of a page, each of which must be closed."""

  EMPTY = 'meta', 'br', 'img', '!doctype', 'path', 'circle', 'rect', 'polyline'

  def __init__(self):
    super().__init__()
    self.open, self.found, self.text = [], [], ''

  def handle_starttag(self, tag, attrs):
    self.found.append((tag, dict(attrs)))
    if tag not in self.EMPTY:
      self.open.append(tag)

  def handle_startendtag(self, tag, attrs):
    self.found.append((tag, dict(attrs)))

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    self.text += data + '\n'


def read(page):
  checker = Checker()
  checker.feed(page)
  assert not checker.open
  return checker


def test_one_run():
  pixels = np.zeros((300, 600, 3), np.uint8)
  pixels[..., 0] = 255
  page = report_page.render(
    'Base <&> EMA',
    [run(8.0, 23.4, 31.7, bands={'fid': (23, 24), 'clip': (31, 31.5)})],
    {'Pictures & more': [(pixels, 'a "fox" & <b>')], 'None': []},
    {'weights': 'runs/<x>', 'steps': 20},
  )
  found = read(page)
  assert 'Base <&> EMA' in found.text and 'runs/<x>' in found.text
  assert '23.4\n22.4 to 24.4\nwithin 23 to 24' in found.text
  assert 'outside of 31 to 31.5' in found.text
  assert 'lower is better' in found.text and 'higher is better' in found.text
  assert 'Pictures & more' in found.text and 'None' not in found.text
  # The picture is in the page, and nothing is fetched from elsewhere.
  ((_, image),) = [x for x in found.found if x[0] == 'img']
  assert image['alt'] == 'a "fox" & <b>'
  kind, data = image['src'].split(',')
  assert kind == 'data:image/jpeg;base64'
  picture = Image.open(io.BytesIO(base64.b64decode(data)))
  assert picture.size == (256, 128) and picture.getpixel((9, 9))[0] > 250
  assert not re.search(r'(src|href)="(?!data:)', page) and '<script' not in page


def test_several_runs_are_plotted():
  runs = [run(2.0, 30.0, 29.0, notes=['few images']), run(5.0, 25.0, 31.0)]
  runs[1]['notes'] = ['few images', 'other']
  page = report_page.render('x', runs, varied='guidance_scale')
  found = read(page)
  labels = [a['aria-label'] for tag, a in found.found if tag == 'svg']
  assert labels == [
    'fid over guidance_scale',
    'clip over guidance_scale',
    'fid over clip',
  ]
  assert found.text.count('few images') == 1 and 'other' in found.text


def test_what_is_not_known_is_left_empty():
  """A value that is no number is no point, and no zero."""
  runs = [run(2.0, 30.0, 29.0), run(5.0, 25.0, 31.0)]
  runs[0]['metrics']['fid'] |= {'value': None, 'low': None}
  del runs[1]['metrics']['clip']
  found = read(report_page.render('x', runs, varied='guidance_scale'))
  assert [tag for tag, _ in found.found].count('circle') == 2
  assert 'None' not in found.text and 'nan' not in found.text


def test_nothing_was_measured():
  with pytest.raises(ValueError, match='nothing was measured'):
    report_page.render('x', [])
