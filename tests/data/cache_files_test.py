"""What a cache holds besides its shards."""

import pyarrow as pa

from sdxl_jax.data import cache_files
from sdxl_jax.data.sources import indexed


def test_an_unreadable_record_is_one_line():
  table = pa.table(
    {
      'name': ['a.png', 'b\n.png'],
      'problem': [indexed.USABLE, indexed.UNREADABLE],
      'reason': [None, 'truncated\r\nat 7'],
    }
  )
  assert cache_files.unreadable_of(table) == ['b\\n.png: truncated\\r\\nat 7']
