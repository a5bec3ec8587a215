"""A user's file whose modules are cut into FSDP units in every way: nested, uneven, frozen, called twice, unused."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import TensorDataset

WIDTH, CLASSES = 10, 5


class Block(nn.Module):
    """A residual block; 2, 3 and 4 shards leave some of the 7 rows over."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.up = nn.Linear(WIDTH, 7)
        self.down = nn.Linear(7, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.tanh(self.up(self.norm(x))))


class Encoder(nn.Module):
    """Blocks, and parameters of its own around them."""

    def __init__(self) -> None:
        super().__init__()
        self.inlet = nn.Conv1d(1, 5, 8)
        self.blocks = nn.ModuleList(Block() for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.inlet(x.unsqueeze(1)).flatten(1)
        for block in self.blocks:
            x = block(x)
        return x


class Net(nn.Module):
    """Units in units; of the head's and the convolution's 5 rows the last of 4 shards gets none."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(WIDTH))
        self.encoder = Encoder()
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(self.scale * self.encoder(x))
        return scores


class Twice(Net):
    """Calls its encoder's first block twice."""

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(self.scale * self.encoder.blocks[0](self.encoder(x)))
        return scores


class Unused(Net):
    """Has a block that it never calls."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder.blocks.append(Block())

    def forward(self, x: Tensor) -> Tensor:
        x = self.encoder.inlet(x.unsqueeze(1)).flatten(1)
        for block in self.encoder.blocks[:3]:
            x = block(x)
        scores: Tensor = self.head(self.scale * x)
        return scores


def make_frozen() -> nn.Module:
    """The first block's weights are not trained."""
    net = Net()
    net.encoder.blocks[0].up.requires_grad_(False)
    return net


def make_sequential() -> nn.Module:
    """Every layer is a unit, and the root holds nothing."""
    return nn.Sequential(nn.Linear(9, 6), nn.ReLU(), nn.Linear(6, CLASSES))


def loss(scores: Tensor, classes: Tensor) -> Tensor:
    return cross_entropy(scores, classes)


def make_data() -> TensorDataset:
    inputs = torch.randn(80, 9)
    return TensorDataset(inputs, inputs[:, :CLASSES].argmax(1))
