"""The guides, README.md among them: their blocks, commands, links and flags."""

import pathlib
import re

ROOT = pathlib.Path(__file__).parents[2]
NAMES = (
  'README.md',
  'configs/README.md',
  'configs/claims/README.md',
  'sdxl_jax/data/README.md',
  'sdxl_jax/weights/README.md',
  'sdxl_jax/sampling/README.md',
  'sdxl_jax/planning/README.md',
  'sdxl_jax/evaluation/README.md',
  'launch/README.md',
  'tests/README.md',
  'tests/benchmarks/results/README.md',
)
LANGUAGES = {'bash', 'python', 'json', 'text'}
FENCE = re.compile(r'^```(\w*)\n(.*?)^```$', re.MULTILINE | re.DOTALL)
CODE_SPAN = re.compile(r'`([^`]+)`')
LINK = re.compile(r'\]\(([^)]+)\)')
PROGRAMS = ('python -m ', 'pip ', 'pytest ', 'hf ', 'launch/')


def read(name):
  """Returns the text of a guide."""
  return (ROOT / name).read_text(encoding='utf-8')


def blocks(name):
  """Returns [(language, text)] of the fenced blocks of a guide, in order."""
  return FENCE.findall(read(name))


def json_blocks(name):
  """Returns the texts of the JSON blocks of a guide."""
  return [text for language, text in blocks(name) if language == 'json']


def prose(name):
  """Returns the text of a guide without its fenced blocks."""
  return FENCE.sub('', read(name))


def code_spans(name):
  """Returns the `code` within the prose of a guide, each on one line."""
  return [' '.join(span.split()) for span in CODE_SPAN.findall(prose(name))]


def split_commands(text):
  """Returns the commands of a shell block, each on one line."""
  lines = text.replace('\\\n', ' ').splitlines()
  lines = [' '.join(line.split()) for line in lines]
  parts = [re.sub(r'(^| )#.*', '', line).split(' && ') for line in lines]
  return [command.strip() for line in parts for command in line if command]


def inline_commands(name):
  """Returns the commands within the prose of a guide.

  A command has an argument: `python -m MODULE` alone names a module.
  """
  spans = [
    command
    for span in code_spans(name)
    for command in split_commands(span)
    if command.startswith(PROGRAMS)
  ]
  least = {span: 3 if span.startswith('python') else 1 for span in spans}
  return [span for span in spans if len(span.split()) > least[span]]


def links(name):
  """Returns the link and image targets of a guide that are not URLs."""
  targets = LINK.findall(prose(name))
  return [target for target in targets if '://' not in target]


def flags(name):
  """Returns the names of the flags, --NAME, in the prose of a guide."""
  spans = [s for s in code_spans(name) if not s.startswith(PROGRAMS)]
  found = [re.findall(r'(?:^|\s)--([\w.]+)', span) for span in spans]
  return {flag for names in found for flag in names}


def config_fields(name):
  """Returns the fields, config.a.b, that the prose of a guide names."""
  spans = '\n'.join(code_spans(name))
  found = re.findall(r'\bconfig\.([a-z][\w.]*\w)', spans)
  return set(found) - {'json'}  # config.json is a file
