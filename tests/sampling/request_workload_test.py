"""The most that a command samples at once."""

import pytest
from PIL import Image

from sdxl_jax.sampling import offload_choice, request_workload
from sdxl_jax.sampling.sample_request import Request

SIZE = 1024, 512


def largest(*requests, batch=1, **options):
  requests = [Request(**{'prompt': 'a'} | fields) for fields in requests]
  return request_workload.largest(requests, SIZE, batch, **options)


@pytest.mark.parametrize(
  'requests, fields',
  [
    ([{}], {}),
    ([{'height': 768}], {'size': (768, 512)}),
    ([{'height': 2048}, {}, {'width': 900}], {'size': (2048, 512)}),
    ([{'guidance_scale': 1.0}], {'branches': 1}),
    ([{'guidance_scale': 1.0}, {}], {'branches': 2}),
    ([{'prompt': 'a AND b AND c', 'weighted_prompts': True}], {'branches': 4}),
    ([{'prompt': 'a AND b AND c'}], {}),
    ([{'long_prompts': True}, {}], {'chunks': request_workload.LONG}),
    ([{'tile': 256}, {'tile': 512}], {'tile': 512}),
    ([{'tile': 256}, {}], {}),
  ],
)
def test_fields(requests, fields):
  assert largest(*requests) == offload_choice.Workload(
    **{'size': SIZE} | fields
  )


def test_images_have_their_own_size(tmp_path):
  path = str(tmp_path / 'image.png')
  Image.new('RGB', (1300, 1100)).save(path)
  expected = offload_choice.Workload((1096, 1296), encodes=True)
  assert largest({'image': path}, {}) == expected
  assert largest({'image': path, 'height': 64}).size == (64, 1296)


def test_batches_and_previews():
  found = largest({}, batch=4, previews=True)
  assert found == offload_choice.Workload(SIZE, 4, previews=True)
