"""From the captions of a record to the text that is trained on.

In this order: one of several captions, one of its lines, prefix and suffix,
wildcards, the order of the tags, tags that are left out. The fields and their
rules are those of kohya's sd-scripts, but for the prefix and the suffix, which
every line gets here. Each pass chooses anew, by (seed, pass, record) alone, so
that hosts, threads, batch size and resuming do not matter.
"""

import dataclasses
import functools
import itertools
import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from sdxl_jax.data import seeds
from sdxl_jax.data.sources import indexed, text_decoding

SEVERAL = ('first', 'random')
WILDCARD = re.compile(r'\{([^}]+)\}')
# What {{ and }} stand for while wildcards are found: no caption has a NUL.
OPEN, CLOSE = '\0(', '\0)'
MOST_TEXTS = 32  # of a record, that a cache holds

Parts = list[list[str]]  # of a text: the options of each part of it, in turn


@dataclasses.dataclass(frozen=True)
class Captioning:
  """How captions are chosen and changed: the fields of config.data.captions.

  `parts` has those of the parts of a mixture that have fields of their own.
  """

  several: str = 'first'
  enable_wildcard: bool = False
  caption_prefix: str = ''
  caption_suffix: str = ''
  shuffle_caption: bool = False
  keep_tokens: int = 0
  keep_tokens_separator: str = ''
  caption_separator: str = ','
  secondary_separator: str = ''
  caption_tag_dropout_rate: float = 0.0
  caption_dropout_every_n_epochs: int = 0
  parts: tuple[tuple[str, 'Captioning'], ...] = ()  # (name of the part, its)

  def of(self, example: indexed.Example) -> 'Captioning':
    """Returns the fields for an example: those of its part of a mixture."""
    return dict(self.parts).get(example.get('part'), self)

  @property
  def has_tags(self) -> bool:
    """Whether captions are split into tags."""
    return self.shuffle_caption or self.caption_tag_dropout_rate > 0

  @property
  def changes(self) -> bool:
    """Whether a caption may become another text."""
    return bool(self.has_tags or self.facts)

  @property
  def has_effect(self) -> bool:
    """Whether captions are trained on otherwise than as they are."""
    here = self.changes or self.caption_dropout_every_n_epochs > 0
    return here or any(part.has_effect for _, part in self.parts)

  @property
  def all_facts(self) -> dict[str, Any]:
    """The facts, with those of each part of a mixture that has fields."""
    parts = {name: part.facts for name, part in self.parts}
    return self.facts | ({'parts': parts} if parts else {})

  @functools.cached_property
  def facts(self) -> dict[str, str | bool]:
    """The fields that decide the texts of a record, but for those of tags.

    Only those that are not at their default: {} leaves captions as they are.
    """
    names = ['several', 'enable_wildcard', 'caption_prefix', 'caption_suffix']
    if self.secondary_separator:
      names += ['secondary_separator', 'caption_separator']
    return {
      name: getattr(self, name)
      for name in names
      if getattr(self, name) != getattr(DEFAULT, name)
    }

  def is_dropped(self, data_pass: int) -> bool:
    """Whether a pass, counted from 0, is trained without captions."""
    n = self.caption_dropout_every_n_epochs
    return n > 0 and (data_pass + 1) % n == 0

  def choose(
    self, example: indexed.Example, seed: int, data_pass: int, record: int
  ) -> dict:
    """Returns an example with the caption, or encoded text, of a pass.

    Args:
      example: from a source.
      seed: of the run.
      data_pass: over the record's bucket.
      record: number in the source.
    """
    stream = seeds.Stream.CAPTION
    if len(example.get('texts', ())) > 1:
      # Encoded texts of a cache, which has applied the fields already.
      rng = np.random.default_rng([seed, stream, data_pass, record])
      place = example['texts'].place(rng.random())
      caption, text = example['captions'][place], example['texts'][place]
      return example | {'caption': caption, 'text': text}
    if 'variants' in example or not self.changes:
      return example
    rng = np.random.default_rng([seed, stream, data_pass, record])
    return example | {'caption': self.sample(captions_of(example), rng)}

  def sample(self, captions: Sequence[str], rng: np.random.Generator) -> str:
    """Makes the text of a pass of a record's captions.

    Args:
      captions: all of the record.
      rng: of the choices; their order is part of what a seed means.
    """
    lines = pick(self.split(captions), rng)
    parts = self.parse(pick(lines, rng))
    text = unescape(''.join(pick(options, rng) for options in parts))
    return self.change_tags(text, rng)

  def split(self, captions: Sequence[str]) -> list[list[str]]:
    """Returns the captions to choose from, each as the lines to choose from."""
    if self.several == 'first':
      captions = captions[:1]
    if not self.enable_wildcard:
      return [[caption] for caption in captions]
    # As files are read: without spaces around a line, and empty lines.
    lines = [
      [line.strip() for line in text_decoding.LINE_END.split(caption)]
      for caption in captions
    ]
    return [[line for line in of_one if line] or [''] for of_one in lines]

  def parse(self, text: str) -> Parts:
    """Adds prefix and suffix to a text, and splits it at its wildcards."""
    parts = self.caption_prefix, text, self.caption_suffix
    text = ' '.join(part for part in parts if part)
    if not self.enable_wildcard:
      return [[text]]
    text = text.replace('{{', OPEN).replace('}}', CLOSE)
    # Every second piece is the inside of a wildcard.
    pieces = WILDCARD.split(text)
    return [p.split('|') if i % 2 else [p] for i, p in enumerate(pieces)]

  def change_tags(self, text: str, rng: np.random.Generator | None) -> str:
    """Shuffles and leaves out tags; without a generator, neither."""
    if self.has_tags:
      first, free, last = self.split_tags(text)
      if rng and self.shuffle_caption:
        free = [free[i] for i in rng.permutation(len(free))]
      if rng and self.caption_tag_dropout_rate > 0:
        kept = rng.random(len(free)) >= self.caption_tag_dropout_rate
        free = [tag for tag, is_kept in zip(free, kept) if is_kept]
      text = ', '.join([*first, *free, *last])
    if self.secondary_separator:
      text = text.replace(self.secondary_separator, self.caption_separator)
    return text

  def split_tags(self, text: str) -> tuple[list[str], list[str], list[str]]:
    """Splits a text into tags: kept at the start, free, kept at the end."""
    separator = self.keep_tokens_separator
    if separator and separator in text:
      parts = text.split(separator, 2)
      split = [
        [tag.strip() for tag in part.split(self.caption_separator)]
        for part in (*parts, '')
      ]
      first, free, last = ([t for t in tags if t] for tags in split[:3])
      return first, free, last
    tags = [t.strip() for t in text.strip().split(self.caption_separator)]
    return tags[: self.keep_tokens], tags[self.keep_tokens :], []

  def longest(self, captions: Sequence[str]) -> list[str]:
    """Returns a text of each caption and line, all as long as they can be.

    No tag is left out, and of each wildcard it is the longest option.
    """
    lines = itertools.chain.from_iterable(self.split(captions))
    return [
      self.change_tags(
        unescape(''.join(max(o, key=len) for o in self.parse(line))), None
      )
      for line in lines
    ]

  def alternatives(self, captions: Sequence[str]) -> dict[str, float]:
    """Returns {text: its probability}, of all that a record can have.

    Args:
      captions: all of the record; their tags keep their order.

    Raises:
      ValueError: for more than MOST_TEXTS.
    """
    split, texts = self.split(captions), {}
    for lines in split:
      for line in lines:
        parts = self.parse(line)
        count = math.prod(map(len, parts))
        if len(texts) + count > MOST_TEXTS:
          raise ValueError(
            f'its captions can become more than {MOST_TEXTS} texts, the limit '
            'of a cache, which holds each of them encoded: use fewer captions, '
            'lines or wildcards, or train on the images themselves'
          )
        share = 1 / (len(split) * len(lines) * count)
        for pieces in itertools.product(*parts):
          text = self.change_tags(unescape(''.join(pieces)), None)
          texts[text] = texts.get(text, 0) + share
    return texts


DEFAULT = Captioning()
FIELDS = tuple(
  field.name
  for field in dataclasses.fields(Captioning)
  if field.name != 'parts'
)


def pick(options: Sequence[Any], rng: np.random.Generator) -> Any:
  """Chooses an option; of one alone, without a draw."""
  return options[int(rng.integers(len(options))) if len(options) > 1 else 0]


def unescape(text: str) -> str:
  """Restores braces that were doubled."""
  return text.replace(OPEN, '{').replace(CLOSE, '}')


def captions_of(example: indexed.Example) -> Sequence[str]:
  """Returns all captions that a source found of an example."""
  return example.get('captions') or (example['caption'],)
