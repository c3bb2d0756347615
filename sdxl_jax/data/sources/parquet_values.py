"""Values of parquet files as Python's, those that Python cannot hold too."""

from typing import Any

import pyarrow as pa

NANOSECONDS = 'timestamp[ns'
LISTS = (pa.ListScalar, pa.LargeListScalar, pa.FixedSizeListScalar)


def to_rows(table: pa.Table | pa.RecordBatch) -> list[dict[str, Any]]:
  """Converts a table to {column: value} of each row, see `to_python`."""
  columns = {name: table[name] for name in table.column_names}
  # Where pandas is installed, these become objects of its own.
  has_nanoseconds = any(NANOSECONDS in str(c.type) for c in columns.values())
  if not has_nanoseconds:
    try:
      return table.to_pylist()
    except (ValueError, OverflowError):  # one value of a row spoils all
      pass
  return [
    {name: to_python(column[i]) for name, column in columns.items()}
    for i in range(len(table))
  ]


def to_python(scalar: pa.Scalar) -> Any:
  """Converts a value.

  Text that is not UTF-8, which parquet does not check, becomes bytes; a time
  that is no datetime, in nanoseconds or after the year 9999, becomes text.
  """
  try:
    if isinstance(scalar, pa.TimestampScalar) and scalar.type.unit == 'ns':
      scalar = scalar.cast(pa.timestamp('us', scalar.type.tz))
    if NANOSECONDS not in str(scalar.type):
      return scalar.as_py()
  except (ValueError, OverflowError):
    pass
  if isinstance(scalar, LISTS):
    return [to_python(element) for element in scalar.values]
  if isinstance(scalar, pa.StructScalar):
    return {name: to_python(value) for name, value in scalar.items()}
  if isinstance(scalar, pa.DictionaryScalar):
    return to_python(scalar.value)
  if hasattr(scalar, 'as_buffer'):
    return scalar.as_buffer().to_pybytes()
  return scalar.cast(pa.string()).as_py()
