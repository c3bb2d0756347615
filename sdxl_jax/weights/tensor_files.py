"""Opens a file of tensors: safetensors, or a state dict of PyTorch."""

import pathlib

from sdxl_jax.weights import foreign_files, safetensors_file, torch_pickle


def open_file(path: str | pathlib.Path) -> safetensors_file.TensorFile:
  """Opens a file and reads no tensor data.

  Raises:
    FileNotFoundError: if there is no such file.
    ValueError: in one line, if the file holds anything else.
  """
  path = pathlib.Path(path)
  if foreign_files.is_torch_pickle(path):
    tensors = torch_pickle.open_tensors(path)
    return safetensors_file.TensorFile(path, tensors, {})
  return safetensors_file.load(path)
