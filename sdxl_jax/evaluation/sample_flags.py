"""Flags that measure a folder of generated images."""

from collections.abc import Collection
from typing import Any

from absl import flags

from sdxl_jax.evaluation import (
  bootstrap,
  clip_score,
  metrics,
  sample_report,
)

# Flags of the other measurement, of an autoencoder.
OF_AUTOENCODER = ('config', 'weights', 'variant', 'pictures', 'average')
OF_SAMPLES = (
  'samples',
  'reference',
  'metrics',
  'prompts',
  'clip_net',
  'metric_weights',
  'reference_cache',
  'resamples',
)


def define() -> None:
  """Defines the flags."""
  flags.DEFINE_string('samples', None, 'folder of generated images to measure')
  flags.DEFINE_string(
    'reference',
    None,
    'what they are compared with: folder of images, or .npz of mu and sigma',
  )
  flags.DEFINE_list(
    'metrics', ['fid'], f'of the samples: {", ".join(metrics.NAMES)}'
  )
  flags.DEFINE_string(
    'prompts',
    None,
    'file of a prompt for each sample, in the order of their names, for clip',
  )
  flags.DEFINE_enum(
    'clip_net', clip_score.NETS[0], clip_score.NETS, 'of the CLIP score'
  )
  flags.DEFINE_string(
    'metric_weights',
    None,
    'folder of the weights of the metrics; default: that of SDXL_JAX_METRICS, '
    'or ~/.cache/sdxl_jax/metrics',
  )
  flags.DEFINE_string(
    'reference_cache',
    None,
    'folder for features of the reference; default: features, in the folder of '
    'the weights of the metrics',
  )
  flags.DEFINE_integer(
    'resamples', bootstrap.RESAMPLES, 'for intervals; 0: none', 0
  )


def check_chosen(given: Collection[str]) -> None:
  """Checks that the flags passed are of one measurement.

  Args:
    given: names of the flags that were passed.

  Raises:
    ValueError: for flags of the other measurement, or none of either.
  """
  if 'samples' in given:
    wrong = [name for name in OF_AUTOENCODER if name in given]
    if wrong:
      raise ValueError(
        f'--{wrong[0]} is for an autoencoder, and --samples measures images: '
        'leave one of them out'
      )
    return
  wrong = [name for name in OF_SAMPLES if name in given]
  if wrong:
    raise ValueError(f'--{wrong[0]} is for images: pass --samples too')
  lacking = [name for name in ('config', 'weights') if name not in given]
  if lacking:
    raise ValueError(
      f'pass --{lacking[0]} to measure an autoencoder, or --samples to measure '
      'generated images'
    )


def to_request(args: Any) -> sample_report.Request:
  """Makes the request of the flags; the prompts are not read, and empty."""
  return sample_report.Request(
    samples=args.samples,
    metrics=tuple(args.metrics),
    reference=args.reference,
    prompts=() if args.prompts else None,
    clip=args.clip_net,
    weights=args.metric_weights,
    kept=args.reference_cache,
    resamples=args.resamples,
    batch_size=args.batch_size,
  )
