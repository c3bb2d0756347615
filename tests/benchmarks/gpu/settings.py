"""What a process of gpu_speed measures, and how it reports it."""

import contextlib
import dataclasses
import datetime
import json
import pathlib
import statistics
import time
import traceback

MOST_LETTERS = 300  # of an error


@dataclasses.dataclass(frozen=True)
class Setting:
  """One case, PART/CHOICE, and what all cases have in common."""

  out: pathlib.Path
  case: str = ''
  card: str = ''
  tiny: bool = False
  turns: int = 3
  batches: tuple[int, ...] = (1, 4, 8)

  @property
  def choice(self):
    """The choice of the part, or ''."""
    return self.case.partition('/')[2]

  @property
  def size(self):
    """(height, width) in px."""
    return (32, 32) if self.tiny else (1024, 1024)

  @property
  def steps(self):
    """Steps of a sample."""
    return 2 if self.tiny else 20

  def report(self, **fields):
    """Prints a line, and adds it to results.jsonl at once."""
    part, _, choice = self.case.partition('/')
    today = datetime.date.today().isoformat()
    line = {'part': part, 'choice': choice, 'card': self.card, 'date': today}
    line |= {'tiny': True} if self.tiny else {}
    text = json.dumps(line | fields)
    with open(self.out / 'results.jsonl', 'a', encoding='utf-8') as file:
      file.write(f'{text}\n')
    print(text, flush=True)

  @contextlib.contextmanager
  def attempt(self, **fields):
    """Reports an error, of memory above all, so that others are measured."""
    try:
      yield
    except Exception as error:  # an accelerator raises many types
      traceback.print_exc()  # to the log
      text = ' '.join(f'{type(error).__name__}: {error}'.split())
      # The arrays of the failed attempt must not stay.
      traceback.clear_frames(error.__traceback__)
      self.report(**fields, failed=text[:MOST_LETTERS])


def timed(run, turns):
  """Measures `run` some times; returns the fields of a line.

  The first call compiles and is not counted, nor is one that warms up.
  """
  spent = []
  for _ in range(turns + 2):
    started = time.perf_counter()
    run()
    spent.append(time.perf_counter() - started)
  first, _, *counted = spent
  return {'first_s': round(first, 3), **spread(counted)}


def rounded(value):
  """Returns a number of five digits."""
  return float(f'{value:.5g}')


def spread(seconds):
  """Returns median, least and most of some seconds as fields of a line."""
  return {
    's': rounded(statistics.median(seconds)),
    's_least': rounded(min(seconds)),
    's_most': rounded(max(seconds)),
    'turns': len(seconds),
  }
