"""Describes a file that was given as weights and holds none."""

import json
import pathlib
import re
import zipfile

HEAD = 4096  # bytes that are looked at
LEAST = 8  # bytes; of fewer, nothing can be said
UNKNOWN = '\ufffd'  # stands for bytes that are no text
# The first bytes of a zip archive and of pickle protocols 2 to 5.
PICKLE_MAGIC = (
  b'PK\x03\x04',
  b'\x80\x02',
  b'\x80\x03',
  b'\x80\x04',
  b'\x80\x05',
)
GGUF = 'GGUF, quantised weights of other programs, which are not supported'
LARGER = 'use the .safetensors of this model in float16 or longer'
IMAGE = 'an image'
ARCHIVE = 'an archive'
UNPACK = 'unpack it, and pass the .safetensors or the folder inside'
# (first bytes, what the file is, what to do).
KINDS = (
  (b'GGUF', GGUF, LARGER),
  (b'lmgg', 'GGML, quantised weights of other programs', LARGER),
  (b'tjgg', 'GGML, quantised weights of other programs', LARGER),
  (
    b'ftrt',
    'a TensorRT engine, which is compiled for one GPU and one size',
    'use the .safetensors that it was built from',
  ),
  (b'\x89HDF', 'HDF5, as Keras writes it', 'use the .safetensors'),
  (b'\x93NUMPY', 'a single numpy array', 'use the .safetensors'),
  (b'\x89PNG', IMAGE, 'pass the weights that it was made with'),
  (b'\xff\xd8\xff', IMAGE, 'pass the weights that it was made with'),
  (b'RIFF', IMAGE, 'pass the weights that it was made with'),
  (b'\x1f\x8b', ARCHIVE, UNPACK),
  (b'7z\xbc\xaf', ARCHIVE, UNPACK),
  (b'Rar!', ARCHIVE, UNPACK),
  (b'\xfd7zXZ', ARCHIVE, UNPACK),
  (b'(\xb5/\xfd', ARCHIVE, UNPACK),
)
# By the end of a file's name, where its first bytes say too little.
SUFFIXES = {
  '.onnx': 'an ONNX graph',
  '.engine': 'a TensorRT engine',
  '.plan': 'a TensorRT engine',
  '.trt': 'a TensorRT engine',
  '.msgpack': "msgpack, as Flax's models of diffusers were stored",
  '.tflite': 'a TFLite graph',
  '.pb': 'a TensorFlow graph',
  '.h5': 'HDF5, as Keras writes it',
  '.gguf': GGUF,
}
UNFINISHED = ('.incomplete', '.crdownload', '.part', '.aria2', '.partial')
# Of an ONNX graph: its version, then the name of the program that wrote it.
ONNX = re.compile(rb'\x08[\x01-\x20]\x12.[\w.]')


def is_torch_pickle(path: pathlib.Path) -> bool:
  """Checks whether a file may be a state dict that torch.save wrote."""
  if not path.is_file():
    return False
  with path.open('rb') as file:
    head = file.read(HEAD)
  if not begins_pickle(head):
    return False
  return not head.startswith(b'PK') or 'data.pkl' in zip_names(path)


def begins_pickle(head: bytes) -> bool:
  """Whether a file's first bytes are those of a pickle, or of a zip archive.

  A safetensors file begins with the length of its header, which may be the same
  bytes, and the header itself with a brace.
  """
  return head.startswith(PICKLE_MAGIC) and head[8:9] != b'{'


def zip_names(path: pathlib.Path) -> set[str]:
  """Returns the names of the files in a zip archive, without their folders."""
  if not zipfile.is_zipfile(path):
    return set()
  with zipfile.ZipFile(path) as archive:
    return {name.rpartition('/')[2] for name in archive.namelist()}


def explain(path: pathlib.Path) -> str | None:
  """Describes in one line what a file is, and what to do; None: not known.

  Args:
    path: of a file that is no valid safetensors file.
  """
  with path.open('rb') as file:
    head = file.read(HEAD)
  size = path.stat().st_size
  if size < LEAST:
    is_ours = path.suffix == '.safetensors'
    return None if is_ours else f'{path} has {size} bytes: download it again'
  if path.suffix in UNFINISHED:
    return f'{path} is a download that was not finished: download it again'
  if head.startswith(b'version https://git-lfs'):
    return explain_pointer(path, head)
  if begins_pickle(head):
    return explain_pickle(path, head)
  for magic, what, remedy in KINDS:
    if head.startswith(magic):
      return f'{path} is {what}: {remedy}'
  if ONNX.match(head) or head[4:8] == b'TFL3' or path.suffix in SUFFIXES:
    what = SUFFIXES.get(path.suffix, 'a graph of ONNX or TFLite')
    return (
      f'{path} is {what}, whose weights are not read: use the .safetensors of '
      'this model'
    )
  if head[257:262] == b'ustar':
    return f'{path} is {ARCHIVE}: {UNPACK}'
  if not any(head):
    return (
      f'{path} begins with zeros, as a download does that was not finished: '
      'download it again'
    )
  return explain_text(path, head)


def explain_pointer(path: pathlib.Path, head: bytes) -> str:
  """Describes a file that stands in a git repository for a large one."""
  size = re.search(rb'^size (\d+)$', head, re.MULTILINE)
  of = f' of {int(size[1]):,} bytes' if size else ''
  return (
    f'{path} is a git-lfs pointer, which stands for the file{of} in a clone '
    'without git-lfs: run `git lfs pull` there, or download the model with '
    '`hf download`'
  )


def explain_pickle(path: pathlib.Path, head: bytes) -> str:
  """Describes a pickle, or a zip archive of other files."""
  if head.startswith(b'PK') and not zipfile.is_zipfile(path):
    return (
      f'{path} is a pickle in a truncated or corrupt zip archive: download it '
      'again, or use the .safetensors of this model, or load it with '
      'torch.load(weights_only=True) and save it as safetensors'
    )
  names = zip_names(path)
  if names and 'data.pkl' not in names:
    return f'{path} is {ARCHIVE}: {UNPACK}'
  return (
    f'{path} is a pickle, and loading a pickle can run any program: use the '
    '.safetensors of this model, or, where nothing can be harmed, load it '
    'with torch.load(weights_only=True) and save its tensors with '
    'safetensors.torch.save_file'
  )


def explain_text(path: pathlib.Path, head: bytes) -> str | None:
  """Describes a file of text; None for other bytes."""
  text = head.lstrip(b'\xef\xbb\xbf \t\r\n').lower()
  if text.startswith((b'<!doctype', b'<html', b'<?xml', b'<head', b'<svg')):
    return (
      f'{path} is a web page, as downloads are that need a login or a licence '
      'to be accepted: do that, and download the file again'
    )
  if text.startswith((b'{', b'[')):
    return explain_json(path)
  # The last character may be cut.
  decoded = head.decode('utf-8', 'replace').rstrip(UNKNOWN)
  is_text = UNKNOWN not in decoded and all(
    c.isprintable() or c in '\t\r\n' for c in decoded
  )
  if is_text:
    first = ' '.join(decoded.split())[:60]
    return (
      f'{path} is a text, which begins with {first!r}: pass the weights '
      'themselves'
    )
  return None


def explain_json(path: pathlib.Path) -> str | None:
  """Describes a file of JSON; None if it is none."""
  try:
    value = json.loads(path.read_bytes())
  except (ValueError, RecursionError):
    return None
  if path.name == 'model_index.json':
    return f'{path} describes a model: pass its folder, {path.parent}'
  if path.name == 'config.json':
    return (
      f'{path} describes a net: pass its folder, {path.parent}, or the file '
      'of its weights'
    )
  if isinstance(value, dict) and isinstance(value.get('weight_map'), dict):
    return (
      f'{path} is the index of several files: pass its folder, {path.parent}'
    )
  if isinstance(value, dict) and isinstance(value.get('error'), str):
    error = ' '.join(value['error'].split())[:200]
    return (
      f'{path} is the answer of a server in place of a file ({error!r}): '
      'download it again'
    )
  return f'{path} is JSON: pass the weights themselves'
