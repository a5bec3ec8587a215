"""How far the members of a group are apart in what should be one value: a measurement, free of bytes and time."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from simdist.program.worker import Worker


class Audit(NamedTuple):
    """Per thing that was audited; the shape of the tensor without the dims that make up one thing.

    Attributes:
        norm: Frobenius norm of the members' mean.
        drift: root mean square over members of the norm of (member - mean), divided by ``norm``. Zero where all
            members are equal; infinite where they differ and their mean is zero.
    """

    norm: Tensor
    drift: Tensor


async def audit(
    worker: Worker, x: Tensor, *, over: Literal["replicas", "workers"] = "replicas", dims: int = 2
) -> Audit:
    """Return the norm of the mean of ``x`` over the members, and their deviation from it.

    Args:
        worker: the handle whose mesh is used; with ``measuring`` purpose, whatever its label.
        x: this worker's part. ``over="replicas"``: its rows (shards hold the others), compared with the same rows of
            the other replicas. ``over="workers"``: a whole thing of its own, compared with every other worker's.
        dims: how many trailing dims make up one thing.
    """
    assert 0 < dims <= x.ndim
    mesh, own = worker.mesh.measuring(), x.double()
    members = mesh.replicas if over == "replicas" else mesh.workers
    inner = tuple(range(-dims, 0))
    mean = await members.mean(own)
    deviation = await members.mean((own - mean).square().sum(dim=inner))
    square = mean.square().sum(dim=inner)
    if over == "replicas":
        deviation, square = await mesh.shards.sum(deviation), await mesh.shards.sum(square)
    norm, apart = square.sqrt(), deviation.sqrt()
    drift = torch.where(apart > 0, apart / norm, torch.zeros_like(apart))
    return Audit(norm, drift)
