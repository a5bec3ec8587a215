"""A user's file, as a scenario would hold it: modules, losses and datasets, good and bad ones."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset


class Net(nn.Module):
    """A convolution, two hidden blocks in a list, a scalar and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 2, 3)
        self.blocks = nn.ModuleList([nn.Linear(12, 12), nn.Linear(12, 12)])
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x.unsqueeze(1)).flatten(1)
        for block in self.blocks:
            x = x + self.scale * torch.tanh(block(x))
        return self.head(x)


def make_net() -> nn.Module:
    return Net()


def make_sequential() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))


def make_wrong_width() -> nn.Module:
    return nn.Linear(9, 3)


def make_nothing() -> int:
    return 3


def make_broken() -> nn.Module:
    raise RuntimeError("no such weights")


def make_dropout() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 6), nn.Dropout(0.5), nn.Linear(6, 3))


def make_batch_norm() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6), nn.Linear(6, 3))


class Noisy(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(super().forward(x), 0.5, training=True)


def make_noisy() -> nn.Module:
    return Noisy(8, 3)


class Counting(nn.Linear):
    calls: Tensor

    def __init__(self) -> None:
        super().__init__(8, 3)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls.add_(1)
        return super().forward(x)


def make_counting() -> nn.Module:
    return Counting()


def cross_entropy(output: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(output, target)


def sum_loss(output: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(output, target, reduction="sum")


def vector_loss(output: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(output, target, reduction="none")


def make_data() -> Dataset[Any]:
    inputs = torch.randn(80, 8)
    return TensorDataset(inputs, inputs[:, :3].argmax(1))


class Items(Dataset[Any]):
    """A dataset that is not a TensorDataset."""

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> Any:
        return torch.full((8,), float(index)), index % 3


class Ragged(Items):
    def __getitem__(self, index: int) -> Any:
        return torch.zeros(index), index % 3


def make_empty() -> Dataset[Any]:
    return TensorDataset(torch.zeros(0, 8), torch.zeros(0))


def make_few() -> Dataset[Any]:
    return TensorDataset(torch.zeros(5, 8), torch.zeros(5, dtype=torch.long))


def make_iterator() -> Any:
    return iter([1, 2])
