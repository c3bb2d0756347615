"""Reads single fields of protocol buffers, without their definitions.

The wire format is that of protobuf.dev/programming-guides/encoding.
"""

import collections
from collections.abc import Iterator

Value = int | memoryview


def fields(data: memoryview) -> Iterator[tuple[int, Value]]:
  """Yields (number, value) of a message, integers or the bytes of others.

  Raises:
    ValueError: if the bytes are no message, or are cut off.
  """
  position, end = 0, len(data)
  while position < end:
    key, position = varint(data, position)
    wire = key & 7
    if wire == 0:
      value, position = varint(data, position)
    elif wire in (1, 2, 5):
      size = {1: 8, 5: 4}.get(wire)
      if size is None:
        size, position = varint(data, position)
      if position + size > end:
        raise ValueError(f'a field of {size} bytes is cut off')
      value = data[position : position + size]
      position += size
    else:
      raise ValueError(f'no protocol buffer: wire type {wire}')
    yield key >> 3, value


def varint(data: memoryview, position: int) -> tuple[int, int]:
  """Returns (integer, position after it)."""
  value = shift = 0
  while True:
    if position >= len(data) or shift > 63:
      raise ValueError('an integer is cut off')
    byte = data[position]
    position += 1
    value |= (byte & 127) << shift
    if byte < 128:
      return value, position
    shift += 7


def message(data: memoryview) -> dict[int, list[Value]]:
  """Returns {number: values} of all fields of a message."""
  found = collections.defaultdict(list)
  for number, value in fields(data):
    found[number].append(value)
  return found


def integers(values: list[Value]) -> list[int]:
  """Returns repeated integers, packed or not."""
  found = []
  for value in values:
    if isinstance(value, int):
      found.append(value)
      continue
    position = 0
    while position < len(value):
      n, position = varint(value, position)
      found.append(n)
  return found


def text(values: list[Value]) -> str:
  """Returns a string, '' where the field is not set."""
  return bytes(values[-1]).decode(errors='replace') if values else ''


def integer(values: list[Value]) -> int:
  """Returns an integer, 0 where the field is not set."""
  return values[-1] if values else 0
