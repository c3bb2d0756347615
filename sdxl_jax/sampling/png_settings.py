"""Settings that an image holds: ours, A1111's or ComfyUI's."""

import json
import os
import pathlib
from typing import Any, NamedTuple

from PIL import ExifTags

from sdxl_jax.data import image_formats, images
from sdxl_jax.sampling import a1111_text, comfyui_graph, sample_request
from sdxl_jax.sampling.foreign_settings import ForeignSettings

# Text chunks of other programs, and those that are not read.
A1111_KEY, COMFYUI_KEY = 'parameters', 'prompt'
OTHERS = {
  'invokeai_metadata': 'InvokeAI',
  'sd-metadata': 'InvokeAI',
  'fooocus_scheme': 'Fooocus',
  'Comment': 'NovelAI or another program',
}


class PngSettings(NamedTuple):
  """What is used again of an image.

  Attributes:
    fields: {name: value} of a sample_request.Request.
    models: {flag: value} of the models.
    made_with: name of the model, where another program gives no path.
    note: line on what was taken and left out of another program's text.
  """

  fields: dict[str, Any]
  models: dict[str, Any]
  made_with: str = ''
  note: str = ''


def load(path: str | os.PathLike[str]) -> PngSettings:
  """Loads the settings of an image.

  Raises:
    ValueError: for an image without such text, or text that is cut off.
    OSError: where the file cannot be read.
  """
  texts = read_texts(path)
  if sample_request.PNG_KEY in texts:
    text = texts[sample_request.PNG_KEY]
    return PngSettings(*sample_request.from_png_metadata(text, path))
  if A1111_KEY in texts:
    return from_foreign(path, a1111_text.parse(texts[A1111_KEY], str(path)))
  if COMFYUI_KEY in texts:
    text = texts[COMFYUI_KEY]
    return from_foreign(path, comfyui_graph.parse(text, str(path)))
  for key, program in OTHERS.items():
    if key in texts:
      raise ValueError(
        f'{path} has the text of {program}, which is not read: pass --prompt '
        'and the other settings as flags'
      )
  raise ValueError(
    f'{path}: no text under {[sample_request.PNG_KEY]}, but under '
    f'{sorted(texts)}; pass the file as it was written, since editors often '
    'remove text'
  )


def read_texts(path: str | os.PathLike[str]) -> dict[str, str]:
  """Reads {key: string} of a PNG, or the EXIF comment of a JPEG or WebP.

  Raises:
    ValueError: for a file that is no image, or of another format without a
      comment of A1111's kind.
  """
  with open(path, 'rb') as file:
    is_png = file.read(4) == b'\x89PNG'
  if is_png:
    return images.load_text(path)
  try:
    with image_formats.open_bytes(pathlib.Path(path).read_bytes()) as image:
      file_format = image.format
      comment = image.getexif().get_ifd(ExifTags.IFD.Exif).get(0x9286)
  # Pillow's decoders raise many kinds of error on broken bytes.
  except Exception as error:
    raise images.UnreadableImage(path, error) from error
  text = decode_comment(comment) if isinstance(comment, bytes) else ''
  if not a1111_text.is_like(text):
    raise ValueError(
      f'{path}: a {file_format} file; only PNG files hold the text, or the '
      "EXIF data of A1111's files"
    )
  return {A1111_KEY: text}


def decode_comment(comment: bytes) -> str:
  """Decodes EXIF's UserComment: eight bytes name the encoding."""
  kind, text = comment[:8], comment[8:]
  if kind == b'UNICODE\0':
    # Written big-endian by A1111, and by others in the order of the file.
    order = 'utf-16-be' if text[:1] == b'\0' else 'utf-16-le'
    return text.decode(order, 'replace')
  return text.decode('utf-8', 'replace')


def from_foreign(
  path: str | os.PathLike[str], found: ForeignSettings
) -> PngSettings:
  """Makes the PngSettings of another program's text."""
  fields = sample_request.check(found.fields, str(path))
  taken = ', '.join(f'{n} {describe(x)}' for n, x in fields.items())
  note = f'{path}, of {found.program}: took {taken}'
  if found.left_out:
    note += f'; left out {", ".join(found.left_out)}'
  note += '; its noise is of another generator, so the image will differ'
  return PngSettings(fields, {}, found.model, note)


def describe(value: Any) -> str:
  """Returns a value for the note, without the end of a long text."""
  text = json.dumps(value, ensure_ascii=False)
  return text if len(text) <= 40 else f'{text[:36]}..."'
