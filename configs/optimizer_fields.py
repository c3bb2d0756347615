"""The fields of config.optimizer with unit and meaning, for default.py.

kohya's sd-scripts have name as optimizer_type, schedule as lr_scheduler, and
num_cycles, power, decay_steps and min_lr_ratio with lr_ or lr_scheduler_ before
them.
"""

from ml_collections import config_dict


def get_fields():
  """Returns the section with its default values, those of AdamW."""
  c = config_dict.ConfigDict()
  # 'adamw', 'adafactor', 'came', 'dadapt_adam', 'lion', 'muon', 'prodigy' or
  # 'schedule_free_adamw'; configs/README.md compares them.
  c.name = 'adamw'
  # Of the parameters per step, about; of 'prodigy' and 'dadapt_adam' a share of
  # what they estimate, mostly 1.
  c.learning_rate = 1e-4
  # Factors of the learning rate, as ((pattern, factor), ...), of the parameters
  # whose whole path a regular expression matches: (('text_encoder/.*', 0.1),).
  # The first that matches counts. 0 freezes: no gradient, moments or EMA.
  c.rates = ()
  c.warmup_steps = 10_000  # linear from 0; 0: no warm-up
  # What follows: 'constant', 'linear', 'cosine', 'cosine_with_restarts',
  # 'polynomial' or 'warmup_stable_decay'. A decay ends at total_steps.
  c.schedule = 'constant'
  c.num_cycles = 1  # of cosine_with_restarts
  c.power = 1.0  # of polynomial
  c.decay_steps = 0  # of warmup_stable_decay: its last steps, on a cosine
  c.min_lr_ratio = 0.0  # of the learning rate, where a decay ends
  # In earlier configs True stands for schedule 'cosine', False for 'constant'.
  c.cosine = config_dict.placeholder(bool)
  c.b1 = 0.9
  c.b2 = 0.999  # of 'lion' mostly 0.99
  c.eps = 1e-8  # of Adam and its variants
  c.weight_decay = 0.01  # of kernels only
  # Limit of the gradient's norm over all parameters; 0: no clipping.
  c.clip_norm = 1.0
  # True: adafactor's learning rate is relative to the size of each parameter.
  c.scale_parameter = False
  c.d0 = 1e-6  # first estimate of 'prodigy' and 'dadapt_adam'
  c.d_coef = 1.0  # factor of prodigy's estimate
  # 'bfloat16': parameters are rounded before the nets, which compute in it, so
  # that gradients are summed over devices in it and move half the bytes.
  c.gradients_dtype = 'float32'
  # Of the moments, and of the EMA: 'bfloat16' takes half the memory and is
  # rounded at random, since most of their steps are smaller than its own.
  # Moments of 'int8' take a quarter (AdamW8bit, Lion8bit).
  c.moments_dtype = 'float32'
  c.ema_dtype = 'float32'
  # Where a net computes in float16, its loss is multiplied by a power of two,
  # this one at first. A step whose gradients overflow is left out and halves
  # it; so many steps without an overflow double it.
  c.loss_scale = 2.0**15
  c.loss_scale_steps = 2000
  # 0: the last parameters, not averaged. 'schedule_free_adamw' has an average
  # of its own in place of the EMA.
  c.ema_decay = 0.9999
  # Widths of one or two power-function averages in place of ema_decay, as
  # shares of the training, such as (0.05, 0.1); the first one is sampled from
  # and exported.
  c.ema_widths = ()
  c.ema_snapshots = 0  # steps between copies of them; 0: none
  return c
