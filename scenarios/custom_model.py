"""Your own model, loss and data: three functions in the scenario file. Here a small MLP tells three spirals apart.

    simdist run scenarios/custom_model.py                            # one coroutine per worker, in this process
    simdist run scenarios/custom_model.py --engine ray               # the same bits from Ray actors
    simdist run scenarios/custom_model.py --engine stacked           # all workers as one batch of tensors
    simdist run scenarios/custom_model.py --set optimizer.name=adamw --set optimizer.lr=0.01

The saved scenario.yaml names the functions by this file's path, so `simdist run runs/custom-model` repeats the run.
"""

import math

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from simdist import Scenario
from simdist.devices import ComputeSettings
from simdist.network import Star
from simdist.optimizers import AdamW, Muon
from simdist.scenario import EvaluationSettings, MeshSettings
from simdist.workloads import ModuleWorkload

CLASSES = 3
WIDTH = 48


class SpiralNet(nn.Module):
    """Points in the plane to class scores, through residual blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.inlet = nn.Linear(2, WIDTH)
        # Each element of a ModuleList (or Sequential) is gathered and freed by itself: an FSDP unit.
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH))
            for _ in range(2)
        )
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, points: Tensor) -> Tensor:
        x = self.inlet(points)
        for block in self.blocks:
            x = x + block(x)
        scores: Tensor = self.head(x)
        return scores


def make_model() -> nn.Module:
    """Random numbers drawn here come from the run's seed."""
    return SpiralNet()


def loss(scores: Tensor, classes: Tensor) -> Tensor:
    """The mean over the batch of what the model returned against the last tensor of the data."""
    return nn.functional.cross_entropy(scores, classes)


def make_data() -> TensorDataset:
    """Points on three noisy spirals. Inputs first, target last; a tenth of the data is kept for validation."""
    classes = torch.arange(3000) % CLASSES
    radius = torch.rand(3000)
    angle = 2 * math.pi * (classes / CLASSES + radius) + 0.1 * torch.randn(3000)
    points = radius[:, None] * torch.stack([angle.cos(), angle.sin()], dim=1)
    return TensorDataset(2 * points, classes)


def scenario() -> Scenario:
    return Scenario(
        name="custom-model",
        steps=150,
        workload=ModuleWorkload(
            model=make_model,
            loss=loss,
            dataset=make_data,
            batch=32,
            # Roles decide which parameters Muon treats as matrices; the 48 x 2 inlet is better off with AdamW.
            roles={"inlet.weight": "embedding"},
        ),
        mesh=MeshSettings(replicas=2, shards=2),
        optimizer=Muon(lr=0.01, auxiliary=AdamW(lr=5e-3)),
        network=Star(bandwidth="100Mbit/s", latency="1ms"),
        compute=ComputeSettings(device="cpu-core"),
        evaluation=EvaluationSettings(every=25),
    )
