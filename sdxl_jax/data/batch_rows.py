"""The rows of batches: of each record its crop, or that of a neighbour."""

import collections
import dataclasses
import functools
import logging
import threading
from collections.abc import Sequence

import grain
import numpy as np

from sdxl_jax.data import (
  buckets,
  caption_templates,
  captioning,
  cut_captions,
  images,
  seeds,
  transforms,
)
from sdxl_jax.data.sources import indexed

ENDLESS = 1 << 40  # batches; Grain needs a length
EXCERPT = 60  # characters of a text that is cut, in the warning
MAX_SUBSTITUTES = 16  # unreadable records in a row before the run stops


@dataclasses.dataclass(frozen=True)
class BatchOptions:
  """What a batch holds, and how much is prepared ahead."""

  accumulation_steps: int = 1  # parts of a scheduled batch, each a batch here
  flip_probability: float = 0.0  # of mirroring an image
  caption_dropout: float = 0.0  # probability of the caption ''
  captions: captioning.Captioning = captioning.DEFAULT  # of the others
  aesthetic_score: bool = False  # whether rows have one
  background: str = 'white'  # colour behind transparent images
  # (height, width) and (top, left) of all rows; None: each image's own.
  original_size: images.Size | None = None
  crop_top_left: images.Size | None = None
  mask_downscale: int = 0  # px per latent of masks of the loss; 0: no masks
  templates: tuple[str, ...] = ()  # captions of records that have none
  max_upscale: float = 1.0  # rows whose image is enlarged more are counted
  max_token_length: int = 75  # tokens of a caption, for the warning
  num_threads: int = 4  # batches made at once
  prefetch: int = 4  # batches held ready; each costs its size in host memory

  def with_fixed_sizes(self, row: transforms.Row) -> transforms.Row:
    """Returns a row with the micro-conditioning that all rows have."""
    fixed = {
      name: np.array(value, np.int32)
      for name in ('original_size', 'crop_top_left')
      if (value := getattr(self, name)) is not None
    }
    return row | fixed


DEFAULTS = BatchOptions()


class BatchRows(grain.MapDataset):
  """This host's rows, one after another, each read and made on request.

  Every scheduled batch is split into `accumulation_steps` equal micro batches.
  Element i is row i % n of micro batch i // n, for n rows of this host.
  """

  def __init__(
    self,
    source: indexed.Source,
    schedule: buckets.Schedule,
    rows: Sequence[int],
    options: BatchOptions,
  ):
    super().__init__()
    self.source = source
    self.rows, self.options = rows, options
    self.lock = threading.Lock()
    self.substituted = collections.Counter()  # by name of the unreadable
    self.upscaled = 0  # rows enlarged more than max_upscale
    self.unmasked = 0  # rows whose mask leaves out nothing
    self.cut_captions = cut_captions.CutCaptions(options.max_token_length)
    self.set_schedule(schedule)

  def set_schedule(self, schedule: buckets.Schedule) -> None:
    """Sets the schedule of the rows that are asked for from now on."""
    self.schedule = schedule
    # Every row of a micro batch looks up the same records.
    self.records = functools.lru_cache(maxsize=64)(schedule.records)

  def __len__(self) -> int:
    return ENDLESS * len(self.rows)

  def __getitem__(self, index: int) -> transforms.Row:
    micro_step, row = divmod(index, len(self.rows))
    bucket, ids, passes = self.records_of(micro_step)
    row = self.rows[row]
    return self.make_row(bucket, int(ids[row]), int(passes[row]))

  def records_of(self, micro_step: int) -> buckets.ScheduledBatch:
    """Returns bucket, records and passes of a micro batch, all hosts' rows."""
    steps = self.options.accumulation_steps
    step, part = divmod(micro_step, steps)
    bucket, ids, passes = self.records(step)
    # Rows i, i + steps, ...: micro batches differ in no other way.
    return buckets.ScheduledBatch(bucket, ids[part::steps], passes[part::steps])

  def make_row(
    self, bucket: buckets.Size, record: int, data_pass: int
  ) -> transforms.Row:
    """Makes a record's row, or that of the next readable one in its bucket.

    Raises:
      ValueError: after MAX_SUBSTITUTES unreadable records in a row.
    """
    errors = []
    for _ in range(MAX_SUBSTITUTES):
      try:
        return self.read_row(bucket, record, data_pass)
      except images.UnreadableImage as error:
        self.report(error)
        errors.append(error)
        # A function of the record alone, so that all hosts choose alike.
        record = self.schedule.next_in_bucket(record)
    # So many at once are a fault of the storage, the settings or the program,
    # and the first error shows which.
    names = '\n  '.join(dict.fromkeys(str(error) for error in errors[:5]))
    raise ValueError(
      f'{MAX_SUBSTITUTES} records in a row of bucket {bucket} cannot be read, '
      f'the limit for skipping; repair or remove them:\n  {names}'
    ) from errors[0]

  def read_row(
    self, bucket: buckets.Size, record: int, data_pass: int
  ) -> transforms.Row:
    """Makes a record's row.

    Raises:
      images.UnreadableImage: in place of any error of reading and cropping.
    """
    run_seed, options = self.schedule.seed, self.options
    seed = [run_seed, seeds.Stream.TRANSFORM, data_pass, record]
    with images.unreadable_if_raised(lambda: self.source.name(record)):
      example = caption_templates.fill(
        self.source[record],
        options.templates,
        [run_seed, seeds.Stream.TEMPLATE, data_pass, record],
      )
      captions = options.captions.of(example)
      example = captions.choose(example, run_seed, data_pass, record)
      is_dropped = captions.is_dropped(data_pass)
      # The same row on any host, thread and batch size.
      row = transforms.transform(
        example,
        bucket,
        seed,
        aesthetic_score=options.aesthetic_score,
        flip_probability=options.flip_probability,
        caption_dropout=1.0 if is_dropped else options.caption_dropout,
        background=options.background,
        mask_downscale=options.mask_downscale,
      )
      self.count_upscale(example['original_size'], bucket)
      if self.options.mask_downscale and (row['mask'] == 1).all():
        with self.lock:
          self.unmasked += 1
      return options.with_fixed_sizes(row)

  def report(self, error: images.UnreadableImage) -> None:
    """Counts an unreadable record, and logs it the first time."""
    with self.lock:
      if error.name not in self.substituted:
        logging.warning('replaced by its neighbour: %s', error)
      self.substituted[error.name] += 1

  def report_cut(self, texts: Sequence[str]) -> None:
    """Counts captions that are cut, and logs one line for all of them.

    Args:
      texts: what is cut from each caption, '' if nothing is.
    """
    if self.cut_captions.add(texts):
      logging.warning(
        'so far %s. The metric cut_captions goes on counting, and python -m '
        'sdxl_jax.preview_data --check counts all. First to be cut: %r',
        self.cut_captions.describe(),
        next(filter(None, texts))[:EXCERPT],
      )

  def count_upscale(self, size: buckets.Size, bucket: buckets.Size) -> None:
    """Counts a row whose image was enlarged by more than max_upscale."""
    if transforms.scale(size, bucket) > self.options.max_upscale:
      with self.lock:
        self.upscaled += 1
