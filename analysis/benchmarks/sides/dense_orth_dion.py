"""Orth-Dion in plain PyTorch, for one process that holds whole matrices (arXiv 2605.16341; card 1, EF-P with beta 1).

For a matrix X (m x n) with gradient G: ``M = G + R``, ``U = qr(M^T V)``, ``W = M U``, ``V = Q`` of ``W = Q R`` with
positive ``diag(R)``, ``X <- X - lr V U^T``, ``R = M - W U^T``. All other parameters take torch's AdamW.
"""

from __future__ import annotations

import torch
from torch import Tensor

from simdist.program.random import normal

BETAS = (0.9, 0.95)


class DenseOrthDion:
    """Orth-Dion on hidden matrices, AdamW on the rest.

    Args:
        matrices: by name, which keys the first V as in simdist's rule, so that both train alike.
        others: everything else.
        rank: columns of both factors.
        lr: of both rules.
    """

    def __init__(self, matrices: dict[str, Tensor], others: list[Tensor], rank: int, lr: float) -> None:
        self._matrices, self._lr = matrices, lr
        self._residuals = {name: torch.zeros_like(x) for name, x in matrices.items()}
        self._bases = {
            name: torch.linalg.qr(normal((x.shape[0], rank), 0, f"V/{name}").to(x))[0] for name, x in matrices.items()
        }
        self._auxiliary = torch.optim.AdamW(others, lr=lr, betas=BETAS, weight_decay=0.0, fused=True)

    @torch.no_grad()
    def step(self) -> None:
        """Update all parameters from their gradients."""
        self._auxiliary.step()
        for name, x in self._matrices.items():
            assert x.grad is not None
            m = x.grad + self._residuals[name]
            u = torch.linalg.qr(m.T @ self._bases[name])[0]
            w = m @ u
            q, r = torch.linalg.qr(w)
            v = q * torch.where(r.diagonal() >= 0, 1.0, -1.0)
            x.sub_(v @ u.T, alpha=self._lr)
            self._residuals[name] = m - w @ u.T
            self._bases[name] = v

    def zero_grad(self) -> None:
        """Forget the gradients."""
        self._auxiliary.zero_grad()
        for x in self._matrices.values():
            x.grad = None
