"""Weights by their name on the Hugging Face hub, from a server on localhost."""

import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from sdxl_jax import sample
from sdxl_jax.checkpoints import export, source_configs
from sdxl_jax.sampling import sources
from sdxl_jax.weights import formats, hub, hub_files, other_vae, read_options
from tests.support import golden_sets, hub_server

constants = pytest.importorskip('huggingface_hub.constants')
BASE = golden_sets.SETS[0] / 'tiny' / 'base'
ROOT = pathlib.Path(__file__).parents[2]
NET = 'diffusion_pytorch_model'
CONFIGS = (
  'model_index.json',
  'scheduler/scheduler_config.json',
  'tokenizer/vocab.json',
  'tokenizer/merges.txt',
  'unet/config.json',
  'vae/config.json',
  'text_encoder/config.json',
  'text_encoder_2/config.json',
)


@pytest.fixture
def online(tmp_path, monkeypatch):
  """Starts a hub in place of huggingface.co, with an empty cache."""
  (tmp_path / 'file').mkdir()
  (tmp_path / 'file/a [x].safetensors').write_bytes(b'a file')
  (tmp_path / 'file/README.md').touch()
  vae = tmp_path / 'vae'
  vae.symlink_to(BASE / 'vae')
  repositories = {
    'tiny/base': BASE,
    'tiny/vae': vae.resolve(),
    'one/file': tmp_path / 'file',
    'gated/model': 403,
  }
  with hub_server.serve(repositories) as server:
    use(server.url, tmp_path / 'cache', monkeypatch)
    monkeypatch.chdir(tmp_path)
    yield server
  forget()


def use(url, cache, monkeypatch):
  """Lets huggingface_hub, which reads its environment once, use a server."""
  template = constants.HUGGINGFACE_CO_URL_TEMPLATE
  template = template.replace(constants.ENDPOINT, url)
  monkeypatch.setattr(constants, 'HUGGINGFACE_CO_URL_TEMPLATE', template)
  monkeypatch.setattr(constants, 'ENDPOINT', url)
  monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(cache))
  monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', False)
  forget()


def forget():
  """Forgets what was asked for in this process."""
  for function in (hub.list_files, hub.fetch, hub.fetch_file):
    function.cache_clear()


@pytest.mark.parametrize(
  'path, expected',
  [
    ('a/b', ('a/b', None, None)),
    ('a/b@v1.0', ('a/b', 'v1.0', None)),
    ('a/b@refs/pr/3', ('a/b', 'refs/pr/3', None)),
    ('a/b/c.safetensors', ('a/b', None, 'c.safetensors')),
    ('a/b@x/in/c.ckpt', ('a/b', 'x', 'in/c.ckpt')),
    ('a/b/c', None),
    ('a/b.safetensors', None),
    ('./a/b', None),
    ('/a/b', None),
    ('a', None),
    ('https://huggingface.co/a/b', None),
    ('here/b', None),
    ('here/b/c.safetensors', None),
  ],
)
def test_names(path, expected, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  pathlib.Path('here').mkdir()
  for given in (path, pathlib.Path(path)):
    if path != './a/b' or given is path:
      assert hub.parse(given) == expected


@pytest.mark.parametrize(
  # The UNet is stored as given, the other nets plain and as fp16.
  'unet, variant, of_unet, of_others, read_as',
  [
    (['', '.fp16', '.bf16'], None, '.fp16', '.fp16', 'fp16'),
    (['', '.fp16'], '', '', '', ''),
    (['', '.fp16', '.bf16'], 'bf16', '.bf16', '', 'bf16'),
    (['', '.bf16'], None, '', '.fp16', 'fp16'),
    (['.bf16'], None, '.bf16', '.fp16', 'fp16'),
  ],
)
def test_only_files_needed(unet, variant, of_unet, of_others, read_as):
  stems = [f'vae/{NET}', 'text_encoder/model', 'text_encoder_2/model']
  listed = [
    *CONFIGS,
    *(f'unet/{NET}{tag}.safetensors' for tag in unet),
    *(f'{s}{tag}.safetensors' for s in stems for tag in ('', '.fp16')),
    'README.md',
    'sd_xl_base_1.0.safetensors',
    'unet/model.onnx',
    f'unet/{NET}.bin',
    'vae_1_0/config.json',
    f'vae_1_0/{NET}.safetensors',
    'image_encoder/config.json',
  ]
  chosen, read = hub_files.choose(listed, variant)
  weights = f'unet/{NET}{of_unet}.safetensors'
  others = [f'{stem}{of_others}.safetensors' for stem in stems]
  assert set(chosen) == {*CONFIGS, weights, *others}
  assert read == read_as
  # Of one net, its weights and all that is small.
  chosen, _ = hub_files.choose(listed, variant, ['unet'])
  assert set(chosen) == {*CONFIGS, weights}


@pytest.mark.parametrize(
  'shard', ['.fp16-0000{}-of-00002', '-0000{}-of-00002.fp16']
)
def test_shards(shard):
  shards = [f'unet/{NET}{shard.format(i)}.safetensors' for i in (1, 2)]
  index = f'unet/{NET}.safetensors.index.fp16.json'
  plain = [f'unet/{NET}-0000{i}-of-00002.safetensors' for i in (1, 2)]
  listed = [*CONFIGS, index, *shards, *plain, f'unet/{NET}.fp16.bin']
  chosen, _ = hub_files.choose(listed)
  assert set(chosen) == {*CONFIGS, index, *shards}


def test_variants_that_there_are_not():
  listed = [*CONFIGS, f'unet/{NET}.safetensors']
  with pytest.raises(ValueError, match="variant 'ema', but plain ones only"):
    hub_files.choose(listed, 'ema')
  listed = [*CONFIGS, *(f'unet/{NET}.{t}.safetensors' for t in ('a', 'b'))]
  with pytest.raises(ValueError, match='variants a, b, and no plain.*--var'):
    hub_files.choose(listed)


def test_a_model_is_loaded_as_from_its_folder(online, capsys, monkeypatch):
  loaded = sample.load('tiny/base')
  model = formats.open_model(BASE)
  for name, params in loaded.params.items():
    _, expected = model.net(name).load()
    jax.tree.map(np.testing.assert_array_equal, params, expected)
  assert 'tiny/base: 18 files of the hub' in capsys.readouterr().out
  # Once more without asking for a file again, and without the hub.
  online.loaded.clear()
  forget()
  hub.locate('tiny/base')
  assert not online.loaded
  use('http://127.0.0.1:9', constants.HF_HUB_CACHE, monkeypatch)
  folder, _ = hub.locate('tiny/base')
  assert 'so the files of the last download' in capsys.readouterr().out
  assert formats.open_model(folder).is_complete
  with pytest.raises(FileNotFoundError, match='x/y does not exist here.*reach'):
    hub.locate('x/y')


def test_only_nets_that_are_needed(online):
  assert other_vae.open_vae('tiny/base').config()
  weights = [n for n in online.loaded if n.endswith('.safetensors')]
  assert weights == [f'tiny/base/vae/{NET}.safetensors']
  # The same of a net alone; and nothing but tokenizers and configs.
  assert other_vae.open_vae('tiny/vae').config()
  online.loaded.clear()
  assert (
    pathlib.Path(source_configs.base_weights('tiny/base')) / 'tokenizer'
  ).is_dir()
  assert not online.loaded
  # Another autoencoder replaces that of the repository.
  assert 'vae' not in sources.needed_nets('tiny/vae')


def test_one_file(online):
  with pytest.raises(ValueError, match=r'neither.*one/file/a \[x\].safet') as e:
    hub.locate('one/file')
  assert '\n' not in str(e.value)
  path, _ = hub.locate('one/file/a [x].safetensors')
  assert path.read_bytes() == b'a file'
  with pytest.raises(FileNotFoundError, match=r'no b.ckpt: pass one/file/a'):
    hub.locate('one/file/b.ckpt')


@pytest.mark.parametrize(
  'name, message',
  [
    ('gated/model', 'is gated: accept its terms.*gated/model, then log in'),
    (
      'no/model',
      'no/model does not exist here, and the Hugging Face hub',
    ),
    ('tiny/base@v9', "no revision 'v9'"),
    ('tiny/b..ase', 'tiny/b..ase is no name'),
  ],
)
def test_refusals(online, name, message):
  for read in (formats.open_model, export.open_source, sample.load):
    with pytest.raises(FileNotFoundError, match=message) as info:
      read(name)
    assert '\n' not in str(info.value)


def test_a_download_that_breaks_off(online):
  name = 'one/file/a [x].safetensors'
  hub.list_files(hub.parse(name))
  online.broken = True
  with pytest.raises(OSError, match='one/file could not be downloaded.*again'):
    hub.locate(name)
  online.broken = False
  path, _ = hub.locate(name)
  assert path.read_bytes() == b'a file'


def test_a_variant_of_others(online):
  assert formats.has_variant('tiny/base', '')
  assert not formats.has_variant('tiny/base', 'fp16')
  options = read_options.ReadOptions(variant='fp16')
  with pytest.raises(ValueError, match="variant 'fp16'"):
    hub.locate('tiny/base', options)
  assert formats.for_other('tiny/base', options).variant is None


def test_processes_of_a_host_download_once(online, tmp_path):
  code = "from sdxl_jax.weights import hub; hub.locate('tiny/base')"
  environment = os.environ | {
    'HF_ENDPOINT': online.url,
    'HF_HUB_CACHE': str(tmp_path / 'cache'),
    'HF_HUB_OFFLINE': '0',
    'PYTHONPATH': str(ROOT),
  }
  command = [sys.executable, '-c', code]
  started = [subprocess.Popen(command, env=environment) for _ in range(2)]
  assert [process.wait() for process in started] == [0, 0]
  weights = [n for n in online.loaded if n.endswith('.safetensors')]
  assert len(weights) == len(set(weights)) == 4


def test_without_the_library(monkeypatch):
  monkeypatch.setattr(hub.importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(FileNotFoundError, match='`hf download a/b --local-dir'):
    formats.open_model('a/b')
