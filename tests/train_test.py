"""A run from config to sample: checkpoints, resuming, and errors."""

import collections
import contextlib
import io
import json
import shutil

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from sdxl_jax import precompute, sample, train
from sdxl_jax.checkpoints import loading, orbax_checkpoint
from sdxl_jax.data import images
from sdxl_jax.distributed import batch_padding, device_mesh
from sdxl_jax.ema import transform
from sdxl_jax.models import from_config
from sdxl_jax.sampling import (
  generation,
  pipelines,
  prompt_encoding,
  prompt_plan,
  settings,
)
from sdxl_jax.training import (
  loop,
  metrics,
  metrics_writer,
  run_setup,
  sample_grid,
  tasks,
)
from tests.support import (
  autoencoder_config,
  datasets,
  published_config,
  tiny_config,
)


def final_params(workdir):
  nets = from_config.make_model(tiny_config.get_config())
  return loading.load_params(workdir, nets, nets.configs)


class Compilations:
  """Counts, while it is open, what JAX compiles, by function."""

  def __init__(self):
    self.begun, self.written = collections.Counter(), 0
    self._open = True
    jax.monitoring.register_event_duration_secs_listener(self._on_duration)
    jax.monitoring.register_event_listener(self._on_event)

  def _on_duration(self, event, seconds, fun_name='', **kwargs):
    del seconds, kwargs
    if self._open and event.endswith('backend_compile_duration'):
      self.begun[fun_name.removeprefix('jit(').removesuffix(')')] += 1

  def _on_event(self, event, **kwargs):
    del kwargs
    # Of programs that the cache did not have, once they are compiled.
    self.written += self._open and event.endswith('cache_misses')

  def close(self):
    self._open = False


@pytest.fixture(scope='module', autouse=True)
def caches_of_workdirs(tmp_path_factory):
  """Compiles to the default cache, as for a user who names none."""
  before = jax.config.jax_compilation_cache_dir
  jax.config.update('jax_compilation_cache_dir', None)
  with pytest.MonkeyPatch.context() as patch:
    patch.delenv('JAX_COMPILATION_CACHE_DIR')
    patch.setenv('XDG_CACHE_HOME', str(tmp_path_factory.mktemp('home')))
    yield
  jax.config.update('jax_compilation_cache_dir', before)
  compilation_cache.reset_cache()


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """A workdir after training, what was compiled for it, and what was said."""
  workdir = tmp_path_factory.mktemp('straight')
  (workdir / 'compiled').mkdir()  # so that the programs go there
  jax.jit(lambda x: x + 1)(1)  # as in a notebook, not the first to compile
  config = tiny_config.get_config()
  config.samples.every = 4
  config.checkpoint.keep_every = 1
  counted, said = Compilations(), io.StringIO()
  # As in a log file: without a terminal.
  with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
    train.train(config, workdir)
  counted.close()
  return workdir, counted, said.getvalue()


@pytest.fixture(scope='module')
def straight(run):
  return run[0]


@pytest.fixture
def workdir(straight, tmp_path):
  """A fresh one, but for the programs that another run has compiled."""
  shutil.copytree(straight / 'compiled', tmp_path / 'run' / 'compiled')
  return tmp_path / 'run'


def test_what_a_run_leaves(straight):
  lines = [
    json.loads(line)
    for line in (straight / 'metrics.jsonl').read_text().splitlines()
  ]
  assert [line['step'] for line in lines] == [1, 2, 3, 4]
  assert lines[0].keys() >= {
    'loss',
    'learning_rate',
    'grad_norm',
    'images_per_s',
    'step_s',
    'data_wait_s',
    'host_s',
    'aside_s',
    'substituted',
    'cut_captions',
  }
  assert (straight / 'samples' / '0000004.png').is_file()
  assert orbax_checkpoint.Checkpoints(straight).latest_step == 4
  steps = {int(folder.name) for folder in (straight / 'checkpoints').iterdir()}
  assert steps == {1, 2, 3, 4}
  assert list((straight / 'tensorboard').iterdir())
  assert list((straight / 'compiled').iterdir())


def test_what_a_run_says(run):
  lines = run[2].splitlines()
  assert any('warning: config.optimizer.ema_decay is 0.99' in x for x in lines)
  (moved,) = (x for x in lines if x.startswith('after 4 updates'))
  assert 'parameters and EMA have moved: text_encoder' in moved
  assert moved.endswith('unet') and 'text_encoder_2' in moved
  steps = [x for x in lines if x.startswith('step ')]
  assert [x[:11] for x in steps] == [f'step {i} of 4' for i in (1, 2, 3, 4)]
  assert ' s left' in steps[1] and 'left' not in steps[3]


@pytest.mark.slow
def test_a_run_in_vain_stops(workdir):
  config = tiny_config.get_config()
  config.optimizer.clip_norm = 1e-30
  with pytest.raises(ValueError, match='nothing is trained: .*unet'):
    train.train(config, workdir)


def test_each_bucket_compiles_once(run):
  _, counted, _ = run
  assert counted.begun['gradients'] == 2  # as many as there are buckets
  assert counted.begun['update'] == 1
  assert counted.written >= counted.begun['gradients'] + 1


@pytest.mark.slow
def test_a_second_run_compiles_nothing(workdir):
  """All programs come from the cache."""
  counted = Compilations()
  train.train(tiny_config.get_config(), workdir)
  counted.close()
  assert counted.begun['gradients'] == 2
  assert counted.written == 0


def test_samples_need_no_fused_kernel(monkeypatch):
  """A fused kernel could not be sharded over the mesh of the parameters."""
  config = tiny_config.get_config()
  config.unet.attention = 'splash'
  nets, attention = from_config.make_model(config), []

  def generate(pipeline, prompts, **settings):
    attention.append(pipeline.model.unet.attention)
    return np.zeros((len(prompts), 16, 16, 3), np.float32), None

  monkeypatch.setattr(generation, 'generate', generate)
  state = jax.jit(tasks.make_task(config, nets).init)(jax.random.key(0))
  grid = sample_grid.make_sample_grid(config, nets, {}, source=None)
  image = grid.render(transform.ema_params(state.opt_state))
  assert attention == ['xla'] and image.dtype == np.uint8


def test_a_finished_run_has_nothing_to_do(straight):
  before = (straight / 'metrics.jsonl').read_text()
  assert train.train(tiny_config.get_config(), straight) == 4
  assert (straight / 'metrics.jsonl').read_text() == before


@pytest.mark.slow
def test_from_another_run(straight, tmp_path):
  """Starts from all nets of a run, one of them trained on; or from a step."""
  config = tiny_config.get_config()
  config.init_from, config.trained = str(straight), ('unet',)
  config.optimizer.learning_rate = 0.0  # what comes out is what went in
  config.total_steps = 2
  config.buckets_per_step, config.global_batch_size = 2, 8
  train.train(config, tmp_path / 'second')
  nets = from_config.make_model(config)

  def load(source):
    return loading.load_params(source, nets, nets.configs)

  params = load(tmp_path / 'second')
  assert set(params) == set(nets.configs)

  def equal(a, b):
    return jax.tree.all(jax.tree.map(np.array_equal, a, b))

  assert equal(params, load(straight))
  assert not equal(params, load(straight / 'checkpoints' / '2'))
  state = jax.eval_shape(tasks.make_task(config, nets).init, jax.random.key(0))
  assert set(state.params) == {'unet'}


def test_nets_from_scratch(straight):
  config = tiny_config.get_config()
  config.init_from, config.from_scratch = str(straight), ('unet',)
  nets = from_config.make_model(config)
  one = device_mesh.make_mesh(devices=jax.devices()[:1])
  params = run_setup.load_weights(config, nets, one)
  assert set(params) == {'text_encoder', 'text_encoder_2'}


@pytest.mark.parametrize(
  'done, every, due',
  [(4, 2, True), (5, 2, False), (9, 2, True), (4, 0, False), (9, 0, False)],
)
def test_what_is_due(done, every, due):
  """Every so many steps and after the last one; 0: never."""
  assert loop.is_due(done, every, total=9) is due


def test_the_next_command():
  config = tiny_config.get_config()
  text = train.next_command(config, 'DIR')
  assert '--weights DIR --prompt "an apple on a green background"' in text
  config.samples.prompts = ()  # allowed where nothing is sampled
  assert '--prompt "' in train.next_command(config, 'DIR')
  text = train.next_command(autoencoder_config.get_config(), 'DIR')
  assert 'sdxl_jax.evaluate' in text


def test_where_no_run_is(tmp_path):
  nets = from_config.make_model(tiny_config.get_config())
  with pytest.raises(FileNotFoundError, match='no workdir'):
    loading.load_params(tmp_path, nets, nets.configs)


def test_a_run_of_another_architecture(straight):
  config = tiny_config.get_config()
  config.unet.num_heads = (1, 1)
  nets = from_config.make_model(config)
  with pytest.raises(ValueError, match='another unet.*\n.*num_heads'):
    loading.load_params(straight, nets, nets.configs)


def test_resuming_equals_no_stop(straight, workdir, monkeypatch):
  config = tiny_config.get_config()
  schedule = config.optimizer.schedule
  assert schedule == 'cosine', (
    'the learning rate must not depend on where a run stops'
  )

  class Stop(Exception):
    pass

  original = metrics.Reporter.end_step

  def stop_at_three(self, step, *args):
    original(self, step, *args)
    if step == 2:  # after the checkpoint of step 2, within step 3
      raise Stop

  with monkeypatch.context() as patch:
    patch.setattr(metrics.Reporter, 'end_step', stop_at_three)
    with pytest.raises(Stop):
      train.train(config, workdir)
  train.train(config, workdir)
  a, b = final_params(straight), final_params(workdir)
  assert jax.tree.all(jax.tree.map(np.array_equal, a, b))


def test_another_config_in_the_same_workdir(straight):
  config = tiny_config.get_config()
  config.seed = 7
  with pytest.raises(ValueError, match='seed: 0 > 7'):
    train.train(config, straight)


def test_sampling_from_a_workdir(straight):
  pipeline = pipelines.load(straight)
  assert pipeline.buckets == ((16, 16), (16, 24))
  samples, latents = sample.generate(
    pipeline, ['a fox', 'a pig'], steps=2, seeds=[3, 4]
  )
  assert samples.shape == (2, 16, 16, 3) and latents.shape == (2, 4, 4, 48)
  alone, _ = sample.generate(pipeline, ['a pig'], steps=2, seeds=[4])
  np.testing.assert_allclose(alone[0], samples[1], atol=1e-5)


def test_frozen_nets_need_weights(tmp_path):
  config = tiny_config.get_config()
  config.trained = ('unet',)
  for b1 in (0.9, 0.5):  # nothing was trained: another config may follow
    config.optimizer.b1 = b1
    with pytest.raises(ValueError, match='text_encoder.*would stay random'):
      train.train(config, tmp_path)


def test_weights_of_another_architecture(tmp_path, golden):
  config = tiny_config.get_config()
  config.init_from = str(golden / 'tiny' / 'base')
  with pytest.raises(ValueError, match='another unet'):
    train.train(config, tmp_path)


@pytest.mark.slow
def test_training_starts_from_published_weights(tmp_path):
  folder = published_config.WEIGHTS
  config = published_config.get_config()
  config.total_steps = 2
  config.data.buckets = ((32, 48),)
  config.optimizer.learning_rate = 0.0  # what comes out is what went in
  train.train(config, tmp_path)
  settings = dict(size=(32, 48), steps=2)
  samples, expected = (
    sample.generate(pipelines.load(f), ['a fox'], **settings)[0]
    for f in (tmp_path, folder)
  )
  np.testing.assert_array_equal(samples, expected)


def test_non_finite_loss_names_the_records():
  message = 'step 7 .*Bucket.*records:\n  a/5.png\nLook'
  with pytest.raises(metrics.NonFiniteLoss, match=message):
    metrics.check_finite({'loss': float('nan')}, 7, (16, 24), ['a/5.png'])
  metrics.check_finite({'loss': 1.0}, 7, (16, 24), ['a/5.png'])


def test_metrics_of_a_lost_stretch_are_dropped(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
  metrics_writer.drop_lines_after(path, 2)
  assert path.read_text() == '{"step": 1}\n{"step": 2}\n'


def test_folder_of_images_one_corrupt(workdir, tmp_path):
  folder = tmp_path / 'images'
  rng = np.random.default_rng(0)
  for i in range(6):
    image = rng.integers(0, 255, (20, 20 + 4 * i, 3), dtype=np.uint8)
    images.save(folder / f'{i}.png', image)
    (folder / f'{i}.txt').write_text(f'image {i}')
  broken = (folder / '0.png').read_bytes()
  (folder / '0.png').write_bytes(broken[: len(broken) // 2])
  config = tiny_config.get_config()
  config.data.source = 'folder'
  config.data.folder.path = str(folder)
  train.train(config, workdir)
  lines = (workdir / 'metrics.jsonl').read_text().splitlines()
  assert json.loads(lines[-1])['substituted'] > 0


def write(kind, folder):
  """Writes ten images for a source of this kind; returns its settings."""
  sizes = ((20, 20), (20, 30)) * 5
  examples = [datasets.example(i, size) for i, size in enumerate(sizes)]
  return datasets.WRITERS[kind](folder, examples)


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['webdataset', 'parquet', 'tfds', 'mixture'])
def test_sources(kind, workdir, tmp_path):
  config = tiny_config.get_config()
  config.data.update(source=kind, index_workers=0)
  if kind == 'mixture':
    parts = {n: write(n, tmp_path / n) for n in ('folder', 'parquet')}
    with config.unlocked():
      config.data.mixture = {
        name: part | {'source': name, 'share': 0.5}
        for name, part in parts.items()
      }
  else:
    config.data[kind].update(write(kind, tmp_path / kind))
  assert train.train(config, workdir) == 4


@pytest.mark.slow
def test_captions_of_150_tokens(tmp_path):
  """Its samples have as many, during the run and after it."""
  words = 'red fox on white snow ' * 18
  examples = [
    datasets.example(i, (20, 20), text=f'{words} {i}') for i in range(4)
  ]
  config = tiny_config.get_config()
  config.data.update(source='folder', index_workers=0, buckets=((16, 16),))
  config.data.folder.update(
    datasets.write_folder(tmp_path / 'images', examples)
  )
  config.update(total_steps=2, max_token_length=150)
  config.samples.update(every=2, steps=2, prompts=(words, 'a short one'))
  train.train(config, tmp_path / 'run')
  assert (tmp_path / 'run' / 'samples' / '0000002.png').is_file()
  lines = (tmp_path / 'run' / 'metrics.jsonl').read_text().splitlines()
  assert json.loads(lines[-1])['cut_captions'] == 0
  # Text behind the first chunk is encoded; what would be a third one is cut.
  pipeline = pipelines.load(tmp_path / 'run')
  prompts = [words + end for end in ('', 'pig', 'snow ' * 60, 'snow ' * 99)]
  chosen = settings.SampleSettings(guidance_scale=1.0)
  with pytest.warns(match='longer than 152 tokens'):
    ((_, (context, _)),) = prompt_encoding.make_conditioning(
      pipeline,
      batch_padding.Rows(None, 4),
      prompt_plan.make_plan(prompt_plan.Prompts(prompts), chosen, 1),
      settings.micro_conditions(chosen, (16, 16)),
      chosen,
    )
  assert context.shape[:2] == (4, 154)
  np.testing.assert_allclose(context[0, :77], context[1, :77], atol=1e-5)
  assert np.abs(context[0, 77:] - context[1, 77:]).max() > 1e-3
  np.testing.assert_allclose(context[2], context[3], atol=1e-5)


@pytest.mark.slow
def test_precomputed(straight, tmp_path):
  """Frozen nets are not on the devices."""
  config = tiny_config.get_config()
  config.data.update(source='folder', index_workers=0)
  config.data.folder.update(write('folder', tmp_path / 'images'))
  config.update(init_from=str(straight), trained=('unet',))
  precompute.precompute(config, tmp_path / 'cache')
  config.data.source = 'precomputed'
  config.data.precomputed.path = str(tmp_path / 'cache')
  params = run_setup.load_weights(config, from_config.make_model(config), None)
  assert set(params) == {'unet'}
  # For samples, the others wait in the memory of the host.
  config.samples.every = 2
  params = run_setup.load_weights(config, from_config.make_model(config), None)
  memory = {
    name: {x.sharding.memory_kind for x in jax.tree.leaves(tree)}
    for name, tree in params.items()
  }
  assert set(memory) == {'unet', 'text_encoder', 'text_encoder_2'}
  assert 'pinned_host' not in memory.pop('unet')
  assert all(kinds == {'pinned_host'} for kinds in memory.values())
  assert train.train(config, tmp_path / 'run') == 4
  assert (tmp_path / 'run' / 'samples' / '0000004.png').is_file()
  config.trained = ('unet', 'text_encoder')
  with pytest.raises(ValueError, match='can train .*unet.* only'):
    train.train(config, tmp_path / 'run')
