"""Your own optimizer: a class in the scenario file, here momentum that is normalised matrix by matrix.

    simdist run scenarios/custom_optimizer.py                        # one coroutine per worker, in this process
    simdist run scenarios/custom_optimizer.py --engine ray           # the same bits from Ray actors
    simdist run scenarios/custom_optimizer.py --engine stacked       # all workers as one batch of tensors
    simdist run scenarios/custom_optimizer.py --set optimizer.lr=0.01 --set optimizer.mu=0.9

The saved scenario.yaml names the class by this file's path, so `simdist run runs/custom-optimizer` repeats the run.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from simdist import Scenario
from simdist.devices import ComputeSettings
from simdist.network import Star
from simdist.optimizers import AdamW, Rule, Stack
from simdist.program import Worker
from simdist.scenario import MeshSettings
from simdist.workloads import ByteGPT


class State(NamedTuple):
    """What the rule remembers from step to step; a tuple of tensors."""

    momentum: Tensor


class NormalizedMomentum(Rule):
    """Momentum divided by its root mean square over the whole matrix (normalised SGD, Cutkosky & Mehta 2020).

    ``M <- mu M + (1 - mu) G``; ``X <- (1 - lr wd) X - lr sqrt(m n) M / ||M||_F``. Hidden matrices only; embeddings,
    head and norms go to ``auxiliary``.
    """

    # The fields are the hyper-parameters: `--set optimizer.mu=0.9`. `lr` and `weight_decay` come with Rule.
    name: str = "normalized_momentum"
    mu: float = 0.95
    auxiliary: AdamW = AdamW(lr=3e-3)

    def rule_for(self, role: str) -> Rule:
        return self if role == "matrix" else self.auxiliary

    def init(self, stack: Stack, x: Tensor, worker: Worker) -> State:
        return State(torch.zeros_like(x))

    async def update(
        self, stack: Stack, x: Tensor, grad: Tensor, state: Any, lr: float, worker: Worker
    ) -> tuple[Tensor, State]:
        # x and grad are [..., count, rows, n]: this worker's rows of a stack of matrices of equal shape. What stands
        # in front depends on the engine, so dimensions are counted from the end. The gradient is averaged already.
        momentum = self.mu * state.momentum + (1 - self.mu) * grad

        # The norm needs the rows of all shards. This is how communication is asked for: one `await` on a mesh axis.
        # What really travels is encoded by `wire.statistics`, takes simulated time, and stands in ledger.parquet as
        # an all_reduce on `shards` with purpose `optimizer` and tensor `<matrices>:norm`: 4 bytes per matrix here.
        mine = momentum.square().sum(dim=(-2, -1))
        squares = await worker.mesh.shards.sum(mine, part="norm", wire="statistics")

        m, n = stack.shape
        scale = (m * n / squares.clamp(min=1e-20)).sqrt()[..., None, None]
        # Simulated time also needs the work: about eight operations per number of this worker's rows.
        await worker.compute(8.0 * stack.local_numel, "normalized_momentum")
        return self.decayed(stack, x, lr) - lr * scale * momentum, State(momentum)


def scenario() -> Scenario:
    return Scenario(
        name="custom-optimizer",
        steps=60,
        workload=ByteGPT(width=64, depth=2, heads=4, context=64, batch=8),
        # HSDP: two replicas of two shards
        mesh=MeshSettings(replicas=2, shards=2),
        optimizer=NormalizedMomentum(lr=4e-3, weight_decay=0.1),
        network=Star(bandwidth="100Mbit/s", latency="1ms"),
        compute=ComputeSettings(device="rtx4090"),
    )
