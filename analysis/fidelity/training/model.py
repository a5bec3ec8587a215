"""A byte-level GPT of 1.1 million parameters in plain PyTorch: trained for real, and by simdist as a user's module."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, gelu, scaled_dot_product_attention
from torch.utils.data import TensorDataset

VOCABULARY = 256
WIDTH = 128
HEADS = 4
DEPTH = 5
CONTEXT = 32
#: sequences per worker and step: few, so that the network is what a step waits for
BATCH = 2


class Block(nn.Module):
    """Causal attention and a feed-forward layer, each on a normalised copy of the stream; an FSDP unit."""

    def __init__(self) -> None:
        super().__init__()
        self.norm_attention = nn.LayerNorm(WIDTH)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)
        self.norm_hidden = nn.LayerNorm(WIDTH)
        self.up = nn.Linear(WIDTH, 4 * WIDTH)
        self.down = nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm_attention(x)).unflatten(-1, (3 * HEADS, -1)).transpose(-3, -2).chunk(3, -3)
        mixed = scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(-3, -2).flatten(-2))
        hidden: Tensor = self.down(gelu(self.up(self.norm_hidden(x))))
        return x + hidden


class ByteGPT(nn.Module):
    """Bytes ``[batch, CONTEXT]`` to scores of the next byte ``[batch, CONTEXT, VOCABULARY]``."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.position = nn.Parameter(0.02 * torch.randn(CONTEXT, WIDTH))
        self.blocks = nn.ModuleList(Block() for _ in range(DEPTH))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, text: Tensor) -> Tensor:
        x = self.embedding(text) + self.position
        for block in self.blocks:
            x = block(x)
        scores: Tensor = self.head(self.norm(x))
        return scores


def loss(scores: Tensor, following: Tensor) -> Tensor:
    """Mean cross-entropy per byte."""
    return cross_entropy(scores.flatten(0, 1), following.flatten())


def make_data() -> TensorDataset:
    """Random bytes: what they say does not change how long a step takes."""
    text = torch.randint(VOCABULARY, (256, CONTEXT + 1))
    return TensorDataset(text[:, :-1], text[:, 1:])
