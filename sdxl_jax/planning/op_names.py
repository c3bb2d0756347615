"""Reads the names that JAX gives to operations: which part of a net they are.

  jit(gradients)/transpose(jvp(UNet))/down_blocks_1/resnets_0/conv1/dot_general

is in the backward pass, in the block 'UNet down_blocks_1', in a ResnetBlock2D.
"""

import re
from typing import NamedTuple

FORWARD, RECOMPUTED, BACKWARD = 'forward', 'recomputed', 'backward'
PASSES = (FORWARD, RECOMPUTED, BACKWARD)
# Parts of a name that are no modules: control flow and transformations.
STRUCTURE = re.compile(
  r'(while|body|cond|closed_call|checkpoint|rematted_computation|remat\d*|'
  r'shard_map|pjit|branch_\d+_fun|custom_[jv]jvp_call\w*|custom_vjp_call\w*|'
  r'\w+_\d+\.\w+|jit\(.*|vmap\(.*|jvp\(\)|transpose\(.*|)$'
)
NETS = ('UNet', 'VAE', 'PatchVAE', 'TinyVAE', 'CLIPText', 'Discriminator')
NETS += ('LPIPS',)
# How arguments of a program are named: params['unet']['conv_in']['kernel'].
ARGUMENTS = {
  'unet': 'UNet',
  'vae': 'VAE',
  'text_encoder': 'CLIPText',
  'text_encoder_2': 'CLIPText',
  'discriminator': 'Discriminator',
}
PROGRAMS = {'update': 'optimizer, EMA', 'add': 'sum of micro-batches'}
NO_NET = 'outside of nets'
SEVERAL = 'several modules'  # of operations that the compiler has joined
BLOCK = re.compile(
  r'(down_blocks_\d+|mid_block|up_blocks_\d+|encoder|decoder)$'
)
# The first that is found in the path of modules names the layer.
LAYERS = (
  (
    r'(norm\d*|layer_norm\d*|group_norm|conv_norm_out|final_layer_norm)',
    'norms',
  ),
  (r'(attn1|self_attn)', 'self-attention'),
  (r'attn2', 'cross-attention'),
  (r'(ff|mlp)', 'FeedForward'),
  (r'resnets_\d+', 'ResnetBlock2D'),
  (r'(down|up)samplers_\d+', 'Downsample2D, Upsample2D'),
  (r'(proj_in|proj_out)', 'Transformer2D projections'),
  (r'(time|add)_embedding|time_proj|embeddings', 'embeddings'),
  (r'(conv_in|conv_out|quant_conv|post_quant_conv)', 'first and last layers'),
  (r'transformer_blocks\w*', 'Transformer2D, rest'),
  (r'to_[qkv]|to_out_\d+', 'self-attention'),  # of the autoencoder
)  # fmt: skip
LAYERS = tuple((re.compile(f'({p})$'), name) for p, name in LAYERS)
REST = 'others'


class Site(NamedTuple):
  """Where in the nets an operation is."""

  phase: str  # one of PASSES; forward where nothing is differentiated
  block: str  # 'UNet down_blocks_1'
  layer: str  # 'self-attention'
  path: tuple[str, ...]  # modules, from the net inwards


UNKNOWN = Site(FORWARD, NO_NET, REST, ())


def site(name: str | None) -> Site:
  """Reads a name; UNKNOWN for None."""
  if not name:
    return UNKNOWN
  if arguments := re.findall(r"\['(\w+)\\?'\]", name.replace('\\', '')):
    head = ARGUMENTS.get(arguments[0])
    path = (head, *arguments[1:-1]) if head else ()
    return Site(FORWARD, block(path, name), layer(path), path)
  # The names of joined collectives follow one another: a/dot:b/add:b/dot.
  first, *others = name.split(':')
  if any('/' in other for other in others):
    return Site(phase(first), SEVERAL, REST, ())
  parts = [unwrapped(part) for part in split(name)[:-1]]
  parts = [part for part in parts if not STRUCTURE.match(part)]
  # What is recomputed repeats the path of its net.
  starts = [n for n, part in enumerate(parts) if part in NETS]
  path = tuple(parts[starts[-1] :]) if starts else tuple(parts)
  return Site(phase(name), block(path, name), layer(path), path)


def split(name: str) -> list[str]:
  """Splits at slashes outside of brackets."""
  return re.findall(
    r'(?:[^/(]|\((?:[^()]|\((?:[^()]|\([^()]*\))*\))*\))+', name
  )


def unwrapped(part: str) -> str:
  """Returns what is differentiated: UNet of transpose(jvp(UNet))."""
  while match := re.match(r'(?:transpose|jvp)\((.+)\)$', part):
    part = match.group(1)
  # A method of a net: VAE.encode.
  net, _, method = part.partition('.')
  return net if method and net in NETS else part


def phase(name: str) -> str:
  """Returns the pass that a name belongs to."""
  if 'rematted_computation' in name:
    return RECOMPUTED
  return BACKWARD if 'transpose(' in name else FORWARD


def block(path: tuple[str, ...], name: str) -> str:
  """Returns the net, and its block if the path has one."""
  if not path or path[0] not in NETS:
    program = re.match(r'jit\((\w+)\)', name)
    return PROGRAMS.get(program.group(1) if program else '', NO_NET)
  found = [part for part in path[1:3] if BLOCK.match(part)]
  return ' '.join([path[0], *found[:1]])


def layer(path: tuple[str, ...]) -> str:
  """Returns the kind of layer that a path of modules ends in."""
  for pattern, name in LAYERS:
    if any(pattern.match(part) for part in path):
      return name
  return REST
