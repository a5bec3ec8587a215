"""What low-rank spectral rules note about themselves (card 1); measuring costs no bytes and no time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import pad

from simdist.linalg.orthonormalize import leading
from simdist.optimizers.rule import Stack
from simdist.program import Worker
from simdist.program.audit import audit

if TYPE_CHECKING:
    from simdist.optimizers.low_rank import Seen


async def observe_low_rank(stack: Stack, worker: Worker, seen: Seen, buffer: Tensor, more: dict[str, Tensor]) -> None:
    """Note one row per real matrix; ``buffer`` is R of after the step, ``[..., c, rows, n]``, ``more`` a rule's own.

    With D = U Vbar^T, P the projector on span(U), KF_r(M) the sum of the r largest singular values of M, and angles
    taken between spaces on the side of U:

    - ``nu``: ||Vbar||_op = ||D||_op; 1 for orthonormal factors, in [1, sqrt r] for unit columns;
    - ``delta``: KF_r(M) - <M, D>, what the power step leaves on the table; not negative where nu <= 1;
    - ``kf_ratio``: <M, D> / (nu KF_r(M)), at most 1: D's share of the best step of its own length;
    - ``residual_ratio``: ||R||_F / ||G||_F, the buffer after the step over this step's gradient;
    - ``reentry``: ||P R'||_F / ||G||_F with R' the buffer before the step: what was left over and now comes back;
    - ``tracking_error``: eps_hat = ||M - captured||_F / ||M||_F, the share of M outside the tracked subspace;
    - ``eps_code``: sine of the largest principal angle between span(U) and the r leading singular vectors of M;
    - ``eps_paper``: the same between the r leading singular vectors of M and those of G;
    - ``gap_ratio``: sigma_(r+1) / sigma_r of M;
    - ``sign_fraction``: share of columns with <w_j, vbar_j> < 0, that is, of ascent steps;
    - ``effective_rank``: exp(entropy of ||w_j|| / sum ||w||), as rank controllers use it (card 2);
    - ``column_norm_ratio``: longest over shortest column of W, zero columns left aside;
    - ``state_norm``, ``state_drift``: :func:`simdist.program.audit.audit` of the buffer over the replicas.

    M and G are averaged over replicas first (where replicas keep their own buffers, U and W are those of the average);
    in the ratios with R and G's norms, and in tracking_error, squared norms are averaged instead. Ratios of zeros are
    zero. Angles say nothing where singular values r and r+1 are equal. r counts U's columns, but no zero ones at its
    end.
    """
    mesh = worker.mesh.measuring()
    before = seen.gathered - seen.gradient
    # every term takes part in M = G + R, so all have the leading worker axes of M but perhaps the gradient
    terms = (buffer, seen.gradient, seen.gathered - seen.captured, seen.gathered, before @ seen.u)
    lead = torch.broadcast_shapes(*(term.shape[:-2] for term in terms))
    squares = torch.stack([t.double().square().sum(dim=(-2, -1)).expand(lead) for t in terms], dim=-1)
    squares = await mesh.replicas.mean(await mesh.shards.sum(squares))
    w, vbar = seen.w.double(), seen.vbar.double()
    gram = await mesh.replicas.mean(await mesh.shards.sum(vbar.mT @ vbar))
    columns = torch.stack([(w * vbar).sum(dim=-2), w.square().sum(dim=-2)], dim=-1)
    columns = await mesh.replicas.mean(await mesh.shards.sum(columns))
    spectrum = await _spectrum(stack, worker, seen)
    state = await audit(worker, buffer)

    nu = _largest(gram).sqrt()
    inner, ky_fan = columns[..., 0].sum(dim=-1), spectrum[..., 0]
    lengths = columns[..., 1].sqrt() + 1e-300  # zero columns have no share in the entropy
    shares = lengths / lengths.sum(dim=-1, keepdim=True)
    some = columns[..., 1] > 0
    shortest = torch.where(some, lengths, torch.inf).amin(dim=-1)
    found = {
        "nu": nu,
        "delta": ky_fan - inner,
        "kf_ratio": _ratio(inner, nu * ky_fan),
        "residual_ratio": _ratio(squares[..., 0], squares[..., 1]).sqrt(),
        "reentry": _ratio(squares[..., 4], squares[..., 1]).sqrt(),
        "tracking_error": _ratio(squares[..., 2], squares[..., 3]).sqrt(),
        "eps_code": spectrum[..., 2],
        "eps_paper": spectrum[..., 3],
        "gap_ratio": spectrum[..., 1],
        "sign_fraction": (columns[..., 0] < 0).double().mean(dim=-1),
        "effective_rank": torch.special.entr(shares).sum(dim=-1).exp(),
        "column_norm_ratio": torch.where(some.any(dim=-1), lengths.amax(dim=-1) / shortest, 0.0),
        "state_norm": state.norm,
        "state_drift": state.drift,
        **more,
    }
    for i, name in enumerate(stack.names):
        worker.observe(matrix=name, **{key: value[..., i] for key, value in found.items()})


async def _spectrum(stack: Stack, worker: Worker, seen: Seen) -> Tensor:
    """Return KF_r(M), gap ratio, eps_code and eps_paper of each matrix, ``[..., c, 4]``.

    Whole matrices are dealt out to owners, as the rule deals them.
    """
    mesh = worker.mesh.measuring()
    owners = mesh.shards if stack.mesh.shards > 1 else mesh.replicas
    u: Tensor = owners.share(seen.u.double(), dim=-3)
    active = leading(u)

    async def owned(rows: Tensor) -> tuple[Tensor, Tensor]:
        whole = await mesh.shards.all_gather(await mesh.replicas.mean(rows.double()), dim=-2)
        values, vectors = _singular(owners.share(whole, dim=-3)[..., : stack.shape[0], :])
        return values, vectors[..., : u.shape[-1]] * active

    values, of_m = await owned(seen.gathered)
    _, of_g = await owned(seen.gradient)
    ky_fan = (values[..., : u.shape[-1]] * active.squeeze(-2)).sum(dim=-1)
    count = active.sum(dim=-1)  # [..., c, 1]
    last = values.gather(-1, (count - 1).clamp(min=0)).squeeze(-1)
    beyond = pad(values, (0, 1)).gather(-1, count).squeeze(-1)
    numbers = torch.stack([ky_fan, _ratio(beyond, last), _largest_sine(u, of_m), _largest_sine(of_m, of_g)], dim=-1)
    # diagnostics are gathered along the stack: matrices become the second dim from the end
    spectrum: Tensor = await owners.all_gather(numbers, dim=-2)
    return spectrum


def _singular(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the singular values ``[..., s]`` of each matrix and its right singular vectors ``[..., n, s]``.

    A diverged matrix must reach the run's own check of the loss, not stop here: it has NaN for singular values.
    """
    finite = torch.isfinite(x).all(dim=-1).all(dim=-1)[..., None]
    _, values, vt = torch.linalg.svd(torch.where(finite.unsqueeze(-1), x, 0.0), full_matrices=False)
    return torch.where(finite, values, torch.nan), vt.mT


def _largest_sine(one: Tensor, other: Tensor) -> Tensor:
    """Return the sine of the largest principal angle between spans of orthonormal columns (zero columns: no part)."""
    outside = one - other @ (other.mT @ one)
    return _largest(outside.mT @ outside).sqrt().clamp(max=1)


def _largest(symmetric: Tensor) -> Tensor:
    """Return the largest eigenvalue of each matrix, at least zero; NaN where it is not finite."""
    finite = torch.isfinite(symmetric).all(dim=-1).all(dim=-1)
    values = torch.linalg.eigvalsh(symmetric.nan_to_num(0.0, 0.0, 0.0))[..., -1].clamp(min=0)
    return torch.where(finite, values, torch.nan)


def _ratio(above: Tensor, below: Tensor) -> Tensor:
    return torch.where(below > 0, above / torch.where(below > 0, below, torch.ones_like(below)), 0.0)
