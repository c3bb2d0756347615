"""Flags that measure a folder of generated images."""

from typing import Any

from absl import flags

from sdxl_jax.evaluation import (
  bootstrap,
  clip_score,
  metrics,
  sample_report,
)

NAMES = (
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
