"""Divides requests into batches that are sampled together."""

import dataclasses
import warnings
from collections.abc import Iterator
from typing import Any

from sdxl_jax.sampling import prompt_encoding, prompt_plan, sample_request
from sdxl_jax.sampling.sample_request import Request
from sdxl_jax.text import tokenizer


def batches(
  requests: list[Request],
  size: int,
  tokenize: tokenizer.Tokenizer | None,
  least: int = 1,
) -> Iterator[list[Request]]:
  """Yields consecutive requests that can be sampled together.

  Args:
    requests: in the order of the images.
    size: of a batch, at most.
    tokenize: needed where requests have long or weighted prompts.
    least: chunks that every text has at least.
  """
  batch, key = [], None
  for request in requests:
    next_key = batch_key(request, tokenize, least)
    if batch and (len(batch) == size or key != next_key):
      yield batch
      batch = []
    batch, key = [*batch, request], next_key
  if batch:
    yield batch


def batch_key(
  request: Request, tokenize: tokenizer.Tokenizer | None, least: int
) -> tuple[Any, ...]:
  """Returns what the requests of one batch must have in common."""
  absent = [
    n for n in sample_request.PER_IMAGE_FIELDS if getattr(request, n) is None
  ]
  defaults = {
    n: sample_request.FIELDS[n].default for n in sample_request.PER_IMAGE_FIELDS
  }
  common = dataclasses.replace(request, **defaults)
  shape = text_shape(request, tokenize, least)
  return common, absent, shape


def text_shape(
  request: Request, tokenize: tokenizer.Tokenizer | None, least: int
) -> list[int]:
  """Returns how many chunks prompt and negative prompt take.

  And how many prompts AND combines.
  """
  if not (request.long_prompts or request.weighted_prompts):
    return []

  def most(branches):
    divided = prompt_encoding.tokenize_branches(
      tokenize, list(branches), request, least
    )
    return divided[0][0].shape[1]

  # The command has printed the warnings of tags and cut text already.
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    plan = prompt_plan.make_plan(
      prompt_plan.prompts_of(request), request, request.steps
    )
    positive = {branch for stage in plan.stages for branch in stage.positive}
    negative = {stage.negative for stage in plan.stages}
    counts = [most(positive), most(negative)]
  return [*counts, len(plan.stages[0].positive)]
