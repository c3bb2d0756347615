"""The search for the best batch size."""

import pytest

from sdxl_jax.planning import batch_search
from tests.support import tiny_config


def test_it_needs_a_machine():
  with pytest.raises(ValueError, match="memory of .* that of 'here'"):
    batch_search.search(tiny_config.get_config(), 'here', (16, 16), print)
