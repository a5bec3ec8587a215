"""The decoder as a user of PyTorch writes it: modules for DDP and ``fully_shard``, with the task's first weights.

The same operations as :mod:`simdist.workloads.byte_gpt`, so that losses agree with the other sides.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from simdist.workloads.byte_gpt import ByteGPTTask


class Norm(nn.Module):
    """RMSNorm with a gain."""

    def __init__(self, gain: Tensor) -> None:
        super().__init__()
        self.gain = nn.Parameter(gain)

    def forward(self, x: Tensor) -> Tensor:
        return x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * self.gain


def linear(weight: Tensor) -> nn.Linear:
    """Return a layer without bias that holds this weight."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight = nn.Parameter(weight)
    return layer


class Block(nn.Module):
    """Rotary causal attention and a gated MLP; an FSDP unit."""

    cos: Tensor
    sin: Tensor
    mask: Tensor

    def __init__(self, weights: dict[str, Tensor], heads: int, context: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = Norm(weights["norm1"]), Norm(weights["norm2"])
        for name in ("attn.q", "attn.k", "attn.v", "attn.out", "mlp.gate", "mlp.up", "mlp.down"):
            self.add_module(name.partition(".")[2], linear(weights[name]))
        half = weights["norm1"].shape[0] // heads // 2
        frequencies = 10_000.0 ** (-torch.arange(half, dtype=torch.float64) / half)
        angles = torch.outer(torch.arange(context, dtype=torch.float64), frequencies)
        self.register_buffer("cos", angles.cos().float())
        self.register_buffer("sin", angles.sin().float())
        self.register_buffer("mask", torch.full((context, context), -math.inf).triu(1))

    def rotate(self, x: Tensor) -> Tensor:
        """Turn pairs of numbers by their position's angles."""
        a, b = x.chunk(2, dim=-1)
        return torch.cat((a * self.cos - b * self.sin, a * self.sin + b * self.cos), dim=-1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm1(x)
        q, k, v = (
            self.get_submodule(name)(h).unflatten(-1, (self.heads, -1)).transpose(1, 2) for name in ("q", "k", "v")
        )
        q, k = self.rotate(q), self.rotate(k)
        mixed = ((q / math.sqrt(q.shape[-1])) @ k.mT + self.mask).softmax(-1) @ v
        x = x + self.get_submodule("out")(mixed.transpose(1, 2).flatten(2))
        h = self.norm2(x)
        inner = F.silu(self.get_submodule("gate")(h)) * self.get_submodule("up")(h)
        out: Tensor = x + self.get_submodule("down")(inner)
        return out


class Decoder(nn.Module):
    """Tokens ``[batch, context + 1]`` to the mean loss."""

    def __init__(self, task: ByteGPTTask) -> None:
        super().__init__()
        weights, settings = task.initial(), task.settings
        self.embed = nn.Embedding.from_pretrained(weights["embed"], freeze=False)
        self.blocks = nn.ModuleList(
            Block(
                {name.removeprefix(prefix): x for name, x in weights.items() if name.startswith(prefix)},
                settings.heads,
                settings.context,
            )
            for prefix in (f"blocks.{index}." for index in range(settings.depth))
        )
        self.norm, self.head = Norm(weights["norm"]), linear(weights["head"])

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens[:, :-1])
        for block in self.blocks:
            x = block(x)
        return F.cross_entropy(self.head(self.norm(x)).flatten(0, 1), tokens[:, 1:].flatten())
