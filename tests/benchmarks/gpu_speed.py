"""Measures full-size SDXL with random weights on one GPU, beside diffusers.

  python -m tests.benchmarks.gpu_speed --out DIR --seconds 560

1024 x 1024 px. Nothing is downloaded; weights are drawn on the GPU. Parts:

  ceiling       a large product and a copy: what this card reaches at best
  ours_sample   generate(), text and decoding included: 20 steps of Euler's
                method, guidance 8, as in MLPerf; --sample DTYPE[:ATTENTION
                [:BATCH]]
  ours_train    the step of configs/stage3.py, gradients and update, from
                moments and encoded text; --train REMAT:BATCH
  ours_lora     the step of configs/lora.py, from images and tokens; --lora
  torch_sample  the same in diffusers with torch.compile, channels last, fused
                projections; text encoders are not run
  torch_train   the same in PyTorch: autocast, gradient checkpointing, fused
                AdamW, EMA; with the batches of --train

A part has one or more choices, and each is measured in a process of its own, so
that the memory is free for it and that a hang or a crash costs --limit seconds
at most. All first choices come first. Lines lie in DIR/results.jsonl as soon as
they are measured, failures too, and what the processes print in DIR/log.txt;
programs that were compiled are kept in --cache for another start. gpu_table
makes a table of the lines.

Seconds are the median of --turns after the programs have been compiled, with
the least and the most. FLOPs are those of planning/cost.py: matmuls and
convolutions, in training without rematerialisation; the share of the peak is
theirs of the card's dense bfloat16 peak, whatever the type.

--tiny tries all of it with tiny nets on a CPU, where PyTorch computes in
float32 and is not compiled: a few minutes on two cores.
"""

import pathlib
import sys

from absl import app, flags

from tests.benchmarks.gpu import cases, runner, settings


def define_flags():
  """Defines the flags of this command."""
  flags.DEFINE_string('out', None, 'folder of the results', required=True)
  flags.DEFINE_list('parts', list(cases.PARTS), 'in the order of their worth')
  flags.DEFINE_float('seconds', 560, 'for all parts together')
  flags.DEFINE_float('limit', 180, 'seconds for one choice of a part')
  flags.DEFINE_list(
    'sample',
    ['bfloat16', 'float16', 'bfloat16:xla:4', 'float32'],
    'choices of ours_sample',
  )
  flags.DEFINE_list(
    'train', ['full:4', 'dots:2', 'full:8'], 'choices of ours_train'
  )
  flags.DEFINE_list('lora', ['full:4'], 'choices of ours_lora')
  flags.DEFINE_list('torch_sample', ['bfloat16'], 'choices of torch_sample')
  flags.DEFINE_list('batches', ['1', '4', '8'], 'images sampled at once')
  flags.DEFINE_integer('turns', 3, 'measurements of each, at least 1', 1)
  flags.DEFINE_string('cache', '', 'of programs; by default DIR/../programs')
  flags.DEFINE_bool('tiny', False, 'tiny nets on a CPU')
  flags.DEFINE_string('case', '', 'PART/CHOICE to measure here, in one process')
  flags.DEFINE_string('card', '', 'name of the card in the lines of --case')


def main(argv):
  """Measures one case here, or all of them in processes."""
  args = flags.FLAGS
  if len(argv) > 1:
    raise app.UsageError(f'unknown arguments: {argv[1:]}')
  setting = settings.Setting(
    out=pathlib.Path(args.out).absolute(),
    case=args.case,
    card=args.card,
    tiny=args.tiny,
    turns=args.turns,
    batches=tuple(sorted(map(int, args.batches))),
  )
  if args.case:
    cases.measure(setting)
    return
  choices = {
    'ours_sample': args.sample,
    'ours_train': args.train,
    'ours_lora': args.lora,
    'torch_sample': args.torch_sample,
    'torch_train': cases.peer_batches(args.train),
  }
  folder = pathlib.Path(args.cache or setting.out.parent / 'programs')
  limits = runner.Limits(args.seconds, args.limit)
  names = cases.in_order(args.parts, choices)
  if not runner.run_all(setting, names, sys.argv[1:], folder, limits):
    sys.exit('nothing was measured')


if __name__ == '__main__':
  define_flags()
  app.run(main)
