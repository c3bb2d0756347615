"""Which nets wait in host memory, for SDXL at full size on made-up machines."""

import dataclasses

import jax.numpy as jnp
import pytest

from sdxl_jax.models import controlnet, unet
from sdxl_jax.sampling import offload_choice
from tests.support import full_size

GIB = 2**30
# Parameters of SDXL's nets, by the context of the UNets and the width of the
# text encoders.
SIZES = {
  2048: 2_567_463_684,
  768: 123_060_480,
  1280: 694_659_840,
  'refiner': 2_259_526_660,
  'vae': 83_653_863,
}
WORKLOAD = offload_choice.Workload((1024, 1024))


@pytest.fixture(scope='module')
def models():
  """Base and refiner in float16, as on a T4."""
  return full_size.models('float16', 'float32', 'xla')


def known_bytes(config):
  """The bytes of a net at full size, without the seconds of tracing it."""
  if isinstance(config, unet.UNetConfig):
    key = 2048 if config.context_dim == 2048 else 'refiner'
  else:
    key = getattr(config, 'hidden_size', 'vae')
  return SIZES[key] * jnp.dtype(config.param_dtype).itemsize


@pytest.fixture(autouse=True)
def sizes(monkeypatch):
  monkeypatch.setattr(offload_choice, 'count_bytes', known_bytes)


def machine(device, host=None, devices=1):
  """A machine with so many GiB."""
  host = None if host is None else int(host * GIB)
  return offload_choice.Machine('T4', 'gpu', devices, int(device * GIB), host)


def choose(models, at, **fields):
  workload = dataclasses.replace(WORKLOAD, **fields)
  return offload_choice.choose(models, workload, at)


@pytest.mark.parametrize('gib', [14.75 * 0.92, 14.75 * 0.75])
def test_a_t4_with_twelve_gib_of_host_memory(models, gib):
  """With what `sample` has JAX allocate, and with JAX's default."""
  choice = choose(models, machine(gib, 12))
  base, refined = choice.offloaded
  # One of the UNets at least stays, and so decoding needs no tiles.
  assert not {'unet'} <= set(base) & set(refined) and choice.tile is None
  assert choice.placed.device_bytes < 0.95 * gib * GIB
  assert choice.placed.host_bytes < 9 * GIB
  (line,) = choice.notes
  assert line.startswith(f'T4 has {gib:.1f} GiB free, and decoding with all')
  assert 'offloading ' in line and 'to host memory (' in line
  assert line.endswith(' (estimated)') and '\n' not in line


def test_more_memory_offloads_less(models):
  copied = [
    choose(models, machine(gib)).placed.moved_bytes for gib in range(7, 19)
  ]
  assert copied == sorted(copied, reverse=True) and copied[-1] == 0
  choice = choose(models, machine(18))
  assert choice.offloaded == ((), ()) and not choice.notes


def test_no_limit_on_a_cpu(models):
  unlimited = machine(1)._replace(device_bytes=None, host_bytes=1)
  assert choose(models, unlimited) == offload_choice.Choice(((), ()))


def test_two_devices_have_two_copies_in_host_memory(models):
  one, two = (choose(models, machine(11.06, 29, n)) for n in (1, 2))
  assert two.offloaded == one.offloaded
  assert two.placed.host_bytes == 2 * one.placed.host_bytes
  with pytest.raises(ValueError, match='GiB of host memory'):
    choose(models, machine(11.06, 12, 2))


def test_tiles_where_decoding_does_not_fit(models):
  choice = choose(models, machine(11.06), size=(2048, 2048))
  assert choice.tile == offload_choice.TILE
  assert 'decoding in tiles of 256 px' in choice.notes[0]
  # A tile that is asked for is no choice.
  asked = choose(models, machine(11.06), size=(2048, 2048), tile=512)
  assert asked.tile is None and 'tiles' not in asked.notes[0]


def test_what_takes_more(models):
  """Batches, previews beside the UNet, and images to start from."""
  at = machine(11.06)
  plain = choose(models, at).placed
  for fields in ({'batch': 4}, {'previews': True}, {'size': (1536, 1024)}):
    assert choose(models, at, **fields).placed.moved_bytes > plain.moved_bytes
  encodes = offload_choice.list_phases(
    models, dataclasses.replace(WORKLOAD, encodes=True), 'gpu'
  )
  assert 'encoding' in [phase.name for phase in encodes]


@pytest.mark.parametrize(
  'gib, host, fields, reason, remedy',
  [
    (6, None, {}, 'steps takes 6.4 GiB of device memory even', 'no refiner'),
    (11.06, 9, {}, 'GiB of host memory, where 6.0 GiB are', '1024 x 1024 px'),
    (11.06, 2, {}, 'host memory, where 0.0 GiB are free', 'no refiner'),
    (6.5, None, {'batch': 2}, 'device memory even', 'a smaller batch than 2'),
    (9, None, {'size': (4096, 4096)}, 'steps takes 12.5', '4096 x 4096 px'),
  ],
)
def test_nothing_fits(models, gib, host, fields, reason, remedy):
  with pytest.raises(ValueError) as error:
    choose(models, machine(gib, host), **fields)
  message = str(error.value)
  assert reason in message and remedy in message and '\n' not in message
  assert message.endswith('for T4, offload true or false')


@pytest.mark.slow
def test_the_bytes_of_sdxl(models, monkeypatch):
  monkeypatch.undo()
  for model in models:
    for config in model.configs.values():
      assert offload_choice.count_bytes(config) == known_bytes(config)


def test_float32_may_be_halved(models):
  whole = [
    m.replace(dtype='float32', param_dtype='float32') for m in models[:1]
  ]
  with pytest.raises(ValueError, match='pass dtype auto or a smaller size'):
    choose(whole, machine(5))


def test_controlnets_are_nets_of_the_steps(models):
  """They take memory, and may wait in the host's as the UNet does."""
  net = dataclasses.replace(
    controlnet.BASE, dtype='float16', param_dtype='float16'
  )
  steered = [dataclasses.replace(models[0], controlnets=(net, net))]
  (plain,), (with_nets,) = (
    [p for p in offload_choice.list_phases(m, WORKLOAD, 'gpu') if 'steps' in p]
    for m in (models[:1], steered)
  )
  assert plain.nets == ('unet',)
  assert with_nets.nets == ('unet', 'controlnet_1', 'controlnet_2')
  assert with_nets.peak > plain.peak
  names = [net.name for net in offload_choice.list_nets(steered, 1)]
  assert names[-2:] == ['controlnet_1', 'controlnet_2']
  # Of 5 GiB each, by `sizes`, three cannot be there at once.
  with pytest.raises(ValueError, match='fewer ControlNets'):
    choose(steered, machine(14, 60))
