"""Says what a file of a dataset is that is not of its kind."""

HEAD = 512  # bytes that are looked at


def describe(head: bytes, kind: str) -> str | None:
  """Says what a file is, and what to do; None: not known.

  Args:
    head: its first HEAD bytes.
    kind: what it should be, in words.
  """
  begin = head.lstrip().lower()
  if begin.startswith(b'version https://git-lfs'):
    return (
      f'it is a git-lfs pointer in place of the {kind}: run `git lfs pull` in '
      'its folder'
    )
  if begin.startswith((b'<!doctype html', b'<html')):
    return f'it is an HTML page in place of the {kind}: download it again'
  return None
