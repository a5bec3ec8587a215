"""Whole matrices out of sharded stacks: who works on them, and what travels for it (card 5).

Shapes, with c = length of the stack, m x n the matrices, rows = ceil(m / F), F shards, R replicas. A rule calls
:func:`collect`, applies its kernel to the matrices that this worker got, and calls :func:`hand_back`:

- ``owner``: each member of the shard group works on c / F whole matrices. An all-to-all carries the rows there and
  another carries the results back: ``2 (F-1)/F * c rows n`` numbers per worker, that is ``2 (F-1)/F^2 * m n`` a
  matrix. Without shards (DDP) the replicas share the work round robin, since each holds all rows already: only the
  results are all-gathered, ``(R-1)/R * m n`` a matrix.
- ``gather``: every worker all-gathers the rows over its shards, ``(F-1)/F * m n``, and repeats the work; nothing goes
  back. Without shards nothing travels at all.
- ``replicated``: ``gather`` without shards, under its own name: every DDP worker repeats the work, nothing travels.

Under HSDP either happens inside the shard group, and replicas repeat it.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor
from torch.nn.functional import pad

from simdist.errors import InputError
from simdist.optimizers.rule import MeshShape
from simdist.program import Axis, Worker
from simdist.program.requests import Wire

Form = Literal["owner", "gather", "replicated"]


def stack_multiple(form: Form, mesh: MeshShape) -> int:
    """Return what a stack's length must be a multiple of (see :meth:`Rule.multiple`): owners get equally many."""
    return mesh.owners if form == "owner" else 1


def check_form(form: Form, mesh: MeshShape) -> None:
    """Raise InputError where a form is not to be had on this mesh (see :meth:`Rule.check`)."""
    if form == "replicated" and mesh.shards > 1:
        raise InputError(
            f"got optimizer.form replicated on {mesh.shards} shards; expected a mesh without shards (DDP), where each "
            "worker holds whole matrices; write optimizer.form: gather to collect them first, or owner to deal them out"
        )


def owners(worker: Worker) -> Axis:
    """Return the axis over which whole matrices are dealt out: shards, or replicas under plain DDP."""
    shards = worker.mesh.shards
    return shards if shards.size > 1 else worker.mesh.replicas


def dealt(form: Form, value: Tensor, worker: Worker) -> Tensor:
    """Return this worker's part of a value that all workers hold: ``[..., c, a, b]``, an entry for each matrix.

    What it returns belongs, entry by entry, to the matrices that :func:`collect` returns.
    """
    return owners(worker).share(value, dim=-3) if form == "owner" else value


async def collect(form: Form, x: Tensor, worker: Worker, *, rows: int | None = None, part: str = "momentum") -> Tensor:
    """Return whole matrices ``[..., mine, m, n]`` from this worker's rows ``[..., c, rows, n]`` of each.

    ``mine`` is c over the number of owners in the form ``owner``, else c; book the kernel's FLOPs ``mine`` times.

    Args:
        form: see the module's docstring.
        x: this worker's rows of every matrix of the stack.
        worker: labelled for the ledger.
        rows: m, to cut off the padding rows at the end (kernels then see the same matrix on every mesh); None keeps
            all rows, in the order of the shards.
        part: name of what travels, for the ledger.
    """
    shards = worker.mesh.shards
    if form == "owner" and shards.size > 1:
        x = await shards.all_to_all(x, split_dim=-3, concat_dim=-2, part=part)
    elif form == "owner":
        x = worker.mesh.replicas.share(x, dim=-3)
    else:
        x = await shards.all_gather(x, dim=-2, part=part)
    return x if rows is None else x[..., :rows, :]


async def hand_back(
    form: Form, whole: Tensor, worker: Worker, *, rows: int, part: str = "update", wire: Wire | None = None
) -> Tensor:
    """Return this worker's rows ``[..., c, rows, n]`` of results ``[..., mine, m, n]``: the inverse of :func:`collect`.

    Args:
        form: see the module's docstring.
        whole: results for the matrices that :func:`collect` returned.
        worker: labelled for the ledger.
        rows: what one worker holds (:attr:`Stack.rows`); padding rows come back as zeros.
        part: name of what travels, for the ledger.
        wire: kind of payload; None takes the worker's own (``factors`` for rules).
    """
    shards = worker.mesh.shards
    whole = pad(whole, (0, 0, 0, shards.size * rows - whole.shape[-2]))
    if form == "owner" and shards.size > 1:
        mine: Tensor = await shards.all_to_all(whole, split_dim=-2, concat_dim=-3, part=part, wire=wire)
    elif form == "owner":
        mine = await worker.mesh.replicas.all_gather(whole, dim=-3, part=part, wire=wire)
    else:
        mine = shards.share(whole, dim=-2)
    return mine
