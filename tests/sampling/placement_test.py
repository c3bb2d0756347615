"""Which nets stay on the device, for made-up nets and limits."""

import itertools

import numpy as np
import pytest

from sdxl_jax.sampling import placement

GIB = 2**30
NETS = [
  placement.Net('unet', 50, 50),
  placement.Net('vae', 3, 3),
  placement.Net('text', 16, 16),
  placement.Net('refiner unet', 45, 45),
]
PHASES = [
  placement.Phase('encoding', ('text',), 1),
  placement.Phase('steps', ('unet',), 6),
  placement.Phase('refiner steps', ('refiner unet',), 7),
  placement.Phase('decoding', ('vae',), 36),
]


@pytest.mark.parametrize(
  'device, offloaded, worst, taken',
  [
    (None, (), 'decoding', 150),
    (150, (), 'decoding', 150),
    (149, ('text',), 'decoding', 134),  # the one that is copied soonest
    (134, ('text',), 'decoding', 134),
    (133, ('refiner unet',), 'refiner steps', 121),
    (117, ('unet', 'vae'), 'steps', 117),
    (116, ('text', 'refiner unet'), 'refiner steps', 105),
    (100, ('unet', 'refiner unet'), 'steps', 75),
    (58, ('unet', 'vae', 'text', 'refiner unet'), 'steps', 56),
    (56, ('unet', 'vae', 'text', 'refiner unet'), 'steps', 56),
  ],
)
def test_as_little_is_copied_as_the_device_allows(
  device, offloaded, worst, taken
):
  found = placement.choose(NETS, PHASES, device)
  assert found.offloaded == offloaded
  assert (found.worst, found.device_bytes) == (worst, taken)
  assert found.host_bytes == found.moved_bytes  # each runs once, one device


@pytest.mark.parametrize(
  'device, host, offloaded',
  [
    (133, 45, ('refiner unet',)),
    (133, 44, None),
    (149, 16, ('text',)),
    (149, 15, None),
    (100, 95, ('unet', 'refiner unet')),
    (100, 94, None),
    (150, 0, ()),
    (None, 0, ()),
  ],
)
def test_the_host_limits_what_is_offloaded(device, host, offloaded):
  if offloaded is not None:
    found = placement.choose(NETS, PHASES, device, host)
    assert found.offloaded == offloaded
    return
  with pytest.raises(placement.NothingFitsError, match='GiB of host memory'):
    placement.choose(NETS, PHASES, device, host)


def test_each_device_has_a_copy_in_host_memory():
  nets = [net._replace(host_bytes=8 * net.device_bytes) for net in NETS]
  found = placement.choose(nets, PHASES, 149, 128)
  assert (found.offloaded, found.host_bytes) == (('text',), 128)
  with pytest.raises(placement.NothingFitsError):
    placement.choose(nets, PHASES, 149, 127)


def test_a_net_that_runs_twice_is_copied_twice():
  again = [*PHASES, placement.Phase('previews', ('unet', 'vae'), 36)]
  found = placement.place(NETS, again, ['unet'])
  assert found.moved_bytes == 100
  assert (found.worst, found.device_bytes) == ('previews', 64 + 50 + 36)
  # A net that no phase runs costs nothing where it waits.
  idle = [*NETS, placement.Net('other', 20, 20)]
  assert placement.choose(idle, PHASES, 150).offloaded == ('other',)


@pytest.mark.parametrize('seed', range(20))
def test_no_other_choice_that_fits_copies_less(seed):
  """Against the definition, for random nets, phases and limits."""
  rng = np.random.default_rng(seed)
  names = [f'n{i}' for i in range(rng.integers(1, 6))]
  nets = [
    placement.Net(n, s, 2 * s)
    for n, s in zip(names, rng.integers(1, 50, 9).tolist())
  ]
  phases = [
    placement.Phase(
      f'p{i}', tuple(rng.permutation(names)[:2].tolist()), int(peak)
    )
    for i, peak in enumerate(rng.integers(0, 40, rng.integers(1, 5)))
  ]
  device, host = (int(x) for x in rng.integers(20, 200, 2))

  def needs(away):
    stay = {n.name: n.device_bytes for n in nets if n.name not in away}
    size = {n.name: n.device_bytes for n in nets}
    most = max(
      sum({**stay, **{n: size[n] for n in p.nets}}.values()) + p.peak
      for p in phases
    )
    copied = sum(size[n] for p in phases for n in p.nets if n in away)
    return most, sum(2 * size[n] for n in away), copied

  every = [
    needs(away)
    for count in range(len(names) + 1)
    for away in itertools.combinations(names, count)
  ]
  fitting = [copied for d, h, copied in every if d <= device and h <= host]
  if not fitting:
    with pytest.raises(placement.NothingFitsError):
      placement.choose(nets, phases, device, host)
    return
  found = placement.choose(nets, phases, device, host)
  assert needs(found.offloaded) == found[2:]
  assert found.device_bytes <= device and found.host_bytes <= host
  assert found.moved_bytes == min(fitting)


def test_errors_name_bytes_and_limits():
  nets = [
    net._replace(device_bytes=net[1] * GIB, host_bytes=net[2] * GIB)
    for net in NETS
  ]
  phases = [phase._replace(peak=phase.peak * GIB) for phase in PHASES]
  with pytest.raises(
    placement.NothingFitsError,
    match=r'^steps takes 56.0 GiB of device memory even with all idle nets in '
    r'host memory, and 55.5 GiB are free$',
  ):
    placement.choose(nets, phases, int(55.5 * GIB))
  with pytest.raises(
    placement.NothingFitsError,
    match=r'^decoding takes 150.0 GiB of device memory with all nets there, '
    r'where 140.0 GiB are free, and to offload text takes 16.0 GiB of host '
    r'memory, where 9.0 GiB are free$',
  ):
    placement.choose(nets, phases, 140 * GIB, 9 * GIB)
