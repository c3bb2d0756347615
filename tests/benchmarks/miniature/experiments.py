"""The five claims: what is trained and measured, and what the paper has."""

import dataclasses
from collections.abc import Callable

from configs.claims import (
  autoencoder,
  crop_conditioning,
  multi_aspect,
  size_conditioning,
)
from tests.benchmarks.miniature import measure


@dataclasses.dataclass(frozen=True)
class Column:
  """A metric as the tables name it."""

  metric: str
  title: str
  digits: int = 1


@dataclasses.dataclass(frozen=True)
class Expectation:
  """What the claim says of two rows: the better one has less, or more.

  Attributes:
    metric: that is compared.
    what: its name in a sentence.
    better, worse: rows.
    lower: whether less is better.
  """

  metric: str
  what: str
  better: str
  worse: str
  lower: bool = True


@dataclasses.dataclass(frozen=True)
class Experiment:
  """One claim.

  Attributes:
    letter: by which the paper's claims are named here.
    title: of its section.
    claim: what the paper says, and how the miniature asks for it.
    arms: that are trained, in this order.
    measure: (kit, arm, seed, workdir) -> rows; see `measure`.
    columns: of the table.
    expectations: what the claim says of the table.
    paper: a Markdown table of the paper's numbers, or a sentence.
    tried: settings that were given up, with what they gave, or ''.
    base: (experiment, arm) whose run each run starts from, if any; it is also
      an argument of `measure`.
  """

  letter: str
  title: str
  claim: str
  arms: tuple[str, ...]
  measure: Callable
  columns: tuple[Column, ...]
  expectations: tuple[Expectation, ...]
  paper: str
  tried: str = ''
  base: tuple[str, str] | None = None

  def config(self, name: str, arm: str) -> str:
    """Returns the config of an arm as a command names it."""
    return f'configs/claims/{name}.py' + (
      f':{arm}' if len(self.arms) > 1 else ''
    )


FID = Column('fid', 'FID')
RIGHT = Column('right', 'right, %')
CUT = Column('cut', 'cut off, %')
SHARP = Column('sharpness', 'sharpness, %')
LARGE = f'batch {autoencoder.LARGE}, {autoencoder.STEPS:,} steps'
SMALL = f'batch {autoencoder.SMALL}, {autoencoder.STEPS:,} steps'
LONG_STEPS = autoencoder.STEPS * autoencoder.LARGE // autoencoder.SMALL
LONG = f'batch {autoencoder.SMALL}, {LONG_STEPS:,} steps'

EXPERIMENTS = {
  'size_conditioning': Experiment(
    letter='a',
    title='Size conditioning',
    claim=(
      'Small images that are kept, with their size as a condition, make '
      'better samples than images without them (`512_only`), and than images '
      'of all sizes without the condition (`nocond`). 39 % of the images are '
      'smaller than the squares.'
    ),
    arms=size_conditioning.ARMS,
    measure=measure.measure_size,
    columns=(FID, Column('is', 'IS', 2), RIGHT, SHARP),
    expectations=(
      Expectation('fid', 'FID', 'size_cond', '512_only'),
      Expectation('fid', 'FID', 'size_cond', 'nocond'),
    ),
    paper=(
      '| Table 2, ImageNet at 512 px | FID-5k | IS-5k |\n|---|---|---|\n'
      '| CIN-512-only | 43.84 | 110.64 |\n| CIN-nocond | 39.76 | 211.50 |\n'
      '| CIN-size-cond | 36.53 | 215.34 |'
    ),
  ),
  'crop_conditioning': Experiment(
    letter='b',
    title='Crop conditioning',
    claim=(
      'Random crops teach a model to cut objects off; with the crop as a '
      'condition, samples at (0, 0) have whole objects.'
    ),
    arms=crop_conditioning.ARMS,
    measure=measure.measure_crop,
    columns=(CUT, FID, RIGHT),
    expectations=(
      Expectation('cut', 'the share cut off', 'crop_cond', 'nocond'),
    ),
    paper=(
      'The paper shows it in pictures (figures 4 and 5), without a number.'
    ),
    tried=(
      'Tried before, with seed 0. Nine objects, aspects of 1:2 to 2:1 and 700 '
      'steps: without the condition 37 % of the samples are right and 5.8 % '
      'cut off, with guidance 3, since most are blobs in the middle. Four '
      'objects, 700 steps: 5.4 % are cut off without the condition with '
      'guidance 3, which moves objects to the middle, and 27.1 % without '
      'guidance, against 20.0 % with the condition; 53 % of the training '
      'images are cut off, and 3 % of those at (0, 0).'
    ),
  ),
  'multi_aspect': Experiment(
    letter='c',
    title='Multi-aspect training',
    claim=(
      'A model that was trained on buckets of several aspects makes better '
      'wide and tall images than one that was trained on squares.'
    ),
    arms=multi_aspect.ARMS,
    measure=measure.measure_aspects,
    columns=(
      FID,
      RIGHT,
      CUT,
      Column('fid_tall', 'FID tall'),
      Column('fid_wide', 'FID wide'),
      Column('fid_square', 'FID square'),
    ),
    expectations=(
      Expectation('fid', 'FID of wide and tall images', 'multi', 'square'),
      Expectation(
        'right', 'the share of right content', 'multi', 'square', lower=False
      ),
    ),
    paper='The paper has no number for it (section 2.3).',
  ),
  'refiner': Experiment(
    letter='d',
    title='Base and refiner',
    claim=(
      'A second model, trained on the last 200 noise levels and on images of '
      'high quality, improves the samples of the base, which is '
      '`size_conditioning:size_cond`; both rows begin with the same noise.'
    ),
    arms=('refiner',),
    measure=measure.measure_refiner,
    columns=(FID, RIGHT, SHARP),
    expectations=(Expectation('fid', 'FID', 'base + refiner', 'base'),),
    paper=(
      '| Figure 1, preferred by users | % |\n|---|---|\n'
      '| SDXL base + refiner | 48.44 |\n| SDXL base | 36.93 |\n'
      '| Stable Diffusion 1.5 | 7.91 |\n| Stable Diffusion 2.1 | 6.71 |'
    ),
    base=('size_conditioning', 'size_cond'),
  ),
  'autoencoder': Experiment(
    letter='e',
    title='Autoencoder: batch size and EMA',
    claim=(
      'The same architecture reconstructs better when it is trained with a '
      'larger batch and the EMA of its weights is used.'
    ),
    arms=autoencoder.ARMS,
    measure=measure.measure_autoencoder,
    columns=(
      Column('rfid', 'rFID', 3),
      Column('psnr', 'PSNR', 2),
      Column('ssim', 'SSIM', 3),
      Column('lpips', 'LPIPS', 4),
    ),
    expectations=(
      Expectation('rfid', 'rFID', f'{LARGE}, EMA', f'{SMALL}, last'),
      Expectation(
        'psnr', 'PSNR', f'{LARGE}, EMA', f'{LONG}, last', lower=False
      ),
      Expectation(
        'psnr', 'PSNR', f'{LARGE}, EMA', f'{LARGE}, last', lower=False
      ),
    ),
    paper=(
      '| Table 3, COCO at 256 px | PSNR | SSIM | LPIPS | rFID |\n'
      '|---|---|---|---|---|\n'
      '| SDXL-VAE: batch 256, EMA | 24.7 | 0.73 | 0.88 | 4.4 |\n'
      '| SD-VAE 1.x: batch 9 | 23.4 | 0.69 | 0.96 | 5.0 |\n'
      '| SD-VAE 2.x: its decoder trained on | 24.5 | 0.71 | 0.92 | 4.7 |'
    ),
  ),
}
