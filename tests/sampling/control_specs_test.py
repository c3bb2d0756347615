"""ControlNets as the command names them, and which of them act at a step."""

import numpy as np
import pytest

from sdxl_jax.models import controlnet
from sdxl_jax.sampling import control_inputs, control_specs, control_steps
from sdxl_jax.sampling.control_specs import ControlSpec


@pytest.mark.parametrize(
  'text, expected',
  [
    ('net', ControlSpec('net')),
    ('net:0.8', ControlSpec('net', 0.8)),
    ('a/b.safetensors:-1', ControlSpec('a/b.safetensors', -1.0)),
    ('net:1:0.25:0.5', ControlSpec('net', 1.0, 0.25, 0.5)),
    ('C:\\nets\\canny:0.5', ControlSpec('C:\\nets\\canny', 0.5)),
    ('a:b', ControlSpec('a:b')),
    ('2', ControlSpec('2')),
  ],
)
def test_parse(text, expected):
  assert control_specs.parse(text) == expected


@pytest.mark.parametrize(
  'text, message',
  [
    ('net:0.8:0.5', 'two numbers stand behind the path'),
    ('net:nan', 'scale is nan'),
    ('net:1:0.5:0.5', 'from 0.5 to 0.5 of the steps'),
    ('net:1:0:1.5', 'from 0 to 1.5'),
    ('net:1:-0.1:1', 'from -0.1 to 1'),
  ],
)
def test_numbers_that_do_not_fit(text, message):
  with pytest.raises(ValueError, match=message):
    control_specs.parse(text)


def configs(*union_types):
  """The configs of ControlNets with so many types each."""
  return {
    f'controlnet_{i}': controlnet.ControlNetConfig(control_types=n)
    for i, n in enumerate(union_types, 1)
  }


def test_a_union_net_is_called_once_and_others_for_each_image():
  specs = [ControlSpec(path) for path in ('a', 'u', 'a', 'u', 'v')]
  assert control_specs.uses(configs(0, 6, 8), specs) == [
    ('controlnet_1', (0,)),
    ('controlnet_1', (2,)),
    ('controlnet_2', (1, 3)),
    ('controlnet_3', (4,)),
  ]


def test_types():
  split, number = control_specs.split_type, control_specs.type_number
  spec = ControlSpec('u')
  assert split('canny=a=b.png') == ('canny', 'a=b.png')
  assert split('a=b.png') == (None, 'a=b.png')
  assert split('7=b.png') == ('7', 'b.png')
  assert [number(x, spec, 8) for x in ('mlsd', 'repaint', '7', 3)] == [
    3,
    7,
    7,
    3,
  ]
  assert number(None, spec, 0) is None
  for kind, count, message in (
    ('canny', 0, 'no union net.*leave canny= out'),
    (None, 6, 'put the type .* as canny=edges.png; it knows openpose'),
    ('tile', 6, "'tile' is none of u"),
    ('6', 6, "'6' is none of u.*from 0 to 5"),
  ):
    with pytest.raises(ValueError, match=message):
      number(kind, spec, count)


def test_acting_as_in_diffusers():
  """diffusers: 1 - float(i / n < start or (i + 1) / n > end)."""
  for start, end in ((0, 1), (0.25, 0.75), (0.1, 0.35), (0.5, 1), (0.3, 0.4)):
    for first, stop in ((0, 20), (0, 7), (3, 10)):
      n = stop - first
      keep = [i / n >= start and (i + 1) / n <= end for i in range(n)]
      spec = ControlSpec('a', 1.0, start, end)
      found = control_steps.acting(spec, range(first, stop))
      assert found.tolist() == [False] * first + keep


def controls():
  """A plain net for the first half, and a union net with two images."""
  return control_steps.make_controls(
    configs(0, 6),
    [
      ControlSpec('a', 0.5, 0, 0.5),
      ControlSpec('u', 0.7, 0, 0.25),
      ControlSpec('u', 0.9, 0.75, 1),
    ],
    ['x', 'y', 'z'],
    [None, 3, 1],
    range(4),
    guess=True,
  )


def test_stretches_and_nets_of_a_run(monkeypatch):
  made = controls()
  assert control_steps.nets_of(made) == ['controlnet_1', 'controlnet_2']
  assert control_steps.changes(made, 0, 4) == {1, 2, 3}
  assert control_steps.changes(made, 2, 4) == {3}
  assert control_steps.changes(None, 0, 4) == set()
  monkeypatch.setattr(
    control_steps, 'embed', lambda model, params, image, name: image * 2
  )
  monkeypatch.setattr(
    control_steps, 'precompute_context', lambda *args, name: name
  )
  at_step = control_steps.prepare(None, {}, made)
  found = [at_step(i, 'text') for i in range(4)]
  # The union net runs without images too.
  assert [[c.net[-1] for c in of_step] for of_step in found] == [
    ['1', '2'],
    ['1', '2'],
    ['2'],
    ['2'],
  ]
  scales = [of_step[-1].scales.tolist() for of_step in found]
  np.testing.assert_allclose(scales, [[0.7, 0], [0, 0], [0, 0], [0, 0.9]])
  (union,) = found[3]
  assert union.features == ['yy', 'zz'] and union.types.tolist() == [3, 1]
  assert union.context == 'controlnet_2' and union.guess


def test_images_that_do_not_fit():
  with pytest.raises(ValueError, match='ControlNets: 2, control images: 1'):
    control_inputs.check_count(2, 1, guess_mode=False)
  with pytest.raises(ValueError, match='guess_mode is set without'):
    control_inputs.check_count(0, 0, guess_mode=True)
  for image in (np.full((8, 8, 3), 255.0), np.full((8, 8, 3), -1.0)):
    with pytest.raises(ValueError, match=r'control\[0\] has values .* 0 to 1'):
      control_inputs.check_pixels('control[0]', image)
  with pytest.raises(ValueError, match='values'):
    control_inputs.check_pixels('control[0]', np.float32([np.nan]))
