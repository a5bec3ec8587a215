"""A user's nn.Module for ``simdist plan``: functions that tests name by this file's path."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Net(nn.Module):
    """An embedding, blocks of two linear layers, and a read-out."""

    def __init__(self, width: int = 32, depth: int = 3) -> None:
        super().__init__()
        self.embed = nn.Embedding(100, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
            for _ in range(depth)
        )
        self.head = nn.Linear(width, 100)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        for block in self.blocks:
            x = x + block(x)
        read: Tensor = self.head(x)
        return read

    def example_inputs(self) -> tuple[Tensor]:
        return (torch.zeros(4, 10, dtype=torch.int64),)


def make_net() -> Net:
    return Net()


def make_huge() -> nn.Module:
    """A hundred billion numbers."""
    return nn.Sequential(*(nn.Linear(100_000, 100_000, bias=False) for _ in range(10)))


def huge_inputs() -> Tensor:
    return torch.zeros(2, 100_000)


class Steered(nn.Module):
    """Looks at a value."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear(x)
        return out if out.sum() > 0 else -out

    def example_inputs(self) -> Tensor:
        return torch.zeros(2, 4)


def make_steered() -> Any:
    return Steered()


def make_nothing() -> int:
    return 3
