"""Makes safetensors files by hand: valid, sparse, and broken in many ways."""

import json
import struct

import numpy as np

SIZES = {'F32': 4, 'F16': 2, 'BF16': 2, 'I64': 8, 'F8_E4M3': 1}
FOREIGN_NAMES = (
  'a',
  'unet.x',
  'model.diffusion_model.x.weight',
  '',
  'x\ny',
  'x' * 999,
  '\x1b[2J',
  '../x',
  'lora_unet_x.lora_up.weight',
  'cond_stage_model.x',
)
ODD_METADATA = (
  [],
  'x',
  {'a': 1},
  {'a': None},
  {'a': {}},
  {'sdxl_jax': '['},
  {'sdxl_jax': '[]'},
  {'sdxl_jax': '{"nets": 1}'},
  {'sdxl_jax': 'NaN'},
  {'sdxl_jax': '{"nets": {"unet": {}}}'},
  {'sdxl_jax': '{"index": {"a":1}}'},
)
CONFIG_FIELDS = (
  'layers_per_block',
  'block_out_channels',
  'num_hidden_layers',
  'hidden_size',
  'transformer_layers_per_block',
  'norm_num_groups',
)


def parse(data):
  """Splits a file's bytes into (header, bytes of the tensors)."""
  (length,) = struct.unpack('<Q', data[:8])
  return json.loads(data[8 : 8 + length]), data[8 + length :]


def build(header, body, text=None):
  """Builds a file's bytes; `text` replaces the JSON of the header."""
  text = json.dumps(header).encode() if text is None else text
  return struct.pack('<Q', len(text)) + text + body


def sparse(path, entries, metadata=None):
  """Writes a sparse file of {name: {'shape', 'dtype'}}, all zeros."""
  header, end = {'__metadata__': metadata or {}}, 0
  for name, entry in entries.items():
    size = int(np.prod(entry['shape'], dtype=np.int64)) * SIZES[entry['dtype']]
    begin, end = end, end + size
    header[name] = {
      'dtype': entry['dtype'],
      'shape': entry['shape'],
      'data_offsets': [begin, end],
    }
  start = build(header, b'')
  with open(path, 'wb') as file:
    file.write(start)
    file.truncate(len(start) + end)


def cut(rng, header, body):
  data = build(header, body)
  return data[: rng.integers(len(data))]


def longer(rng, header, body):
  return build(header, body + bytes(int(rng.integers(1, 4096))))


def huge_header(rng, header, body):
  data = build(header, body)
  odd = len(data), 10**8 + 1, 2**40, 2**63, 2**64 - 1
  length = odd[rng.integers(len(odd))]
  return struct.pack('<Q', length) + data[8:]


def garbled_header(rng, header, body):
  text = bytearray(json.dumps(header).encode())
  for at in rng.integers(0, len(text), 20):
    text[at] = 0xFF
  return build(None, body, bytes(text))


def deep_header(rng, header, body):
  return build(None, body, b'{"a":' * int(rng.integers(10**4, 10**6)))


def other_json(rng, header, body):
  texts = (b'[]', b'null', b'1', b'{"a": 1}', b'{"a": []}', b'"a"', b'', b' ')
  return build(None, body, rng.choice(texts))


def any_name(rng, header):
  names = [name for name in header if name != '__metadata__']
  return str(rng.choice(names))


def wrong_offsets(rng, header, body):
  entry = header[any_name(rng, header)]
  move = int(rng.choice([-1, 1, 4, 2**20, 2**62])) * int(rng.integers(1, 9))
  entry['data_offsets'][rng.integers(2)] += move
  return build(header, body)


def odd_offsets(rng, header, body):
  odd = ([], [0], [0, 1, 2], None, 'x', [0.5, 4], [-4, 0], [True, 5], {}, [[]])
  header[any_name(rng, header)]['data_offsets'] = odd[rng.integers(len(odd))]
  return build(header, body)


def overlap(rng, header, body):
  """Two tensors of one size at the same place; the other place is unused."""
  by_size = {}
  for name, entry in header.items():
    if name != '__metadata__':
      begin, end = entry['data_offsets']
      by_size.setdefault(end - begin, []).append(name)
  sizes = [size for size, names in by_size.items() if size and len(names) > 1]
  names = by_size[sizes[rng.integers(len(sizes))]]
  one, other = rng.choice(names, 2, replace=False)
  header[one]['data_offsets'] = header[other]['data_offsets']
  return build(header, body)


def wrong_shape(rng, header, body):
  entry = header[any_name(rng, header)]
  shape = entry['shape']
  odd = ([*shape, 2], shape[1:] or [7], [-1, -1], [0], [2**62, 4], 'x', None)
  entry['shape'] = odd[rng.integers(len(odd))]
  return build(header, body)


def turned_shape(rng, header, body):
  """The same count of numbers, in another shape."""
  names = [
    name
    for name, entry in header.items()
    if name != '__metadata__' and len(set(entry['shape'])) > 1
  ]
  entry = header[str(rng.choice(names))]
  entry['shape'] = [int(np.prod(entry['shape'])), 1]
  return build(header, body)


def wrong_dtype(rng, header, body):
  odd = 'F16', 'I32', 'F128', 'f32', '', None, 4, ['F32'], 'F8_E4M3', 'Q4_K'
  header[any_name(rng, header)]['dtype'] = odd[rng.integers(len(odd))]
  return build(header, body)


def lacking_field(rng, header, body):
  entry = header[any_name(rng, header)]
  if rng.integers(2):
    entry['more'] = 1
  else:
    del entry[str(rng.choice(sorted(entry)))]
  return build(header, body)


def missing(rng, header, body):
  """The last tensor is left out, its bytes too."""
  name = max(
    (n for n in header if n != '__metadata__'),
    key=lambda n: header[n]['data_offsets'],
  )
  begin, _ = header.pop(name)['data_offsets']
  return build(header, body[:begin])


def twice(rng, header, body):
  name = json.dumps(any_name(rng, header))
  entry = {'dtype': 'F32', 'shape': [0], 'data_offsets': [0, 0]}
  text = json.dumps(header)[:-1] + f', {name}: {json.dumps(entry)}}}'
  return build(None, body, text.encode())


def foreign(rng, header, body):
  """An additional tensor, or one of another name."""
  name = FOREIGN_NAMES[rng.integers(len(FOREIGN_NAMES))]
  if rng.integers(2):
    header[name] = header.pop(any_name(rng, header))
    return build(header, body)
  size = len(body)
  header[name] = {
    'dtype': 'F32',
    'shape': [2],
    'data_offsets': [size, size + 8],
  }
  return build(header, body + bytes(8))


def odd_metadata(rng, header, body):
  header['__metadata__'] = ODD_METADATA[rng.integers(len(ODD_METADATA))]
  return build(header, body)


def changed_config(rng, header, body):
  """Our metadata, with the config of another net, or an invalid one."""
  ours = json.loads(header['__metadata__']['sdxl_jax'])
  config = ours['nets'][str(rng.choice(sorted(ours['nets'])))]
  field = str(rng.choice([name for name in CONFIG_FIELDS if name in config]))
  odd = 10**9, -1, 'x', None, [], {}, [10**9], 0.5, [[1]], 7
  config[field] = odd[rng.integers(len(odd))]
  header['__metadata__']['sdxl_jax'] = json.dumps(ours)
  return build(header, body)


def not_finite(rng, header, body):
  entry = header[any_name(rng, header)]
  while entry['dtype'] != 'F32' or entry['data_offsets'][0] == len(body):
    entry = header[any_name(rng, header)]
  begin, end = entry['data_offsets']
  at = begin + 4 * int(rng.integers((end - begin) // 4))
  number = struct.pack('<f', rng.choice([np.nan, np.inf, -np.inf]))
  return build(header, body[:at] + number + body[at + 4 :])


def pickled(rng, header, body):
  heads = b'PK\x03\x04', b'\x80\x02', b'\x80\x04\x95'
  return heads[rng.integers(3)] + body[: rng.integers(10**4)]


def noise(rng, header, body):
  return rng.bytes(rng.integers(10**5))


MUTATIONS = (
  cut,
  longer,
  huge_header,
  garbled_header,
  deep_header,
  other_json,
  wrong_offsets,
  odd_offsets,
  overlap,
  wrong_shape,
  turned_shape,
  wrong_dtype,
  lacking_field,
  missing,
  twice,
  foreign,
  odd_metadata,
  changed_config,
  not_finite,
  pickled,
  noise,
)


def mutated(data, seed):
  """Returns (name of the fault, bytes of the file) with one fault above."""
  mutate = MUTATIONS[seed % len(MUTATIONS)]
  return mutate.__name__, mutate(np.random.default_rng(seed), *parse(data))
