"""README.md and the guides: every command and snippet in them runs, in small.

Each guide is worked through from top to bottom in a folder that holds what its
words in capitals stand for. RULES decides by its first matching row whether a
command runs, is printed by a dry run, or has its flags and config checked; a
command that matches no row fails.
"""

import functools
import pathlib
import re
import shlex
import subprocess
import sys
import tomllib
import types

import huggingface_hub.utils
import pytest
from absl import flags
from packaging import requirements

from configs import default
from sdxl_jax.data import dataset
from sdxl_jax.training import config_validation
from tests.support import commands, guide_things, guides

ROOT = guides.ROOT
PYPROJECT = tomllib.loads((ROOT / 'pyproject.toml').read_text())
VERBS = tuple(p.stem for p in (ROOT / 'sdxl_jax').glob('[!_]*.py'))
VERBS = tuple(v for v in VERBS if v not in ('cli', 'atomic_write'))
# Files of the published repositories that nobody needs.
UNWANTED = (
  'sd_xl_base_1.0.safetensors',
  'text_encoder/flax_model.msgpack',
  'unet/diffusion_pytorch_model.safetensors',
  'unet/model.onnx_data',
  'vae/diffusion_pytorch_model.safetensors',
)


@pytest.fixture(scope='module')
def things(tmp_path_factory):
  """The folder of what the guides' words in capitals stand for."""
  folder = tmp_path_factory.mktemp('things')
  guide_things.make(folder)
  return folder


@pytest.fixture
def desk(things, tmp_path, monkeypatch):
  """A folder of a guide's own in which the things lie."""
  for thing in things.iterdir():
    (tmp_path / thing.name).symlink_to(thing)
  monkeypatch.chdir(tmp_path)
  return tmp_path


def with_configs(words, prefix):
  """Returns the words with each configs/NAME.py[:KIND] as PREFIX has it."""
  pattern = r'configs/(\w+)\.py'
  return [re.sub(pattern, prefix, word) for word in words]


def run(words):
  """Runs a command of this package with small nets, images and settings."""
  small = rf'{ROOT}/tests/support/small_configs.py:\1'
  arguments = with_configs(words[3:], small)
  if words[2] == 'sdxl_jax.sample':
    arguments.append('--steps=4')
    if not {'--image', '--from_png'} & set(words):
      arguments += ['--height=64', '--width=64']
  if words[2] == 'sdxl_jax.convert' and 'lora' in words:
    arguments.append('--base=SDXL')  # the LoRA files here are for small nets
  with commands.parsed(words[2], arguments) as start:
    start()


def check(words):
  """Checks a command's flags, and whether its config is one to train."""
  arguments = [word for word in words[3:] if word != '--help']
  arguments = with_configs(arguments, rf'{ROOT}/configs/\1.py')
  with commands.parsed(words[2], arguments):
    if 'config' not in flags.FLAGS:
      return
    config = flags.FLAGS.config
    if config is None:  # of `plan --from_trace`
      return
    config_validation.check(config)
    # Data that lie in the folder of the guide are opened.
    if config.data.source not in ('scenes', 'precomputed', 'mixture'):
      settings = config.data[config.data.source].to_dict()
      if settings.get('path', 'given'):
        assert len(dataset.make_source(config, list)) > 0


def dry_run(words):
  """Prints what a launch script would run, and checks the verb's flags."""
  command = [words[0], '--dry_run', *words[1:]]
  found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
  assert found.returncode == 0 and found.stdout, found.stderr
  verbs = [i for i, word in enumerate(words) if word in VERBS]
  if verbs:
    module = f'sdxl_jax.{words[verbs[0]]}'
    check(['python', '-m', module, *words[verbs[0] + 1 :]])


def check_pip(words):
  """Checks that files and extras exist, and that names can be installed."""
  extras = PYPROJECT['project']['optional-dependencies']
  known = {requirement for extra in extras.values() for requirement in extra}
  assert words[1] == 'install'
  arguments = iter(words[2:])
  for word in arguments:
    if word == '-r':
      assert (ROOT / next(arguments)).is_file()
    elif word.startswith('.['):
      assert word[2:-1] in extras
    elif word not in ('-e', '--no-deps'):
      assert requirements.Requirement(word).name
      assert '[' not in word or word in known


def check_hf(words):
  """Checks the flags, and that they choose the files that are read."""
  usage = hf_usage()
  options, arguments = {}, iter(words[3:])
  for word in arguments:
    assert f'{word} ' in usage, f'hf download has no {word}'
    options.setdefault(word, []).append(next(arguments))
  folder = pathlib.Path(options['--local-dir'][0])
  needed = [p for p in folder.resolve().rglob('*') if p.is_file()]
  needed = {str(p.relative_to(folder.resolve())) for p in needed}
  choose = functools.partial(
    huggingface_hub.utils.filter_repo_objects,
    allow_patterns=options['--include'],
  )
  assert set(choose(sorted(needed))) == needed
  assert not list(choose(UNWANTED))


@functools.cache
def hf_usage():
  # As a module, since the programs of an environment need not be on the PATH.
  command = [sys.executable, '-m', 'huggingface_hub.cli.hf']
  found = subprocess.run(
    [*command, 'download', '--help'], capture_output=True, text=True, check=True
  )
  return found.stdout


def check_pytest(words):
  """Checks paths and markers."""
  markers = PYPROJECT['tool']['pytest']['ini_options']['markers']
  names = {marker.partition(':')[0] for marker in markers}
  for word, previous in zip(words[1:], words):
    if previous == '-m':
      assert word in names
    elif word.startswith('tests'):
      assert (ROOT / word).exists()


def pass_over(words):
  """What a test cannot do: fetch this repository, or enter it."""


RULES = (
  (r'git clone |cd ', pass_over),
  (r'pip ', check_pip),
  (r'hf download ', check_hf),
  (r'pytest ', check_pytest),
  (r'launch/\w+\.sh ', dry_run),
  (r'python -m tests\.benchmarks\.one_object ', run),
  (r'python -m tests\.benchmarks\.', check),
  (r'python -m sdxl_jax\.sample --help', check),
  (r'python -m sdxl_jax\.(sample|convert|preview_data) ', run),
  (r'python -m sdxl_jax\.evaluate --(samples|weights) ', check),
  (r'python -m sdxl_jax\.(evaluate|precompute) ', run),
  (r'python -m sdxl_jax\.train --config configs/tiny.py --w', run),
  (r'python -m sdxl_jax\.(train|plan|web) ', check),
)


def follow(command):
  """Does with a command what RULES says of it."""
  for pattern, action in RULES:
    if re.match(pattern, command):
      action(shlex.split(command))
      return
  raise AssertionError(f'no row of RULES is for: {command}')


def execute(snippet, folder):
  """Executes a Python snippet; a config that it defines must be a good one."""
  names = types.SimpleNamespace(__name__='snippet').__dict__
  snippet = snippet.replace('EXPORT', str(folder / 'EXPORT'))
  exec(re.sub(r'steps=\d+', 'steps=4', snippet), names)  # as `run` has it
  if 'get_config' in names:
    config_validation.check(names['get_config']())


@pytest.mark.slow
@pytest.mark.parametrize('name', guides.NAMES)
def test_guide(name, desk):
  for language, text in guides.blocks(name):
    if language == 'python':
      execute(text, desk)
    for command in guides.split_commands(text) if language == 'bash' else ():
      print(command)
      follow(command)
  for command in guides.inline_commands(name):
    print(command)
    follow(command)


@pytest.mark.parametrize('name', guides.NAMES)
def test_blocks_have_a_known_language(name):
  """A block of another kind would not be run, nor seen to be wrong."""
  assert guides.read(name).count('```') == 2 * len(guides.blocks(name))
  assert {language for language, _ in guides.blocks(name)} <= guides.LANGUAGES


@pytest.mark.parametrize('name', guides.NAMES)
def test_links_and_images_exist(name):
  folder = (ROOT / name).parent
  headings = re.findall('^#+ (.*)$', guides.read(name), re.MULTILINE)
  # As GitHub makes them: without punctuation.
  plain = [re.sub(r'[^\w\- ]', '', h.strip().lower()) for h in headings]
  anchors = {f'#{h.replace(" ", "-")}' for h in plain}
  missing = [
    link
    for link in guides.links(name)
    if link not in anchors and not (folder / link).exists()
  ]
  assert not missing


def test_every_guide_is_tested_and_linked():
  skip = {'tests/golden/README.md', 'tests/golden/compat/README.md'}
  found = {str(p.relative_to(ROOT)) for p in ROOT.glob('[!.]*/**/README.md')}
  found = {name for name in found if not name.startswith('build')}
  assert found - skip == set(guides.NAMES) - {'README.md'}
  front = guides.links('README.md')
  assert set(guides.NAMES) - {'README.md'} <= set(front)


def test_the_front_page_is_short():
  assert len(guides.read('README.md').splitlines()) <= 150


@pytest.fixture(scope='module')
def known_flags():
  """The names of all flags: of commands, and of the launch scripts."""
  names = {'help', 'debug'}
  for verb in VERBS:
    names |= commands.flag_names(f'sdxl_jax.{verb}')
  for script in (ROOT / 'launch').glob('*.sh'):
    names |= set(re.findall(r'--(\w+)\b', script.read_text()))
  return names


@pytest.mark.parametrize('name', guides.NAMES)
def test_flags_and_fields_exist(name, known_flags):
  named = {f for f in guides.flags(name) if not f.startswith('config.')}
  assert named <= known_flags
  config = default.get_config()
  for field in guides.config_fields(name):
    if not field.startswith(('data.mixture.', 'lora.', 'words.')):
      config_validation.get(config, field)


def test_planned_figures_are_those_of_the_configs():
  cell = r' (\S+)(?: of \S+)?(?: %)? '
  row = rf'^\| (\w+) \| `(\S+)` \| \d+ \|{cell}\|{cell}\|{cell}\|$'
  rows = re.findall(row, guides.read('README.md'), re.MULTILINE)
  assert len(rows) == 8
  for config, *figures in rows:
    document = (ROOT / 'configs' / f'{config}.py').read_text()
    for figure in figures:
      whole = rf'(?<![\w.]){re.escape(figure)}(?![\w.]*\w)'
      assert re.search(whole, document), f'configs/{config}.py: no {figure}'
