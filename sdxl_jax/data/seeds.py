"""Numbers that keep the random streams of one seed apart.

Every use of randomness seeds its generator with [seed, stream, ...]. The
numbers decide the order of records and every crop of a run: they never change,
and a new use gets a new number.
"""

import enum


@enum.unique
class Stream(enum.IntEnum):
  """Uses of the seed of a config."""

  BUCKET_ORDER = 0  # buckets of the steps of an epoch
  RECORD_ORDER = 1  # records of a pass over a bucket
  TRANSFORM = 2  # crop, flip and dropped caption of a training example
  PRECOMPUTED_CROP = 3  # crops that `precompute` stores, by a record's key
  EVALUATION_CROP = 4  # crops that `evaluate` reconstructs
  CAPTION = 5  # which caption, wildcards and tags a pass trains on
  TEMPLATE = 6  # caption of a training example that has none
  VALIDATION = 7  # crops of validation, by the hash of a record's name
