"""Protocols by which others have measured SDXL."""

from collections.abc import Mapping
from typing import Any, NamedTuple


class Preset(NamedTuple):
  """What is drawn and measured.

  Attributes:
    settings: {field: value} of each image's sample_request.Request.
    metrics: of metrics.NAMES.
    clip_net: of the CLIP score, of clip_score.NETS.
    images: number of prompts, one image each.
    guidance_scales: the images are drawn and measured at each; (): at that of
      the settings alone.
    bands: {metric: (low, high)} that the values of published weights lie in.
    has_latents: whether all images begin with latents that are published.
  """

  settings: dict[str, Any]
  metrics: tuple[str, ...]
  clip_net: str
  images: int
  guidance_scales: tuple[float, ...] = ()
  bands: dict[str, tuple[float, float]] = {}
  has_latents: bool = False

  def departures(
    self, settings: Mapping[str, Any], images: int, has_latents: bool
  ) -> list[str]:
    """Returns what is not as in the protocol, in whose bands it may not lie.

    Args:
      settings: {field: value} of the images.
      images: number of them.
      has_latents: whether the latents that they begin with were given.
    """
    found = [n for n, v in self.settings.items() if settings.get(n) != v]
    if images != self.images:
      found.append(f'{images:,} images in place of {self.images:,}')
    if self.has_latents and not has_latents:
      found.append('noise of seeds in place of the published latents')
    return found


PRESETS = {
  # MLPerf Inference, text_to_image (v4.0 to v6.1): captions of COCO 2014, all
  # images from the latents that it publishes; bands of its submission checker.
  'mlperf': Preset(
    settings={
      'sampler': 'euler',
      'spacing': 'leading',
      'steps': 20,
      'guidance_scale': 8.0,
      'height': 1024,
      'width': 1024,
      'negative_prompt': (
        'normal quality, low quality, worst quality, low res, blurry, nsfw, '
        'nude'
      ),
    },
    metrics=('fid', 'clip'),
    clip_net='ViT-B/32',
    images=5000,
    bands={
      'fid': (23.01085758, 23.95007626),
      'clip': (31.68631873, 31.81331801),
    },
    has_latents=True,
  ),
  # Podell et al. 2023, appendix F: FID and CLIP score over guidance scales. It
  # names neither sampler nor scales, and takes CLIP ViT-g/14.
  'paper': Preset(
    settings={'steps': 50, 'height': 1024, 'width': 1024},
    metrics=('fid', 'clip'),
    clip_net='ViT-H-14',
    images=10_000,
    guidance_scales=(2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0),
  ),
}
