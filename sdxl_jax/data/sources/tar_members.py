"""The members of a tar: where their bytes lie, links followed.

Python's tarfile ends in silence at the first header that it cannot read, and at
the first end-of-archive mark, behind which another tar may follow where two
were concatenated. Both are looked for here.
"""

import io
import logging
import os
import posixpath
import tarfile
from collections.abc import Iterator
from typing import IO, NamedTuple

from sdxl_jax.data.sources import indexed

# Starts of compressed files, and what decompresses them.
COMPRESSED = {
  b'\x1f\x8b': ('gzip', 'gunzip'),
  b'BZh': ('bzip2', 'bunzip2'),
  b'\xfd7zXZ\x00': ('xz', 'unxz'),
  b'\x28\xb5\x2f\xfd': ('zstd', 'unzstd --rm'),
}
BLOCK = tarfile.BLOCKSIZE
READ_BLOCKS = 2048  # at once, between archives


class Member(NamedTuple):
  """A member that is no folder."""

  name: str
  start: int = 0  # of its bytes in the tar
  size: int = 0
  problem: int = indexed.USABLE
  detail: str = ''  # of the problem, in words


class Window(io.RawIOBase):
  """The bytes of a member, as a file that reads no others."""

  def __init__(self, file: IO[bytes], member: Member):
    self.file, self.member, self.place = file, member, 0

  def readable(self) -> bool:
    return True

  def seekable(self) -> bool:
    return True

  def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
    start = {os.SEEK_SET: 0, os.SEEK_CUR: self.place}.get(
      whence, self.member.size
    )
    self.place = max(0, start + offset)
    return self.place

  def readinto(self, buffer: memoryview) -> int:
    self.file.seek(self.member.start + self.place)
    count = min(len(buffer), max(0, self.member.size - self.place))
    data = self.file.read(count)
    buffer[: len(data)] = data
    self.place += len(data)
    return len(data)


def read_members(file: IO[bytes], path: str) -> list[Member]:
  """Lists the members of a tar, in their order.

  Args:
    file: open tar.
    path: of the tar, for errors.

  Raises:
    ValueError: for a compressed tar, where no record has a place of its own,
      and for one that is cut or corrupt.
  """
  check_uncompressed(file, path)
  members, links = [], {}
  try:
    for info in walk(file, path):
      if info.issym() or info.islnk():
        links[len(members)] = link_target(info)
      if not info.isdir():
        members.append(make_member(info))
  except tarfile.TarError as error:
    raise ValueError(
      f'{path} is a truncated or corrupt tar ({error}): re-download or remove '
      'it'
    ) from error
  # A link stands for the last member of the name that it leads to.
  places = {posixpath.normpath(m.name): i for i, m in enumerate(members)}
  for i in links:
    members[i] = follow(members, places, links, i)
  return members


def check_uncompressed(file: IO[bytes], path: str) -> None:
  """Raises ValueError for a compressed file, naming the remedy."""
  start = file.read(8)
  for mark, (name, command) in COMPRESSED.items():
    if start.startswith(mark):
      raise ValueError(
        f'{path} is compressed by {name}, so that its records cannot be read '
        f'in random order: run `{command} {path}` on each such tar, and name '
        'the .tar files in config.data.webdataset.shards; images are '
        'compressed already'
      )


def walk(file: IO[bytes], path: str) -> Iterator[tarfile.TarInfo]:
  """Yields the members of a tar, and of those concatenated to it.

  Raises:
    tarfile.TarError: for a header that cannot be read.
  """
  start = 0
  while start is not None:
    file.seek(start)
    with tarfile.open(fileobj=file, mode='r:') as tar:
      yield from tar
      end = tar.offset
    start = find_archive(file, end, path)


def find_archive(file: IO[bytes], end: int, path: str) -> int | None:
  """Finds the tar that follows another one; None: none does.

  Args:
    file: open file.
    end: place where the headers of the first one end.
    path: of the file, for a warning.

  Raises:
    tarfile.ReadError: if they end at something else than an end mark.
  """
  file.seek(end)
  place = end
  while data := file.read(READ_BLOCKS * BLOCK):
    if content := data.lstrip(b'\0'):
      # Headers begin with a block.
      start = place + (len(data) - len(content)) // BLOCK * BLOCK
      if start == end:
        raise tarfile.ReadError(f'no header of a member at byte {end}')
      return start
    place += len(data)
  if place == end:
    logging.warning(
      '%s has no end-of-archive mark: if it was cut there, members are missing',
      path,
    )
  return None


def make_member(info: tarfile.TarInfo) -> Member:
  """Makes a member that is no link; a link is left for `follow`."""
  if info.issparse():
    return Member(
      info.name,
      problem=indexed.UNREADABLE,
      detail='a sparse member, whose bytes are scattered; write the tar '
      'without --sparse',
    )
  if not info.isfile():
    return Member(
      info.name, problem=indexed.UNREADABLE, detail='a device or a pipe'
    )
  return Member(info.name, info.offset_data, info.size)


def link_target(info: tarfile.TarInfo) -> str:
  """Returns the name of the member that a link leads to."""
  # A symbolic link is relative to its folder, a hard one to the tar.
  folder = posixpath.dirname(info.name) if info.issym() else ''
  return posixpath.normpath(posixpath.join(folder, info.linkname))


def follow(
  members: list[Member],
  places: dict[str, int],
  links: dict[int, str],
  i: int,
) -> Member:
  """Follows a link to the bytes of its member.

  Args:
    members: of the tar.
    places: {normalised name: index of the member}.
    links: {index of a link: normalised name of its target}.
    i: index of the link.

  Returns:
    The member, its problem LINK where the link is broken or a cycle.
  """
  name, seen = members[i].name, {i}
  while i in links:
    target = links[i]
    i = places.get(target)
    if i is None or i in seen:
      what = 'which leads back' if i is not None else 'which the tar lacks'
      return Member(
        name, problem=indexed.LINK, detail=f'links to {target}, {what}'
      )
    seen.add(i)
  return members[i]._replace(name=name)
