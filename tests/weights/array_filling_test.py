"""Arrays filled in blocks, by threads, are those that numpy makes at once."""

import functools
import time

import jax
import ml_dtypes
import numpy as np
import pytest

from sdxl_jax.weights import array_filling, safetensors_file, stored_array
from sdxl_jax.weights.diffusers import tensor_names

RNG = np.random.default_rng(0)
DTYPES = [np.float32, np.float16, ml_dtypes.bfloat16]
# Paths in our tree, and how published numbers become the leaf.
LEAVES = {
  ('conv', 'kernel'): (3, 3, 70, 90),
  ('layers', 'fc1', 'kernel'): (3, 65, 130),
  ('layers', 'fc1', 'bias'): (3, 130),
  ('norm', 'scale'): (7,),
  ('token_embedding', 'embedding'): (100, 33),
}


def stored(path, dtype):
  """Writes random tensors for LEAVES to a file; returns (file, arrays)."""
  places = tensor_names.locations(shapes(np.float32))
  arrays = {
    name: RNG.normal(size=place.shape).astype(dtype)
    for name, place in places.items()
  }
  tensors = {n: safetensors_file.from_array(x) for n, x in arrays.items()}
  safetensors_file.write(path, tensors)
  return safetensors_file.load(path).tensors, arrays


def shapes(dtype):
  """A flat tree of shapes."""
  return {p: jax.ShapeDtypeStruct(s, dtype) for p, s in LEAVES.items()}


def tree(dtype):
  return tensor_names.traverse_util.unflatten_dict(shapes(dtype))


@pytest.fixture(params=['CPU', 'numpy'])
def small_blocks(request, monkeypatch):
  """Blocks that do not divide the tensors, turned by JAX's CPU or by numpy."""
  monkeypatch.setattr(array_filling, 'BLOCK', 10_000)
  monkeypatch.setattr(array_filling, 'SMALL', 10)
  monkeypatch.setattr(array_filling, 'AHEAD', 100_000)
  if request.param == 'numpy':
    monkeypatch.setattr(array_filling, 'host_device', lambda: None)


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('given', DTYPES)
def test_the_same_numbers(tmp_path, small_blocks, given, dtype):
  published, arrays = stored(tmp_path / 'a', given)
  loaded = tensor_names.flat(
    tensor_names.from_published(published, tree(dtype))
  )
  for name, place in tensor_names.locations(shapes(dtype)).items():
    whole = loaded[place.path]
    assert whole.dtype == dtype and whole.shape == LEAVES[place.path]
    one = whole if place.index is None else whole[place.index]
    axes = tensor_names.axes(place.path, one.ndim)
    np.testing.assert_array_equal(
      one.transpose(axes), arrays[name].astype(dtype)
    )


def test_the_first_broken_tensor_is_named(tmp_path, small_blocks):
  """In the order of the tree, whichever thread comes first."""
  _, arrays = stored(tmp_path / 'a', np.float32)
  for name in ('conv.weight', 'layers.1.fc1.weight', 'norm.weight'):
    arrays[name].flat[-1] = np.nan
  with open(tmp_path / 'a', 'r+b') as file:
    header, start, _ = safetensors_file.read_header(file)
    for name, array in arrays.items():
      file.seek(start + header[name]['data_offsets'][0])
      file.write(array.tobytes())
  published = safetensors_file.load(tmp_path / 'a').tensors
  for dtype in DTYPES:
    with pytest.raises(ValueError, match='/a: conv.weight contains NaN'):
      tensor_names.from_published(published, tree(dtype))


@pytest.mark.parametrize('dtype', [np.float32, ml_dtypes.bfloat16])
def test_numbers_in_memory_may_be_infinite(small_blocks, dtype):
  """They come from no file, whose numbers are checked as they are read."""
  given = RNG.normal(size=(70, 90)).astype(np.float16)
  given[3, 4], given[5, 6], given[7, 8] = np.inf, -np.inf, np.nan
  array = np.zeros((90, 70), dtype)
  array_filling.store(safetensors_file.from_array(given), array.T)
  expected = given.astype(dtype).astype(np.float32)
  np.testing.assert_array_equal(array.T.astype(np.float32), expected)


def test_an_overflow_is_described_by_the_whole_tensor(tmp_path, small_blocks):
  published, arrays = stored(tmp_path / 'a', np.float32)
  array = arrays['conv.weight']
  array.flat[0], array.flat[-1] = 7e4, 9e4
  published['conv.weight'] = write_one(tmp_path / 'b', array)
  with pytest.raises(ValueError, match='x has 9e.04, which overflows float16'):
    tensor_names.from_published(published, tree(np.float16))


def write_one(path, array):
  """Writes a file of one tensor, and opens it."""
  safetensors_file.write(path, {'x': safetensors_file.from_array(array)})
  return safetensors_file.load(path).tensors['x']


def test_a_file_that_is_cut_while_it_is_read(tmp_path, small_blocks):
  published, _ = stored(tmp_path / 'a', np.float32)
  with open(tmp_path / 'a', 'r+b') as file:
    file.truncate(file.seek(0, 2) - 4)
  with pytest.raises(ValueError, match='a was truncated after it was opened'):
    tensor_names.from_published(published, tree(np.float32))


def test_few_arrays_are_in_memory(monkeypatch):
  """The next one is made when those before leave room for it."""
  events = []

  def parts(number, array):
    events.append(f'begin {number}')
    given = np.full(array.shape, number, np.float32)
    return [(safetensors_file.from_array(given), array)]

  # Room for two of the first size, or one larger array.
  monkeypatch.setattr(array_filling, 'AHEAD', 800)
  wanted = [
    array_filling.Wanted(
      (size,), np.float32, None, functools.partial(parts, number)
    )
    for number, size in enumerate([100, 100, 100, 300])
  ]
  made = array_filling.fill(wanted, lambda size: events.append(f'end {size}'))
  assert [set(array) for array in made] == [{0}, {1}, {2}, {3}]
  assert events == [
    'begin 0',
    'begin 1',
    'end 400',
    'begin 2',
    'end 400',
    'end 400',
    'begin 3',
    'end 1200',
  ]


def test_nothing_is_begun_after_an_error(monkeypatch):
  monkeypatch.setattr(array_filling, 'count_threads', lambda: 1)
  reads = []

  def read(number):
    reads.append(number)
    if len(reads) > 1:
      time.sleep(0.05)  # the error of the first one is seen before all are read
    raise ValueError(f'broken {number}')

  def parts(number, array):
    tensor = safetensors_file.LazyTensor(
      (4,), np.dtype('f4'), functools.partial(read, number)
    )
    return [(tensor, array)] * 50

  wanted = [
    array_filling.Wanted((4,), np.float32, None, functools.partial(parts, n))
    for n in range(3)
  ]
  with pytest.raises(ValueError, match='broken 0'):
    array_filling.fill(wanted)
  assert len(reads) < 150


def test_a_third_of_a_tensor_is_read_alone(tmp_path, monkeypatch):
  array = RNG.normal(size=(9, 5)).astype(np.float32)
  tensor, sizes = write_one(tmp_path / 'a', array), []
  read = stored_array.read_array

  def recorded(path, dtype, shape, offset):
    sizes.append(shape)
    return read(path, dtype, shape, offset)

  monkeypatch.setattr(stored_array, 'read_array', recorded)
  part = tensor.rows(3, 6).reshape((15, 1))
  np.testing.assert_array_equal(part.read(), array[3:6].reshape(15, 1))
  np.testing.assert_array_equal(
    part.rows(2, 4).read(), array[3:6].reshape(15, 1)[2:4]
  )
  assert sizes == [(15, 1), (2, 1)]
  # Of what is made of a tensor, the whole is read.
  turned = safetensors_file.from_array(array.T).rows(1, 3)
  np.testing.assert_array_equal(turned.read(), array.T[1:3])


def test_arrays_of_the_cpu_are_not_copied():
  array = array_filling.empty_aligned((256, 256), np.float32)
  array[...] = 1
  device = jax.sharding.SingleDeviceSharding(jax.devices('cpu')[0])
  put = array_filling.put(array, device)
  assert put.unsafe_buffer_pointer() == array.ctypes.data


def test_each_page_of_new_memory_is_touched(monkeypatch):
  """Of rows that become columns, too; what is no whole range stays as it is."""
  monkeypatch.setattr(array_filling, 'PAGE', 8)
  stack = np.ones((3, 4, 6), np.uint16)
  array_filling.touch_pages(stack[1].T)
  numbers = stack[1].reshape(-1)
  assert not numbers.view(np.uint8)[::8].any() and numbers.any()
  assert stack[0].all() and stack[2].all()
  columns = np.ones((4, 6), np.uint16)
  array_filling.touch_pages(columns[:, :3])
  array_filling.touch_pages(np.ones((), np.float32))
  assert columns.all()
