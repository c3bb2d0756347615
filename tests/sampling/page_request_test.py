"""What a visitor of the page enters: bounds hold whatever the page lets by."""

import numpy as np
import pytest
from PIL import Image

from sdxl_jax.data import paper_buckets
from sdxl_jax.sampling import page_request, page_samples

SIZES = {'512 x 2048': (512, 2048), '1024 x 1024': (1024, 1024)}


@pytest.fixture
def form(tmp_path):
  return page_request.Form(tmp_path, SIZES, {'style': tmp_path / 's.pt'})


def fields(prompt='a fox', **values):
  return page_request.Fields(prompt, **values)


def test_what_is_entered(form):
  request = page_request.read(
    form, fields(size='512 x 2048', sampler='ddim', seed=' 7 ', strength='')
  )
  assert (request.height, request.width, request.seed) == (512, 2048, 7)
  assert request.sampler == 'ddim' and request.strength is None
  # Without a size, the model's; and the nearest to an image.
  request = page_request.read(form, fields())
  assert request.height is None and request.sampler is None
  wide = np.zeros((10, 50, 3), np.uint8)
  request = page_request.read(form, fields(image=wide, strength='0.5'))
  assert (request.height, request.width) == (512, 2048)
  assert request.strength == 0.5
  # The files stay, so that a PNG may name them.
  assert request.image.startswith(str(form.folder))
  assert Image.open(request.image).size == (50, 10)


@pytest.mark.parametrize(
  'values, message',
  [
    ({'prompt': ' '}, 'the prompt is empty: describe'),
    ({'prompt': None}, 'the prompt is empty'),
    ({'prompt': 'x' * 2001}, 'prompt is longer than 2000'),
    ({'size': '63 x 63'}, "size is '63 x 63', which is not in the list"),
    ({'steps': 200}, 'steps is 200; it must be a whole number from 1 to 150'),
    ({'steps': None}, 'steps is None; it must be a whole'),
    ({'steps': 0}, 'steps is 0'),
    ({'steps': 2.5}, 'steps is 2.5; it must be a whole number'),
    ({'count': 5}, 'count is 5; it must be a whole number from 1 to 4'),
    ({'guidance_scale': float('nan')}, 'guidance_scale is nan'),
    ({'guidance_scale': 1e9}, 'guidance_scale is 1000000000.0'),
    ({'seed': 'x'}, "seed is 'x'; it must be a whole number"),
    ({'seed': None}, 'seed is None'),
    ({'seed': '9' * 30}, 'seed is longer'),
    ({'lora': '../../etc/passwd'}, 'lora is .*not in the list'),
    ({'lora': 'style', 'lora_weight': 9}, 'lora_weight is 9'),
    ({'strength': 'much'}, "strength is 'much'; it must be a number"),
    (
      {'drawn': np.zeros((8, 8, 3), np.uint8), 'mask': 'x.png'},
      'a mask is painted and another uploaded',
    ),
  ],
)
def test_bounds(form, values, message):
  with pytest.raises(ValueError, match=message) as info:
    page_request.read(form, fields(**values))
  assert '\n' not in str(info.value)
  assert not list(form.folder.iterdir())


def test_uploads(form, tmp_path):
  (tmp_path / 'text.png').write_text('no image')
  with pytest.raises(ValueError, match='uploaded is not a readable image'):
    page_request.check_upload(str(tmp_path / 'text.png'), 100)
  Image.new('RGB', (20, 10)).save(tmp_path / 'large.png')
  with pytest.raises(ValueError, match='10 x 20 px, more than 100'):
    page_request.check_upload(str(tmp_path / 'large.png'), 100)
  mask = str(tmp_path / 'large.png')
  kept = page_request.keep_files(form, fields(mask=mask))
  assert kept['image'] is None and kept['mask'].endswith('-mask.png')


def test_sizes():
  from configs import stage3

  assert paper_buckets.around(1024, 64) == stage3.BUCKETS
  half = paper_buckets.around(512, 32)
  assert half[0] == (256, 1024) and (512, 512) in half
  assert all(not (h % 32 or w % 32) for h, w in half)


def test_a_thread_stops_and_raises():
  seen = []

  def work(show):
    for i in range(10):
      show(page_samples.Progress(str(i)))
      seen.append(i)

  shown = page_samples.in_thread(work)
  assert next(shown).line == '0'
  shown.close()  # waits
  count = len(seen)
  assert count <= 10

  def fail(show):
    show(page_samples.Progress('first'))
    raise ValueError('no more')

  shown = page_samples.in_thread(fail)
  assert next(shown).line == 'first'
  with pytest.raises(ValueError, match='no more'):
    next(shown)


def test_previews():
  shown = []
  watch = page_samples.make_watch(shown.append, 'image 1 of 1', every=2)
  for done in range(1, 5):
    watch(done, 4, lambda: np.zeros((1, 8, 8, 3)))
  assert [p.line for p in shown][0] == 'image 1 of 1: step 1 of 4'
  assert [p.pixels is not None for p in shown] == [False, True, False, False]
  assert shown[1].pixels.dtype == np.uint8
