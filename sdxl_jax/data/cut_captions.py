"""Counts captions that are longer than what is trained on."""

import threading
from collections.abc import Sequence

LENGTHS = (75, 150, 225)  # that config.max_token_length may have


class CutCaptions:
  """A count of all captions and of those that are cut, shared by threads.

  Args:
    limit: tokens of a caption, config.max_token_length.
  """

  def __init__(self, limit: int = LENGTHS[0]):
    self.limit, self.seen, self.cut = limit, 0, 0
    self._lock = threading.Lock()

  def add(self, texts: Sequence[str]) -> bool:
    """Counts captions, given the text that is cut from each, often ''.

    Returns:
      Whether the first of all that are cut is among them.
    """
    lost = sum(map(bool, texts))
    with self._lock:
      is_first = bool(lost) and not self.cut
      self.seen += len(texts)
      self.cut += lost
    return is_first

  def describe(self) -> str:
    """Describes count, share and, if there is one, the remedy."""
    share = self.cut / max(self.seen, 1)
    text = (
      f'{self.cut:,} of {self.seen:,} captions ({share:.1%}) have more than '
      f'{self.limit} tokens, and the rest is cut'
    )
    longer = [str(length) for length in LENGTHS if length > self.limit]
    if longer:
      text += f'; config.max_token_length = {" or ".join(longer)} keeps more'
    return text
