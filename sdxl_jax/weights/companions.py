"""Knows the tensors that programs store beside those of a net.

A name that belongs to no net is one of:
- a companion that changes nothing, such as the noise schedule of a training
  program: it is passed over and counted;
- one that would change the image, such as an adapter: an error names it, since
  an image without it would be another one, and `skip_unsupported` goes on;
- a record of quantisation, without which the numbers of a net mean nothing;
- unknown, and an error too.
"""

import dataclasses
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple


class Kind(NamedTuple):
  """Tensors that have something in common."""

  what: str  # they are
  names: str  # pattern of the whole name


# In any module, unless a pattern begins otherwise.
ANY = r'(?:.*\.)?'
# In files of textual inversion alone.
LEARNED_WORD = (
  rf'{ANY}string_to_(?:param|token)(?:\..*)?|emb_params|clip_[lg]'
  r'|learned_embeds?(?:\..*)?'
)
CHANGE_NOTHING = (
  Kind(
    'a noise schedule',
    rf'{ANY}(?:alphas|betas|alphas_cumprod\w*|(?:log_)?sigmas|(?:log_)?snr'
    r'|sqrt_\w+|log_one_minus_\w+|log_alphas\w*|posterior_\w+|lvlb_weights'
    r'|all_snr|final_alpha_cumprod|(?:num_)?timesteps)'
    rf'|{ANY}noise_schedule(?:r)?\..*',
  ),
  Kind(
    'an average of parameters',
    rf'{ANY}model_ema\..*|ema(?:_\w+)?\..*|unet_ema\..*'
    rf'|{ANY}(?:ema_decay|decay|num_updates)',
  ),
  Kind(
    'a loss',
    rf'{ANY}(?:loss|lpips|perceptual_loss|discriminator)\..*|{ANY}logvar',
  ),
  Kind(
    'the state of a training program',
    r'(?:optimizers?|optimizer_states?|lr_schedulers?|callbacks|loops'
    r'|hyper_parameters|(?:grad_)?scaler|rng_states?|random_states?)(?:\..*)?'
    r'|(?:global_)?(?:step|epoch|iteration)s?|pytorch-lightning_version',
  ),
  Kind('positions 0, 1, 2, ...', rf'{ANY}position_ids'),
  Kind('the causal mask of a text encoder', rf'{ANY}attn_mask'),
  Kind("the scale of CLIP's loss", rf'{ANY}logit_(?:scale|bias)'),
  Kind(
    "CLIP's image encoder",
    rf'{ANY}(?:visual|vision_model|visual_projection)\..*',
  ),
  Kind('a check of images', r'safety_checker\..*'),
  Kind('a count of batches', rf'{ANY}num_batches_tracked'),
  # Of LDM, which computes it from the first batch.
  Kind('the scale of latents', r'(?:model\.)?scale_factor'),
)
CHANGE_THE_IMAGE = (
  Kind(
    'LoRA',
    r'.*[._]lora_(?:A|B|up|down|mid|embedding_A|embedding_B)(?:\..*)?'
    r'|.*\.lora_magnitude_vector.*|lora_(?:unet|te\d?|prior)_.*|lycoris_.*'
    r'|.*[._]lora\.(?:up|down)\..*|.*\.(?:alpha|dora_scale)',
  ),
  Kind(
    'LyCORIS',
    r'.*\.(?:hada_\w+|lokr_\w+|oft_\w+|on_input)(?:\..*)?',
  ),
  Kind(
    'difference to other weights',
    r'.*\.(?:diff|diff_b|w_norm|b_norm|set_weight)',
  ),
  Kind(
    'embedding of textual inversion',
    r'bundle_emb\..*|embeddings\.(?!(?:token|position)_embedding\.).*'
    rf'|{LEARNED_WORD}',
  ),
  Kind(
    'ControlNet',
    rf'control_model\..*|controlnet\w*\..*|lllite_.*|{ANY}'
    r'(?:controlnet_\w+|input_hint_block|zero_convs|middle_block_out'
    r'|control_add_embedding|task_embedding)\..*',
  ),
  Kind(
    'IP-Adapter',
    rf'{ANY}(?:image_proj|image_proj_model|ip_adapter|adapter_modules'
    r'|encoder_hid_proj(?!\.(?:weight|bias)$)|to_[kqv]_ip|add_[kqv]_proj)\..*',
  ),
  Kind('T2I-Adapter', r'(?:t2i_)?adapter\..*'),
  Kind('identity adapter', r'(?:id_encoder|id_adapter|pulid\w*)\..*'),
  Kind('motion module', rf'{ANY}motion_modules?\..*'),
  Kind('GLIGEN', rf'{ANY}(?:position_net|fuser)\..*'),
  Kind('class embedding', rf'{ANY}class_embedding\..*'),
)
QUANTISED = (
  Kind(
    'record of quantised weights',
    rf'scaled_fp8|{ANY}(?:scale_weight|scale_input|weight_scale(?:_\w+)?'
    r'|input_scale|comfy_quant|(?:nested_)?absmax|(?:nested_)?quant_map'
    r'|quant_state(?:\..*)?|SCB|weight_format|qweight|qzeros|g_idx|w?scales|wzeros'
    r'|smooth_factor(?:_orig)?|weight\._(?:data|scale))',
  ),
)


@dataclasses.dataclass(frozen=True)
class Classified:
  """Names that belong to no net, in the order in which they came."""

  harmless: dict[str, str]  # {name: what it is}
  matters: dict[str, str]  # that would change the image
  quantised: dict[str, str]
  unknown: tuple[str, ...]


def find_kind(name: str, kinds: Sequence[Kind]) -> str | None:
  """Returns what a tensor is, among some kinds of them, or None."""
  found = (kind.what for kind in kinds if re.fullmatch(kind.names, name))
  return next(found, None)


def classify(names: Iterable[str]) -> Classified:
  """Classifies the names of tensors that belong to no net."""
  found = Classified({}, {}, {}, ())
  unknown = []
  for name in names:
    for kinds, group in (
      (QUANTISED, found.quantised),
      (CHANGE_THE_IMAGE, found.matters),
      (CHANGE_NOTHING, found.harmless),
    ):
      if what := find_kind(name, kinds):
        group[name] = what
        break
    else:
      unknown.append(name)
  return dataclasses.replace(found, unknown=tuple(unknown))


def check(found: Classified, skip_unsupported: bool) -> None:
  """Refuses tensors without which the image would be another one.

  Args:
    found: names that belong to no net.
    skip_unsupported: whether to go on without those that can be left out.

  Raises:
    ValueError: in one line, with their number and the first of each kind.
  """
  check_not_quantised(found.quantised)
  if found.matters and not skip_unsupported:
    raise ValueError(
      f'{count(found.matters)} would change the image, and cannot be applied: '
      f'{describe(found.matters)}. --skip_unsupported goes on without them'
    )


def check_not_quantised(names: Iterable[str]) -> None:
  """Raises ValueError for the names of records of quantised weights."""
  found = [name for name in names if find_kind(name, QUANTISED)]
  if found:
    raise ValueError(
      f'{count(found)} of quantised weights, such as {found[0]}: their '
      'numbers mean nothing without a scale, and they are not supported. Use '
      'weights in float16, bfloat16 or float32'
    )


def count(names: Sequence[str] | dict[str, str]) -> str:
  """Returns '1 tensor', '2 tensors', ..."""
  return f'{len(names)} tensor{"s" if len(names) > 1 else ""}'


def describe(matters: dict[str, str]) -> str:
  """Lists the number and the first of each kind of tensors."""
  kinds = {}
  for name, what in matters.items():
    kinds.setdefault(what, []).append(name)
  return ', '.join(
    f'{what} ({count(names)}: {format_list(names, 1)})'
    for what, names in kinds.items()
  )


def note(names: Sequence[str]) -> str | None:
  """Returns a line on tensors that are passed over; None without any."""
  found = classify(names)
  lines = []
  if harmless := [*found.harmless, *found.unknown]:
    lines.append(
      f'passed over {count(harmless)} that no net reads: '
      f'{format_list(harmless)}'
    )
  if found.matters:
    lines.append(
      f'left out {count(found.matters)} that would change the image: '
      f'{describe(found.matters)}'
    )
  return '; '.join(lines) or None


def format_list(entries: Sequence[str], limit: int = 8) -> str:
  """Lists at most `limit` of the entries, so that an error fits a screen."""
  more = len(entries) - limit
  text = ', '.join(entries[:limit]) or 'none'
  return f'{text} and {more} more' if more > 0 else text
