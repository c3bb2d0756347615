"""Flags of the page, which alone say what it reads and where it writes."""

import functools
import pathlib
import sys

from absl import flags

from sdxl_jax.sampling import (
  command_files,
  model_loading,
  offload_choice,
  offload_flag,
  page_request,
  page_samples,
  png_settings,
  sample_flags,
)

THIS_MACHINE = '127.0.0.1', 'localhost', '::1'


def define() -> None:
  """Defines the flags of the page."""
  sample_flags.define_models()
  bounds = page_request.Form(pathlib.Path(), {}, {})
  flags.DEFINE_flag(offload_flag.make())
  flags.DEFINE_string('output_dir', 'images', 'folder to write images to')
  flags.DEFINE_string('host', '127.0.0.1', 'address to serve the page at')
  flags.DEFINE_integer('port', 7860, 'of the page', 0, 65535)
  flags.DEFINE_string('auth', None, 'USER:PASSWORD that the page asks for')
  flags.DEFINE_string('auth_file', None, 'the same, one a line, in a file')
  flags.DEFINE_integer('preview_every', 5, 'steps; 0: no previews', 0)
  flags.DEFINE_integer('most_steps', bounds.steps, 'of an image', 1)
  flags.DEFINE_integer('most_images', bounds.images, 'of a request', 1)
  flags.DEFINE_integer('most_pixels', bounds.pixels, 'of an upload', 1)
  flags.DEFINE_integer('most_bytes', 20_000_000, 'of an upload', 1)
  flags.DEFINE_integer('most_waiting', 16, 'requests in the queue', 1)


def load(args: flags.FlagValues) -> page_samples.Studio:
  """Loads the page_samples.Studio of the flags."""
  folder = pathlib.Path(args.output_dir).absolute()
  command_files.check_writable(folder / 'inputs' / '0.png', 'output_dir')
  models = sample_flags.model_options(args, png_settings.PngSettings({}, {}))
  if models['controlnet']:
    raise ValueError(
      'the page takes no control images: leave --controlnet out, and use it '
      'with the command sample'
    )
  mesh, models = model_loading.prepare(models, count=1)
  read = {name: value for name, value in models.items() if name != 'lora_dir'}
  # All sizes of the page have about the area of the model's own.
  workload_of = functools.partial(
    offload_choice.Workload, encodes=True, previews=args.preview_every > 0
  )
  base, refiner = model_loading.load_models(
    mesh, read, args.offload, workload_of
  )
  form = page_samples.make_form(
    base,
    models,
    folder=folder,
    steps=args.most_steps,
    images=args.most_images,
    pixels=args.most_pixels,
  )
  return page_samples.Studio(base, refiner, models, form, args.preview_every)


def read_auth(
  host: str, auth: str | None, file: str | None
) -> list[tuple[str, str]] | None:
  """Returns [(user, password)] of --auth and --auth_file, or None.

  Warns where others than this machine need none.

  Raises:
    ValueError: for a line that is none.
    OSError: for a file that cannot be read.
  """
  lines = [auth] if auth else []
  if file:
    lines += pathlib.Path(file).read_text('utf-8').split('\n')
  parts = [line.strip().partition(':') for line in lines if line.strip()]
  pairs = [(user, password) for user, _, password in parts]
  if not all(user and password for user, password in pairs):
    raise ValueError('--auth and lines of --auth_file must be USER:PASSWORD')
  if file and not pairs:
    raise ValueError(f'--auth_file={file} has no USER:PASSWORD')
  if not pairs and host not in THIS_MACHINE:
    line = f'whoever reaches {host} may sample: pass --auth_file'
    print(f'warning: {line}', file=sys.stderr)
  return pairs or None
