"""Which files are images, and which images have colours that are defined."""

from PIL import Image

# Formats that Pillow lists, but only identifies, or reads by other programs.
NOT_READ = ('BUFR', 'EPS', 'GRIB', 'HDF5', 'IPTC', 'MPEG', 'WMF')
# Pillow tries formats in the order in which it loads them: first the common
# ones, then all others, some of which it recognises only by opening them.
Image.preinit()
# Of all formats that Pillow reads, those of photographs first.
COMMON = ('.jpg', '.jpeg', '.png', '.webp', '.gif')
SUFFIXES = COMMON + tuple(
  sorted(
    suffix
    for suffix, format_name in Image.registered_extensions().items()
    if format_name in Image.OPEN
    and format_name not in NOT_READ
    and suffix not in COMMON
  )
)
# Modes whose conversion to RGB would be wrong or fails.
UNDEFINED = {
  'F': 'its pixels are floats, of a range that no standard defines',
  'LAB': 'Pillow does not convert its colours, L*a*b*',
}


def check_mode(image: Image.Image) -> None:
  """Raises ValueError for an image that has no defined colours in RGB."""
  if image.mode in UNDEFINED:
    raise ValueError(
      f'{UNDEFINED[image.mode]}: save it with 8 or 16 bits per channel in RGB'
    )
