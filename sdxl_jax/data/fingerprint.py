"""What a dataset holds, so that a changed one is noticed when a run resumes.

A checkpoint has the number of records and a digest of their names and contents.
WORKDIR/dataset has both for each record, to count what was added, removed and
changed.
"""

import dataclasses
import hashlib
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from sdxl_jax.data.sources import index, indexed, record_changes

FOLDER = 'dataset'
MAX_RECORDS = 10**7  # 16 bytes each; of more there is the digest only
MAX_NAMED = 10**5  # records whose names are kept, to name removed ones
MAX_KEPT = 3  # files, of as many datasets
MAX_SHOWN = 5  # names of a table's row

Json = dict[str, Any]


def of(source: indexed.Source) -> Json:
  """Returns the fingerprint of a source: {'records': count, 'digest': hex}.

  'by' is what the digest is of: 'content', or the 'size' of each image where a
  cache of an earlier version has no more.
  """
  digest, by = hashlib.blake2b(digest_size=16), 'content'
  # One column at a time: of 10^8 records each has 800 MB.
  for column in ('keys', 'stamps'):
    values = getattr(source, column)
    if values is None:
      values, by = source.sizes, 'size'
    digest.update(np.ascontiguousarray(values))
  return {'records': len(source), 'by': by, 'digest': digest.hexdigest()}


def path_of(workdir: pathlib.Path, fingerprint: Json) -> pathlib.Path:
  """Returns the file with the records of a dataset."""
  return workdir / FOLDER / f'{fingerprint["digest"]}.arrow'


def save(
  workdir: pathlib.Path, fingerprint: Json, source: indexed.Source
) -> None:
  """Writes the records of a dataset to the workdir, unless they are there."""
  path = path_of(workdir, fingerprint)
  if fingerprint['by'] != 'content' or len(source) > MAX_RECORDS:
    return
  if path.exists():
    return
  columns = {'key': source.keys, 'stamp': source.stamps}
  if len(source) <= MAX_NAMED:
    names = [indexed.printable(source.name(i)) for i in range(len(source))]
    columns['name'] = pa.array(names, pa.string())
  path.parent.mkdir(exist_ok=True)
  index.write(path, fingerprint['digest'], pa.table(columns))
  # Those of earlier datasets: a run may be set back to them.
  files = sorted(path.parent.glob('*.arrow'), key=lambda f: f.stat().st_mtime)
  for old in files[:-MAX_KEPT]:
    old.unlink(missing_ok=True)


class Row(NamedTuple):
  """Records of one kind of change."""

  count: int
  names: Sequence[str]  # the first of them


@dataclasses.dataclass(frozen=True)
class Changes:
  """How a dataset differs from that of a checkpoint."""

  before: int  # records
  now: int
  rows: dict[str, Row]  # of 'added', 'removed', 'changed'; {} if not known
  other_records: bool  # whether records came, went or moved, or may have

  def __str__(self) -> str:
    rows = {'before': Row(self.before, []), **self.rows}
    rows['now'] = Row(self.now, [])
    width = max(len(f'{row.count:,}') for row in rows.values())
    lines = []
    for what, (count, names) in rows.items():
      shown = ', '.join(names) + (', ...' if count > len(names) > 0 else '')
      lines.append(f'  {what:8} {count:>{width},}  {shown}'.rstrip())
    if not self.rows:
      lines.append('  which of them are others is not known')
    elif not any(row.count for row in self.rows.values()):
      lines.append('  the same records in another order')
    return '\n'.join(lines)


def compare(
  workdir: pathlib.Path, old: Json, new: Json, source: indexed.Source
) -> Changes:
  """Counts what changed, by the records that the workdir has of a dataset.

  Args:
    workdir: of the run.
    old: fingerprint of the dataset before.
    new: fingerprint of the dataset now.
    source: of the dataset now.
  """
  table = None
  if new['by'] == 'content':
    table = index.read(path_of(workdir, old), old['digest'])
  if table is None:
    return Changes(old['records'], new['records'], {}, True)
  # A mixture repeats records: each is counted once.
  keys = table['key'].to_numpy()
  old_keys, old_rows = np.unique(keys, return_index=True)
  new_keys, new_rows = np.unique(source.keys, return_index=True)
  changes = record_changes.compare(
    record_changes.Records(old_keys, table['stamp'].to_numpy()[old_rows]),
    record_changes.Records(new_keys, source.stamps[new_rows]),
  )

  def old_name(i):
    return table['name'][i].as_py()

  def new_name(i):
    return indexed.printable(source.name(i))

  named = 'name' in table.column_names
  rows = {
    'added': make_row(new_rows[changes.added], new_name),
    'removed': make_row(old_rows[changes.removed], old_name if named else None),
    'changed': make_row(new_rows[changes.changed], new_name),
  }
  same = np.array_equal(keys, source.keys)
  return Changes(len(table), len(source), rows, not same)


def make_row(ids: np.ndarray, name: Callable[[int], str] | None) -> Row:
  """Makes a row of the records with these ids."""
  shown = np.sort(ids)[:MAX_SHOWN].tolist() if name else []
  return Row(len(ids), [name(i) for i in shown])
