"""OpenCLIP's pair of encoders a second time, in PyTorch, as its files name it.

Radford et al. 2021: two transformers with norms before; of the image the class
token is projected, of the text the token of the largest id.
"""

import torch
from torch import nn


class QuickGELU(nn.Module):
  def forward(self, x):
    return x * torch.sigmoid(1.702 * x)


class Mlp(nn.Module):
  def __init__(self, width, activation):
    super().__init__()
    self.c_fc = nn.Linear(width, 4 * width)
    self.activation = activation
    self.c_proj = nn.Linear(4 * width, width)

  def forward(self, x):
    return self.c_proj(self.activation(self.c_fc(x)))


class Block(nn.Module):
  def __init__(self, width, heads, activation):
    super().__init__()
    self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
    self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
    self.mlp = Mlp(width, activation)

  def forward(self, x, mask):
    h = self.ln_1(x)
    x = x + self.attn(h, h, h, attn_mask=mask, need_weights=False)[0]
    return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
  def __init__(self, width, depth, heads, activation):
    super().__init__()
    blocks = (Block(width, heads, activation) for _ in range(depth))
    self.resblocks = nn.ModuleList(blocks)

  def forward(self, x, mask=None):
    for block in self.resblocks:
      x = block(x, mask)
    return x


class Visual(nn.Module):
  def __init__(self, config, activation):
    super().__init__()
    c = config.hidden_size
    self.class_embedding = nn.Parameter(torch.randn(c) * 0.1)
    self.positional_embedding = nn.Parameter(
      torch.randn(config.tokens, c) * 0.1
    )
    self.proj = nn.Parameter(torch.randn(c, config.projection_dim) * c**-0.5)
    patch = config.patch_size
    self.conv1 = nn.Conv2d(3, c, patch, patch, bias=False)
    self.ln_pre, self.ln_post = nn.LayerNorm(c), nn.LayerNorm(c)
    self.transformer = Transformer(
      c, config.num_hidden_layers, config.num_attention_heads, activation
    )

  def forward(self, image):
    x = self.conv1(image).flatten(2).transpose(1, 2)
    first = self.class_embedding.expand(len(x), 1, -1)
    x = torch.cat([first, x], 1) + self.positional_embedding
    return self.ln_post(self.transformer(self.ln_pre(x))[:, 0]) @ self.proj


class CLIP(nn.Module):
  def __init__(self, pair):
    super().__init__()
    text, c = pair.text, pair.text.hidden_size
    quick = text.hidden_act == 'quick_gelu'
    activation = QuickGELU() if quick else nn.GELU()
    self.visual = Visual(pair.image, activation)
    self.transformer = Transformer(
      c, text.num_hidden_layers, text.num_attention_heads, activation
    )
    self.token_embedding = nn.Embedding(text.vocab_size, c)
    self.positional_embedding = nn.Parameter(torch.randn(77, c) * 0.1)
    self.ln_final = nn.LayerNorm(c)
    self.text_projection = nn.Parameter(
      torch.randn(c, text.projection_dim) * c**-0.5
    )
    self.logit_scale = nn.Parameter(torch.tensor(4.6))

  def encode_image(self, image):
    return self.visual(image)

  def encode_text(self, ids):
    x = self.token_embedding(ids) + self.positional_embedding
    mask = torch.full((77, 77), float('-inf')).triu(1)
    x = self.ln_final(self.transformer(x, mask))
    return x[torch.arange(len(x)), ids.argmax(-1)] @ self.text_projection
