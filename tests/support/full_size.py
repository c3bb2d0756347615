"""SDXL's base and refiner at full size, without parameters."""

from configs import refiner, stage3
from sdxl_jax.models import from_config, sdxl
from sdxl_jax.sampling import load_options


def models(
  dtype: str, vae_dtype: str, attention: str
) -> tuple[sdxl.SDXL, sdxl.SDXL]:
  """Makes (base, refiner) as `pipelines.load` has them."""
  made = []
  for config in (stage3.get_config(), refiner.get_config()):
    model = from_config.make_model(config, 'cpu')
    fields = {
      name: load_options.runtime_fields(name, dtype, vae_dtype, attention)
      for name in model.configs
    }
    made.append(model.replace_each(fields))
  return tuple(made)
