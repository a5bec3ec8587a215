"""What EF21-Muon notes about itself (card 16); measuring costs no bytes and no time."""

from __future__ import annotations

import torch
from torch import Tensor

from simdist.optimizers.rule import Stack
from simdist.program import Worker
from simdist.program.audit import audit


async def observe_estimates(stack: Stack, worker: Worker, momentum: Tensor, own: Tensor, estimate: Tensor) -> None:
    """Note one row per real matrix, of after the step; all arguments are this worker's rows ``[..., c, rows, n]``.

    - ``estimate_error``: ``||G - mean M_j||_F / ||mean M_j||_F``, what compression still owes;
    - ``invariant``: ``||G - mean G_j||_F / ||G||_F``: rounding only;
    - ``condition``, ``condition_exact``: smallest over largest singular value of G, and of mean M_j: directions near
      zero take full steps, whatever is in them;
    - ``state_norm``, ``state_drift``: :func:`simdist.program.audit.audit` of the G_j over replicas.

    Ratios of zeros are zero.
    """
    mesh = worker.mesh.measuring()
    wanted, middle = await mesh.replicas.mean(momentum.double()), await mesh.replicas.mean(own.double())
    found = estimate.double()
    parts = (found - wanted, wanted, found - middle, found)
    squares = [await mesh.shards.sum(part.square().sum((-2, -1))) for part in parts]
    conditions = []
    for rows in (found, wanted):
        whole = await mesh.shards.all_gather(rows, -2)
        conditions.append(_condition(whole[..., : stack.shape[0], :]))
    state = await audit(worker, own)
    columns = {
        "estimate_error": _ratio(squares[0], squares[1]).sqrt(),
        "invariant": _ratio(squares[2], squares[3]).sqrt(),
        "condition": conditions[0],
        "condition_exact": conditions[1],
        "state_norm": state.norm,
        "state_drift": state.drift,
    }
    for i, name in enumerate(stack.names):
        worker.observe(matrix=name, **{key: value[..., i] for key, value in columns.items()})


def _condition(x: Tensor) -> Tensor:
    """Return the smallest over the largest singular value; NaN where a matrix is not finite."""
    finite = x.isfinite().all(-1).all(-1)
    values = torch.linalg.svdvals(torch.where(finite[..., None, None], x, 0))
    return torch.where(finite, _ratio(values[..., -1], values[..., 0]), torch.nan)


def _ratio(above: Tensor, below: Tensor) -> Tensor:
    some = below > 0
    return torch.where(some, above / torch.where(some, below, 1), 0)
