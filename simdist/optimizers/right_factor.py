"""The right factor of a low-rank spectral update: what becomes of ``W = M U`` before ``X <- X - lr U Vbar^T``.

W is ``[..., c, rows, r]``, its rows sharded. Each entry of :data:`RIGHT_FACTORS` is an algorithm with its FLOPs and the
settings that it reads; a new one joins by one line there and one in :data:`RightFactorName`. Card 1 lists the family.
Bytes beyond Dion's factors, sent per worker and matrix with F shards (4-byte statistics):

- ``qr_pos``, ``polar``, ``interp``: an r x r Gram all-reduce per pass, ``2 (F-1)/F 4 r^2``, or with
  ``orthonormalization: all_to_all`` W to its owner and back, ``2 (F-1)/F^2 m r`` factor numbers;
- ``block_qr``: the diagonal blocks of that Gram matrix, ``2 (F-1)/F 4 ceil(r/k) k^2`` a pass;
- ``colnorm``: an all-reduce of r squared column norms, ``2 (F-1)/F 4 r``;
- ``qr_raw``, and ``block_qr`` with raw signs: an all-gather of W, ``(F-1)/F`` of F rows r factor numbers;
- ``exact_svd``: see :mod:`simdist.optimizers.exact_svd`; it takes the place of both factors.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from pydantic import model_validator
from torch import Tensor
from torch.nn.functional import pad

from simdist.linalg.orthonormalize import leading, nonzero
from simdist.linalg.positive_qr import PositiveQR, interpolated, polar_of
from simdist.optimizers.exact_svd import exact_svd, exact_svd_flops
from simdist.optimizers.sharded_qr import GramPasses, Place, by_owners, gram_qr, pass_flops, qr_flops, statistic
from simdist.settings import Fraction, PositiveInt, Settings

RightFactorName = Literal["qr_pos", "colnorm", "polar", "interp", "block_qr", "qr_raw", "exact_svd"]


class Factor(NamedTuple):
    """``update``: Vbar of the step, zero where there is nothing to go by; ``basis``: the V of the next step.

    ``squares``: squared column norms of the whole W, ``[..., c, 1, r]``, where they are known without asking.
    """

    update: Tensor
    basis: Tensor
    squares: Tensor | None = None


class RightFactorSettings(Settings):
    """The choice of a right factor; a setting that the chosen one does not read is refused.

    ``right_factor``, for W = M U:

    - ``qr_pos``: Q of W = Q R with positive diag(R) (Orth-Dion);
    - ``colnorm``: ``w_j / (||w_j|| + 1e-8)`` (Dion); unit columns that are not orthogonal;
    - ``polar``: ``W (W^T W)^(-1/2)``;
    - ``interp``: ``W ((1-tau) diag(W^T W) + tau W^T W)^(-1/2)``; ``tau`` 0 is colnorm, 1 is polar;
    - ``block_qr``: QR of each ``block`` consecutive columns by themselves, with ``signs`` fixed as in qr_pos, or raw;
    - ``qr_raw``: Householder's Q with its signs as they fall: half of the columns climb. To reproduce that failure;
    - ``exact_svd``: the r largest singular pairs of M in place of both factors; the oracle of the family.

    ``orthonormalization`` says how sharded rows are orthonormalised by qr_pos, polar and interp: ``gram``, an
    all-reduced Gram matrix (block_qr too), or ``all_to_all``, by owners of whole matrices. exact_svd is repeated by
    every worker, or with ``all_to_all`` done by owners. ``gram_passes``: 2 is CholeskyQR2; 1 halves the Gram bytes and
    loses orthogonality with the squared condition of W; ``auto`` decides by the Gram matrix
    (:func:`simdist.optimizers.sharded_qr.gram_qr`).
    """

    right_factor: RightFactorName = "qr_pos"
    orthonormalization: Literal["gram", "all_to_all"] = "gram"
    gram_passes: GramPasses = 2
    tau: Fraction | None = None
    block: PositiveInt | None = None
    signs: Literal["fixed", "raw"] = "fixed"

    @model_validator(mode="after")
    def _only_what_is_read(self) -> RightFactorSettings:
        reads = RIGHT_FACTORS[self.right_factor].reads
        for name in ("orthonormalization", "gram_passes", "tau", "block", "signs"):
            got, default = getattr(self, name), RightFactorSettings.model_fields[name].default
            if name not in reads and got != default:
                readers = [other for other, factor in RIGHT_FACTORS.items() if name in factor.reads]
                raise ValueError(
                    f"got {name} {got} with right_factor {self.right_factor}, which does not read it; expected "
                    f"{name} with right_factor {', '.join(readers)} only: leave {name} out"
                )
            if name in ("tau", "block") and name in reads and got is None:
                example = {"tau": 0.5, "block": 8}[name]
                raise ValueError(
                    f"got right_factor {self.right_factor} without {name}; expected both: write {name}={example}"
                )
        idle = "orthonormalization all_to_all" if self.orthonormalization == "all_to_all" else ""
        idle = "signs raw" if self.signs == "raw" else idle
        if idle and self.gram_passes != RightFactorSettings.model_fields["gram_passes"].default:
            raise ValueError(
                f"got gram_passes {self.gram_passes} with {idle}, which forms no Gram matrix; leave gram_passes out"
            )
        return self


@dataclass(frozen=True)
class Setting:
    """What an algorithm may need besides W: the user's choice, and where the stack stands."""

    choice: RightFactorSettings
    place: Place


@dataclass(frozen=True)
class RightFactor:
    """A factor made from W.

    Attributes:
        apply: turns (W, V of the last step, setting) into a :class:`Factor`.
        flops: operations of one worker and matrix, from (rows, r, setting).
        reads: the names of the settings that it reads.
    """

    apply: Callable[[Tensor, Tensor, Setting], Awaitable[Factor]]
    flops: Callable[[int, int, Setting], float]
    reads: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Oracle:
    """Both factors made from M itself.

    Attributes:
        apply: turns (M, V of the last step, setting) into (U, :class:`Factor`).
        flops: operations of one worker and matrix, from (rows, r, setting).
        reads: the names of the settings that it reads.
    """

    apply: Callable[[Tensor, Tensor, Setting], Awaitable[tuple[Tensor, Factor]]]
    flops: Callable[[int, int, Setting], float]
    reads: frozenset[str] = frozenset()


def _core(setting: Setting) -> Callable[[Tensor], Tensor] | None:
    """Return what to make of R, so that Q times it is the right factor; None where that is Q itself."""
    choice = setting.choice
    if choice.right_factor == "polar":
        return polar_of
    if choice.right_factor == "interp":
        assert choice.tau is not None
        tau = choice.tau
        return lambda upper: interpolated(upper, tau)
    return None


async def _from_qr(w: Tensor, v: Tensor, setting: Setting) -> Factor:
    """Q of W = Q R with positive diag(R), times what the choice makes of R.

    <M, U Q^T> = trace(R): with signs left free, as Householder QR leaves them, half of the columns would be ascent
    steps. R comes from Gram matrices whose bits all workers share, and so do the singular vectors that polar and
    interp take from it.
    """
    core = _core(setting)

    def make(qr: PositiveQR) -> Tensor:
        return qr.q if core is None else qr.q @ core(qr.upper)

    if setting.choice.orthonormalization == "all_to_all":
        update, keep = await by_owners(w, make, setting.place)
        return Factor(update, torch.where(keep, update, v))
    found = await gram_qr(w, setting.choice.gram_passes, setting.place)
    update = make(PositiveQR(found.q, found.upper, found.keep)).to(w.dtype)
    # A column of W that is no more than noise says nothing: it moves no parameter, and the basis keeps its old one.
    return Factor(
        torch.where(found.keep, update, torch.zeros_like(update)), torch.where(found.keep, update, v), found.squares
    )


def _from_qr_flops(rows: int, r: int, setting: Setting) -> float:
    choice, place = setting.choice, setting.place
    # polar and interp: singular values and vectors of an r x r or 2r x r triangle (about 20 and 30 r^3), and Q times it
    core = {"polar": 20.0 * r**3 + 2.0 * rows * r * r, "interp": 30.0 * r**3 + 2.0 * rows * r * r}
    beyond = core.get(choice.right_factor, 0.0)
    if choice.orthonormalization == "all_to_all":
        return (qr_flops(place.m, r) + beyond) / place.shards.size
    # what "auto" does beyond the first pass is booked when it is done
    return (2 if choice.gram_passes == 2 else 1) * pass_flops(rows, r) + beyond


async def _colnorm(w: Tensor, v: Tensor, setting: Setting) -> Factor:
    """Dion's column normalisation, w_j / (||w_j|| + 1e-8); unit columns, but not orthogonal ones."""
    squares = statistic(w.double().square().sum(dim=-2, keepdim=True), like=w)
    squares = await setting.place.shards.sum(squares, part="norms", wire="statistics")
    finite = torch.isfinite(squares).all(dim=-1, keepdim=True)
    scaled = torch.where(finite, w / (squares.sqrt() + 1e-8).to(w.dtype), torch.zeros_like(w))
    known = finite & (squares > 0).any(dim=-1, keepdim=True)
    return Factor(scaled, torch.where(known, scaled, v), squares)


async def _block_qr(w: Tensor, v: Tensor, setting: Setting) -> Factor:
    """QR of consecutive blocks of columns; the last block may be narrower, and is sent with columns of zeros."""
    choice, low_rank = setting.choice, w.shape[-1]
    assert choice.block is not None
    k = min(choice.block, low_rank)

    def blocks(x: Tensor) -> Tensor:
        padded: Tensor = pad(x, (0, -low_rank % k))
        cut: Tensor = padded.unflatten(-1, (-1, k)).movedim(-2, -3)
        return cut

    def joined(x: Tensor) -> Tensor:
        columns: Tensor = x.movedim(-3, -2).flatten(-2)[..., :low_rank]
        return columns

    if choice.signs == "raw":
        return await _householder(w, v, setting, blocks, joined)
    found = await gram_qr(blocks(w), choice.gram_passes, setting.place, blocks=True)
    update, keep = joined(found.q).to(w.dtype), joined(found.keep)
    return Factor(update, torch.where(keep, update, v), joined(found.squares))


async def _qr_raw(w: Tensor, v: Tensor, setting: Setting) -> Factor:
    """Householder QR of the gathered W with its signs as they fall: the published failure, kept for the record."""
    return await _householder(w, v, setting, lambda x: x, lambda x: x)


async def _householder(
    w: Tensor, v: Tensor, setting: Setting, split: Callable[[Tensor], Tensor], join: Callable[[Tensor], Tensor]
) -> Factor:
    place = setting.place
    whole = await place.shards.all_gather(w, dim=-2, part="W")
    q = join(torch.linalg.qr(split(whole[..., : place.m, :])).Q)
    keep = leading(whole)
    q = torch.where(keep, q, torch.zeros_like(q))
    q = place.shards.share(pad(q, (0, 0, 0, whole.shape[-2] - place.m)), dim=-2)
    return Factor(q, torch.where(nonzero(whole), q, v), whole.double().square().sum(dim=-2, keepdim=True))


async def _exact_svd(m: Tensor, v: Tensor, setting: Setting) -> tuple[Tensor, Factor]:
    owners = setting.choice.orthonormalization == "all_to_all"
    pairs = await exact_svd(m, v.shape[-1], owners, setting.place)
    return pairs.left, Factor(pairs.right, torch.where(pairs.keep, pairs.right, v), pairs.squares)


def _block_flops(rows: int, r: int, setting: Setting) -> float:
    assert setting.choice.block is not None
    k = min(setting.choice.block, r)
    if setting.choice.signs == "raw":
        return -(-r // k) * qr_flops(setting.place.m, k)
    return -(-r // k) * (2 if setting.choice.gram_passes == 2 else 1) * pass_flops(rows, k)


_BY_QR = frozenset({"orthonormalization", "gram_passes"})

RIGHT_FACTORS: dict[RightFactorName, RightFactor | Oracle] = {
    "qr_pos": RightFactor(_from_qr, _from_qr_flops, _BY_QR),
    # square, add, divide
    "colnorm": RightFactor(_colnorm, lambda rows, r, s: 3.0 * rows * r),
    "polar": RightFactor(_from_qr, _from_qr_flops, _BY_QR),
    "interp": RightFactor(_from_qr, _from_qr_flops, _BY_QR | {"tau"}),
    "block_qr": RightFactor(_block_qr, _block_flops, frozenset({"gram_passes", "block", "signs"})),
    # of the whole W on every worker
    "qr_raw": RightFactor(_qr_raw, lambda rows, r, s: qr_flops(s.place.m, r)),
    "exact_svd": Oracle(
        _exact_svd,
        lambda rows, r, s: exact_svd_flops(s.place, s.choice.orthonormalization == "all_to_all"),
        frozenset({"orthonormalization"}),
    ),
}

__all__ = ["RIGHT_FACTORS", "Factor", "Oracle", "RightFactor", "RightFactorName", "RightFactorSettings", "Setting"]
