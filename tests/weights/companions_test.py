"""Tensors beside those of a net: what they are, and what is said of them."""

import pytest

from sdxl_jax.weights import companions


def test_classes():
  harmless = ['alphas_cumprod', 'model_ema.decay', 'a.position_ids']
  matters = ['bundle_emb.x.string_to_param.*', 'x.lora_down.weight']
  unknown = ['b', 'a', 'alphas_cumprod.weight']
  found = companions.classify([*unknown, *harmless, *matters])
  assert list(found.harmless) == harmless
  assert list(found.matters) == matters
  assert found.unknown == tuple(unknown)


def test_what_matters_is_refused_unless_it_is_left_out():
  names = ['a.lora_down.weight', 'a.lora_up.weight', 'control_model.x']
  found = companions.classify(names)
  companions.check(found, skip_unsupported=True)
  with pytest.raises(
    ValueError,
    match=r'3 tensors would change the image.*LoRA \(2 tensors: '
    r'a.lora_down.weight and 1 more\), ControlNet \(1 tensor: control_model.x\)'
    '.*--skip_unsupported',
  ):
    companions.check(found, skip_unsupported=False)


def test_one_line_counts_what_is_passed_over():
  assert companions.note([]) is None
  line = companions.note(['betas', 'a.diff', *(f'logvar{i}' for i in range(9))])
  assert line == (
    'passed over 10 tensors that no net reads: betas, logvar0, logvar1, '
    'logvar2, logvar3, logvar4, logvar5, logvar6 and 2 more; left out 1 tensor '
    'that would change the image: difference to other weights (1 tensor: '
    'a.diff)'
  )
