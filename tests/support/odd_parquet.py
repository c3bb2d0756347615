"""Columns that parquet files can hold, and Python's strings cannot."""

import itertools

import pyarrow as pa


def broken_text(*values):
  """Makes a column of text of bytes that need not be UTF-8."""
  ends = itertools.accumulate(map(len, values), initial=0)
  offsets = pa.array(ends, pa.int32()).buffers()[1]
  data = pa.py_buffer(b''.join(values))
  return pa.Array.from_buffers(pa.string(), len(values), [None, offsets, data])
