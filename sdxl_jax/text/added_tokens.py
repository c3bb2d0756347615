"""Tokens that were added to CLIP's vocabulary: learned words.

A word that was learned by textual inversion (Gal et al. 2022) may have several
vectors. Each is a token of its own, as diffusers names them: word, word_1,
word_2 and so on. The word stands for all of them, and in the vocabulary they
follow one another.

An added token is found in any letter case, and inside a word.
"""

import copy
from collections.abc import Collection, Mapping, Sequence
from typing import Any

# Of an AddedToken of transformers.
SETTINGS = ('single_word', 'lstrip', 'rstrip', 'normalized', 'special')
# Id, first character and word of a token in its text.
Token = tuple[int, int, int | None]
Expansions = dict[int, tuple[int, ...]]  # of one id to others
# What to do about a word that there is already.
RENAME = 'pass NAME=FILE with another name, such as <my-style>=FILE'


def expansions(row: Any) -> Expansions:
  """Returns the ids of all vectors of the words that have more than one."""
  ids, found = row.added_tokens_encoder, {}
  for word, first in ids.items():
    of_word = [first]
    while (name := f'{word}_{len(of_word)}') in ids:
      of_word.append(ids[name])
    if len(of_word) > 1:
      found[first] = tuple(of_word)
  return found


def expand(tokens: Sequence[Token], table: Expansions) -> list[Token]:
  """Replaces each token in the table by its expansion, as one word.

  Where a prompt spells out all tokens of an expansion, they stay as they are.
  """
  found, i = [], 0
  while i < len(tokens):
    first, begin, word = tokens[i]
    ids = table.get(first, (first,))
    found += [(token, begin, word) for token in ids]
    spelled = tuple(token for token, *_ in tokens[i : i + len(ids)])
    i += len(ids) if ids and spelled == ids else 1
  return found


def add_words(
  row: Any,
  words: Mapping[str, int],
  aliases: Mapping[str, str | None],
  rename: str = RENAME,
) -> tuple[Any, list[int], Expansions]:
  """Adds learned words to a copy of a CLIPTokenizer.

  Args:
    row: the tokenizer.
    words: {word: number of its vectors}.
    aliases: {other name: word; None: nothing at all}. Such a name is found only
      between spaces and punctuation marks.
    rename: for errors, what to do about a word that there is already.

  Returns:
    (row, ids, expansions): ids of all new vectors in order, and those of the
    words and of their aliases.

  Raises:
    ValueError: for a word that the tokenizer has already.
  """
  import tokenizers  # slow to import, as transformers is

  row = copy.deepcopy(row)
  known = {token.lower() for token in row.get_vocab()}
  for word, count in words.items():
    tokens = [word] + [f'{word}_{i}' for i in range(1, count)]
    for token in (*tokens, f'{word}_1'):
      check_new(token, known, rename)
    known |= {token.lower() for token in tokens}
    row.add_tokens(tokens)
  # The ids of each word, which no other word may continue.
  ids, table, of_word = row.added_tokens_encoder, expansions(row), {}
  for word, count in words.items():
    of_word[word] = tuple(
      ids[f'{word}_{i}' if i else word] for i in range(count)
    )
    if len(table.get(ids[word], of_word[word])) > count:
      raise ValueError(
        f'the word {word!r} has {count} vectors, and {word}_{count} is another '
        f'word: {rename}'
      )
  # An alias is a token too, whose id no text encoder gets.
  aliases = {n: w for n, w in aliases.items() if not is_known(n, known)}
  row.add_tokens(
    [
      tokenizers.AddedToken(name, single_word=True, normalized=True)
      for name in aliases
    ]
  )
  ids = row.added_tokens_encoder
  table |= {ids[name]: of_word.get(word, ()) for name, word in aliases.items()}
  return row, [i for word in of_word.values() for i in word], table


def is_known(name: str, known: Collection[str]) -> bool:
  """Whether a name is among lowercase tokens, also as a whole word."""
  return not {name.lower(), f'{name.lower()}</w>'}.isdisjoint(known)


def check_new(word: str, known: Collection[str], rename: str = RENAME) -> None:
  """Raises ValueError for a word that is a token, or a piece of words.

  diffusers refuses these too, but for a word that differs by letter case, which
  would replace the other one in every prompt.
  """
  if not word.strip():
    raise ValueError('its name is empty: pass NAME=FILE')
  if word.lower() in known:
    raise ValueError(
      f'the word {word!r} is in the vocabulary of the tokenizer already: '
      f'{rename}'
    )


def describe(row: Any, vocabulary: Collection[str]) -> list[dict[str, Any]]:
  """Returns the tokens that a CLIPTokenizer has beside a vocabulary, as JSON.

  Each has 'id', 'content' and the settings of an AddedToken; the ids ascend.
  """
  return [
    {'id': i, 'content': token.content}
    | {name: getattr(token, name) for name in SETTINGS}
    for i, token in sorted(row.added_tokens_decoder.items())
    if not token.special or token.content not in vocabulary
  ]


def restore(row: Any, described: Sequence[dict[str, Any]]) -> None:
  """Adds tokens of `describe` to a CLIPTokenizer, in place.

  Raises:
    ValueError: if they do not follow its vocabulary without a gap.
  """
  import tokenizers

  for token in described:
    # A piece of words that is a token of its own too keeps its id.
    expected = row.get_vocab().get(token['content'], len(row))
    if token['id'] != expected:
      raise ValueError(
        f'the added token {token["content"]!r} has the id {token["id"]}, and '
        f'the next one is {expected}: the file was changed, convert it again'
      )
    settings = {name: token[name] for name in SETTINGS}
    row.add_tokens([tokenizers.AddedToken(token['content'], **settings)])
