"""Images per second of `generate`, as a user calls it."""

import jax

from sdxl_jax.models import from_config
from sdxl_jax.planning import cost, machines, sampling_programs
from sdxl_jax.sampling import generation, load_options, pipelines
from sdxl_jax.sampling.settings import SampleSettings
from tests.benchmarks.gpu import nets, peaks, settings

PROMPT = 'a photo of a red fox in the snow'
GUIDANCE_SCALE = 8.0


def measure(setting):
  """Reports a line for each batch, the smallest first.

  The most memory so far is then that of the batch.
  """
  dtype, attention, batches = parse(setting)
  clock = peaks.CompileClock()
  pipeline, flops = None, None
  for batch in batches:
    with setting.attempt(dtype=dtype, batch=batch):
      if pipeline is None:
        pipeline = make_pipeline(setting, dtype, attention)
      clock.restart()
      fields = settings.timed(sampler(setting, pipeline, batch), setting.turns)
      fields |= clock.fields()
      flops = flops or count_flops(setting, dtype)
      rate = batch / fields['s']
      setting.report(
        dtype=dtype,
        vae_dtype=pipeline.model.vae.dtype,
        attention=pipeline.model.unet.attention,
        batch=batch,
        images_per_s=settings.rounded(rate),
        tflop_per_image=settings.rounded(flops / 1e12),
        share_of_peak=peaks.share(rate * flops),
        peak_gb=peaks.memory(),
        jax=jax.__version__,
        **fields,
      )


def parse(setting):
  """Returns (dtype, attention, batches) of DTYPE[:ATTENTION[:BATCH]]."""
  dtype, attention, batch, *_ = [*setting.choice.split(':'), '', '']
  batches = (int(batch),) if batch else setting.batches
  return dtype, attention or 'auto', batches


def vae_dtype_of(dtype):
  """Returns the type of the autoencoder: float16 would overflow there."""
  return 'bfloat16' if dtype == 'float16' else dtype


def make_pipeline(setting, dtype, attention):
  """Makes a Pipeline with random parameters, as load() would hold them."""
  config = nets.get_config('stage3', setting)
  model = from_config.make_model(config)
  model = model.replace_each(
    {
      name: load_options.runtime_fields(
        name, dtype, vae_dtype_of(dtype), attention
      )
      for name in model.configs
    }
  )
  shapes = jax.eval_shape(model.init, jax.random.key(0))
  params = nets.draw({name: shapes[name] for name in model.configs})
  return pipelines.make_pipeline(config, model, params)


def sampler(setting, pipeline, batch):
  """Returns a function that samples a batch; the images end on the host."""

  def run():
    generation.generate(
      pipeline,
      [PROMPT] * batch,
      size=setting.size,
      steps=setting.steps,
      sampler='euler',
      guidance_scale=GUIDANCE_SCALE,
    )

  return run


def count_flops(setting, dtype):
  """Counts the FLOPs of one image: text, all steps with guidance, decoding."""
  height, width = setting.size
  workload = sampling_programs.SampleWorkload(
    SampleSettings(
      height=height,
      width=width,
      steps=setting.steps,
      guidance_scale=GUIDANCE_SCALE,
    ),
    batch=1,
    dtype=dtype,
    vae_dtype=vae_dtype_of(dtype),
  )
  machine = machines.make_machine('here')
  config = nets.get_config('stage3', setting)
  expert = sampling_programs.make_expert(config, machine, workload)

  def count(phase):
    traced = phase.trace(machine.mesh, workload, expert, expert.params)
    return phase.runs * cost.flops(traced.jaxpr) / machine.size

  return sum(map(count, sampling_programs.list_phases([expert], workload)))
