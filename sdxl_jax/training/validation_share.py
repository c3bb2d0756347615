"""The share of records that a run holds out, which its first start decides."""

from typing import Any

from ml_collections import config_dict

from sdxl_jax.data.sources import held_out


def of_run(
  config: config_dict.ConfigDict, earlier: dict[str, Any] | None
) -> config_dict.ConfigDict:
  """Returns the config with the share of the run so far, if it has none.

  Args:
    config: of this start.
    earlier: config of the run so far, as a dict; None: it begins. A run of an
      earlier version held out nothing.
  """
  if config.validation.share is not None or earlier is None:
    return config
  return with_share(config, earlier.get('validation', {}).get('share') or 0.0)


def with_share(
  config: config_dict.ConfigDict, share: float
) -> config_dict.ConfigDict:
  """Returns the config with a share to hold out."""
  if config.validation.share == share:
    return config
  config = config.copy_and_resolve_references().unlock()
  config.validation.share = share
  return config.lock()


def describe(
  before: float | None, split: held_out.Split, every: int
) -> str | None:
  """Returns a line on what is held out, None if the config says nothing is.

  Args:
    before: the share in the config of this start; None: it was decided.
    split: of the records.
    every: steps between two validations; 0: there are none.
  """
  if before == 0 or (before is None and not every):
    return None
  trained = sum(len(leaf) for _, leaf in held_out.leaves(split.trained))
  held = sum(len(leaf) for _, leaf in split.held_out)
  total = f'{trained + held:,} records'
  if before is None and not split.share:
    return (
      f'validation: none of {total} is held out, as long as '
      'config.validation.share does not say how many'
    )
  share = f'config.validation.share = {split.share:.4g}'
  if not held:
    return (
      f'warning: validation: none of {total} falls under {share}, so that '
      'there is no validation; raise it'
    )
  line = f'validation: {held:,} of {total} are held out ({share})'
  if before is None:
    line += '; --config.validation.share=0 trains on all of them'
  return line
