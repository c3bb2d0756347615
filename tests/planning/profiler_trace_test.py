"""Tests what is read of profiles: one recorded here, and one as of a GPU."""

import jax
import jax.numpy as jnp
import pytest

from sdxl_jax.planning import (
  chips,
  hlo,
  hlo_flops,
  hlo_kinds,
  hlo_traffic,
  hlo_trip_counts,
  profile_output,
  profiler_trace,
  protobuf_fields,
  recorded_profile,
  topology,
)
from tests.planning import cost_test


def field(number, value):
  """One field of a protocol buffer, of an integer, a text or a message."""
  if isinstance(value, int):
    return varint(number << 3) + varint(value)
  value = value.encode() if isinstance(value, str) else value
  return varint(number << 3 | 2) + varint(len(value)) + value


def varint(value):
  """An integer, seven bits in each byte."""
  low, rest = value & 127, value >> 7
  return bytes([low | 128]) + varint(rest) if rest else bytes([low])


def test_fields():
  data = field(1, 300) + field(2, 'text') + b'\x1d' + bytes(4) + field(1, 7)
  found = protobuf_fields.message(memoryview(data))
  assert found[1] == [300, 7] and protobuf_fields.integer(found[1]) == 7
  assert protobuf_fields.text(found[2]) == 'text' and len(found[3][0]) == 4
  packed = memoryview(varint(5) + varint(1 << 40))
  assert protobuf_fields.integers([packed, 3]) == [5, 1 << 40, 3]
  with pytest.raises(ValueError, match='cut off'):
    protobuf_fields.message(memoryview(data[:5]))
  with pytest.raises(ValueError, match='wire type 7'):
    protobuf_fields.message(memoryview(b'\x0f'))


def step(w, x):
  with jax.named_scope('UNet'), jax.named_scope('mid_block'):
    y = cost_test.chain(w, x).reshape(4, 8, 8, 64)
  with jax.named_scope('VAE'):
    y = jax.lax.conv_general_dilated(
      y,
      jnp.ones((3, 3, 64, 32)),
      (2, 2),
      'SAME',
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    )
  return (y**2).sum()


@pytest.fixture(scope='module')
def recorded(tmp_path_factory):
  """(compiled program, folder of a profile of three runs)."""
  w, x = jnp.ones((5, 64, 64)), jnp.ones((256, 64))
  compiled = jax.jit(jax.grad(step)).lower(w, x).compile()
  jax.block_until_ready(compiled(w, x))
  folder = tmp_path_factory.mktemp('recorded')
  with jax.profiler.trace(folder):
    for _ in range(3):
      jax.block_until_ready(compiled(w, x))
  return compiled, folder


def facts(program):
  """What is read of each instruction that runs."""
  return [
    (
      name,
      i.name,
      i.opcode,
      runs,
      i.operands,
      hlo.dimensions(i.shape),
      hlo_flops.flops(program, name, i),
      hlo_kinds.kind(program, name, i),
      hlo_traffic.bytes_read(program, name, i),
      hlo_traffic.bytes_written(program, name, i),
    )
    for name, i, runs in hlo_trip_counts.top_level(program)
  ]


def test_a_program_in_a_profile_is_that_of_its_text(recorded):
  compiled, folder = recorded
  (timed, *_) = profiler_trace.read(folder).programs
  assert facts(timed.program) == facts(hlo.parse(compiled.as_text()))


def test_times_of_a_run(recorded):
  compiled, folder = recorded
  recording = profiler_trace.read(folder)
  assert recording.platform == 'cpu'
  (timed, *_) = recording.programs
  assert timed.runs == 3
  # Nearly all that runs has been timed, and what steers is not.
  program = hlo.parse(compiled.as_text())
  names = {i.name: i.opcode for _, i, _ in hlo_trip_counts.top_level(program)}
  works = {n for n, o in names.items() if o not in hlo_traffic.FREE}
  assert set(timed.seconds) <= works
  assert len(timed.seconds) > 0.8 * len(works)
  assert all(seconds >= 0 for seconds in timed.seconds.values())


def test_estimate_and_clock_side_by_side(recorded, capsys, tmp_path):
  folder = recorded[1]
  figures = profile_output.show_recorded(str(folder), None)
  text = capsys.readouterr().out
  assert '3 runs, each ' in text and 'estimated share' in text
  assert 'the speed of this machine is not known' in text
  (program, *_) = figures['programs']
  for table in ('kinds', 'blocks', 'layers'):
    rows = program[table]
    assert sum(row['share'] for row in rows) == pytest.approx(1)
    assert sum(row['estimated_share'] for row in rows) == pytest.approx(1)
    clock = sum(row['clock'] for row in rows)
    assert clock == pytest.approx(program['clock'])
  names = {row['name'] for row in program['blocks']}
  assert {'UNet mid_block', 'VAE'} <= names
  kinds = {row['name']: row for row in program['kinds']}
  assert kinds['products']['clock'] > 0 and kinds['convolutions']['clock'] > 0
  # With the speed of a device the estimate has seconds.
  with_chip = profile_output.show_recorded(str(folder), 'h100x1')
  (program, *_) = with_chip['programs']
  assert all(row['estimate'] is not None for row in program['kinds'])
  assert 'of the time by the clock' in capsys.readouterr().out


def gpu_profile(compiled, path, events, has_id):
  """Writes a profile as of a GPU, with (instruction, ps) on its stream.

  Its events have another id than the program, as if that were from a cache.
  JAX 0.7 writes no statistic with the id.
  """
  proto = compiled.runtime_executable().hlo_modules()[0]
  proto = field(1, proto.as_serialized_hlo_module_proto())

  def named(number, key, name):
    return field(
      number, field(1, key) + field(2, field(1, key) + field(2, name))
    )

  program = field(1, 9) + field(2, 'jit_step(7)')
  program += field(5, field(1, 1) + field(6, proto))
  if has_id:
    program += field(5, field(1, 2) + field(3, 7))
  metadata = field(2, '/host:metadata')
  metadata += named(5, 1, 'Hlo Proto') + named(5, 2, 'program_id')
  metadata += field(4, field(1, 9) + field(2, program))
  line = field(2, 'Stream #1')
  plane = field(2, '/device:GPU:0')
  plane += named(5, 1, 'hlo_op') + named(5, 2, 'hlo_module')
  plane += named(5, 3, 'jit_step') + named(5, 4, 'program_id')
  for n, (name, duration) in enumerate(events):
    stats = b''
    if name:
      plane += named(5, 100 + n, name)
      # The texts of statistics lie among the names of their kinds.
      stats = field(4, field(1, 1) + field(7, 100 + n))
      stats += field(4, field(1, 2) + field(7, 3))
      stats += field(4, field(1, 4) + field(3, 6))
    line += field(4, field(1, 1) + field(2, n) + field(3, duration) + stats)
  # Lines that viewers derive repeat the same events.
  derived = field(2, 'XLA Ops') + line[len(field(2, 'Stream #1')) :]
  plane += field(3, line) + field(3, derived)
  path.write_bytes(field(1, metadata) + field(1, plane))


@pytest.mark.parametrize('has_id', [True, False])
def test_events_of_a_gpu(has_id, recorded, tmp_path):
  compiled, _ = recorded
  program = hlo.parse(compiled.as_text())
  works = [
    i.name
    for i in program.computations[program.entry].values()
    if i.opcode not in hlo_traffic.FREE
  ]
  events = [(name, 2000) for name in works] * 2 + [(None, 500)]
  gpu_profile(compiled, tmp_path / 'gpu.xplane.pb', events, has_id)
  recording = profiler_trace.read(tmp_path)
  assert recording.platform == 'gpu'
  (timed,) = recording.programs
  assert timed.runs == 2 and timed.seconds == dict.fromkeys(works, 2e-9)
  assert recording.unknown == pytest.approx(5e-10)
  (compared,) = recorded_profile.compare(recording, chips.GPUS['h100'])
  assert compared.clock.total == pytest.approx(2e-9 * len(works))
  text = recorded_profile.to_text(recording, [compared])
  assert 'belong to no instruction of these programs' in text


def test_what_is_no_profile(tmp_path):
  with pytest.raises(
    FileNotFoundError, match='which jax.profiler.trace writes'
  ):
    profiler_trace.read(tmp_path)
  (path := tmp_path / 'a.xplane.pb').write_bytes(b'\x0f\x0f')
  with pytest.raises(ValueError, match='is no profile of JAX: .*wire type'):
    profiler_trace.read(path)
  path.write_bytes(field(1, field(2, '/host:CPU')))
  with pytest.raises(ValueError, match='no event of a compiled program'):
    profiler_trace.read(path)


def test_chip_of_a_topology():
  assert topology.chip_of('h100x8x2') is chips.GPUS['h100']
  assert topology.chip_of('a100-40gbx1') is chips.GPUS['a100-40gb']
  assert topology.chip_of('v5e:2x4') is chips.TPUS['v5e']
  assert topology.chip_of('here') is None
  with pytest.raises(ValueError, match="no topology is named 'h1x8'"):
    topology.chip_of('h1x8')
