"""The oddities of `odd_datasets`, and the kinds of boxes that can hold them."""

FOLDERS, TABLES = ('folder',), ('jsonl', 'csv')
TARS = ('tar', 'tar json')
PARQUETS = ('parquet text', 'parquet bytes', 'parquet lists')
FILES = (*FOLDERS, *TABLES)
ALL = (*FILES, *TARS, *PARQUETS)
# Boxes whose captions are bytes, and those whose captions are JSON.
BYTES = ('folder', 'tar', 'parquet bytes')
JSON = ('jsonl', 'tar json')
SCORED = (*TABLES, *TARS, *PARQUETS)

ODDITIES = []  # (name, kinds of boxes, function)


def oddity(*kinds):
  """Registers a function for kinds of boxes."""

  def register(function):
    ODDITIES.append((function.__name__, kinds, function))
    return function

  return register
