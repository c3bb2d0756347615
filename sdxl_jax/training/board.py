"""Event files of TensorBoard, written by the threads that ask for it."""

import pathlib
import threading
import time

import numpy as np
from tensorboardX import event_file_writer, summary
from tensorboardX.proto import event_pb2, summary_pb2


class Board:
  """Writes one event file.

  tensorboardX.SummaryWriter does so in a thread of its own, which an error such
  as that of a full disk ends; the run would then wait for it without end. Here
  the error reaches the caller.

  Args:
    folder: of the event files.
    start_step: events of later steps, in earlier files, are no longer shown.

  Raises:
    OSError: if the file cannot be written, as the methods below.
  """

  def __init__(self, folder: pathlib.Path, start_step: int):
    folder.mkdir(parents=True, exist_ok=True)
    self._lock = threading.Lock()  # samples come from another thread
    self._events = event_file_writer.EventsWriter(str(folder / 'events'))
    start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
    self._write(event_pb2.Event(step=start_step, session_log=start))

  def _write(self, event):
    event.wall_time = time.time()
    with self._lock:
      self._events.write_event(event)
      self._events.flush()

  def scalars(self, values: dict[str, float], step: int) -> None:
    """Writes the value of each name."""
    parts = [summary.scalar(name, x).value[0] for name, x in values.items()]
    self._write(
      event_pb2.Event(step=step, summary=summary_pb2.Summary(value=parts))
    )

  def image(self, name: str, image: np.ndarray, step: int) -> None:
    """Writes an image, uint8 [h, w, 3]."""
    picture = summary.image(name, image, dataformats='HWC')
    self._write(event_pb2.Event(step=step, summary=picture))

  def close(self) -> None:
    """Closes the file."""
    self._events.close()
