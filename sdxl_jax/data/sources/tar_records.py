"""Which members of a tar make a record.

The members of a record share their path up to the last dot: 00/12.jpg,
00/12.txt and perhaps 00/12.json. webdataset itself groups them up to the first
dot of the name; where that makes one image and texts that would be alone
otherwise, as 12.jpg... of 12.photo.jpg and 12.txt, they are a record here, too.
"""

import collections
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from sdxl_jax.data import image_formats
from sdxl_jax.data.sources import indexed, tar_members

PICTURES = frozenset(image_formats.SUFFIXES)
Members = dict[str, tar_members.Member]  # {suffix: member}
Key = tuple[str, int]  # path without suffix; how often it came before
TEXT, JSON = '.txt', '.json'


class Item(NamedTuple):
  """A record of a tar, or what cannot be one."""

  name: str  # the key of a record; of other members their name
  image: tar_members.Member | None = None
  text: tar_members.Member | None = None  # that holds nothing but the caption
  fields: tar_members.Member | None = None  # the json member
  problem: int = indexed.USABLE
  detail: str = ''  # of the problem, in words
  others: tuple[str, ...] = ()  # suffixes of its members that are not read
  mask: tar_members.Member | None = None


def items(
  members: Sequence[tar_members.Member], caption: str, mask: str = ''
) -> Iterator[Item]:
  """Yields the records of a tar, and what cannot be one.

  Args:
    members: of the tar.
    caption: suffix of the member with the caption, or a field of the json
      member; '': none.
    mask: suffix of the member with the mask; '': none.
  """
  text_suffix = f'.{caption.lower()}' if caption else TEXT
  mask_suffix = f'.{mask.lower()}' if mask else ''
  suffixes = (mask_suffix, text_suffix) if mask else (text_suffix,)
  groups = group(members, suffixes)
  lend(groups)
  known = {TEXT, JSON, *suffixes}
  for (key, times), found in groups.items():
    if times:
      names = ', '.join(member.name for member in found.values())
      detail = f'{names}: the tar has it already'
      yield Item(key, problem=indexed.DUPLICATE, detail=detail)
      continue
    pictures = [found[s] for s in found if s in PICTURES and s != mask_suffix]
    strangers = [
      found[s] for s in found if s not in known and s not in PICTURES
    ]
    if pictures:
      item = record(key, pictures[0], found, suffixes, strangers)
      yield item._replace(mask=found.get(mask_suffix) if mask else None)
      for other in pictures[1:]:
        detail = f'{pictures[0].name} is the image of this name already'
        yield Item(other.name, problem=indexed.DUPLICATE, detail=detail)
    elif strangers:
      for member in strangers:
        yield Item(member.name, problem=indexed.UNKNOWN_SUFFIX)
    else:
      detail = f'but {" ".join(found)}'
      yield Item(key, problem=indexed.NO_IMAGE, detail=detail)


def record(
  key: str,
  image: tar_members.Member,
  found: Members,
  suffixes: Sequence[str],
  strangers: Sequence[tar_members.Member],
) -> Item:
  """Makes the item of a record with an image.

  Args:
    key: of the record.
    image: its image.
    found: all its members.
    suffixes: that were asked for, the last one of the caption.
    strangers: members that are not read.
  """
  others = tuple(split(member.name, suffixes)[1] for member in strangers)
  text, fields = found.get(suffixes[-1]), found.get(JSON)
  return Item(
    key, image, text, fields, image.problem, image.detail, others=others
  )


def split(name: str, suffixes: Sequence[str]) -> tuple[str, str]:
  """Splits the path of a member into that of its record and a suffix."""
  # Of a tar of a folder, all names begin so, or some.
  name = name.removeprefix('./')
  # A suffix of several parts can be asked for: 'caption.txt'.
  for suffix in suffixes:
    if name.lower().endswith(suffix):
      return name[: -len(suffix)], suffix
  folder, slash, base = name.rpartition('/')
  stem, dot, suffix = base.rpartition('.')
  if not dot:
    return name, ''
  return folder + slash + stem, dot + suffix.lower()


def group(
  members: Sequence[tar_members.Member], suffixes: Sequence[str]
) -> dict[Key, Members]:
  """Groups members by record; those of a repeated name are groups apart."""
  groups, times = {}, collections.Counter()
  for member in members:
    key, suffix = split(member.name, suffixes)
    groups.setdefault((key, times[key, suffix]), {})[suffix] = member
    times[key, suffix] += 1
  return groups


def lend(groups: dict[Key, Members]) -> None:
  """Gives texts to the image that webdataset's grouping would give them to."""
  # {webdataset's key: keys of records with an image}.
  pictured = collections.defaultdict(list)
  for key, times in groups:
    if not times and not PICTURES.isdisjoint(groups[key, 0]):
      pictured[first_dot(key)].append(key)
  for short, keys in pictured.items():
    # Of several images it would be a guess whose text it is.
    if keys != [short] and len(keys) == 1 and (short, 0) in groups:
      groups[keys[0], 0] = groups.pop((short, 0)) | groups[keys[0], 0]


def first_dot(key: str) -> str:
  """Returns the path up to the first dot of the name."""
  folder, slash, base = key.rpartition('/')
  return folder + slash + base.partition('.')[0]
