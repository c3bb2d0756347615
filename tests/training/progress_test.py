"""The time to the end, on a terminal and in a log file."""

import os
import sys

import pytest

from sdxl_jax.training import progress


@pytest.mark.parametrize(
  'seconds, text',
  [
    (0.4, '0 s'),
    (59.6, '1 min 00 s'),
    (3599, '59 min 59 s'),
    (3600 * 2 + 300, '2 h 05 min'),
    (86400 * 3 + 3600 * 4, '3 d 04 h'),
  ],
)
def test_durations(seconds, text):
  assert progress.duration(seconds) == text


def test_the_time_that_is_left():
  bar = progress.Progress(10, 1010, is_primary=False)
  bar.advance(now=500.0)
  assert bar.seconds_left() is None  # one step may have compiled a program
  for i in range(1, 5):
    bar.advance(now=500.0 + 2 * i)
  assert bar.done == 15
  assert bar.seconds_left() == pytest.approx(2 * 995)


def test_slow_first_steps_are_forgotten():
  bar = progress.Progress(0, 1000, is_primary=False)
  for now in 0, 1000, 2000, 3000:  # programs compile
    bar.advance(now)
  for i in range(progress.RECENT):
    bar.advance(3001 + i)
  left = 1000 - 4 - progress.RECENT
  assert bar.seconds_left() == pytest.approx(left)


def test_lines_where_there_is_no_terminal(capsys):
  bar = progress.Progress(0, 5000, has_terminal=False)
  bar.say('hello')
  for i in range(3):
    bar.advance(now=10.0 * i)
  bar.show(loss=0.123456, images_per_s=12.34)
  out, err = capsys.readouterr()
  assert out.splitlines() == [
    'hello',
    'step 3 of 5,000: loss 0.1235, 12.3 images/s, 13 h 52 min left',
  ]
  assert err == ''  # no bar among the lines of a log file


def test_output_that_nobody_reads_any_more(monkeypatch):
  """Ctrl-C ends tee as well, before the run has saved its checkpoint."""
  reader, writer = os.pipe()
  os.close(reader)
  with os.fdopen(writer, 'w') as pipe:
    monkeypatch.setattr(sys, 'stdout', pipe)
    bar = progress.Progress(0, 5000, has_terminal=False)
    for i in range(2):
      bar.say(f'line {i}')


def test_a_bar_on_a_terminal(capsys):
  bar = progress.Progress(0, 5000, has_terminal=True)
  for i in range(3):
    bar.advance(now=10.0 * i)
  bar.show(loss=0.123456, images_per_s=12.34)
  bar.close()
  out, err = capsys.readouterr()
  assert out == ''
  assert '3/5000' in err
  assert 'loss 0.1235, 12.3 images/s, 13 h 52 min left' in err


def test_other_processes_print_nothing(capsys):
  bar = progress.Progress(0, 5, is_primary=False, has_terminal=False)
  bar.advance(1.0)
  bar.show(0.1, 2.0)
  bar.say('hello')
  assert capsys.readouterr() == ('', '')
