"""The fields of config.data and of its sections, with their kinds."""

from sdxl_jax.data import captioning
from sdxl_jax.data.sources import kinds
from sdxl_jax.training.field_kinds import (
  COUNT,
  FACTOR,
  INF,
  SHARE,
  SIZE,
  SWITCHED,
  WEIGHT,
  Anything,
  Choice,
  Colour,
  Flag,
  Items,
  Number,
  Optional,
  Text,
  Whole,
)

CORNER = Items(SWITCHED, '(0, 0)', length=2)  # (top, left)
# {section: {field: kind}}, for config_fields.
SECTIONS = {
  'data': {
    'source': Choice((*kinds.KINDS, 'mixture')),
    'buckets': Items(SIZE, '((1024, 1024),)', least=1),
    'flip_probability': SHARE,
    'num_threads': Whole(0, 256),
    'prefetch': SWITCHED,
    'index_workers': Whole(0, 1024),
    'templates': Items(Text(), "('a photo of {}',)"),
    'background': Colour(),
    'fixed_original_size': Optional(SIZE),
    'fixed_crop_top_left': Optional(CORNER),
    'max_upscale': FACTOR,
  },
  'data.captions': {
    'several': Choice(captioning.SEVERAL),
    'enable_wildcard': Flag(),
    'caption_prefix': Text(),
    'caption_suffix': Text(),
    'shuffle_caption': Flag(),
    'keep_tokens': SWITCHED,
    'keep_tokens_separator': Text(),
    'caption_separator': Text(),
    'secondary_separator': Text(),
    'caption_tag_dropout_rate': SHARE,
    'caption_dropout_every_n_epochs': SWITCHED,
  },
  'data.filters': {
    'min_side': SWITCHED,
    'min_aspect': WEIGHT,
    'max_aspect': FACTOR,
    'min_aesthetic_score': Optional(Number(-INF, INF, excludes=INF)),
    'columns': Items(Anything(), "(('watermark', '<', 0.5),)"),
  },
  'data.folder': {
    'path': Text(),
    'captions': Flag(),
    'caption': Text(),
    'encoding': Text(),
    'caption_extension': Text(),
    'num_repeats_in_names': Flag(),
    'mask': Text(),
  },
  'data.webdataset': {
    'shards': Text(),
    'caption': Text(),
    'score': Text(),
    'encoding': Text(),
    'mask': Text(),
  },
  'data.parquet': {
    'files': Text(),
    'image': Text(),
    'caption': Text(),
    'score': Text(),
    'mask': Text(),
  },
  'data.tfds': {
    'dataset': Text(),
    'split': Text(),
    'data_dir': Text(),
    'image': Text(),
    'caption': Text(),
    'score': Text(),
    'mask': Text(),
  },
  'data.precomputed': {
    'path': Text(),
    'dtype': Choice(('bfloat16', 'float16')),
  },
  'data.scenes': {
    'resolution': COUNT,
    'length': COUNT,
    'objects': COUNT,
    'colours': COUNT,
    'max_objects': COUNT,
    'max_kinds': COUNT,
    'held_out': SHARE,
    'aspects': Items(FACTOR, '(0.75, 1.0)', least=1),
    'scales': Items(FACTOR, '(0.75, 3.0)', length=2),
    'jitter': SHARE,
    'scored': Flag(),
  },
}

# The field of each kind of source that says where its data lie.
PLACES = {
  'folder': 'path',
  'webdataset': 'shards',
  'parquet': 'files',
  'tfds': 'dataset',
  'precomputed': 'path',
}
# The last names of all fields with a path, or a name, of data.
LOCATIONS = {*PLACES.values(), 'data_dir'}
