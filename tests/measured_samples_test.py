"""From weights and prompts to a page of metrics, by the command."""

import json
import pathlib

import pytest

from tests.support import commands, golden_sets, metric_room, processes

MODULE = 'sdxl_jax.evaluate'
BASE = golden_sets.SETS[0] / 'tiny' / 'base'
DRAWN = f'--weights={BASE}', '--height=64', '--width=64', '--steps=2'
MEASURED = '--metric_weights=W', '--reference_cache=kept', '--resamples=20'


@pytest.fixture(scope='module')
def room(tmp_path_factory):
  return metric_room.make(tmp_path_factory.mktemp('room'))


@pytest.fixture(autouse=True)
def tiny(room, monkeypatch):
  metric_room.enter(room, monkeypatch)


def run(*arguments):
  with commands.parsed(MODULE, [*DRAWN, *arguments]) as start:
    start()


@pytest.mark.slow
def test_scales_are_measured_and_a_stop_is_made_good(tmp_path, capsys):
  """The report is the same, whether or not the command was stopped."""
  arguments = (
    *('--prompts=prompts.txt', '--reference=R', '--metrics=fid,clip'),
    *('--guidance_scales=1,5', '--seed=3', f'--output={tmp_path}', *MEASURED),
  )
  run(*arguments)
  folders = [tmp_path / f'guidance_{scale}' for scale in (1, 5)]
  images = [sorted((folder / 'images').iterdir()) for folder in folders]
  names = [f'{i:06}.png' for i in range(len(metric_room.PROMPTS))]
  assert [[path.name for path in paths] for paths in images] == [names] * 2
  reports = [(folder / 'metrics.json').read_text() for folder in folders]
  first, second = (json.loads(text)['metrics'] for text in reports)
  assert set(first) == {'fid', 'clip'} and first != second
  page = (tmp_path / 'report.html').read_text()
  assert page.count('<svg') == 3 and page.count('data:image/jpeg') == 5
  assert 'a red cat' in page and str(BASE) in page

  # Killed while the second scale was drawn.
  kept = images[1][0].read_bytes()
  for path in (*images[1][2:], folders[1] / 'metrics.json'):
    path.unlink()
  (tmp_path / 'report.html').unlink()
  capsys.readouterr()
  run(*arguments)
  said = capsys.readouterr().out
  assert '5 of 5 images are in' in said and '2 of 5 images are in' in said
  assert images[1][0].read_bytes() == kept
  again = [(folder / 'metrics.json').read_text() for folder in folders]
  assert again == reports
  assert (tmp_path / 'report.html').read_text() == page

  # Other settings do not join these images.
  with pytest.raises(ValueError, match='000000.png is there .* another steps'):
    run(*arguments, '--steps=3')


@pytest.mark.slow
def test_a_protocol_of_others(tmp_path):
  """Its band stands beside the value; what is passed comes before it."""
  run(
    *('--prompts=prompts.txt', '--preset=mlperf', '--reference=val2014.npz'),
    *('--pictures=2', f'--output={tmp_path}', *MEASURED),
  )
  report = json.loads((tmp_path / 'metrics.json').read_text())
  assert set(report['metrics']) == {'fid', 'clip'} and report['images'] == 2
  assert report['settings']['steps'] == 2 and report['models']['weights']
  assert report['notes'][-1] == (
    'not the protocol of the preset: steps, height, width, 2 images in place '
    'of 5,000, noise of seeds in place of the published latents'
  )
  page = (tmp_path / 'report.html').read_text()
  assert 'outside of 23.0109 to 23.9501' in page
  assert 'normal quality, low quality' in page


@pytest.mark.slow
def test_two_processes_measure_what_one_measures(room, tmp_path):
  """Each draws and measures its share; one of them writes."""
  arguments = [MODULE, *DRAWN, '--prompts=prompts.txt', '--reference=R']
  arguments += ['--metrics=fid,kid', '--metric_weights=W', '--resamples=20']
  arguments += ['--seed=3']
  reports, images = [], []
  variables = {'PYTHONPATH': str(pathlib.Path(__file__).parents[1])}
  for count in (1, 2):
    output = tmp_path / str(count)
    logs = [tmp_path / f'{count}-{i}.log' for i in range(count)]
    own = f'--reference_cache={output}/kept', f'--output={output}/out'
    started = processes.start(
      [*arguments, *own], logs, lambda i: variables, 'processes'
    )
    codes = [process.wait(600) for process in started]
    assert codes == [0] * count, [log.read_text()[-2000:] for log in logs]
    report = json.loads((output / 'out' / 'metrics.json').read_text())
    reports.append(report['metrics'])
    files = sorted((output / 'out' / 'images').iterdir())
    images.append([path.read_bytes() for path in files])
    assert (output / 'out' / 'report.html').exists()
  assert reports[0] == reports[1] and len(images[0]) == 5
  assert images[0] == images[1]
  # The second process drew, and told nothing that the first did.
  assert 'wrote' in logs[1].read_text() and 'fid' not in logs[1].read_text()


@pytest.mark.slow
def test_a_benchmark(tmp_path):
  line = {'tag': 'colors', 'prompt': 'a photo of a fox'}
  (tmp_path / 'evaluation_metadata.jsonl').write_text(json.dumps(line))
  out = tmp_path / 'out'
  run(
    '--benchmark=geneval',
    f'--prompts={tmp_path / "evaluation_metadata.jsonl"}',
    f'--output={out}',
  )
  folder = out / 'geneval' / '00000'
  assert json.loads((folder / 'metadata.jsonl').read_text()) == line
  written = [path.read_bytes() for path in sorted(folder.glob('samples/*'))]
  assert len(set(written)) == 4


@pytest.mark.parametrize(
  'arguments, message',
  [
    (['--guidance_scales=1,x'], '--guidance_scales=1,x must be numbers'),
    (['--guidance_scales=1,1'], 'each once, as 3,5,8'),
    (['--pictures=9'], '5 prompts are fewer than the 9'),
    (['--preset=mlperf'], '5 prompts are fewer than the 5000'),
    (['--metrics=is'], "'is' is no choice of metrics"),
    (['--metrics=fid', '--metric_weights=none'], 'none/pt_inception'),
    (['--latents=prompts.txt'], '--latents=prompts.txt'),
    (['--crop_top_left=3'], 'two whole numbers in px'),
  ],
)
def test_what_is_refused_before_the_first_image(arguments, message, tmp_path):
  common = '--prompts=prompts.txt', '--reference=R', '--metric_weights=W'
  with pytest.raises((ValueError, OSError), match=message):
    run(*common, f'--output={tmp_path}', *arguments)
  assert not list(tmp_path.rglob('*.png'))
