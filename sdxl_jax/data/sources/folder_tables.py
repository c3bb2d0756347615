"""Finds the metadata tables of a folder, and the files that they are of."""

import os
import pathlib
from collections.abc import Sequence

from sdxl_jax.data.sources import metadata_table


def find_tables(folder: pathlib.Path, files: Sequence[str]) -> list[str]:
  """Lists the metadata files; raises ValueError for two in one folder."""
  tables = {}
  for file in files:
    parent, name = os.path.split(file)
    if name in metadata_table.NAMES:
      if parent in tables:
        raise ValueError(
          f'{folder / parent} has {tables[parent]} and {name}; remove one'
        )
      tables[parent] = name
  return [os.path.join(parent, name) for parent, name in tables.items()]


def split(
  files: Sequence[str], tables: Sequence[str]
) -> tuple[list[str], list[str]]:
  """Splits files but tables: those below the folder of one, and others."""
  parents = {os.path.dirname(table) for table in tables}
  listed, unlisted, known = [], [], {}
  for file in files:
    parent = os.path.dirname(file)
    if parent not in known:
      above = parent.split('/')
      above = {'/'.join(above[:n]) for n in range(len(above) + 1)}
      known[parent] = not parents.isdisjoint(above)
    if not known[parent]:
      unlisted.append(file)
    elif os.path.basename(file) not in metadata_table.NAMES:
      listed.append(file)
  return listed, unlisted
