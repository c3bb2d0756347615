"""Where the reference's numbers lie."""

import os
import pathlib

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden'
# Further sets of the same structure, as paths joined by os.pathsep.
SETS = [GOLDEN / 'set_a'] + [
  pathlib.Path(p)
  for p in os.environ.get('SDXL_JAX_GOLDEN', '').split(os.pathsep)
  if p
]
