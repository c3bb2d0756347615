"""configs/tiny.py with smaller nets, which compile in seconds."""

from configs import tiny


def get_config():
  config = tiny.get_config()
  config.unlock()
  config.total_steps = 4
  config.global_batch_size = 4
  config.log_every = 1
  config.checkpoint.every = 2
  config.samples.every = 0
  config.optimizer.warmup_steps = 1
  config.data.buckets = ((16, 16), (16, 24))
  config.data.scenes.resolution = 32
  config.data.scenes.aspects = (0.66, 1.0)
  config.samples.size = (16, 16)
  config.unet.block_out_channels = (8, 16)
  config.unet.transformer_depth = (0, 1)
  config.unet.mid_transformer_depth = 1
  config.unet.num_heads = (1, 2)
  config.unet.norm_num_groups = 4
  config.unet.context_dim = 16
  config.unet.size_embed_dim = 4
  config.unet.vector_dim = 8 + 6 * 4
  for encoder in (config.text_encoder, config.text_encoder_2):
    encoder.hidden_size = 8
    encoder.intermediate_size = 16
    encoder.num_attention_heads = 1
  config.text_encoder_2.projection_dim = 8
  return config.lock()
