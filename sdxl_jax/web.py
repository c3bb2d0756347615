"""A page that samples images in a browser, built with Gradio.

  python -m sdxl_jax.web --weights SDXL --lora_dir LORAS --output_dir IMAGES

It is served to this machine alone unless --host is passed. What it reads and
where it writes comes from the command line. Every image is written to
--output_dir with its settings, which `sample --from_png` reads.
"""

import contextlib
import html
import os
import pathlib
import sys

import numpy as np
from absl import flags

from sdxl_jax import cli
from sdxl_jax.diffusion import samplers
from sdxl_jax.sampling import (
  command_files,
  model_flags,
  page_samples,
  pipelines,
)
from sdxl_jax.weights import formats, read_options

MEMORY = 'choose a smaller size, or start the page with --offload'
THIS_MACHINE = '127.0.0.1', 'localhost', '::1'
KEPT = 24  # images in the gallery of a visitor
SECONDS = 24 * 3600  # that uploads and copies for browsers are kept


def load(args):
  """Loads the page_samples.Studio of the flags."""
  models = {
    name: option.default if args[name].value is None else args[name].value
    for name, option in model_flags.MODEL_OPTIONS.items()
  }
  if not models['weights']:
    raise ValueError('no model to sample from: pass --weights')
  folder = pathlib.Path(args.output_dir).absolute()
  command_files.check_writable(folder / 'inputs' / '0.png', 'output_dir')
  # The refiner takes some of the options of the base.
  of_base = [n for n in models if n not in ('weights', 'refiner')]
  options = {n: models[n] for n in of_base}
  refiner, shared = models['refiner'], model_flags.REFINER_OPTIONS
  base = load_expert(models['weights'], options, args)
  if refiner is not None:
    reading = read_options.ReadOptions(models['variant'])
    options = {n: models[n] for n in shared}
    options['variant'] = formats.for_other(refiner, reading).variant
    refiner = load_expert(refiner, options, args)
  bounds = page_samples.Bounds(
    args.most_steps, args.most_images, args.most_pixels
  )
  return page_samples.Studio(
    base, refiner, models, folder, bounds, args.preview_every
  )


def load_expert(path, options, args):
  """Loads a base or a refiner, and prints how its weights were read."""
  print(f'loading {path}', flush=True)
  names = model_flags.LOAD_OPTIONS
  settings = {names.get(name, name): x for name, x in options.items()}
  pipeline = pipelines.load(path, offload=args.offload, **settings)
  for note in pipeline.notes:
    print(f'note: {note}')
  return pipeline


@contextlib.contextmanager
def told():
  """Shows any error of the body in the page, in one line."""
  import gradio as gr

  try:
    yield
  except gr.Error:
    raise
  except Exception as error:
    line = cli.in_one_line(cli.describe(error, MEMORY))
    raise gr.Error(html.escape(line), print_exception=False) from None


def checked(component, most):
  """Returns a component of Gradio that bounds uploads before it decodes them.

  Args:
    component: gradio.Image or gradio.ImageEditor.
    most: pixels that an image may have.
  """

  class Checked(component):
    is_template = True  # looks as the component does
    accept_blobs = None  # images arrive as uploads alone, whose size is bounded

    def preprocess(self, payload):
      with told():
        parts = [payload]
        if hasattr(payload, 'layers'):
          parts = [payload.background, *payload.layers, payload.composite]
        for part in filter(None, parts):
          page_samples.check_upload(part.path, most)
        return super().preprocess(payload)

  return Checked


def make_respond(studio, cache):
  """Makes what the button calls; see page_samples.sample.

  Args:
    studio: what to sample with.
    cache: function that copies a file to where browsers may read it.
  """
  import gradio as gr

  def respond(*values):
    *values, editor, mask, strength, refine, kept = values
    layers = editor['layers'] if editor else ()
    alpha = [np.asarray(layer.convert('RGBA'))[..., 3] for layer in layers]
    drawn = np.maximum.reduce(alpha) if alpha else np.zeros(1)
    background = editor and editor['background']
    fields = page_samples.Fields(
      *values,
      image=background and np.asarray(background.convert('RGB')),
      drawn=np.stack([drawn] * 3, -1) if drawn.any() else None,
      mask=mask,
      strength=strength,
      refine=refine,
    )

    def warn(line):
      gr.Warning(html.escape(line))

    with told():
      for line, pixels, file in page_samples.sample(studio, fields, warn):
        if file:
          kept = [cache(file), *kept][:KEPT]
        preview = gr.skip() if pixels is None else pixels
        yield preview, kept if file else gr.skip(), line, kept

  return respond


def choose(label, first, others):
  """Makes a list to choose from, whose choice page_samples.read checks."""
  import gradio as gr

  return gr.Dropdown(
    [first, *others], value=first, label=label, allow_custom_value=True
  )


def make_page(studio):
  """Lays out the page: what to sample on one side, images on the other."""
  import gradio as gr
  from gradio import processing_utils

  most, first = studio.bounds, page_samples.Fields('')
  editor = checked(gr.ImageEditor, most.pixels)
  upload = checked(gr.Image, most.pixels)
  brush = gr.Brush(colors=['#fff'], color_mode='fixed')
  with gr.Blocks(
    title='sdxl_jax', analytics_enabled=False, delete_cache=(3600, SECONDS)
  ) as page:
    with gr.Row():
      with gr.Column():
        # In the order of page_samples.Fields.
        prompt = gr.Textbox(label='Prompt', lines=2)
        inputs = [prompt, gr.Textbox(label='Negative prompt')]
        with gr.Row():
          inputs += [
            choose('Size (height x width)', first.size, studio.sizes),
            gr.Number(
              first.steps, precision=0, label=f'Steps (1 to {most.steps})'
            ),
            gr.Number(first.guidance_scale, label='Guidance scale'),
            choose('Sampler', first.sampler, samplers.SAMPLERS),
            gr.Textbox(first.seed, label='Seed (-1: drawn)'),
            gr.Number(
              first.count, precision=0, label=f'Images (1 to {most.images})'
            ),
          ]
        with gr.Row(visible=bool(studio.loras)):
          inputs += [
            choose('LoRA', first.lora, studio.loras),
            gr.Number(first.lora_weight, label='Weight of the LoRA'),
          ]
        with gr.Accordion('Start from an image', open=False):
          inputs += [
            editor(
              type='pil',
              label='Image; paint what to repaint',
              sources=['upload', 'clipboard'],
              brush=brush,
              transforms=[],
            ),
            upload(
              type='filepath',
              image_mode=None,
              label='Or a mask: white is repainted',
              sources=['upload'],
              height=160,
            ),
            gr.Number(label='Strength (0 to 1; empty: 0.3, with a mask 1)'),
          ]
        refine = gr.Checkbox(
          label='Refiner', visible=studio.refiner is not None
        )
        with gr.Row():
          button = gr.Button('Generate', variant='primary')
          stop = gr.Button('Stop')
      with gr.Column():
        line = gr.Textbox(label='Progress', interactive=False)
        preview = gr.Image(label='Preview', interactive=False, buttons=[])
        gallery = gr.Gallery(
          label='Images, with their settings', format='png', columns=3
        )
    kept = gr.State([])

    def cache(file):
      return processing_utils.save_file_to_cache(file, gallery.GRADIO_CACHE)

    run = gr.on(
      [button.click, prompt.submit],
      make_respond(studio, cache),
      [*inputs, refine, kept],
      [preview, gallery, line, kept],
      api_name='sample',
    )
    stop.click(None, cancels=[run])
  return page


def read_auth(args):
  """Returns [(user, password)] of the flags, or None.

  Raises:
    ValueError: for a line that is none.
    OSError: for a file that cannot be read.
  """
  lines = [args.auth] if args.auth else []
  if args.auth_file:
    text = pathlib.Path(args.auth_file).read_text(encoding='utf-8')
    lines += filter(None, map(str.strip, text.splitlines()))
  pairs = [tuple(line.split(':', 1)) for line in lines]
  if (args.auth or args.auth_file) and not (
    pairs and all(len(pair) == 2 and all(pair) for pair in pairs)
  ):
    raise ValueError('--auth and lines of --auth_file must be USER:PASSWORD')
  if not pairs and args.host not in THIS_MACHINE:
    print(
      f'warning: whoever reaches {args.host} may sample: pass --auth_file',
      file=sys.stderr,
    )
  return pairs or None


def main(args):
  """Loads the models, and serves the page until it is stopped."""
  os.environ['GRADIO_ANALYTICS_ENABLED'] = 'False'
  try:
    import gradio  # noqa: F401
  except ImportError:
    raise ValueError(
      "the page needs Gradio: pip install 'gradio>=6,<7'"
    ) from None
  auth = read_auth(args)
  page = make_page(load(args))
  page.queue(max_size=args.most_waiting, default_concurrency_limit=1)
  launch(page, args, auth)


def launch(page, args, auth, **options):
  """Serves a page; see gradio.Blocks.launch for the options."""
  return page.launch(
    server_name=args.host,
    server_port=args.port,
    auth=auth,
    max_file_size=args.most_bytes,
    share=False,
    ssr_mode=False,
    footer_links=[],
    **options,
  )


def define():
  """Defines the flags of the command."""
  kinds = {
    str: flags.DEFINE_string,
    bool: flags.DEFINE_bool,
    list: flags.DEFINE_multi_string,
  }
  for name, option in model_flags.MODEL_OPTIONS.items():
    kinds[option.kind](name, None, option.help)
  flags.DEFINE_bool('offload', False, "keep idle nets in the host's memory")
  flags.DEFINE_string('output_dir', 'images', 'folder to write images to')
  flags.DEFINE_string('host', '127.0.0.1', 'address to serve the page at')
  flags.DEFINE_integer('port', 7860, 'of the page', 0, 65535)
  flags.DEFINE_string('auth', None, 'USER:PASSWORD that the page asks for')
  flags.DEFINE_string('auth_file', None, 'the same, one a line, in a file')
  flags.DEFINE_integer('preview_every', 5, 'steps; 0: no previews', 0)
  bounds = page_samples.Bounds()
  flags.DEFINE_integer('most_steps', bounds.steps, 'of an image', 1)
  flags.DEFINE_integer('most_images', bounds.images, 'of a request', 1)
  flags.DEFINE_integer('most_pixels', bounds.pixels, 'of an upload', 1)
  flags.DEFINE_integer('most_bytes', 20_000_000, 'of an upload', 1)
  flags.DEFINE_integer('most_waiting', 16, 'requests in the queue', 1)


if __name__ == '__main__':
  define()
  cli.run(main, memory=MEMORY)
