"""A page that samples images in a browser, built with Gradio.

  python -m sdxl_jax.web --weights SDXL --lora_dir LORAS --output_dir IMAGES

It is served to this machine alone unless --host is passed. What it reads and
where it writes comes from the command line. Every image is written to
--output_dir with its settings, which `sample --from_png` reads.
"""

import contextlib
import html
import os

import numpy as np
from absl import flags

from sdxl_jax import cli
from sdxl_jax.diffusion import samplers
from sdxl_jax.sampling import (
  page_flags,
  page_request,
  page_samples,
  sample_flags,
)

MEMORY = 'choose a smaller size, or start the page with --offload'
KEPT = 24  # images in the gallery of a visitor
HOUR = 3600  # how often files for browsers are deleted that are a day old


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
    component: Image or ImageEditor of it, which is returned.
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
    *values, image, editor, mask, strength, refine, kept = values
    layers = (editor and editor['layers']) or ()
    alpha = [np.asarray(layer.convert('RGBA'))[..., 3] for layer in layers]
    drawn = alpha and np.uint8(255) * (np.maximum.reduce(alpha) > 127)
    fields = page_request.Fields(
      *values,
      image=image and np.asarray(image),
      drawn=drawn[..., None].repeat(3, -1) if np.any(drawn) else None,
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


def make_inputs(gradio, form):
  """Lays out what a visitor enters, in the order of page_request.Fields."""
  gr, first = gradio, page_request.Fields('')

  def choose(label, initial, others):  # page_request.read checks it
    choices = [initial, *others]
    return gr.Dropdown(choices, label=label, allow_custom_value=True)

  def count(label, initial, largest):
    return gr.Number(initial, precision=0, label=f'{label} (1 to {largest})')

  inputs = [
    gr.Textbox(label='Prompt', lines=2),
    gr.Textbox(label='Negative prompt'),
  ]
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
    inputs += make_image_inputs(gr, form)
  return inputs


def make_image_inputs(gradio, form):
  """Lays out the image to start from, its mask, and the strength."""
  gr = gradio

  def upload(label, **options):
    image = gr.Image(label=label, sources=['upload'], height=240, **options)
    return bounded(gr, image, form.pixels)

  image = upload('Image', type='pil')
  editor = gr.ImageEditor(
    label='Paint what to repaint',
    type='pil',
    sources=[],
    brush=gr.Brush(colors=['#ff3030'], color_mode='fixed'),
    layers=False,
    transforms=[],
  )
  # The image is what is painted on.
  image.change(lambda image: image, image, editor, api_visibility='private')
  return [
    image,
    bounded(gr, editor, form.pixels),
    upload('Or a mask: white is repainted', type='filepath', image_mode=None),
    gr.Textbox(label='Strength (0 to 1; empty: 0.3, with a mask 1)'),
  ]


def make_page(gradio, studio):
  """Lays out the page: what to sample on one side, images on the other."""
  gr = gradio
  with gr.Blocks(
    title='sdxl_jax', analytics_enabled=False, delete_cache=(HOUR, 24 * HOUR)
  ) as page:
    with gr.Row():
      with gr.Column():
        inputs = make_inputs(gr, studio.form)
        refine = gr.Checkbox(label='Refiner', visible=bool(studio.refiner))
        with gr.Row():
          button = gr.Button('Generate', variant='primary')
          stop = gr.Button('Stop')
      with gr.Column():
        line = gr.Textbox(label='Progress', interactive=False)
        preview = gr.Image(
          label='Preview', interactive=False, buttons=[], height=360
        )
        gallery = gr.Gallery(
          label='Images',
          format='png',
          columns=3,
          fit_columns=False,
          object_fit='contain',
          buttons=['download', 'fullscreen'],
        )
    kept = gr.State([])

    def copy(file):
      to = gallery.GRADIO_CACHE
      return gr.processing_utils.save_file_to_cache(file, to)

    run = gr.on(
      [button.click, inputs[0].submit],
      make_respond(gr, studio, copy),
      [*inputs, refine, kept],
      [preview, gallery, line, kept],
      api_name='sample',
    )
    stop.click(None, cancels=[run])
  return page


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
      "the page is built with Gradio: pip install 'gradio>=6.31,<7'"
    ) from None
  auth = page_flags.read_auth(args.host, args.auth, args.auth_file)
  serve(make_page(gradio, page_flags.load(args)), args, auth)


if __name__ == '__main__':
  page_flags.define()
  for module in (page_flags, sample_flags):
    flags.adopt_module_key_flags(module)  # so that --help lists them
  cli.run(main, memory=MEMORY)
