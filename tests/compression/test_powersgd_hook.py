"""Our PowerSGD makes of the same gradients what PyTorch's own hook makes of them, on two gloo processes.

The hook differs in what does not show: it orthonormalises Q before using it (only its span counts), draws its first Q
from a stream of its own (put into our memory below), and puts the tensors that it does not compress, whose "errors"
have the mean zero, through the error memory as well.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from simdist.compression import PowerSGD
from simdist.program import MeshShape
from simdist.workloads.workload import ParamSpec, Unit
from tests.compression import powersgd_hook
from tests.compression.harness import feed
from tests.compression.powersgd_hook import SHAPES, gradients

#: the hook's first steps are plain by force: DDP rebuilds its buckets then
START, STEPS, WORKERS = 2, 7, 2
UNIT = Unit("all", tuple(ParamSpec(name, shape, "vector") for name, shape in SHAPES.items()), 0.0, 0.0, root=True)


RATE = 1.2
#: settings of the hook
VARIANTS: dict[str, dict[str, Any]] = {
    "defaults": {"matrix_approximation_rank": 2},
    "without error feedback": {"matrix_approximation_rank": 1, "use_error_feedback": False},
    "cold start": {"matrix_approximation_rank": 2, "warm_start": False},
}


@pytest.fixture(scope="module")
def hook(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What the hook made of the gradients, by rank and variant."""
    folder = tmp_path_factory.mktemp("hook")
    common = {"start_powerSGD_iter": START, "min_compression_rate": RATE}
    text = json.dumps({key: {**common, **settings} for key, settings in VARIANTS.items()})
    ranks = [
        subprocess.Popen(
            [sys.executable, powersgd_hook.__file__, str(folder), str(rank), str(STEPS), text],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for rank in range(WORKERS)
    ]
    try:
        outputs = [process.communicate(timeout=120)[0].decode() for process in ranks]
    finally:
        for process in ranks:
            process.kill()
            process.wait()
    assert [process.returncode for process in ranks] == [0] * WORKERS, outputs
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(WORKERS)]


def first_factors(rank: int, order: list[str], numpy_seed: int = 0, draws: int = 1) -> dict[str, Tensor]:
    """Return the Q's that the hook draws the ``draws``-th time: one seed for all, in the order of its buckets."""
    seeds = np.random.RandomState(numpy_seed)
    for _ in range(draws):
        seed = seeds.randint(1_000_000_000)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        found = {}
        for name in order:
            shape = SHAPES[name]
            if len(shape) > 1:
                found[name] = torch.randn(1, int(np.prod(shape[1:])), rank, dtype=torch.float64)[0]
    return found


def ours(method: PowerSGD, factors: list[dict[str, Tensor]]) -> Any:
    """Run our method with the hook's Q's put in before step START + 1 (and, if more are given, before each after)."""

    def between(step: int, memories: Any, fresh: Any) -> Any:
        at = step - START - 1
        if not 0 <= at < len(factors):
            return memories
        return {key: state._replace(right=factors[at][key.partition("/")[2]]) for key, state in memories.items()}

    return feed(
        method,
        MeshShape(WORKERS, 1),
        lambda name, step, worker: gradients(step - 1, worker)[name],
        steps=STEPS,
        between=between,
        units=(UNIT,),
    )


@pytest.mark.parametrize("key", VARIANTS)
def test_gradients_are_those_of_pytorchs_hook(hook: list[dict[str, Any]], key: str) -> None:
    settings, theirs = VARIANTS[key], [ranks[key] for ranks in hook]
    rank, cold = settings["matrix_approximation_rank"], not settings.get("warm_start", True)
    # DDP's buckets begin with the parameters whose gradients are ready first: the last ones
    order = theirs[0]["order"][::-1]
    # a cold start is a warm one whose Q's are replaced in every step
    factors = [first_factors(rank, order, draws=i + 1) for i in range(STEPS - START if cold else 1)]
    method = PowerSGD(rank=rank, start=START, min_rate=RATE, error_feedback=settings.get("use_error_feedback", True))
    fed = ours(method, factors)
    for step in range(STEPS):
        for worker in range(WORKERS):
            for name in SHAPES:
                mine, other = fed.means[step][worker][name], theirs[worker]["reduced"][step][name]
                torch.testing.assert_close(mine, other, rtol=0, atol=1e-10)
    plain = torch.stack([gradients(STEPS - 1, worker)["matrix"] for worker in range(WORKERS)]).mean(0)
    assert float((theirs[0]["reduced"][-1]["matrix"] - plain).abs().max()) > 0.1, "the hook does compress"


@pytest.mark.parametrize("key", VARIANTS)
def test_the_same_numbers_travel_as_under_pytorchs_hook(hook: list[dict[str, Any]], key: str) -> None:
    rank = VARIANTS[key]["matrix_approximation_rank"]
    method = PowerSGD(rank=rank, start=START, min_rate=RATE)
    compressed = [name for name, shape in SHAPES.items() if method.takes(shape)]
    assert compressed == ["matrix", "conv"]
    sizes = {op.tensor: op.payload_bytes // 8 for op in ours(method, []).collectives}
    parts = [sum(sizes[f"{name}:{part}"] for name in compressed) for part in ("P", "Q")]
    # in a step the hook all-reduces what is not compressed, then all P's, then all Q's
    assert hook[0][key]["sent"][-3:] == [sizes["unit"], *parts] == [5, 20 * rank, 22 * rank]
