"""Refuses quantised weights by name: their numbers mean nothing by themselves.

A quantised tensor is stored beside its scales, or as blocks of integers.
"""

from collections.abc import Collection
from typing import Any

# By the end of a tensor's name.
KINDS = {
  'scaled_fp8': 'fp8 with a scale for each layer, as ComfyUI scales them',
  '.scale_weight': 'fp8 with a scale for each layer, as ComfyUI scales them',
  '.weight_scale': 'fp8 or int8 with a scale for each layer',
  '.comfy_quant': "one of ComfyUI's quantised types",
  '.absmax': 'four bits of bitsandbytes',
  '.quant_map': 'four bits of bitsandbytes',
  '.SCB': 'eight bits of bitsandbytes',
  '.qweight': 'four bits of GPTQ, AWQ or Nunchaku',
  '.qzeros': 'four bits of GPTQ or AWQ',
  '.wscales': 'four bits of Nunchaku',
  '.weight._data': 'integers of quanto',
  '.weight._scale': 'integers of quanto',
}
REMEDY = (
  'quantised weights are not supported: use those in float16, bfloat16 or '
  'float32, from which they were made'
)


def check_names(names: Collection[str], location: str) -> None:
  """Raises ValueError for the names of a quantised net.

  Args:
    names: of tensors.
    location: of their file.
  """
  for name in names:
    for ending, what in KINDS.items():
      is_whole = not ending.startswith('.') and name == ending
      if is_whole or (ending.startswith('.') and name.endswith(ending)):
        raise ValueError(f'{location} has {name}, of {what}: {REMEDY}')


def check_config(config: dict[str, Any], location: str) -> None:
  """Raises ValueError for the config.json of a quantised net."""
  settings = config.get('quantization_config')
  if settings is None:
    return
  method = settings.get('quant_method') if isinstance(settings, dict) else None
  raise ValueError(
    f'{location} has a quantization_config of {method or "an unknown method"}: '
    f'{REMEDY}'
  )
