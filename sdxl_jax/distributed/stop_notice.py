"""Notices of SIGTERM and Ctrl-C, on which a run saves and ends."""

import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import jax
from jax.experimental import multihost_utils

SIGNALS = (signal.SIGTERM, signal.SIGINT)
# Seconds in which the main thread must have ended after Ctrl-C; it may be
# within a call, such as a compilation, that Python cannot interrupt.
GRACE_S = 5
INTERRUPT = 'Ctrl-C'
HANDLER = ctypes.CFUNCTYPE(None, ctypes.c_int)  # void handler(int)


class Interrupted(KeyboardInterrupt):
  """Ctrl-C, after all that had to be saved was saved."""


class PreemptionNotice:
  """Reports SIGTERM and Ctrl-C to all processes at the same step.

  Clusters send SIGTERM before they take a machine away. If one process receives
  it, all processes agree on a step that none has passed. Ctrl-C does the same,
  and a second one ends the process at once.

  While a run prepares there is nothing to save: after `end_at_once` a signal
  ends the process within seconds, whatever the main thread does. A thread of
  this class acts on the signals, for a handler in Python runs only when the
  main thread returns to Python code, and what it raises is lost in a callback
  of JAX.
  """

  def __init__(self):
    self.number = None  # of the first signal that this process received
    self._alone = jax.process_count() == 1
    self._interrupts, self._message = 0, None
    self._raised = False  # whether Ctrl-C was raised in the main thread
    self._cleanup, self._forward = None, None
    # Python leaves signals to the main thread.
    main = threading.main_thread()
    self._installed = threading.current_thread() is main
    if not self._installed:
      return
    # JAX's own handler, by which several processes agree on a step, is not
    # Python's: keep its address, call it from here, and put it back at the end.
    if not self._alone:
      self._library = ctypes.CDLL(None)
      self._library.signal.restype = ctypes.c_void_p
      self._address = self._library.signal(
        signal.SIGTERM, ctypes.c_void_p(int(signal.SIG_DFL))
      )
      self._forward = HANDLER(self._address)

    # The interpreter writes the number of each signal into a pipe at once.
    self._pipe = os.pipe()
    os.set_blocking(self._pipe[1], False)
    self._previous_pipe = signal.set_wakeup_fd(
      self._pipe[1], warn_on_full_buffer=False
    )
    self._previous = {n: signal.signal(n, self._on_signal) for n in SIGNALS}
    self._thread = threading.Thread(target=self._watch, daemon=True)
    self._thread.start()

  def _on_signal(self, number, frame):
    """Runs in the main thread, when that is next in Python code."""
    del frame
    self.number = self.number or number
    if number == signal.SIGINT and self._message is not None:
      # A second Ctrl-C ends the process in `_act`: an error here would only
      # interrupt what follows from the first.
      is_first, self._raised = not self._raised, True
      if is_first:
        raise KeyboardInterrupt

  def _watch(self):
    """Acts on signals, in a thread of its own, until the pipe has a 0."""
    while number := os.read(self._pipe[0], 1)[0]:
      if number in SIGNALS:
        self._act(number)

  def _act(self, number):
    self.number = self.number or number
    self._interrupts += number == signal.SIGINT
    if self._interrupts > 1:
      self._end(number, 'ended by a second Ctrl-C')
    elif self._message is None:
      if self._forward:
        self._forward(signal.SIGTERM)
    elif number == signal.SIGTERM:
      self._end(number, f'stopped by SIGTERM {self._message}')
    # Ctrl-C raises KeyboardInterrupt in the main thread. That of a notebook
    # must live on.
    elif not hasattr(sys, 'ps1'):
      text = f'stopped by Ctrl-C {self._message}'
      timer = threading.Timer(GRACE_S, self._end_late, [number, text])
      timer.daemon = True
      timer.start()

  def _end_late(self, number, text):
    if self._message is not None:  # neither closed nor in training
      self._end(number, text)

  def _end(self, number, text) -> NoReturn:
    """Ends this process at once, with the exit code that shells expect."""
    if self._cleanup:
      with contextlib.suppress(OSError):  # the workdir may be gone
        self._cleanup()
    end_process(128 + number, f'\n{text}')

  def end_at_once(self, message: str, cleanup: Callable[[], Any]) -> None:
    """Makes signals end the process within seconds: nothing is to be saved.

    Args:
      message: words for the user that follow 'stopped by SIGTERM'.
      cleanup: called before the end, in another thread.
    """
    self._message, self._cleanup = message, cleanup
    if self.number is not None:  # one came before
      self._end(self.number, f'stopped by {self.reason} {message}')

  @contextlib.contextmanager
  def interruptible(self) -> Iterator[None]:
    """Replaces errors of the body by KeyboardInterrupt after an early Ctrl-C.

    One before the first step is early. Libraries that it interrupts raise
    errors of their own: orbax, that a checkpoint cannot be read.

    Raises:
      KeyboardInterrupt: in place of the error.
    """
    try:
      yield
    except Exception as error:
      if self.number == signal.SIGINT and self._message is not None:
        raise KeyboardInterrupt from error
      raise

  def save_first(self) -> None:
    """Makes signals wait for a checkpoint, which `requested` asks for."""
    self._message = None

  def interrupts(self) -> bool:
    """Whether a signal came, and this process may stop within a step."""
    return self._alone and self.number is not None

  def requested(self, step: int) -> bool:
    """Returns whether to save and end after this number of steps."""
    if self._alone:
      return self.number is not None
    return multihost_utils.reached_preemption_sync_point(step)

  @property
  def reason(self) -> str:
    """What stopped the run, in words."""
    if self.number is None:
      return 'a signal to another process'
    return INTERRUPT if self.number == signal.SIGINT else 'SIGTERM'

  def close(self) -> None:
    """Restores the handlers of the signals."""
    self._message = None
    if not self._installed:
      return
    for number, handler in self._previous.items():
      signal.signal(number, handler or signal.SIG_DFL)
    if self._forward:
      self._library.signal(signal.SIGTERM, ctypes.c_void_p(self._address))
    signal.set_wakeup_fd(self._previous_pipe)
    os.write(self._pipe[1], b'\0')
    self._thread.join()
    for end in self._pipe:
      os.close(end)


def end_process(code: int, text: str = '') -> NoReturn:
  """Ends this process, and not by way of Python's exit.

  That waits for threads, which may be compiling; and it aborts the process if
  one of a library, which runs what JAX has dispatched, asks for Python then.

  Args:
    code: of the exit.
    text: printed before.
  """
  # Another Ctrl-C changes nothing any more.
  if threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
  for child in multiprocessing.active_children():
    child.terminate()
  # Ctrl-C ends a command that reads the output, such as tee, as well.
  with contextlib.suppress(OSError):
    if text:
      print(text, file=sys.stderr)
    sys.stderr.flush()
  with contextlib.suppress(OSError):
    sys.stdout.flush()
  os._exit(code)
