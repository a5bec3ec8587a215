"""What low-rank spectral rules note about themselves (card 1); measuring costs no bytes and no time."""

from __future__ import annotations

import torch
from torch import Tensor

from simdist.optimizers.rule import Stack
from simdist.program import Worker


async def observe_low_rank(
    stack: Stack,
    worker: Worker,
    grad: Tensor,
    gathered: Tensor,
    captured: Tensor,
    buffer: Tensor,
    w: Tensor,
    vbar: Tensor,
) -> None:
    """Note one row per real matrix.

    - ``nu``: ||Vbar||_op = ||U Vbar^T||_op; 1 for orthonormal factors, in [1, sqrt r] for unit columns;
    - ``residual_ratio``: ||R||_F / ||G||_F, the buffer after the step over this step's gradient;
    - ``tracking_error``: eps_hat = ||M - W U^T||_F / ||M||_F, the share of M outside the tracked subspace;
    - ``sign_fraction``: share of columns with <w_j, vbar_j> < 0, that is, of ascent steps;
    - ``effective_rank``: exp(entropy of ||w_j|| / sum ||w||), as rank controllers use it (card 2).

    Where replicas keep their own buffers, squared norms are averaged over them. Ratios of zeros are zero.

    Args:
        stack: names and count; dummies are not noted.
        worker: the handle whose mesh is used and that takes the note.
        grad: G, ``[..., c, rows, n]``.
        gathered: M = G + R of before the step, same shape.
        captured: W U^T, same shape.
        buffer: R of after the step, same shape.
        w: W, ``[..., c, rows, r]``.
        vbar: the right factor of the update, like ``w``.
    """
    mesh = worker.mesh.measuring()
    # every term takes part in M = G + R, so all have the leading worker axes of M but perhaps the gradient
    norms = [t.expand_as(gathered).double().square() for t in (buffer, grad, gathered - captured, gathered)]
    squares = torch.stack([norm.sum(dim=(-2, -1)) for norm in norms], dim=-1)
    squares = await mesh.replicas.mean(await mesh.shards.sum(squares))
    w, vbar = w.double(), vbar.double()
    gram = await mesh.replicas.mean(await mesh.shards.sum(vbar.mT @ vbar))
    columns = torch.stack([(w * vbar).sum(dim=-2), w.square().sum(dim=-2)], dim=-1)
    columns = await mesh.replicas.mean(await mesh.shards.sum(columns))

    # a diverged matrix must reach the run's own check of the loss, not stop here in an eigenvalue routine
    finite = torch.isfinite(gram).all(dim=-1).all(dim=-1)
    largest = torch.linalg.eigvalsh(gram.nan_to_num(0.0, 0.0, 0.0))[..., -1].clamp(min=0)
    nu = torch.where(finite, largest.sqrt(), torch.nan)
    residual, tracking = _ratio(squares[..., 0], squares[..., 1]), _ratio(squares[..., 2], squares[..., 3])
    sign = (columns[..., 0] < 0).double().mean(dim=-1)
    lengths = columns[..., 1].sqrt() + 1e-300  # zero columns have no share in the entropy
    shares = lengths / lengths.sum(dim=-1, keepdim=True)
    erank = torch.special.entr(shares).sum(dim=-1).exp()
    for i, name in enumerate(stack.names):
        worker.observe(
            matrix=name,
            nu=nu[..., i],
            residual_ratio=residual[..., i],
            tracking_error=tracking[..., i],
            sign_fraction=sign[..., i],
            effective_rank=erank[..., i],
        )


def _ratio(above: Tensor, below: Tensor) -> Tensor:
    return torch.where(below > 0, above / torch.where(below > 0, below, torch.ones_like(below)), 0.0).sqrt()
