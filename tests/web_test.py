"""The page, called as a browser calls it; skipped without Gradio."""

import dataclasses
import pathlib
import shutil
import socket
import types
from urllib import parse

import numpy as np
import pytest
from PIL import Image

from sdxl_jax import web
from sdxl_jax.data import images
from sdxl_jax.sampling import (
  generation,
  page_flags,
  page_samples,
  pipelines,
  png_settings,
  sample_request,
)
from tests.support import golden_sets

TINY = golden_sets.SETS[0] / 'tiny'
START = golden_sets.GOLDEN / 'compat' / 'start.png'
DEFAULTS = {
  'prompt': 'a fox',
  'negative_prompt': '',
  'size': '64 x 96',
  'steps': 2,
  'guidance_scale': 5.0,
  'sampler': 'of the model',
  'seed': '7',
  'count': 1,
  'lora': 'none',
  'lora_weight': 1.0,
  'image': None,
  'painted': None,
  'mask': None,
  'strength': '',
  'refine': False,
}


@pytest.fixture(scope='module')
def gradio():
  return pytest.importorskip('gradio', reason='the page needs Gradio')


@pytest.fixture(scope='module')
def studio(gradio, tmp_path_factory):
  folder = tmp_path_factory.mktemp('page')
  (folder / 'loras').mkdir()
  file = folder / 'loras' / 'style.safetensors'
  file.symlink_to(TINY / 'lora' / 'kohya.safetensors')
  base = pipelines.load(TINY / 'base')
  base = dataclasses.replace(base, buckets=((64, 96), (64, 64)))
  models = {
    'weights': str(TINY / 'base'),
    'lora': (),
    'skip_unsupported': False,
  }
  models['lora_dir'] = str(folder / 'loras')
  form = page_samples.make_form(base, models, folder=folder / 'out')
  return page_samples.Studio(base, None, models, form, preview_every=1)


@pytest.fixture(scope='module')
def address(gradio, studio):
  """Serves the page, and returns where."""
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    port = free.getsockname()[1]
  args = types.SimpleNamespace(
    host='127.0.0.1', port=port, most_bytes=10**6, most_waiting=4
  )
  page = web.make_page(gradio, studio)
  options = {'prevent_thread_lock': True, 'quiet': True}
  web.serve(page, args, None, **options)
  yield f'http://127.0.0.1:{port}'
  page.close()


@pytest.fixture(scope='module')
def client(address):
  """Returns a function that fills in the page and presses the button."""
  import gradio_client

  caller = gradio_client.Client(address, verbose=False)

  def submit(**values):
    return caller.submit(*(DEFAULTS | values).values(), api_name='/sample')

  submit.file = gradio_client.handle_file
  return submit


@pytest.fixture
def browser(address):
  """Starts a headless Chromium."""
  reason = 'a browser needs playwright and Chromium'
  api = pytest.importorskip('playwright.sync_api', reason=reason)
  paths = map(shutil.which, ('chromium-headless-shell', 'chromium'))
  path = next(filter(None, paths), None)
  if path is None:
    pytest.skip(reason)
  with api.sync_playwright() as driver:
    options = {'executable_path': path, 'args': ['--no-sandbox']}
    with driver.chromium.launch(**options) as started:
      yield started


def settings_of(result):
  """Returns (settings, models) of the PNG that came first."""
  _, gallery, _ = result
  path = gallery[0]['image']
  png = png_settings.load(path)
  return png.fields, png.models, path


def test_an_image_with_its_settings(client, studio):
  job = client(seed='-1')
  fields, models, path = settings_of(job.result())
  lines = [line for _, _, line in job.outputs()]
  assert lines[-1].endswith(f'seed {fields["seed"]}')
  assert fields['prompt'] == 'a fox' and fields['steps'] == 2
  assert models['weights'] == str(TINY / 'base')
  assert models['refiner'] is None
  # The same as the library makes, and as was written to the folder.
  written = studio.form.folder / pathlib.Path(path).name
  assert written.read_bytes() == pathlib.Path(path).read_bytes()
  request = sample_request.Request(**fields)
  kwargs = sample_request.to_generate_kwargs([request], studio.base.size)
  expected, _ = generation.generate(studio.base, **kwargs)
  pixels = np.asarray(Image.open(path))
  np.testing.assert_array_equal(pixels, images.to_uint8(expected[0]))


def test_a_lora_and_back(client, studio):
  pictures = {}
  for name in ('none', 'style', 'none'):
    _, models, path = settings_of(client(lora=name, lora_weight=2).result())
    pictures.setdefault(name, []).append(np.asarray(Image.open(path)))
    assert len(models['lora']) == (name == 'style')
  np.testing.assert_array_equal(*pictures['none'])
  assert (pictures['none'][0] != pictures['style'][0]).any()
  assert models['lora'] == []


def test_two_at_once(client):
  first, second = client(seed='1'), client(seed='2', prompt='a pig')
  seeds = [settings_of(job.result())[0]['seed'] for job in (first, second)]
  assert seeds == [1, 2]


@pytest.mark.parametrize(
  'values, message',
  [
    ({'prompt': ''}, 'the prompt is empty'),
    ({'size': '63 x 63'}, 'not in the list'),
    ({'steps': 200}, 'steps is 200; it must be a whole number from 1 to 150'),
    ({'count': 1000}, 'count is 1000'),
    ({'lora': '../style'}, 'lora is .*not in the list'),
    ({'sampler': 'none'}, 'choose one of'),
    ({'strength': '0.5'}, 'strength is given without an image'),
    ({'prompt': 'a <lora:../x:1>'}, 'no LoRA file'),
  ],
)
def test_what_is_refused(client, values, message):
  with pytest.raises(Exception, match=message) as info:
    client(**values).result()
  assert '\n' not in str(info.value) and 'Traceback' not in str(info.value)


def test_files_of_others_are_not_read(client, tmp_path):
  (text := tmp_path / 'text.png').write_text('no image')
  for name in ('image', 'mask'):
    with pytest.raises(Exception, match='uploaded is not a readable image'):
      client(**{name: client.file(str(text))}).result()
    # A path of the server that no visitor uploaded.
    stolen = {'path': str(START), 'meta': {'_type': 'gradio.FileData'}}
    with pytest.raises(Exception) as info:
      client(**{name: stolen}).result()
    assert 'readable' not in str(info.value)


@pytest.mark.parametrize(
  'host, auth, lines, expected',
  [
    ('127.0.0.1', None, None, None),
    ('0.0.0.0', 'me:a:b', None, [('me', 'a:b')]),
    ('0.0.0.0', None, 'me:x\n\nyou:y\n', [('me', 'x'), ('you', 'y')]),
  ],
)
def test_who_may_enter(host, auth, lines, expected, tmp_path):
  file = tmp_path / 'auth'
  file.write_text(lines or '')
  file = str(file) if lines else None
  assert page_flags.read_auth(host, auth, file) == expected


def test_nobody_may_enter_by_mistake(tmp_path, capsys):
  (empty := tmp_path / 'auth').write_text('\n')
  assert page_flags.read_auth('0.0.0.0', None, None) is None
  assert '0.0.0.0 may sample: pass --auth_file' in capsys.readouterr().err
  for auth, file in (('me', None), (':x', None), (None, str(empty))):
    with pytest.raises(ValueError, match='USER:PASSWORD'):
      page_flags.read_auth('0.0.0.0', auth, file)


@pytest.mark.slow
def test_in_a_browser(browser, address, tmp_path):
  """What is wrong is told; previews, gallery and download; two visitors."""
  hosts, page, other = set(), browser.new_page(), browser.new_page()
  page.on('request', lambda request: hosts.add(parse.urlsplit(request.url)[1]))
  for each in (page, other):
    each.set_default_timeout(200_000)
    each.goto(address)
  prompt, steps = page.get_by_label('Prompt', exact=True), 'Steps (1 to 150)'
  size, button = page.get_by_label('Size (height x width)'), 'Generate'

  def told(message):
    page.get_by_text(message).wait_for()
    page.locator('.toast-close').last.click()

  def press(each):
    each.get_by_role('button', name=button).click()

  press(page)
  told('the prompt is empty: describe what to show')
  prompt.fill('a red fox')
  for value, message in (('63', "size is '63', which is not"), ('64 x 96', '')):
    size.fill(value)
    size.press('Enter')
    if message:
      press(page)
      told(message)
  page.get_by_label(steps).fill('200')
  press(page)
  told('steps is 200; it must be a whole number from 1 to 150')
  page.get_by_text('Start from an image').click()
  (text := tmp_path / 'text.txt').write_text('no image')
  page.locator('input[type=file]').first.set_input_files(str(text))
  told('Invalid file type')

  # Two at once: one waits. Both get their image.
  other.get_by_label('Prompt', exact=True).fill('a blue pig')
  for each in (page, other):
    each.get_by_label(steps).fill('2')
    press(each)
  other.get_by_text('queue: ').first.wait_for()
  for each in (page, other):
    each.locator('button.thumbnail-lg').first.click()
    with each.expect_download() as download:
      each.get_by_label('Download').first.click()
    download.value.save_as(tmp_path / 'saved.png')
    asked = each.get_by_label('Prompt', exact=True).input_value()
    assert png_settings.load(tmp_path / 'saved.png').fields['prompt'] == asked
  assert hosts == {parse.urlsplit(address)[1]}  # and nobody else
