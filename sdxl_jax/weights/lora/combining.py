"""Resizes and joins LoRAs, and extracts one from the difference of two models.

What depends on the weights of the base model, as the magnitudes of DoRA do, has
no rank, and is joined with nothing.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from sdxl_jax.weights import pretrained, safetensors_file
from sdxl_jax.weights.lora import deltas, low_rank, merge, published_parts

Key = tuple[str, str]  # (net, published name of a tensor)
Progress = Callable[[Iterable[Any]], Iterable[Any]]  # shows how far a loop is
Shapes = Mapping[Key, tuple[int, ...]]
ADDITIVE = (
  deltas.Factors,
  deltas.CoreFactors,
  deltas.Hadamard,
  deltas.Kronecker,
  deltas.Difference,
)
# Metadata of the ranks and the numbers of a file, which are others afterwards.
RANKS = ('ss_network_dim', 'ss_network_alpha', 'ss_network_module')
STALE = (*RANKS, 'ss_network_args', 'sshs_model_hash', 'sshs_legacy_hash')
STALE = (*STALE, 'modelspec.hash_sha256')


def resize(
  lora: merge.Lora,
  shapes: Shapes,
  ranks: low_rank.Ranks,
  progress: Progress = iter,
) -> merge.Lora:
  """Approximates every change of a kernel by factors of another rank.

  Args:
    lora: the changes; those of biases and norms stay as they are.
    shapes: {(net, tensor): shape} of the base model.
    ranks: how the ranks are chosen.
    progress: shows how far a loop is.

  Raises:
    ValueError: for a change that depends on the weights of the base model.
  """
  factors, others = {}, {}
  for key, delta in progress(lora.changes().items()):
    if len(shapes[key]) < 2:
      others[key] = delta
      continue
    check_additive(key, delta, 'has no rank')
    made = low_rank.approximate(delta, shapes[key], ranks)
    if made is not None:
      factors[key[0], key[1].removesuffix('.weight')] = made
  metadata = restate(lora.metadata, describe_resize(lora, ranks))
  return dataclasses.replace(
    lora, factors=factors, others=others, metadata=metadata
  )


def describe_resize(lora: merge.Lora, ranks: low_rank.Ranks) -> str:
  """Describes a resize as kohya's resize_lora.py does."""
  old = max(
    (published_parts.rank_of(d) or 0 for d in lora.changes().values()),
    default=0,
  )
  if ranks.method:
    return f'Dynamic resize with {ranks.method}: {ranks.param:g} from {old}'
  conv = ranks.conv_rank
  conv = '' if conv in (None, ranks.rank) else f' (conv: {conv})'
  return f'dimension is resized from {old} to {ranks.rank}{conv}'


def restate(metadata: dict[str, str], comment: str) -> dict[str, str]:
  """Returns metadata of changes that were others before."""
  kept = {name: text for name, text in metadata.items() if name not in STALE}
  before = metadata.get('ss_training_comment', '')
  return kept | {'ss_training_comment': f'{comment}; {before}'}


def check_additive(key: Key, delta: deltas.Delta, reason: str) -> None:
  """Raises ValueError for a change that depends on the weights it changes."""
  if not isinstance(delta, ADDITIVE):
    raise ValueError(
      f'{".".join(key)} is changed by {published_parts.kind_of(delta)}, which '
      f'depends on the weights of the base model and {reason}: merge the file '
      'into the model with --lora, and extract a LoRA from the result with '
      '--to lora --rank --base'
    )


def join(
  loras: Sequence[tuple[merge.Lora, float]],
  shapes: Shapes,
  ranks: low_rank.Ranks | None = None,
) -> merge.Lora:
  """Joins LoRAs with weights into one that makes the same of the base model.

  Factors of a layer are set side by side, which is exact; so is a sum of whole
  differences. Other kinds are joined by their whole differences, which a rank
  makes small.

  Args:
    loras: [(changes, weight)].
    shapes: {(net, tensor): shape} of the base model.
    ranks: of a resize that follows; without one, kinds that would become whole
      differences are refused.

  Raises:
    ValueError: for a change that cannot be joined.
  """
  terms = merge.terms_by_tensor(loras)
  factors, others = {}, {}
  for key, of_tensor in terms.items():
    joined = join_terms(key, of_tensor, shapes[key], ranks is not None)
    if isinstance(joined, deltas.Factors):
      factors[key[0], key[1].removesuffix('.weight')] = joined
    else:
      others[key] = joined
  first, _ = loras[0]
  return dataclasses.replace(
    first,
    factors=factors,
    others=others,
    metadata=restate(first.metadata, f'joined from {len(loras)} files'),
    notes=tuple(note for lora, _ in loras for note in lora.notes),
  )


def join_terms(
  key: Key, terms: merge.Terms, shape: tuple[int, ...], is_resized: bool
) -> deltas.Delta:
  """Returns one change that is the sum of several, with their weights."""
  if len(terms) == 1 and terms[0][1] == 1:
    return terms[0][0]
  for delta, _ in terms:
    check_additive(key, delta, 'is joined with no other')
  kinds = {type(delta) for delta, _ in terms}
  if kinds == {deltas.Factors}:
    return join_factors(terms)
  if len(terms) == 1:
    ((delta, weight),) = terms
    return dataclasses.replace(delta, scale=weight * delta.scale)
  if kinds != {deltas.Difference} and not is_resized:
    names = sorted({published_parts.kind_of(delta) for delta, _ in terms})
    raise ValueError(
      f'{".".join(key)} is changed by {" and ".join(names)}, whose sum has no '
      'factors: pass --rank, to which it is brought by SVD'
    )
  total = sum(np.float32(w) * delta.product(shape) for delta, w in terms)
  return deltas.Difference(total)


def join_factors(terms: merge.Terms) -> deltas.Factors:
  """Sets factors side by side: a sum of products is one of all ranks."""
  downs = [np.float32(factors.down) for factors, _ in terms]
  # Some files have a convolution of size one as a matrix.
  ndim = max(down.ndim for down in downs)
  downs = [x.reshape(*x.shape, *[1] * (ndim - x.ndim)) for x in downs]
  ups = [
    np.float32(weight * factors.scale) * np.float32(factors.up)
    for factors, weight in terms
  ]
  ups = [x.reshape(*x.shape[:2], *[1] * (ndim - 2)) for x in ups]
  down = np.concatenate(downs)
  return deltas.Factors(down, np.concatenate(ups, 1), np.float32(len(down)))


def extract(
  tuned: Mapping[str, pretrained.Tensors],
  base: Mapping[str, pretrained.Tensors],
  kernels: Iterable[Key],
  ranks: low_rank.Ranks,
  progress: Progress = iter,
) -> merge.Lora:
  """Approximates the difference of two models by factors.

  Two tensors are in memory at a time.

  Args:
    tuned, base: {net: {published name: tensor}} of nets with the same tensors.
    kernels: (net, tensor) of what gets factors; if another tensor differs, a
      note says so.
    ranks: how the ranks are chosen.
    progress: shows how far a loop is.

  Raises:
    ValueError: if nothing differs that gets factors.
  """
  kernels, factors, left_out = set(kernels), {}, []
  keys = [(net, name) for net, tensors in tuned.items() for name in tensors]
  for net, name in progress(keys):
    difference = subtract(tuned[net][name], base[net][name])
    if not difference.any():
      continue
    made = None
    if (net, name) in kernels:
      delta = deltas.Difference(difference)
      made = low_rank.approximate(delta, difference.shape, ranks)
    if made is None:
      left_out.append(f'{net}.{name}')
    else:
      factors[net, name.removesuffix('.weight')] = made
  if not factors:
    raise ValueError(
      'no kernel of the two models differs: there is nothing to extract. Pass '
      'the model before training as --base'
    )
  notes = ()
  if left_out:
    notes = (
      f'{len(left_out)} tensors that differ are left out, biases, norms and '
      f'others without factors; the first is {left_out[0]}',
    )
  return merge.Lora(factors, notes=notes)


def subtract(
  tuned: safetensors_file.LazyTensor, base: safetensors_file.LazyTensor
) -> np.ndarray:
  """Reads two tensors and returns their difference, float32."""
  return np.float32(tuned.read()) - np.float32(base.read())
