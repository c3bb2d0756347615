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

import jax
import numpy as np
from absl import flags

from sdxl_jax import cli
from sdxl_jax.diffusion import samplers
from sdxl_jax.distributed import device_mesh
from sdxl_jax.sampling import (
  command_files,
  model_loading,
  page_request,
  page_samples,
  png_settings,
  sample_flags,
)

MEMORY = 'choose a smaller size, or start the page with --offload'
THIS_MACHINE = '127.0.0.1', 'localhost', '::1'
KEPT = 24  # images in the gallery of a visitor
HOUR = 3600  # how often files for browsers are deleted that are a day old


def load(args):
  """Loads the page_samples.Studio of the flags."""
  folder = pathlib.Path(args.output_dir).absolute()
  command_files.check_writable(folder / 'inputs' / '0.png', 'output_dir')
  models = sample_flags.model_options(args, png_settings.PngSettings({}, {}))
  read = {name: value for name, value in models.items() if name != 'lora_dir'}
  mesh = device_mesh.make_mesh(devices=jax.local_devices()[:1])
  base, refiner = model_loading.load_models(mesh, read, args.offload)
  form = page_samples.make_form(
    base,
    models,
    folder=folder,
    steps=args.most_steps,
    images=args.most_images,
    pixels=args.most_pixels,
  )
  return page_samples.Studio(base, refiner, models, form, args.preview_every)


@contextlib.contextmanager
def told(gradio):
  """Shows any error of the body in the page, in one line."""
  try:
    yield
  except gradio.Error:
    raise
  except Exception as error:
    line = escape(cli.in_one_line(cli.describe(error, MEMORY)))
    raise gradio.Error(line, print_exception=False) from None


def escape(line):
  """Escapes a line, which Gradio would read as HTML."""
  return html.escape(line, quote=False)


def bounded(gradio, component, most):
  """Checks uploads to a component before it decodes them.

  Args:
    gradio: the library.
    component: Image or ImageEditor of it, which is changed and returned.
    most: pixels that an image may have.
  """
  decode = component.preprocess

  def preprocess(payload):
    parts = [payload]
    if hasattr(payload, 'layers'):
      parts = [payload.background, *payload.layers, payload.composite]
    with told(gradio):
      for part in filter(None, parts):
        page_request.check_upload(part.path, most)
      return decode(payload)

  component.preprocess = preprocess
  # Images arrive as uploads alone, whose bytes Gradio bounds.
  component.accept_blobs = None
  return component


def make_respond(gradio, studio, copy):
  """Makes what the button calls; see page_samples.sample.

  Args:
    gradio: the library.
    studio: what to sample with.
    copy: copies a file to where browsers may read it.
  """

  def respond(*values):
    *values, editor, mask, strength, refine, kept = values
    background = editor and editor['background']
    layers = (editor and editor['layers']) or ()
    alpha = [np.asarray(layer.convert('RGBA'))[..., 3] for layer in layers]
    drawn = np.maximum.reduce(alpha) if alpha else np.zeros((1, 1))
    fields = page_request.Fields(
      *values,
      image=background and np.asarray(background.convert('RGB')),
      drawn=drawn[..., None].repeat(3, -1) if drawn.any() else None,
      mask=mask,
      strength=strength,
      refine=refine,
    )

    def warn(line):
      gradio.Warning(escape(line))

    with told(gradio):
      for line, pixels, file in page_samples.sample(studio, fields, warn):
        kept = [copy(file), *kept][:KEPT] if file else kept
        preview = gradio.skip() if pixels is None else pixels
        yield preview, kept if file else gradio.skip(), line, kept

  return respond


def make_page(gradio, studio):
  """Lays out the page: what to sample on one side, images on the other."""
  gr, form, first = gradio, studio.form, page_request.Fields('')

  def choose(label, initial, others):  # page_request.read checks it
    choices = [initial, *others]
    return gr.Dropdown(choices, label=label, allow_custom_value=True)

  def count(label, initial, largest):
    return gr.Number(initial, precision=0, label=f'{label} (1 to {largest})')

  def upload(kind, label, **options):
    component = kind(label=label, sources=['upload'], **options)
    return bounded(gr, component, form.pixels)

  white = gr.Brush(colors=['#fff'], color_mode='fixed')
  with gr.Blocks(
    title='sdxl_jax', analytics_enabled=False, delete_cache=(HOUR, 24 * HOUR)
  ) as page:
    # The inputs, in the order of page_request.Fields.
    with gr.Row():
      with gr.Column():
        prompt = gr.Textbox(label='Prompt', lines=2)
        inputs = [prompt, gr.Textbox(label='Negative prompt')]
        with gr.Row():
          inputs += [
            choose('Size (height x width)', first.size, form.sizes),
            count('Steps', first.steps, form.steps),
            gr.Number(first.guidance_scale, label='Guidance scale'),
            choose('Sampler', first.sampler, samplers.SAMPLERS),
            gr.Textbox(first.seed, label='Seed (-1: drawn)'),
            count('Images', first.count, form.images),
          ]
        with gr.Row(visible=bool(form.loras)):
          inputs += [
            choose('LoRA', first.lora, form.loras),
            gr.Number(first.lora_weight, label='Weight of the LoRA'),
          ]
        with gr.Accordion('Start from an image', open=False):
          editor = {'type': 'pil', 'brush': white, 'transforms': []}
          file = {'type': 'filepath', 'image_mode': None, 'height': 160}
          inputs += [
            upload(gr.ImageEditor, 'Image; paint what to repaint', **editor),
            upload(gr.Image, 'Or a mask: white is repainted', **file),
            gr.Number(label='Strength (0 to 1; empty: 0.3, with a mask 1)'),
          ]
        refine = gr.Checkbox(label='Refiner', visible=bool(studio.refiner))
        with gr.Row():
          button = gr.Button('Generate', variant='primary')
          stop = gr.Button('Stop')

      # The outputs.
      with gr.Column():
        line = gr.Textbox(label='Progress', interactive=False)
        preview = gr.Image(label='Preview', interactive=False, buttons=[])
        gallery = gr.Gallery(label='Images', format='png', columns=3)
    kept = gr.State([])

    def copy(file):
      to = gallery.GRADIO_CACHE
      return gradio.processing_utils.save_file_to_cache(file, to)

    run = gr.on(
      [button.click, prompt.submit],
      make_respond(gradio, studio, copy),
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
    lines += pathlib.Path(args.auth_file).read_text('utf-8').split('\n')
  pairs = [tuple(line.strip().split(':', 1)) for line in lines if line.strip()]
  if not all(len(pair) == 2 and all(pair) for pair in pairs):
    raise ValueError('--auth and lines of --auth_file must be USER:PASSWORD')
  if args.auth_file and not pairs:
    raise ValueError(f'--auth_file={args.auth_file} has no USER:PASSWORD')
  if not pairs and args.host not in THIS_MACHINE:
    line = f'whoever reaches {args.host} may sample: pass --auth_file'
    print(f'warning: {line}', file=sys.stderr)
  return pairs or None


def serve(page, args, auth, **options):
  """Serves a page; options of gradio.Blocks.launch may be added."""
  page.queue(max_size=args.most_waiting, default_concurrency_limit=1)
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


def main(args):
  os.environ['GRADIO_ANALYTICS_ENABLED'] = 'False'
  try:
    import gradio
  except ImportError:
    raise ValueError(
      "the page is built with Gradio: pip install 'gradio>=6,<7'"
    ) from None
  auth = read_auth(args)
  serve(make_page(gradio, load(args)), args, auth)


def define():
  """Defines the flags of the command."""
  sample_flags.define_models()
  bounds = page_request.Form(pathlib.Path(), {}, {})
  flags.DEFINE_bool('offload', False, "keep idle nets in the host's memory")
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


if __name__ == '__main__':
  define()
  flags.adopt_module_key_flags(sample_flags)  # so that --help lists them
  cli.run(main, memory=MEMORY)
