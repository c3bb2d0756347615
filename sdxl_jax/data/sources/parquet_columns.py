"""Which columns of a parquet file can be images, captions, labels.

A name may be a path with dots, of a field within a struct or within each struct
of a list: 'captions.text'. Folders named column=value, as Hive and Spark write
them, are columns of all files in them.
"""

import json
import posixpath
import re
import urllib.parse
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.types as pt

from sdxl_jax.data.sources import captions

# Names of columns of URLs, as in the data of laion and img2dataset.
URLS = ('url', 'image_url', 'img_url', 'image_link', 'imageurl')
HIVE_NULL = '__HIVE_DEFAULT_PARTITION__'


def of_folders(path: str) -> dict[str, str | None]:
  """Returns the columns that the folders of a path hold: {column: value}."""
  pairs = re.findall(r'([^/=]+)=([^/]*)/', path)
  return {
    name: None if value == HIVE_NULL else urllib.parse.unquote(value)
    for name, value in pairs
  }


def top(schema: pa.Schema, name: str) -> str:
  """Returns the column of a file that holds a name, which may have dots."""
  return name if name in schema.names else name.partition('.')[0]


def check(
  schema: pa.Schema, path: str, image: str, caption: str, others: Sequence[str]
) -> None:
  """Checks that a file has the columns, and of the types, that are asked for.

  Args:
    schema: of the file.
    path: of the file.
    image, caption: names of columns; caption '': none.
    others: names of further columns.

  Raises:
    ValueError: naming the file, the columns that it has, and the remedy.
  """
  names = {image, caption, *others} - {*of_folders(path), ''}
  twice = [n for n in names if schema.names.count(top(schema, n)) > 1]
  if twice:
    raise ValueError(
      f'{path} has the column {top(schema, twice[0])!r} twice: rename the one '
      'that is not meant'
    )
  missing = sorted(n for n in names if find_type(schema, n) is None)
  if missing:
    message = (
      f'{path} has no column {missing}, but {schema.names}: name columns that '
      'it has in config.data.parquet and config.data.filters'
    )
    urls = [name for name in schema.names if name.lower() in URLS]
    if urls and image in missing:
      message += f'\n{download(path, urls[0], schema)}'
    raise ValueError(message)
  check_image(schema, path, 'image', image)
  kind = caption and find_type(schema, caption)
  if kind and not is_text(kind) and not label_names(schema, caption):
    raise ValueError(
      f'{path}: column {caption!r} holds {kind}, not text: name another one in '
      f'config.data.parquet.caption{fields_of(kind, caption)}; the columns are '
      f'{describe(schema)}'
    )


def check_image(schema: pa.Schema, path: str, field: str, name: str) -> None:
  """Raises ValueError for a column that cannot be of encoded images.

  Args:
    schema: of the file.
    path: of the file.
    field: of config.data.parquet, which has the name.
    name: of the column.
  """
  kind = find_type(schema, name)
  if kind is not None and not is_image(kind):
    raise ValueError(
      f'{path}: column {name!r} holds {kind}, not encoded images: name a '
      'column of bytes, of {bytes, path} or of paths in '
      f'config.data.parquet.{field}; the columns are {describe(schema)}'
    )


def find_type(schema: pa.Schema, name: str) -> pa.DataType | None:
  """Finds the type of a name, which may have dots; None: there is none."""
  head = top(schema, name)
  if head not in schema.names:
    return None
  kind = schema.field(head).type
  for part in name[len(head) + 1 :].split('.') if name != head else ():
    kind = plain(kind)
    while is_list(kind):
      kind = plain(kind.value_type)
    if not pt.is_struct(kind) or kind.get_field_index(part) < 0:
      return None
    kind = kind.field(part).type
  return kind


def plain(kind: pa.DataType) -> pa.DataType:
  """Returns the type of the values of a dictionary, other types as they are."""
  return kind.value_type if pt.is_dictionary(kind) else kind


def is_list(kind: pa.DataType) -> bool:
  return (
    pt.is_list(kind) or pt.is_large_list(kind) or pt.is_fixed_size_list(kind)
  )


def is_bytes(kind: pa.DataType) -> bool:
  return (
    pt.is_binary(kind)
    or pt.is_large_binary(kind)
    or pt.is_binary_view(kind)
    or pt.is_fixed_size_binary(kind)
  )


def is_string(kind: pa.DataType) -> bool:
  return (
    pt.is_string(kind) or pt.is_large_string(kind) or pt.is_string_view(kind)
  )


def is_image(kind: pa.DataType) -> bool:
  """Checks whether a type can be of encoded images, or of their paths."""
  kind = plain(kind)
  if pt.is_struct(kind):
    return kind.get_field_index('bytes') >= 0
  return is_bytes(kind) or is_string(kind) or pt.is_null(kind)


def is_text(kind: pa.DataType) -> bool:
  """Checks whether a type can be of captions, or of lists of captions."""
  kind = plain(kind)
  while is_list(kind):
    kind = plain(kind.value_type)
  return is_bytes(kind) or is_string(kind) or pt.is_null(kind)


def fields_of(kind: pa.DataType, name: str) -> str:
  """Describes the fields of text in a struct, '' if there are none."""
  while is_list(kind):
    kind = kind.value_type
  if not pt.is_struct(kind):
    return ''
  texts = [f'{name}.{field.name}' for field in kind if is_text(field.type)]
  return f', or one of its fields, {texts}' if texts else ''


def describe(schema: pa.Schema) -> str:
  """Lists the columns of a file with their types."""
  return ', '.join(f'{field.name} ({field.type})' for field in schema)


def download(path: str, url: str, schema: pa.Schema) -> str:
  """Says how to download the images of a table of URLs."""
  texts = ('caption', 'text', 'alt')
  found = [name for name in schema.names if name.lower() in texts]
  caption = f' --caption_col {found[0]}' if found else ''
  return (
    f'Column {url!r} has URLs; training reads images from disk. Download them '
    f'with img2dataset (pip install img2dataset):\n'
    f'  img2dataset --url_list {posixpath.dirname(path) or "."} '
    f'--input_format parquet --url_col {url}{caption} '
    '--output_format webdataset --output_folder SHARDS\n'
    'Then set config.data.source=webdataset and '
    "config.data.webdataset.shards='SHARDS/*.tar'."
  )


def label_names(schema: pa.Schema, name: str) -> list[str]:
  """Returns the names of a column of labels, [] of other columns.

  Hugging Face's datasets write them into the metadata of the file.
  """
  try:
    features = json.loads(schema.metadata[b'huggingface'])['info']['features']
    feature = features[name]
    # Of a list of labels, the labels.
    return list(feature.get('feature', feature)['names'])
  except (AttributeError, KeyError, TypeError, ValueError):
    return []


def caption_of(
  row: dict[str, Any], name: str, names: Sequence[str], several: bool = False
) -> captions.Caption:
  """Finds the caption of a row.

  Args:
    row: {column: value}.
    name: of the column, or a path with dots; '': there are no captions.
    names: of labels, if the column holds labels.
    several: whether all captions of a list are used.
  """
  if not name:
    return captions.Caption('')
  value = captions.name_labels(captions.look_up(row, name), names)
  return captions.parse(value, several=several)
