"""What is encoded of a batch's prompts: the texts of each stretch of steps."""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32

from sdxl_jax.sampling.settings import SampleSettings
from sdxl_jax.text import prompt_brackets, prompt_schedule, prompt_tags

# Fields of a sample_request.Request, in the order of Prompts.
REQUEST_FIELDS = (
  'prompt',
  'negative_prompt',
  'prompt_2',
  'negative_prompt_2',
)


class Prompts(NamedTuple):
  """The texts of a batch: lists of strings, one per image, or None."""

  prompts: list[str]
  negative_prompts: list[str] | None = None  # None: no text at all
  prompts_2: list[str] | None = None  # for OpenCLIP ViT-bigG, where they differ
  negative_prompts_2: list[str] | None = None


class Branch(NamedTuple):
  """One text of each image; for guidance, one of several predictions."""

  texts: tuple[str, ...]
  texts_2: tuple[str, ...] | None = None


class Stage(NamedTuple):
  """The texts from a step on.

  Attributes:
    begin: index of the step.
    positive: one branch, or one for each of the parts that AND combines.
    negative: of '' without negative prompts.
  """

  begin: int
  positive: tuple[Branch, ...]
  negative: Branch

  @property
  def texts(self) -> tuple[tuple[Branch, ...], Branch]:
    """All texts, by which stages are compared."""
    return self.positive, self.negative


class Plan(NamedTuple):
  """The stages of a batch.

  Attributes:
    stages: in order.
    has_negative: whether there are negative prompts.
    weights: [b, n] of the parts that AND combines; None: there is one part.
  """

  stages: list[Stage]
  has_negative: bool
  weights: Float32[np.ndarray, 'b n'] | None = None

  @property
  def branches(self) -> list[Branch]:
    """The branches of all stages, each once."""
    found = {}
    for stage in self.stages:
      found |= dict.fromkeys((*stage.positive, stage.negative))
    return list(found)


def prompts_of(request: Any) -> Prompts:
  """Returns the Prompts of one image, of its sample_request.Request."""
  texts = (getattr(request, name) for name in REQUEST_FIELDS)
  return Prompts._make(None if text is None else [text] for text in texts)


def make_plan(prompts: Prompts, settings: SampleSettings, steps: int) -> Plan:
  """Makes the Plan of a batch.

  Args:
    prompts: of the batch, lists of one length. A PromptSyntaxWarning names
      tags of LoRAs, which are taken out of them.
    settings: weighted_prompts and prompt_syntax.
    steps: of the sampler.

  Raises:
    ValueError: for images that combine different numbers of prompts, and from
      prompt_schedule.
  """
  texts = Prompts._make(
    None if v is None else list(map(prompt_tags.without_tags, v))
    for v in prompts
  )
  has_negative = texts.negative_prompts is not None
  negative = Branch(
    freeze(texts.negative_prompts or [''] * len(texts.prompts)),
    freeze(texts.negative_prompts_2),
  )
  if not settings.weighted_prompts or settings.prompt_syntax != 'a1111':
    positive = Branch(freeze(texts.prompts), freeze(texts.prompts_2))
    return Plan([Stage(0, (positive,), negative)], has_negative)
  # Parts of AND: each has the texts of all images.
  parts, weights = combine(texts.prompts, 'prompt')
  parts_2 = [None] * len(parts)
  if texts.prompts_2 is not None:
    parts_2, weights_2 = combine(texts.prompts_2, 'prompt_2')
    if not np.array_equal(weights, weights_2):
      raise ValueError(
        'prompt and prompt_2 combine different prompts by AND: give both the '
        'same number of parts, with the same weights'
      )
  warn_of_negative_parts(negative)
  stages = make_stages(list(map(Branch, parts, parts_2)), negative, steps)
  return Plan(stages, has_negative, weights if len(parts) > 1 else None)


def warn_of_negative_parts(negative: Branch) -> None:
  """Warns of AND in negative prompts."""
  for text in itertools.chain(*filter(None, negative)):
    if prompt_schedule.AND.search(text):
      prompt_brackets.warn_of(
        f'AND in the negative prompt {text!r} is read as a word'
      )


def freeze(texts: Sequence[str] | None) -> tuple[str, ...] | None:
  """Returns texts that can be compared and hashed."""
  return None if texts is None else tuple(texts)


def combine(
  texts: Sequence[str], name: str
) -> tuple[list[tuple[str, ...]], Float32[np.ndarray, 'b n']]:
  """Splits each text at AND.

  Args:
    texts: one per image.
    name: of the setting, for the error.

  Returns:
    Of each part the texts of all images, and the weights [b, n].

  Raises:
    ValueError: for texts of different numbers of parts.
  """
  parts = [prompt_schedule.combined(text) for text in texts]
  counts = sorted({len(of_image) for of_image in parts})
  if len(counts) > 1:
    raise ValueError(
      f'some images combine {counts[0]} and some {counts[-1]} texts of {name} '
      'by AND: sample those of each number by themselves'
    )
  weights = np.float32([[weight for _, weight in p] for p in parts])
  return [tuple(t for t, _ in part) for part in zip(*parts)], weights


def make_stages(
  positive: Sequence[Branch], negative: Branch, steps: int
) -> list[Stage]:
  """Divides the steps where the text of any image changes."""

  def schedule(text):
    return prompt_schedule.by_step(text, steps)

  # Of each branch, encoder and image: (last step, text)s.
  schedules = [
    [None if texts is None else list(map(schedule, texts)) for texts in branch]
    for branch in (*positive, negative)
  ]
  ends = {
    end
    for branch in schedules
    for of_images in filter(None, branch)
    for of_image in of_images
    for end, _ in of_image
  }
  stages = []
  for begin in sorted({0, *ends} - {steps}):
    branches = [
      Branch._make(
        None if s is None else tuple(text_at(x, begin) for x in s)
        for s in branch
      )
      for branch in schedules
    ]
    stages.append(Stage(begin, tuple(branches[:-1]), branches[-1]))
  return stages


def text_at(schedule: list[tuple[int, str]], step: int) -> str:
  """Returns the text of a step, counted from 0."""
  return next(text for end, text in schedule if step < end)
