"""Makes a table of the lines of gpu_speed, for the front page or a guide.

  python -m tests.benchmarks.gpu_table tests/benchmarks/results/*.jsonl

A row per card, day and setting: images per second of ours, the share of the
card's dense bfloat16 peak, images per second of diffusers and PyTorch with the
same batch, and the ratio. What failed or was left out is listed below. Lines of
--tiny make no row.
"""

import pathlib

from absl import app

from tests.benchmarks.gpu import runner

HEADER = 'card', 'date', 'setting', 'images/s', 'of peak', 'PyTorch', 'ratio'
SETTINGS = {
  'ours_sample': 'sample, 20 steps',
  'ours_train': 'train stage 3',
  'ours_lora': 'train LoRA',
}
# Of ours: the part of the same in PyTorch, and what must be equal.
PEERS = {
  'ours_sample': ('torch_sample', ('card', 'date', 'dtype', 'batch')),
  'ours_train': ('torch_train', ('card', 'date', 'batch')),
}


def rows(lines):
  """Returns the rows of the table, as tuples of text."""
  measured = [x for x in lines if 'images_per_s' in x and not x.get('tiny')]
  # Of a setting that was measured again the last line counts.
  latest = {}
  for line in measured:
    latest[identity(line)] = line
  ours = [x for x in latest.values() if x['part'] in SETTINGS]
  return [row(line, peer_of(line, latest.values())) for line in ours]


def identity(line):
  """Returns what tells the line of a setting from others."""
  names = 'card', 'date', 'part', 'choice', 'batch'
  return tuple(line[name] for name in names)


def peer_of(line, lines):
  """Returns the line of PyTorch that a line of ours compares with, or None."""
  part, names = PEERS.get(line['part'], (None, ()))
  same = [
    x
    for x in lines
    if x['part'] == part and all(x[name] == line[name] for name in names)
  ]
  return same[-1] if same else None


def row(line, peer):
  """Returns the cells of one line of ours."""
  rate, share = line['images_per_s'], line['share_of_peak']
  return (
    line['card'],
    line['date'],
    describe(line),
    f'{rate:.2f}',
    '?' if share is None else f'{share:.0%}',
    f'{peer["images_per_s"]:.2f}' if peer else '-',
    f'{rate / peer["images_per_s"]:.2f}' if peer else '-',
  )


def describe(line):
  """Returns the setting of a line in words."""
  how = f'remat {line["remat"]}' if 'remat' in line else line['dtype']
  return (
    f'{SETTINGS[line["part"]]}, {how}, {line["attention"]}, batch '
    f'{line["batch"]}'
  )


def missing(lines):
  """Returns a line of text for each case that was not measured."""
  found = []
  for line in lines:
    why = line.get('failed') or line.get('skipped')
    if why and not line.get('tiny'):
      batch = f', batch {line["batch"]}' if 'batch' in line else ''
      name = f'{line["part"]}/{line["choice"]}{batch}'
      found.append(f'{line["card"]} {line["date"]} {name}: {why}')
  return found


def table(lines):
  """Returns the table in Markdown; '' without a row."""
  found = rows(lines)
  if not found:
    return ''
  cells = [HEADER, ['---'] * len(HEADER), *found]
  return '\n'.join(f'| {" | ".join(row)} |' for row in cells)


def main(argv):
  """Prints the table of some files."""
  if len(argv) < 2:
    raise app.UsageError('name one results.jsonl or more')
  lines = []
  for name in argv[1:]:
    if not pathlib.Path(name).exists():
      raise app.UsageError(f'{name} does not exist')
    lines += runner.read_lines(pathlib.Path(name))
  print(table(lines) or 'no line of a full-size run')
  for text in missing(lines):
    print(text)


if __name__ == '__main__':
  app.run(main)
