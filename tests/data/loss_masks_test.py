"""Masks of the loss follow their images, from every source to the batch.

Every mask is painted as the red channel of its image: whatever resize, crop and
mirroring did to the image, the mask must be the mean of the red pixels that
each latent stands for.
"""

import io

import numpy as np
import pytest
from PIL import Image

from sdxl_jax.data import (
  batch_rows,
  dataset,
  images,
  loss_masks,
  record_check,
  transforms,
)
from sdxl_jax.data.sources import cache_layout, kinds, precomputed
from sdxl_jax.training import cache_check
from tests.support import caches, datasets

SIZES = ((40, 60), (61, 40), (36, 90), (32, 48), (80, 48))
BUCKET = (32, 48)
# Where each kind of source has the masks of `datasets`.
SETTINGS = {
  'folder': {'mask': '.mask.png'},
  'webdataset': {'mask': 'mask.png', 'caption': 'txt'},
  'parquet': {'mask': 'mask'},
  'tfds': {'mask': 'mask'},
}


def paint(size, number=0):
  """Paints blobs in red, differently in each image; uint8 [h, w, 3]."""
  image = datasets.ramp(*size, number=number)
  rng = np.random.default_rng(number)
  coarse = Image.fromarray(rng.integers(0, 256, (5, 7), dtype=np.uint8))
  image[..., 0] = images.resize(coarse, size)
  image[size[0] // 2 :, : size[1] // 3, 0] = 255  # a painted corner
  return image


def examples(masks=True):
  """Records as `datasets` writes them, with their masks."""
  painted = [paint(size, i) for i, size in enumerate(SIZES)]
  records = [
    datasets.example(i, size) | {'image': datasets.encode(painted[i])}
    for i, size in enumerate(SIZES)
  ]
  if masks:
    for image, record in zip(painted, records):
      record['mask'] = datasets.encode(image[..., 0])
  return records


def mean_red(pixels, downscale=4):
  """Averages red over the pixels of each latent; of uint8 [h, w, 3]."""
  h, w, _ = pixels.shape
  red = pixels[..., 0].reshape(h // downscale, downscale, w // downscale, -1)
  return red.mean(axis=(1, 3)) / 255


def check_rows(source, bucket=BUCKET):
  """Checks the masks of crops and mirrored crops of all records."""
  crops = set()
  for i in range(len(source)):
    for seed in range(4):
      row = transforms.transform(
        source[i], bucket, [seed], flip_probability=0.5, mask_downscale=4
      )
      expected = mean_red(images.to_uint8(row['image']))
      assert row['mask'].dtype == np.float32
      np.testing.assert_allclose(row['mask'], expected, atol=1e-6)
      crops.add((i, *row['crop_top_left'].tolist()))
  assert len(crops) > len(source)


@pytest.mark.parametrize('kind', SETTINGS)
def test_sources(tmp_path, kind):
  records = examples()
  if kind != 'tfds':  # whose records all have all features
    records[3]['mask'] = None
  settings = datasets.WRITERS[kind](tmp_path / 'data', records)
  source = kinds.make_source(
    kind, settings | SETTINGS[kind], workers=0, say=lambda line: None
  )
  assert len(source) == len(records)
  if kind != 'tfds':
    assert source[3]['mask'] is None
    row = transforms.transform(source[3], BUCKET, [0], mask_downscale=4)
    assert (row['mask'] == 1).all() and row['mask'].shape == (8, 12)
    keep = [source[i] for i in (0, 1, 2, 4)]
    check_rows(keep)
  else:
    check_rows(source)
  # The same records without masks: another index, and nothing of it is read.
  plain = kinds.make_source(kind, settings, workers=0, say=lambda line: None)
  assert 'mask' not in plain[0]
  if kind == 'webdataset':
    assert len(plain) == len(records)


def test_a_changed_mask_is_a_changed_record(tmp_path):
  records = examples()

  def stamps():
    settings = datasets.write_folder(tmp_path, records) | SETTINGS['folder']
    source = kinds.make_source('folder', settings, workers=0, say=str)
    return source.stamps.tolist()

  before = stamps()
  records[1]['mask'] = datasets.encode(255 - paint(SIZES[1])[..., 0])
  after = stamps()
  assert [a == b for a, b in zip(before, after)] == [
    True,
    False,
    True,
    True,
    True,
  ]


@pytest.mark.parametrize('place', ['masks', '../masks'])
def test_a_folder_of_masks(tmp_path, place):
  """Masks of the same names, of another format, inside or elsewhere."""
  folder = tmp_path / 'images'
  for i, size in enumerate(SIZES):
    for path, image in (
      (folder / f'a/{i}.png', paint(size, i)),
      (folder / place / f'a/{i}.webp', paint(size, i)[..., 0]),
    ):
      path.parent.mkdir(parents=True, exist_ok=True)
      lossless = {'lossless': True} if path.suffix == '.webp' else {}
      Image.fromarray(image).convert('RGB').save(path, **lossless)
    (folder / f'a/{i}.txt').write_text('picture')
  (folder / place / 'a/stray.png').write_bytes(datasets.encode(paint((9, 9))))
  lines = []
  settings = {'path': str(folder), 'mask': place}
  source = kinds.make_source('folder', settings, workers=0, say=lines.append)
  check_rows(source)
  assert len(source) == len(SIZES)
  assert 'masks of images' in lines[0] and 'masks without an image' in lines[0]


def test_a_missing_folder_of_masks(tmp_path):
  settings = datasets.write_folder(tmp_path, examples(masks=False))
  with pytest.raises(FileNotFoundError, match="mask is 'masks', and .*no fold"):
    kinds.make_source('folder', settings | {'mask': 'masks'}, workers=0)


def example(image, mask=None):
  h, w = image.shape[:2]
  record = {'image': datasets.encode(image), 'original_size': (h, w)}
  record |= {'name': 'x.png', 'caption': 'x'}
  return record if mask is None else record | {'mask': mask}


def test_the_alpha_channel(tmp_path):
  """Black over white: what shows is the inverse of the alpha channel."""
  alpha = paint((60, 50))[..., 0]
  image = np.dstack([np.zeros((60, 50, 3), np.uint8), alpha])
  row = transforms.transform(
    example(image), BUCKET, [1], flip_probability=1.0, mask_downscale=4
  )
  expected = 1 - mean_red(images.to_uint8(row['image']))
  np.testing.assert_allclose(row['mask'], expected, atol=1.1 / 255)
  assert row['mask'].std() > 0.1
  # Palettes with a transparent colour, and images that have no transparency.
  file = io.BytesIO()
  palette = Image.fromarray(np.eye(40, dtype=np.uint8)).convert('P')
  palette.save(file, 'PNG', transparency=int(np.asarray(palette)[0, 0]))
  transparent = example(np.zeros((40, 40, 3), np.uint8))
  transparent['image'] = file.getvalue()
  row = transforms.transform(transparent, (40, 40), [0], mask_downscale=4)
  assert row['mask'].min() < 1
  row = transforms.transform(example(paint((40, 60))), BUCKET, [0], False, 0.0)
  assert 'mask' not in row


def test_masks_of_other_sizes():
  image = paint((40, 60))
  half = Image.fromarray(image[..., 0]).resize((30, 20))
  row = transforms.transform(
    example(image, datasets.encode(half)), BUCKET, [0], mask_downscale=4
  )
  expected = mean_red(images.to_uint8(row['image']))
  assert np.abs(row['mask'] - expected).mean() < 0.1
  wide = datasets.encode(Image.fromarray(image[:20, :, 0]))
  with pytest.raises(ValueError, match='mask has 20 x 60 px .*, another aspec'):
    transforms.transform(example(image, wide), BUCKET, [0], mask_downscale=4)
  with pytest.raises(images.UnreadableImage, match='mask of x.png: not a read'):
    transforms.transform(example(image, b'no'), BUCKET, [0], mask_downscale=4)


def test_a_mask_counts_in_red_and_follows_exif():
  """Red, as sd-scripts read it; the mask is upright, the image is not."""
  upright = paint((40, 72))
  exif = Image.Exif()
  exif[images.ORIENTATION] = 6  # to be turned clockwise
  turned = Image.fromarray(np.ascontiguousarray(np.rot90(upright)))
  record = example(upright)
  record['image'] = datasets.encode(turned, exif=exif)
  colours = np.dstack([upright[..., 0], *np.zeros((2, 40, 72), np.uint8)])
  record['mask'] = datasets.encode(colours)
  check_rows([record])


def test_broken_masks_are_found(tmp_path):
  """By the check of all records, which decodes them as training does."""
  records = examples()
  records[2]['mask'] = b'broken'
  datasets.write_folder(tmp_path, records)
  settings = {'path': str(tmp_path), 'mask': '.mask.png'}
  source = kinds.make_source('folder', settings, workers=0, say=str)
  for downscale, count in (0, 0), (4, 1):
    report = record_check.check(
      source,
      (BUCKET,),
      lambda texts: (None, [''] * len(texts)),
      batch_rows.BatchOptions(mask_downscale=downscale, num_threads=1),
    )
    assert len(report.unreadable) == count
  assert 'mask of' in report.unreadable[0] and '0002' in report.unreadable[0]


def test_fit_averages_by_area():
  mask = Image.fromarray(np.arange(24, dtype=np.uint8).reshape(4, 6) * 10)
  found = loss_masks.fit(mask, (4, 6), (4, 4), (0, 1), True, 2)
  flipped = np.arange(24).reshape(4, 6)[:, ::-1][:, 1:5] * 10
  expected = flipped.reshape(2, 2, 2, 2).mean(axis=(1, 3)) / 255
  np.testing.assert_allclose(found, expected, rtol=1e-6)


def masked_config(folder):
  config = caches.config_of(folder)
  config.data.folder.mask = '.mask.png'
  config.loss.masked_loss = True
  return config


def test_precomputed(tmp_path, monkeypatch):
  """A cache has a mask for each of its crops, and is renewed with it."""
  records = examples()
  datasets.write_folder(tmp_path / 'data', records)
  config = masked_config(tmp_path / 'data')
  cache = tmp_path / 'cache'
  caches.make(monkeypatch, config, cache, crops=2, flips=True)
  config.data.source = 'precomputed'
  config.data.precomputed.update(path=str(cache), dtype='float16')
  source = dataset.make_source(config, str)
  seen = set()
  for i in range(len(source)):
    bucket = source[i]['bucket']
    for seed in range(4):
      row = transforms.transform(
        source[i], bucket, [seed], flip_probability=0.5, mask_downscale=4
      )
      # The first 48 channels are the pixels of each 4 x 4 square.
      red = row['moments'][..., :48].reshape(*row['mask'].shape, 16, 3)[..., 0]
      expected = np.float64(red).mean(axis=-1) / 255
      np.testing.assert_allclose(row['mask'], expected, atol=1e-6)
      seen.add(row['mask'].tobytes())
  assert len(seen) > len(source)  # crops and mirror images
  # Where the loss is not masked, they are left out, also of what the cache is
  # compared with.
  config.loss.masked_loss = False
  monkeypatch.setattr(cache_check, 'check_config', lambda *_: None)
  lines = []
  opened = precomputed.Precomputed(cache, 'float16')
  cache_check.check_cache(config, opened, False, lines.append)
  assert lines == []
  source = dataset.make_source(config, str)
  row = transforms.transform(source[0], source[0]['bucket'], [0])
  assert 'mask' not in row and 'moments' in row
  # Another mask is another record.
  config = masked_config(tmp_path / 'data')
  records[2]['mask'] = datasets.encode(255 - paint(SIZES[2])[..., 0])
  datasets.write_folder(tmp_path / 'data', records)
  lines, made = caches.make(monkeypatch, config, cache, crops=2, flips=True)
  assert made == 4 and any('1 changed' in line for line in lines)


def test_a_cache_without_masks(tmp_path, monkeypatch):
  """Its layout is that of earlier versions, and a masked loss refuses it."""
  datasets.write_folder(tmp_path / 'data', examples(masks=False))
  config = caches.config_of(tmp_path / 'data')
  caches.make(monkeypatch, config, tmp_path / 'cache')
  layout = cache_layout.Layout.load(tmp_path / 'cache')
  assert 'masked_loss' not in layout.facts and not layout.has_masks
  assert len(layout.variant(BUCKET)) == 2
  config.data.source = 'precomputed'
  config.data.precomputed.update(path=f'{tmp_path}/cache', dtype='float16')
  config.loss.masked_loss = True
  with pytest.raises(ValueError, match='has no masks, but config.loss.masked'):
    dataset.make_source(config, str)


def test_batches_of_a_config(tmp_path):
  """Masks come only if the loss is masked; those that are whole are counted."""
  records = examples()
  records[3]['mask'] = None
  datasets.write_folder(tmp_path, records)
  config = masked_config(tmp_path)
  config.data.flip_probability = 0.5
  config.data.num_threads = config.data.prefetch = 0

  def batches():
    source = dataset.make_source(config, str)

    class Tokenize:
      def captions(self, texts, count):
        return np.zeros((len(texts), 2, 77), np.int32), [''] * len(texts)

    return dataset.make_batches(config, source, Tokenize(), range(4))

  masked = batches()
  for _ in range(6):
    bucket, batch = next(masked)
    assert batch['mask'].shape == (4, bucket[0] // 4, bucket[1] // 4)
    for image, mask in zip(batch['image'], batch['mask']):
      if not (mask == 1).all():
        expected = mean_red(images.to_uint8(image))
        np.testing.assert_allclose(mask, expected, atol=1e-6)
  assert 0 < masked.counts()['unmasked'] < 24
  masked.close()
  config.loss.masked_loss = False
  plain = batches()
  assert 'mask' not in next(plain)[1] and 'unmasked' not in plain.counts()
  plain.close()
