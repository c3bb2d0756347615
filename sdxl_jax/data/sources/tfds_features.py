"""Which features of a TFDS dataset can be images, captions, labels.

A feature within another has a name such as 'captions/text', also of each
element of a sequence.
"""

from typing import Any, NamedTuple

import tensorflow_datasets as tfds

from sdxl_jax.data.sources import captions

Feature = tfds.features.FeatureConnector


def path(features: tfds.features.FeaturesDict, name: str) -> list[str]:
  """Splits the name of a feature, unless it is one as it stands."""
  return [name] if name in features else name.replace('.', '/').split('/')


def find(features: tfds.features.FeaturesDict, name: str) -> Feature | None:
  """Finds a feature; None: there is none of this name."""
  feature = features
  for part in path(features, name):
    feature = element(feature)
    inside = isinstance(feature, tfds.features.FeaturesDict)
    if not inside or part not in feature:
      return None
    feature = feature[part]
  return feature


def element(feature: Feature) -> Feature:
  """Returns the feature that a sequence consists of, or the feature."""
  while isinstance(feature, tfds.features.Sequence):
    feature = feature.feature
  return feature


def in_sequence(features: tfds.features.FeaturesDict, name: str) -> bool:
  """Checks whether a feature, which must exist, is within a sequence."""
  feature = features
  for part in path(features, name):
    if isinstance(feature, tfds.features.Sequence):
      return True
    feature = feature[part]
  return isinstance(feature, tfds.features.Sequence)


def names(feature: Feature, prefix: str = '') -> list[str]:
  """Lists the names of all features, those within others too."""
  feature = element(feature)
  if not isinstance(feature, tfds.features.FeaturesDict):
    return [prefix]
  start = f'{prefix}/' if prefix else ''
  return sorted(
    name for key in feature for name in names(feature[key], start + key)
  )


def is_text(feature: Feature) -> bool:
  """Checks whether a feature is of text or of labels, or of sequences."""
  feature = element(feature)
  if isinstance(feature, tfds.features.FeaturesDict):
    return False
  # Text is an array of objects to numpy.
  is_label = isinstance(feature, tfds.features.ClassLabel)
  return is_label or feature.np_dtype in (object, str, bytes)


def check(
  features: tfds.features.FeaturesDict, image: str, caption: str
) -> tuple[str, ...]:
  """Checks the features of image and caption, which must exist.

  Args:
    features: of the dataset.
    image, caption: names; caption '': none.

  Returns:
    The names of labels, if the captions are labels; otherwise ().

  Raises:
    ValueError: naming the features that can be used.
  """
  check_image(features, 'image', image)
  if not caption:
    return ()
  if not is_text(find(features, caption)):
    raise ValueError(
      f'feature {caption!r} is {find(features, caption)}, not text: name one '
      f'of {choose(features, is_text)} in config.data.tfds.caption'
    )
  feature = element(find(features, caption))
  if not isinstance(feature, tfds.features.ClassLabel):
    return ()
  return tuple(feature.names or ())


def check_image(
  features: tfds.features.FeaturesDict, field: str, name: str
) -> None:
  """Raises ValueError for a feature that is no encoded image.

  Args:
    features: of the dataset.
    field: of config.data.tfds, which has the name.
    name: of the feature, which must exist.
  """
  if name not in choose(features, is_image):
    raise ValueError(
      f'feature {name!r} is {find(features, name)}, not one encoded image: '
      f'name one of {choose(features, is_image)} in config.data.tfds.{field}'
    )


def is_image(feature: Feature) -> bool:
  return isinstance(feature, tfds.features.Image)


def choose(features: tfds.features.FeaturesDict, suits: Any) -> list[str]:
  """Lists the names of the features that suit."""
  found = [name for name in names(features) if suits(find(features, name))]
  # Of several images there is not one that is the record's.
  if suits is is_image:
    return [name for name in found if not in_sequence(features, name)]
  return found


class Fields(NamedTuple):
  """Finds image and caption in the examples of a dataset."""

  image: str
  caption: str  # '': captions are ''
  labels: tuple[str, ...] = ()  # names, if the captions are labels
  several: bool = False  # whether all captions of a sequence are used
  mask: str = ''  # '': there are no masks

  def look_up(self, example: dict[str, Any], name: str) -> Any:
    """Finds the value of a feature."""
    if name in example:
      return example[name]
    return captions.look_up(example, name.replace('/', '.'))

  def image_of(self, example: dict[str, Any]) -> bytes:
    """Returns the encoded image."""
    return self.look_up(example, self.image)

  def mask_of(self, example: dict[str, Any]) -> bytes | None:
    """Returns the encoded mask; None of one that is empty."""
    return self.look_up(example, self.mask) or None

  def caption_of(self, example: dict[str, Any]) -> captions.Caption:
    """Finds the caption."""
    if not self.caption:
      return captions.Caption('')
    value = self.look_up(example, self.caption)
    value = captions.name_labels(value, self.labels)
    return captions.parse(value, several=self.several)
