"""Images of a set of prompts: seeds, files, what is drawn after a stop."""

import pathlib

import jax
import numpy as np
import pytest

from sdxl_jax.data import images
from sdxl_jax.distributed import multihost
from sdxl_jax.sampling import (
  drawing,
  model_flags,
  prompt_set,
  prompts_file,
  request_checks,
  sample_request,
)

torch = pytest.importorskip('torch')
MODELS = {name: o.default for name, o in model_flags.MODEL_OPTIONS.items()}
MODELS |= {'weights': 'SDXL'}


@pytest.fixture
def lines(tmp_path):
  file = tmp_path / 'prompts.jsonl'
  file.write_text(
    '{"prompt": "a fox"}\n{"prompt": "a pig", "steps": 9}\n'
    '{"prompt": "a hen", "seed": 77}\n'
  )
  return prompts_file.read(file)


@pytest.fixture
def drawn(monkeypatch):
  """Stands in for the nets: writes images, and collects its calls."""
  calls = []

  def draw(located, names, models, noise=None, options=None):
    calls.append((names, noise))
    for (_, request), name in zip(located, names):
      image = np.zeros((16, 16, 3), np.uint8)
      text = sample_request.to_png_metadata(request, models, image.shape)
      images.save(name, image, text)

  monkeypatch.setattr(drawing, 'draw', draw)
  monkeypatch.setattr(request_checks, 'before_loading', lambda *args: [])
  return calls


def test_requests(lines):
  """A line's own settings come first; seeds count on from that of the set."""
  located = prompt_set.make_requests(lines, {'seed': 5, 'steps': 20})
  found = [(r.prompt, r.seed, r.steps) for _, r in located]
  assert found == [('a fox', 5, 20), ('a pig', 6, 9), ('a hen', 77, 20)]
  assert located[1].location.endswith('prompts.jsonl, line 2')
  assert len(prompt_set.make_requests(lines, {}, 2)) == 2
  with pytest.raises(ValueError, match='3 prompts are fewer than the 5'):
    prompt_set.make_requests(lines, {}, 5)
  with pytest.raises(ValueError, match='line 1: .*eta is 3'):
    prompt_set.make_requests(lines, {'eta': 3.0})


def test_a_stop(lines, drawn, tmp_path):
  """Only what is missing is drawn again, with its own latents."""
  folder, said = tmp_path / 'images', []
  latents = np.arange(3.0).reshape(3, 1, 1, 1)
  args = prompt_set.make_requests(lines, {}), folder, MODELS
  names = prompt_set.draw(*args, latents, say=said.append)
  stems = [pathlib.Path(name).name for name in names]
  assert stems == ['000000.png', '000001.png', '000002.png'] == sorted(stems)
  assert [len(x) for x in drawn[0]] == [3, 3]
  (folder / '000001.png').unlink()
  assert prompt_set.draw(*args, latents, say=said.append) == names
  assert drawn[1][0] == names[1:2] and drawn[1][1].tolist() == [[[[1.0]]]]
  assert prompt_set.draw(*args, latents, say=said.append) == names
  assert len(drawn) == 2
  counts = [line.split(' images')[0] for line in said]
  assert counts == ['0 of 3', '2 of 3', '3 of 3']


def test_all_share_one_latent(lines, drawn, tmp_path):
  args = prompt_set.make_requests(lines, {}), tmp_path / 'images', MODELS
  prompt_set.draw(*args, np.full((1, 2, 2, 4), 3.0))
  assert drawn[0][1].shape == (3, 2, 2, 4) and (drawn[0][1] == 3).all()
  with pytest.raises(ValueError, match='latents of 2 images, and 3 are drawn'):
    prompt_set.draw(*args, np.zeros((2, 2, 2, 4)))


def test_other_images_are_not_measured(lines, drawn, tmp_path):
  """Nor are images of other settings."""
  folder = tmp_path / 'images'
  prompt_set.draw(prompt_set.make_requests(lines, {}), folder, MODELS)
  fewer = prompt_set.make_requests(lines, {}, 2)
  with pytest.raises(ValueError, match='1 files beside the 2 .*000002.png'):
    prompt_set.draw(fewer, folder, MODELS)
  other = prompt_set.make_requests(lines, {'seed': 4})
  with pytest.raises(ValueError, match='line 1: .* another seed: 0, and 4'):
    prompt_set.draw(other, folder, MODELS)


def test_latents(tmp_path):
  """Those of MLPerf are a tensor of torch, in its order of axes."""
  tensor = torch.randn(1, 4, 6, 8)
  torch.save(tensor, tmp_path / 'latents.pt')
  found = prompt_set.read_latents(str(tmp_path / 'latents.pt'))
  np.testing.assert_array_equal(found, tensor.permute(0, 2, 3, 1).numpy())
  np.save(tmp_path / 'latents.npy', found)
  same = prompt_set.read_latents(str(tmp_path / 'latents.npy'))
  np.testing.assert_array_equal(same, found)
  torch.save({'x': tensor}, tmp_path / 'dict.pt')
  torch.save(tensor / 0, tmp_path / 'nan.pt')
  for name, message in (
    ('dict.pt', 'holds no tensor'),
    ('nan.pt', 'NaN or infinity'),
  ):
    with pytest.raises(ValueError, match=f'--latents=.*{name} .*{message}'):
      prompt_set.read_latents(str(tmp_path / name))
  with pytest.raises(ValueError, match='--latents=.*holds no array'):
    np.save(tmp_path / 'flat.npy', np.zeros(3))
    prompt_set.read_latents(str(tmp_path / 'flat.npy'))


@pytest.mark.parametrize('is_shared', [True, False])
def test_two_processes(lines, drawn, tmp_path, monkeypatch, is_shared):
  """The second draws its share, and waits for the images of the first."""
  folder, agreed = tmp_path / 'images', []
  located = prompt_set.make_requests(lines, {})
  names = prompt_set.file_names(folder, 3)

  def barrier(name):
    if is_shared:  # the first process has drawn by now
      drawing.draw(located[:2], names[:2], MODELS)

  monkeypatch.setattr(jax, 'process_count', lambda: 2)
  monkeypatch.setattr(jax, 'process_index', lambda: 1)
  monkeypatch.setattr(multihost, 'barrier', barrier)
  monkeypatch.setattr(multihost, 'check_equal_across_hosts', agreed.append)
  if is_shared:
    assert prompt_set.draw(located, folder, MODELS) == names
  else:
    message = '2 of 3 images are not there .*000000.png first: .* share'
    with pytest.raises(ValueError, match=message):
      prompt_set.draw(located, folder, MODELS)
  assert drawn[0][0] == names[2:]
  assert agreed[0]['missing images'] == '[0, 1, 2]'
  assert 'a hen' in agreed[0]['set of requests']
