"""A page of what was measured: one HTML file, without server or network.

It holds all that it shows, pictures too, and no script.
"""

import base64
import html
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from sdxl_jax.evaluation import svg_plot

Picture = tuple[np.ndarray, str]  # uint8 [h, w, 3] and a caption
THUMBNAIL = 256  # px of the longer side of a picture
QUALITY = 85  # of its JPEG
# What a larger value of a metric means.
BETTER = {
  'fid': 'lower is better',
  'kid': 'lower is better',
  'precision': 'higher is better',
  'recall': 'higher is better',
  'cmmd': 'lower is better',
  'clip': 'higher is better',
  'memorised': 'lower is better',
}
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1c1f24; margin: 2rem auto;
       max-width: 72rem; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
table { border-collapse: collapse; }
th, td { text-align: left; padding: .3rem 1rem .3rem 0; vertical-align: top;
         border-bottom: 1px solid #dde1e6; overflow-wrap: anywhere; }
td.number { font-variant-numeric: tabular-nums; white-space: nowrap; }
.aside { color: #5d6670; } .plots, .grid { display: flex; flex-wrap: wrap;
         gap: 1rem; }
figure { margin: 0; width: 12rem; } figure img { width: 100%; display: block; }
figcaption { font-size: .8rem; color: #5d6670; }
svg { font: 12px system-ui, sans-serif; max-width: 100%; }
svg .axis { stroke: #5d6670; fill: none; } svg .band { fill: #d9efd9; }
svg .line { stroke: #2a62b8; fill: none; stroke-width: 1.5; }
svg circle { fill: #2a62b8; }
"""


def render(
  title: str,
  runs: Sequence[Mapping[str, Any]],
  galleries: Mapping[str, Sequence[Picture]] | None = None,
  settings: Mapping[str, Any] | None = None,
  varied: str | None = None,
) -> str:
  """Renders the page.

  Args:
    title: of the page.
    runs: what was measured, each as metrics.json has it: 'metrics' {name:
      {'value', 'low', 'high'}}, maybe 'bands' {name: (low, high)} and 'notes'.
    galleries: {heading: pictures}.
    settings: {name: value} that all runs share.
    varied: name of the setting in 'settings' of each run that differs between
      them, such as guidance_scale.

  Raises:
    ValueError: without runs.
  """
  if not runs:
    raise ValueError('nothing was measured')
  notes = list(dict.fromkeys(n for run in runs for n in run.get('notes', ())))
  parts = [
    section('Metrics', metrics_table(runs, varied) + as_list(notes)),
    section('Plots', plots(runs, varied)) if len(runs) > 1 else '',
    *(section(k, gallery(v)) for k, v in (galleries or {}).items() if v),
    section('Settings', settings_table(settings)) if settings else '',
  ]
  name = html.escape(title)
  return (
    '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
    '<meta name="viewport" content="width=device-width">'
    f'<title>{name}</title><style>{STYLE}</style></head>\n'
    f'<body><h1>{name}</h1>\n{"".join(parts)}</body></html>\n'
  )


def section(name: str, body: str) -> str:
  """Returns a section of the page."""
  return f'<h2>{html.escape(name)}</h2>\n{body}\n'


def as_list(lines: Sequence[str]) -> str:
  """Returns lines as a list; nothing for none."""
  if not lines:
    return ''
  items = ''.join(f'<li>{html.escape(line)}</li>' for line in lines)
  return f'<ul class="aside">{items}</ul>'


def metrics_table(runs: Sequence[Mapping[str, Any]], varied: str | None) -> str:
  """Returns a table with a column for each metric and a row for each run."""
  names = list(dict.fromkeys(name for run in runs for name in run['metrics']))
  head = ''.join(
    f'<th>{html.escape(name)}<br><span class="aside">{BETTER.get(name, "")}'
    '</span></th>'
    for name in names
  )
  first = f'<th>{html.escape(varied)}</th>' if varied else ''
  rows = []
  for run in runs:
    cells = ''.join(
      metric_cell(run['metrics'].get(name), run.get('bands', {}).get(name))
      for name in names
    )
    label = f'<td class="number">{setting_of(run, varied)}</td>'
    rows.append(f'<tr>{label if varied else ""}{cells}</tr>')
  return f'<table><tr>{first}{head}</tr>{"".join(rows)}</table>'


def metric_cell(
  metric: Mapping[str, float | None] | None, band: Sequence[float] | None
) -> str:
  """Returns a cell with a value, its interval, and what it should be within."""
  if metric is None or metric['value'] is None:
    return '<td></td>'
  lines = [f'<b>{metric["value"]:.6g}</b>']
  if metric.get('low') is not None and metric.get('high') is not None:
    lines.append(f'{metric["low"]:.5g} to {metric["high"]:.5g}')
  if band is not None:
    is_in = band[0] <= metric['value'] <= band[1]
    where = 'within' if is_in else 'outside of'
    lines.append(f'{where} {band[0]:g} to {band[1]:g}')
  return f'<td class="number">{"<br>".join(lines)}</td>'


def setting_of(run: Mapping[str, Any], name: str | None) -> str:
  """Returns the value of a run's setting as text."""
  value = run.get('settings', {}).get(name)
  return html.escape('' if value is None else f'{value:g}')


def plots(runs: Sequence[Mapping[str, Any]], varied: str | None) -> str:
  """Plots each metric over the setting that differs; FID over CLIP score."""
  made = []
  names = list(dict.fromkeys(name for run in runs for name in run['metrics']))
  for name in names if varied else ():
    points = [
      make_point(run['settings'][varied], run['metrics'][name])
      for run in runs
      if is_known(run, name)
    ]
    bands = [run['bands'][name] for run in runs if name in run.get('bands', {})]
    if points:
      made.append(svg_plot.plot(points, varied, name, bands[:1]))
  # The curve of the paper's appendix.
  both = [run for run in runs if is_known(run, 'fid') and is_known(run, 'clip')]
  if len(both) > 1:
    points = [
      make_point(
        run['metrics']['clip']['value'],
        run['metrics']['fid'],
        setting_of(run, varied),
      )
      for run in both
    ]
    made.append(svg_plot.plot(points, 'clip', 'fid'))
  return f'<div class="plots">{"".join(made)}</div>'


def is_known(run: Mapping[str, Any], name: str) -> bool:
  """Whether a run has a finite value of a metric."""
  value = run['metrics'].get(name, {}).get('value')
  return value is not None and math.isfinite(value)


def make_point(
  x: float, metric: Mapping[str, float | None], label: str = ''
) -> svg_plot.Point:
  """Makes the point of a metric, with its interval if it has one."""
  value, low, high = (metric.get(name) for name in ('value', 'low', 'high'))
  low, high = (value if end is None else end for end in (low, high))
  return svg_plot.Point(x, value, low, high, label)


def gallery(pictures: Sequence[Picture]) -> str:
  """Returns pictures in the page itself, made small."""
  figures = []
  for pixels, caption in pictures:
    text = html.escape(caption)
    figures.append(
      f'<figure><img alt="{text}" src="data:image/jpeg;base64,'
      f'{encode(pixels)}"><figcaption>{text}</figcaption></figure>'
    )
  return f'<div class="grid">{"".join(figures)}</div>'


def encode(pixels: np.ndarray) -> str:
  """Encodes a small JPEG of an image as base64."""
  image = Image.fromarray(pixels)
  image.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
  file = io.BytesIO()
  image.save(file, 'JPEG', quality=QUALITY)
  return base64.b64encode(file.getvalue()).decode()


def settings_table(settings: Mapping[str, Any]) -> str:
  """Returns a table of names and values."""
  rows = ''.join(
    f'<tr><th>{html.escape(str(name))}</th><td>{html.escape(str(value))}</td>'
    '</tr>'
    for name, value in settings.items()
  )
  return f'<table>{rows}</table>'
