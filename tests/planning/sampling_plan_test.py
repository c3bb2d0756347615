"""Tests sampling plans on the devices here and on hypothetical chips."""

import dataclasses

import jax
import pytest

from sdxl_jax.distributed import device_mesh
from sdxl_jax.models import compute_dtype, from_config
from sdxl_jax.planning import (
  hlo_kinds,
  machines,
  program_profile,
  sampling_plan,
  sampling_programs,
  sampling_report,
)
from sdxl_jax.sampling import memory_estimate, offload_choice
from sdxl_jax.sampling.settings import SampleSettings
from tests.support import tiny_config

WORKLOAD = sampling_programs.SampleWorkload(
  SampleSettings(height=32, width=48, steps=3)
)


@pytest.fixture(scope='module')
def machine():
  return machines.make_machine('here')


@pytest.fixture(scope='module')
def configs():
  base, refiner = tiny_config.get_config(), tiny_config.get_config()
  refiner.refiner, refiner.text_encoder = True, None
  refiner.unet.context_dim = refiner.text_encoder_2.hidden_size
  refiner.unet.vector_dim -= refiner.unet.size_embed_dim
  return base, refiner


@pytest.fixture(scope='module')
def planned(machine, configs):
  return sampling_plan.plan(machine, configs, WORKLOAD)


@pytest.fixture(scope='module')
def phases(planned):
  return planned.phases


def test_phases(planned, phases):
  assert [p.name for p in phases] == [
    'text',
    'refiner text',
    'steps',
    'refiner steps',
    'decoding',
  ]
  # Without offload all parameters are on the device all the time.
  (parameters,) = {p.parameters for p in phases}
  assert all(p.memory > parameters for p in phases)
  # The decoder of the tiny config moves pixels only.
  assert [p.flops > 0 for p in phases] == [True] * 4 + [False]
  text = sampling_report.to_text(planned)
  assert '4 x cpu, no limit known; 1 x 32 x 48 px on each, 3 steps' in text
  assert 'Most is taken by' in text
  figures = sampling_report.to_json(planned)
  assert (
    figures['size'] == (32, 48) and figures['guided'] and figures['steps'] == 3
  )
  assert len(figures['phases']) == 5


def test_long_captions_lengthen_the_context(machine):
  config = tiny_config.get_config()
  config.max_token_length = 150
  expert = sampling_programs.make_expert(config, machine, WORKLOAD)
  made = sampling_programs.conditioning_shapes(machine.mesh, WORKLOAD, expert)
  width = config.unet.context_dim
  assert made.context.shape == (2 * machine.size, 154, width)
  params = {n: expert.params[n] for n in sampling_programs.TEXT_ENCODERS}
  with device_mesh.use(machine.mesh):
    text = sampling_programs.trace_text(machine.mesh, WORKLOAD, expert, params)
  context, _ = text.out_info
  assert context.shape == (2 * machine.size, 77, width)


def test_offload_keeps_only_the_running_net(phases, machine, configs):
  workload = dataclasses.replace(WORKLOAD, offload=True)
  offloaded = sampling_plan.plan(machine, configs, workload).phases
  for phase, before in zip(offloaded, phases):
    saved = before.parameters - phase.parameters
    assert before.memory - phase.memory == saved > 0
  own = {p.name: p.parameters for p in offloaded}
  assert sum(own.values()) == phases[0].parameters


def test_parameters_are_counted_once(phases, configs):
  total = 0
  for config in configs:
    nets = from_config.make_model(config)
    params = jax.eval_shape(nets.init, jax.random.key(0))
    leaves = jax.tree.leaves({name: params[name] for name in nets.configs})
    total += sum(4 * x.size for x in leaves)
  assert phases[0].parameters == total


def test_bfloat16_without_guidance_takes_half(phases, machine, configs):
  plain = dataclasses.replace(WORKLOAD.settings, guidance_scale=1.0)
  workload = dataclasses.replace(WORKLOAD, settings=plain, dtype='bfloat16')
  fewer = sampling_plan.plan(machine, configs[:1], workload).phases
  steps = {p.name: p for p in phases}['steps']
  assert {p.name: p for p in fewer}['steps'].flops == steps.flops / 2
  assert fewer[0].parameters < steps.parameters / 2


def test_steps_outside_of_the_interval_are_a_program_of_their_own(
  machine, configs
):
  settings = dataclasses.replace(
    WORKLOAD.settings, steps=10, guidance_interval=(0.5, 4.0)
  )
  limited = dataclasses.replace(WORKLOAD, settings=settings)
  experts = [
    sampling_programs.make_expert(config, machine, limited)
    for config in configs
  ]

  def phases(index, workload=limited):
    found = sampling_programs.step_phases(
      experts[index], workload, index, has_refiner=True
    )
    return {phase.name: phase for phase in found}

  base, refiner = phases(0), phases(1)
  assert set(base) == set(refiner) == {'steps', 'unguided steps'}
  counts = [p.trace.keywords['steps'] for p in base.values()]
  assert sum(counts) == 10 and min(counts) > 2
  assert [p.trace.keywords['guided'] for p in base.values()] == [True, False]
  # Each of the steps is taken by one of the two.
  for name in base:
    assert base[name].runs + refiner[name].runs == 1
  taken = [base[n].runs * k for n, k in zip(base, counts)]
  assert sum(taken) == 8  # to refiner_start
  # Without guidance there is nothing to leave out.
  plain = dataclasses.replace(settings, guidance_scale=1.0)
  (only,) = phases(0, dataclasses.replace(limited, settings=plain)).values()
  assert only.name == 'steps' and not only.trace.keywords['guided']


def test_kernels_in_8_bits_take_a_quarter_of_float32(machine, configs):
  def count(weights_dtype):
    workload = dataclasses.replace(WORKLOAD, weights_dtype=weights_dtype)
    expert = sampling_programs.make_expert(configs[0], machine, workload)
    kernels = [
      path
      for path, _ in jax.tree_util.tree_leaves_with_path(expert.params['unet'])
      if path[-1].key == 'kernel_scale'
    ]
    return machines.bytes_of(expert.params['unet']), len(kernels)

  full, none = count(None)
  small, kernels = count('int8')
  assert not none and kernels and small < 0.5 * full


def test_an_old_gpu_takes_float16(machine, phases):
  """By the machine that is planned for, not by the devices here."""
  assert machine.kind == ('cpu', None)
  found = {}
  for capability in ('7.5', '8.9'):
    chip = dataclasses.replace(
      machine.chip, memory=1, compute_capability=capability
    )
    gpu = dataclasses.replace(machine, chip=chip)
    with pytest.MonkeyPatch.context() as patch:
      patch.setattr(device_mesh, 'platform', lambda mesh: 'gpu')
      found[capability] = compute_dtype.choose('auto', gpu.kind)
      plan = sampling_plan.SamplingPlan(gpu, WORKLOAD, phases)
      advice = sampling_report.verdict(plan)
    assert f'Set --dtype={found[capability]}.' in advice
  assert found == {'7.5': 'float16', '8.9': 'bfloat16'}


def limited(machine, memory, **fields):
  """The machine with so many bytes on each device."""
  chip = dataclasses.replace(machine.chip, memory=memory, **fields)
  return dataclasses.replace(machine, chip=chip)


@pytest.fixture
def no_reserve(monkeypatch):
  """Only the arrays of tiny nets count."""
  for name in ('FIXED', 'TEXT'):
    monkeypatch.setattr(memory_estimate, name, 0)
  monkeypatch.setattr(offload_choice, 'HOST_RESERVE', 0)


def place(machine, configs, **fields):
  workload = dataclasses.replace(WORKLOAD, **fields)
  experts = [
    sampling_programs.make_expert(config, machine, workload)
    for config in configs
  ]
  return sampling_plan.place(machine, experts, workload)


def test_the_nets_that_sample_would_offload(machine, configs, no_reserve):
  assert [e.offloaded for e in place(machine, configs)[0]] == [(), ()]
  unlimited, _, notes = place(limited(machine, 2**40), configs)
  assert [e.offloaded for e in unlimited] == [(), ()] and not notes
  size = sum(machines.bytes_of(e.params) for e in unlimited)
  small = limited(machine, size)
  placed, _, (note,) = place(small, configs)
  waiting = [name for e in placed for name in e.offloaded]
  assert waiting and 'offloading' in note
  # Each device of a host has a copy in its memory.
  count = sum(
    machines.bytes_of(e.params[name]) for e in placed for name in e.offloaded
  )
  _, _, (note,) = place(small, configs, host_memory=4 * count - 1)
  assert 'would end with this error' in note and 'host memory' in note
  assert [e.offloaded for e in place(small, configs, offload=False)[0]] == [
    (),
    (),
  ]


def test_offloaded_nets_take_time_and_host_memory(machine, configs, no_reserve):
  speed = dict.fromkeys(('flops', 'float32_flops', 'bandwidth', 'link'), 1e12)
  size = machines.bytes_of(place(machine, configs[:1])[0][0].params)
  slow = limited(machine, size, host_link=1e6, **speed)
  planned = sampling_plan.plan(slow, configs[:1], WORKLOAD, profiled=True)
  assert planned.offloaded and planned.host_bytes
  # What the profile says of all phases adds up to the time of the plan.
  whole = program_profile.joined('sampling', planned.profiles)
  assert whole.total == pytest.approx(planned.seconds)
  assert whole.seconds == pytest.approx(planned.seconds)
  copies = whole.grouped(lambda part: part.kind)[hlo_kinds.HOST].whole
  assert 0.9 < copies < 1
  text = sampling_report.to_text(planned)
  assert f'In host memory wait: {", ".join(planned.offloaded)}, ' in text
  assert f'{planned.seconds:.1f} s for 4 images, of all phases.' in text
  figures = sampling_report.to_json(planned)
  assert figures['offloaded'] == planned.offloaded and figures['fits']
  assert figures['seconds'] == planned.seconds
  # The link is so slow that the copies take nearly all of the time.
  copied = planned.host_bytes / machine.size / 1e6
  assert copied < planned.seconds < 2 * copied + 0.1


@pytest.mark.parametrize(
  'change, phase, advice',
  [
    ({}, 'decoding', '--dtype=bfloat16'),
    (dict(dtype='bfloat16'), 'decoding', '--tile=256'),
    (dict(dtype='bfloat16', offload=False), 'steps', '--offload'),
    (dict(dtype='bfloat16', offload=True, batch=4), 'steps', '--batch=2'),
    (dict(dtype='bfloat16', offload=True), 'steps', 'Take a device'),
  ],
)
def test_what_does_not_fit(phases, machine, change, phase, advice):
  workload = dataclasses.replace(WORKLOAD, **change)
  worst = {p.name: p for p in phases}[phase]
  chip = dataclasses.replace(machine.chip, memory=worst.memory)
  small = dataclasses.replace(machine, chip=chip)
  text = sampling_report.verdict(
    sampling_plan.SamplingPlan(small, workload, [worst])
  )
  assert f'It does not fit: {phase} takes 100%' in text and advice in text
