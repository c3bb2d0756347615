"""Sample images: prompt > tokens > context > latents > image.

  python -m sdxl_jax.sample --weights DIR --prompt "..." --output out.png

DIR is a diffusers folder, a single file, an orbax export or a run's workdir.
From Python: sample.generate(sample.load(DIR), ['a fox', 'a pig']).
"""

import dataclasses
import sys
import warnings

from absl import flags

from sdxl_jax import cli
from sdxl_jax.sampling import (
  command_files,
  drawing,
  drawn_already,
  generation,
  pairs,
  pipelines,
  request_checks,
  sample_flags,
)
from sdxl_jax.text import prompt_brackets

load, load_pair = pipelines.load, pairs.load_pair
generate = generation.generate
# What to do where the memory of a device is exhausted.
MEMORY = (
  'pass a smaller --batch, --dtype auto, --offload, --tile 256, or a '
  'smaller --height and --width'
)


def warn(line):
  """Prints what is read otherwise than it may be meant."""
  sys.stderr.write(cli.warning_line(line))


def options_of(args):
  """Makes the drawing.Options of the flags."""
  names = [field.name for field in dataclasses.fields(drawing.Options)]
  return drawing.Options(
    **{name: args[name].value for name in names if name != 'warn'}, warn=warn
  )


def main(args):
  png = sample_flags.load_png(args)
  located = sample_flags.read(args, png)
  names = sample_flags.file_names(args.output, [r for _, r in located])
  if not args.warm_up:
    command_files.check_outputs(names, args)
  noise = (
    None
    if args.init_noise is None
    else command_files.read_noise(args.init_noise)
  )
  models = sample_flags.model_options(args, png)
  if not args.warm_up:
    command_files.check_arrays([r for _, r in located], noise, args)
  if args.skip_existing:
    missing = drawn_already.find(located, names, models)
    print(f'{len(names) - len(missing)} of {len(names)} images are there')
    if not missing:
      return
    located = [located[i] for i in missing]
    names = [names[i] for i in missing]
    noise = noise if noise is None else noise[missing]
  for line in request_checks.before_loading(located, models):
    warn(line)
  with warnings.catch_warnings():  # those that were just printed
    warnings.simplefilter('ignore', prompt_brackets.PromptSyntaxWarning)
    if args.warm_up:
      drawing.warm_up(located, models, noise, options_of(args))
    else:
      drawing.draw(located, names, models, noise, options_of(args))


if __name__ == '__main__':
  sample_flags.define()
  flags.adopt_module_key_flags(sample_flags)  # so that --help lists them
  cli.define_cache_dir()
  cli.run(main, memory=MEMORY)
