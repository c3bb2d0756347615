"""Checks the fields of a config for words that are learned, and templates."""

from ml_collections import config_dict

from sdxl_jax.data import caption_templates
from sdxl_jax.training import config_fields

NEEDED = ('token_string', 'num_vectors_per_token')
STARTS = ('init_word', 'weights')  # one of them
EXAMPLE = "dict(token_string='<fox>', init_word='fox', num_vectors_per_token=4)"


def check(config: config_dict.ConfigDict) -> None:
  """Raises ValueError for words that cannot be learned."""
  if bool(config.words) != ('words' in config.trained):
    raise ValueError(
      f'config.trained is {tuple(config.trained)} and config.words has '
      f"{list(config.words)}: to learn words, put 'words' into trained and a "
      f'{EXAMPLE} into config.words'
    )
  for name, word in config.words.items():
    check_word(name, word)
  check_different(config.words)
  check_templates(config)
  if config.preserve_embedding_norm and not config.words:
    raise ValueError(
      'config.preserve_embedding_norm is True, but config.words is empty: add '
      'a word, or set it to False'
    )
  # Vectors begin at those of a trained table, which is read at the start.
  encoders = {'text_encoder', 'text_encoder_2'}
  random = sorted(encoders.intersection(config.from_scratch))
  if config.words and random:
    raise ValueError(
      f'config.from_scratch has {random}, but config.words begin with token '
      'embeddings of trained text encoders: leave these out of from_scratch'
    )


def check_word(name: str, word: config_dict.ConfigDict) -> None:
  """Raises ValueError for a word with other fields, or values not of a kind."""
  fields = set(word)
  if fields - set(config_fields.WORD) or not fields.issuperset(NEEDED):
    raise ValueError(
      f'config.words.{name} has {sorted(fields)}; it must have '
      f'{" and ".join(NEEDED)}, and {" or ".join(STARTS)}'
    )
  for field, value in word.items():
    if remedy := config_fields.WORD[field].remedy(value):
      raise ValueError(f'config.words.{name}.{field} is {value!r}; {remedy}')
  if not word.token_string or word.token_string != word.token_string.strip():
    raise ValueError(
      f'config.words.{name}.token_string is {word.token_string!r}; it must be '
      'text without spaces around it'
    )
  starts = {field: word.get(field, '').strip() for field in STARTS}
  if bool(starts['init_word']) == bool(starts['weights']):
    raise ValueError(
      f'config.words.{name} has the init_word {starts["init_word"]!r} and the '
      f'weights {starts["weights"]!r}; it begins with one of them: the token '
      'embeddings of a text, or the vectors of a file'
    )


def check_different(words: config_dict.ConfigDict) -> None:
  """Raises ValueError if two words are the same for a tokenizer."""
  found = {}
  for name, word in words.items():
    # Added tokens are found in any letter case.
    other = found.setdefault(word.token_string.lower(), name)
    if other != name:
      raise ValueError(
        f'config.words.{other} and config.words.{name} both have the '
        f'token_string {word.token_string!r}, in any letter case: change one'
      )


def check_templates(config: config_dict.ConfigDict) -> None:
  """Raises ValueError for templates with the place of no, or of any, word."""
  place = caption_templates.PLACE
  placed = [text for text in config.data.templates if place in text]
  if placed and len(config.words) != 1:
    raise ValueError(
      f'config.data.templates has {placed[0]!r}, but config.words has '
      f'{len(config.words)} words, and {place} stands for the only one: write '
      'the words themselves into the templates'
    )
  empty = [text for text in config.data.templates if not text.strip()]
  if empty:
    raise ValueError(
      'config.data.templates has an empty text: remove it; without templates '
      "the caption of images that have none is ''"
    )


def check_not_precomputed(config: config_dict.ConfigDict) -> None:
  """Raises ValueError if text would be encoded before its words are learned."""
  if config.words:
    raise ValueError(
      f'config.words has {list(config.words)}, but precomputed text is encoded '
      'once, so that a word in it would get no gradient: train on the images '
      "themselves, such as config.data.source='folder'"
    )
  if config.data.templates:
    raise ValueError(
      f'config.data.templates has {len(config.data.templates)} texts, one of '
      'which is drawn in each pass, but precomputed text is encoded once: '
      'write the captions, or train on the images themselves'
    )
