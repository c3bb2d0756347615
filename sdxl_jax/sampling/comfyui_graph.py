"""Reads the text `prompt` of ComfyUI: the graph that was run.

A JSON object {id: {class_type, inputs}}, in which an input is a value, or a
link [id, output] to the node that it comes from.
"""

import json
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from sdxl_jax.sampling import sampler_aliases
from sdxl_jax.sampling.foreign_settings import (
  INSTEAD,
  ForeignSettings,
  number,
)

SAMPLERS = ('KSampler', 'KSamplerAdvanced')
EMPTY = ('EmptyLatentImage', 'EmptySD3LatentImage')
DEEPEST = 100  # links in a row
# {our name: (inputs of a sampler, type)}.
NUMBERS = {
  'seed': (('seed', 'noise_seed'), int),
  'steps': (('steps',), int),
  'guidance_scale': (('cfg',), float),
}
# Inputs that hold the text or the value of a node which passes one on.
TEXT_INPUTS = ('text', 'text_g', 'string', 'value', 'prompt', 'populated_text')
VALUE_INPUTS = ('value', 'seed', 'int', 'float', 'number')
# Nodes that change no image, or that are read where a sampler needs them.
KNOWN = (
  *SAMPLERS,
  *EMPTY,
  'CheckpointLoaderSimple',
  'UNETLoader',
  'CLIPTextEncode',
  'CLIPTextEncodeSDXL',
  'ConditioningZeroOut',
  'LoraLoader',
  'LoraLoaderModelOnly',
  'VAEDecode',
  'VAEDecodeTiled',
  'SaveImage',
  'PreviewImage',
  'Note',
  'MarkdownNote',
  'Reroute',
)


class Node(NamedTuple):
  """A node of the graph."""

  name: str
  kind: str  # class_type
  inputs: dict[str, Any]


class Graph(NamedTuple):
  """The nodes by id, and the names of those that were read."""

  nodes: dict[str, Node]
  read: set[str]

  def source(self, value: Any) -> Node | None:
    """Returns the node that a link comes from; None for a plain value."""
    is_link = isinstance(value, list) and len(value) == 2
    node = self.nodes.get(str(value[0])) if is_link else None
    if node is not None:
      self.read.add(node.name)
    return node

  def chain(self, value: Any, names: Sequence[str]) -> Iterator[Node]:
    """Yields the nodes behind a link, along the first of some inputs."""
    for _ in range(DEEPEST):
      node = self.source(value)
      if node is None:
        return
      yield node
      value = next((node.inputs[n] for n in names if n in node.inputs), None)

  def value(self, value: Any, names: Sequence[str]) -> Any:
    """Returns a plain value, or that of the node it comes from."""
    for node in self.chain(value, names):
      value = next((node.inputs[n] for n in names if n in node.inputs), None)
    return None if isinstance(value, (list, dict)) else value


def parse(text: str, location: str) -> ForeignSettings:
  """Parses the text.

  Raises:
    ValueError: for text that is no graph, or has no sampler with a prompt.
  """
  graph = read_graph(text, location)
  samplers = [n for n in graph.nodes.values() if n.kind in SAMPLERS]
  kinds = sorted({node.kind for node in graph.nodes.values()})
  if not samplers:
    raise ValueError(
      f"{location}: ComfyUI's graph has no {' or '.join(SAMPLERS)}, but "
      f'{kinds}: pass --prompt and the other settings as flags'
    )
  # The first of several starts from an empty latent.
  sampler = next((n for n in samplers if size_of(graph, n)), samplers[0])
  left_out = [
    f'{node.kind} {node.name}' for node in samplers if node is not sampler
  ]
  positive, lost = read_texts(graph, sampler, 'positive')
  if 'prompt' not in positive:
    raise ValueError(
      f'{location}: no text can be found for {sampler.kind} {sampler.name} of '
      "ComfyUI's graph: pass --prompt and the other settings as flags"
    )
  negative, lost_2 = read_texts(graph, sampler, 'negative')
  fields = positive | {
    f'negative_{name}': value for name, value in negative.items()
  }
  fields |= {
    'weighted_prompts': True,
    'prompt_syntax': 'comfyui',
    'long_prompts': True,
  }
  settings, lost_3 = read_sampler(graph, sampler)
  model, tags, lost_4 = read_model(graph, sampler.inputs.get('model'))
  fields['prompt'] = ' '.join([fields['prompt'], *tags])
  left_out += [*lost, *lost_2, *lost_3, *lost_4]
  left_out += unread_nodes(graph)
  return ForeignSettings('ComfyUI', fields | settings, left_out, model)


def unread_nodes(graph: Graph) -> list[str]:
  """Returns the nodes that nothing was read of."""
  return [
    f'{node.kind} {node.name}'
    for node in graph.nodes.values()
    if node.kind not in KNOWN and node.name not in graph.read
  ]


def read_graph(text: str, location: str) -> Graph:
  """Parses the JSON of a graph.

  Raises:
    ValueError: for what is none.
  """
  try:
    value = json.loads(text)
  except (ValueError, RecursionError) as error:
    raise ValueError(
      f"{location}: the text of ComfyUI under 'prompt' is cut off or was "
      f'changed ({error}): pass the file as it was written'
    ) from None
  nodes = {}
  for name, node in value.items() if isinstance(value, dict) else ():
    if isinstance(node, dict) and isinstance(node.get('class_type'), str):
      inputs = node.get('inputs')
      inputs = inputs if isinstance(inputs, dict) else {}
      nodes[name] = Node(name, node['class_type'], inputs)
  if not nodes:
    raise ValueError(
      f"{location}: the text under 'prompt' is no graph of ComfyUI: pass "
      '--prompt and the other settings as flags'
    )
  return Graph(nodes, set())


def read_texts(
  graph: Graph, sampler: Node, side: str
) -> tuple[dict[str, Any], list[str]]:
  """Reads the fields of a conditioning, and what of it is left out.

  Args:
    graph: of the sampler.
    sampler: whose conditioning is read.
    side: 'positive' or 'negative'. Nodes such as ControlNetApplyAdvanced take
      and return both, under the same names.
  """
  left_out = []
  names = ('conditioning', side, 'conditioning_1')
  for node in graph.chain(sampler.inputs.get(side), names):
    if node.kind == 'ConditioningZeroOut':
      return {}, left_out  # no text at all, as without a negative prompt
    if node.kind == 'CLIPTextEncodeSDXL':
      return read_sdxl_texts(graph, node), left_out
    if node.kind.startswith('CLIPTextEncode') and 'text' in node.inputs:
      text = graph.value(node.inputs['text'], TEXT_INPUTS)
      if isinstance(text, str):
        return {'prompt': text}, left_out
    left_out.append(f'{node.kind} {node.name}')
  return {}, left_out


def read_sdxl_texts(graph: Graph, node: Node) -> dict[str, Any]:
  """Reads the texts and sizes of a CLIPTextEncodeSDXL."""
  inputs = {n: graph.value(x, TEXT_INPUTS) for n, x in node.inputs.items()}
  fields = {}
  if isinstance(inputs.get('text_l'), str):
    fields['prompt'] = inputs['text_l']
  text_g = inputs.get('text_g')
  if isinstance(text_g, str) and text_g != fields.get('prompt'):
    fields['prompt_2' if 'prompt' in fields else 'prompt'] = text_g
  for name, pair in {
    'original_size': ('height', 'width'),
    'crop_top_left': ('crop_h', 'crop_w'),
    'target_size': ('target_height', 'target_width'),
  }.items():
    sides = [number(inputs.get(side), int) for side in pair]
    if None not in sides:
      fields[name] = sides
  return fields


def size_of(graph: Graph, sampler: Node) -> dict[str, int]:
  """Returns the size of the empty latent that a sampler starts from."""
  node = graph.source(sampler.inputs.get('latent_image'))
  if node is None or node.kind not in EMPTY:
    return {}
  sides = {
    name: number(graph.value(node.inputs.get(name), VALUE_INPUTS), int)
    for name in ('height', 'width')
  }
  return {name: side for name, side in sides.items() if side is not None}


def read_sampler(
  graph: Graph, sampler: Node
) -> tuple[dict[str, Any], list[str]]:
  """Reads the settings of a sampler, and what of it is left out."""
  fields, left_out = size_of(graph, sampler), []
  latent = graph.source(sampler.inputs.get('latent_image'))
  if latent is not None and not fields:
    left_out.append(f'{latent.kind} {latent.name} (pass --image)')
  inputs = {n: graph.value(x, VALUE_INPUTS) for n, x in sampler.inputs.items()}
  for field, (names, kind) in NUMBERS.items():
    given = [n for n in names if n in inputs]
    value = number(inputs[given[0]], kind) if given else None
    if value is not None:
      fields[field] = value
    elif given:
      left_out.append(f'{given[0]} of {sampler.kind} {sampler.name}')
  name, scheduler = (
    str(inputs.get(n, '')) for n in ('sampler_name', 'scheduler')
  )
  chosen = sampler_aliases.sampler(name)
  schedule = sampler_aliases.schedule(scheduler)
  if chosen:
    fields |= chosen
  elif name:
    left_out.append(f'sampler_name {name} ({INSTEAD})')
  if schedule:
    fields |= schedule
  elif scheduler:
    left_out.append(f'scheduler {scheduler} ({INSTEAD})')
  count = number(latent.inputs.get('batch_size'), int) if latent else None
  if count is not None and count > 1:
    left_out.append(f'batch_size {count} (pass it as --repeat)')
  denoise = number(inputs.get('denoise', 1), float)
  if denoise is not None and denoise != 1:
    left_out.append(f'denoise {denoise:g} (pass it as --strength)')
  for part in ('start_at_step', 'end_at_step'):
    step = number(inputs.get(part), int)
    if step and step < fields.get('steps', step + 1):
      left_out.append(f'{part} {step}')
  return fields, left_out


def is_lora(name: Any) -> bool:
  """Returns whether a value is the name of a LoRA that a tag can hold."""
  return isinstance(name, str) and not set(name) & set(':<>')


def read_model(graph: Graph, link: Any) -> tuple[str, list[str], list[str]]:
  """Reads (name of the model, tags of LoRAs, what is left out)."""
  name, tags, left_out = '', [], []
  for node in graph.chain(link, ('model',)):
    inputs = {n: graph.value(x, VALUE_INPUTS) for n, x in node.inputs.items()}
    model = inputs.get('ckpt_name') or inputs.get('unet_name')
    weight = number(inputs.get('strength_model'), float)
    if isinstance(model, str):
      name = model
      left_out.append(f'model {model} (pass it as --weights)')
    elif is_lora(inputs.get('lora_name')) and weight is not None:
      path = inputs['lora_name'].replace('\\', '/')
      tags.append(f'<lora:{path.removesuffix(".safetensors")}:{weight:g}>')
      clip = number(inputs.get('strength_clip', weight), float)
      if clip != weight:
        left_out.append(f'strength_clip {clip} of {inputs["lora_name"]}')
    else:
      left_out.append(f'{node.kind} {node.name}')
  return name, tags[::-1], left_out
