"""What drawing needs, on the devices of this machine and on made-up chips."""

import dataclasses

import jax
import pytest

from sdxl_jax.models import from_config
from sdxl_jax.planning import machines, sampling_plan
from tests.support import tiny_config

ASKED = sampling_plan.SampleWorkload(size=(32, 48), steps=3)


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
def phases(machine, configs):
  return sampling_plan.plan(machine, configs, ASKED)


def test_phases(phases, machine, configs):
  assert [p.name for p in phases] == [
    *('text', 'refiner text', 'steps', 'refiner steps', 'decoding')
  ]
  # Without offload all parameters are there all the time.
  (parameters,) = {p.parameters for p in phases}
  assert all(p.memory > parameters for p in phases)
  # Its decoder moves pixels only.
  assert [p.flops > 0 for p in phases] == [True] * 4 + [False]
  text = sampling_plan.report(phases, machine, ASKED)
  assert '4 x cpu, no limit known; 1 x 32 x 48 px on each, 3 steps' in text
  assert 'Most is taken by' in text


def test_offloaded_only_a_net_at_work_is_there(phases, machine, configs):
  asked = dataclasses.replace(ASKED, offload=True)
  offloaded = sampling_plan.plan(machine, configs, asked)
  for phase, before in zip(offloaded, phases):
    saved = before.parameters - phase.parameters
    assert before.memory - phase.memory == saved > 0
  own = {p.name: p.parameters for p in offloaded}
  assert sum(own.values()) == phases[0].parameters


def test_parameters_are_those_of_the_nets(phases, configs):
  total = 0
  for config in configs:
    nets = from_config.make_model(config)
    params = jax.eval_shape(nets.init, jax.random.key(0))
    leaves = jax.tree.leaves({name: params[name] for name in nets.configs})
    total += sum(4 * x.size for x in leaves)
  assert phases[0].parameters == total


def test_half_the_bits_and_no_guidance_take_half(phases, machine, configs):
  asked = dataclasses.replace(ASKED, dtype='bfloat16', guided=False)
  fewer = sampling_plan.plan(machine, configs[:1], asked)
  steps = {p.name: p for p in phases}['steps']
  assert {p.name: p for p in fewer}['steps'].flops == steps.flops / 2
  assert fewer[0].parameters < steps.parameters / 2


@pytest.mark.parametrize(
  'change, phase, advice',
  [
    ({}, 'decoding', '--dtype=bfloat16'),
    (dict(dtype='bfloat16'), 'decoding', '--tile=256'),
    (dict(dtype='bfloat16'), 'steps', '--offload'),
    (dict(dtype='bfloat16', offload=True, batch=4), 'steps', '--batch=2'),
    (dict(dtype='bfloat16', offload=True), 'steps', 'Take a device'),
  ],
)
def test_what_does_not_fit(phases, machine, change, phase, advice):
  asked = dataclasses.replace(ASKED, **change)
  worst = {p.name: p for p in phases}[phase]
  chip = dataclasses.replace(machine.chip, memory=worst.memory)
  text = sampling_plan.verdict(
    [worst], dataclasses.replace(machine, chip=chip), asked
  )
  assert f'It does not fit: {phase} takes 100%' in text and advice in text
