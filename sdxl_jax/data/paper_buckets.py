"""The 40 aspect buckets of SDXL, appendix I of the paper, at any size."""

# (height, width) in px around 1024 x 1024. Not symmetric, as printed.
BUCKETS = (
  (512, 2048), (512, 1984), (512, 1920), (512, 1856), (576, 1792),
  (576, 1728), (576, 1664), (640, 1600), (640, 1536), (704, 1472),
  (704, 1408), (704, 1344), (768, 1344), (768, 1280), (832, 1216),
  (832, 1152), (896, 1152), (896, 1088), (960, 1088), (960, 1024),
  (1024, 1024), (1024, 960), (1088, 960), (1088, 896), (1152, 896),
  (1152, 832), (1216, 832), (1280, 768), (1344, 768), (1408, 704),
  (1472, 704), (1536, 640), (1600, 640), (1664, 576), (1728, 576),
  (1792, 576), (1856, 512), (1920, 512), (1984, 512), (2048, 512),
)  # fmt: skip
SIDE = 1024  # px, of the square one


def around(side: int, unit: int) -> tuple[tuple[int, int], ...]:
  """Returns the buckets around a square of another side, without repetition.

  Args:
    side: of the square in px.
    unit: px; sides are rounded to multiples of it.
  """
  if side == SIDE:
    return BUCKETS
  scaled = [
    tuple(max(unit, round(s * side / SIDE / unit) * unit) for s in size)
    for size in BUCKETS
  ]
  return tuple(dict.fromkeys(scaled))
