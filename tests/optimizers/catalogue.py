"""All rules that the laws of ``test_laws*.py`` run over: one line for each rule and each variant that matters.

Add a line for a new rule; ``test_laws.py`` fails by name for a registered rule that has none. Build it with a small
rank (2, which is below half of the sides used there), ``lr=0.1`` or so. Its bytes are a closed form
of ``byte_forms.py`` or a function of (m, n, matrices, mesh) of your own.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from pytorch_optimizer import ScheduleFreeAdamW

from simdist.optimizers import (
    SGD,
    AdaDionV1,
    AdaDionV2,
    AdaDionV3,
    AdamW,
    AdaOrthDion,
    Dion,
    Dion2,
    Dion3,
    EF21Muon,
    Lion,
    Muon,
    MuonBP,
    NorMuon,
    NuMuon,
    OneBitAdam,
    OrthDion,
    Signum,
)
from simdist.optimizers.numuon import KrylovSettings
from simdist.optimizers.rank_schedule import RankSchedule
from simdist.optimizers.rule import Rule
from simdist.optimizers.torch_optimizer import torch_rule
from tests.optimizers import byte_forms as forms
from tests.optimizers.byte_forms import Form
from tests.optimizers.byte_forms_adaptive import adaptive
from tests.optimizers.byte_forms_compressed import dense_then_signs, gathered
from tests.optimizers.byte_forms_low_rank import averaged_buffers, exact_pairs, owned_right_factor
from tests.optimizers.byte_forms_submatrix import submatrix


@dataclass(frozen=True)
class Limit:
    """``rule``, a setting of the case's method in which it loses nothing, must train exactly as ``other``.

    ``shape`` is that of the matrices (the rank may have to fit); ``tolerance`` the largest difference in a parameter.
    """

    rule: Rule
    other: Rule
    tolerance: float = 1e-9
    shape: tuple[int, int] = (10, 7)


@dataclass(frozen=True)
class Case:
    """A rule and what it promises.

    Attributes:
        id: shown in test names.
        rule: an instance.
        sent: optimizer bytes sent per worker and step (four-byte numbers), the mean of the first four steps where they
            differ; None needs a reason in ``why``.
        sharded: largest difference from the unsharded run that sees the same gradients; None where a rule depends on
            the number of shards by design, which needs a reason in ``why``.
        replicated: the same for replicas that see different gradients, against one worker with their mean; None
            where each replica compresses its own gradient without being linear in it, with a reason in ``why``.
        identical: largest difference between workers that all see the same gradients and one that does; None where
            each worker draws noise of its own, with a reason in ``why``.
            Each of these three is checked when None, too: a promise that holds after all is to be made.
        scale_invariant: whether steps from a fresh state stay the same when all gradients are multiplied by a constant;
            False is checked too.
        decoupled: whether weight decay is ``(1 - lr wd)`` and nothing else; False is checked too, and needs a reason.
        same_as: limits in which nothing is lost, each a pair of rules that must agree.
        why: the reason for each None above.
    """

    id: str
    rule: Rule
    sent: Form | None = None
    sharded: float | None = 1e-10
    replicated: float | None = 1e-10
    identical: float | None = 1e-10
    scale_invariant: bool = False
    decoupled: bool = True
    same_as: tuple[Limit, ...] = ()
    why: str = ""

    def __post_init__(self) -> None:
        promises_all = None not in (self.sent, self.sharded, self.replicated, self.identical) and self.decoupled
        assert promises_all or self.why, f"{self.id}: say why a promise is None"


_GRAM = forms.low_rank(2, lambda r: 2 * r * r)

CASES: tuple[Case, ...] = (
    Case("sgd", SGD(lr=0.1), forms.nothing),
    Case("sgd nesterov", SGD(lr=0.1, momentum=0.9, nesterov=True), forms.nothing),
    Case("adamw", AdamW(lr=0.1), forms.nothing, scale_invariant=True),
    Case("muon", Muon(lr=0.1), forms.muon_owner, scale_invariant=True),
    Case(
        "muon gather",
        Muon(lr=0.1, form="gather"),
        forms.gather,
        scale_invariant=True,
        same_as=(Limit(Muon(lr=0.1, form="gather"), Muon(lr=0.1)),),
    ),
    Case(
        "muon svd",
        Muon(lr=0.1, kernel="svd"),
        forms.muon_owner,
        scale_invariant=True,
        same_as=(
            Limit(
                Muon(lr=0.1, kernel="svd"),
                NuMuon(lr=0.1, nesterov=True, scale="spectral_clipped", rank_schedule=RankSchedule()),
            ),
        ),
    ),
    Case(
        "muon_bp",
        MuonBP(lr=0.1, block_lr=0.05, period=2),
        lambda m, n, matrices, mesh: forms.muon_owner(m, n, matrices, mesh) / 2,
        sharded=None,
        scale_invariant=True,
        same_as=(Limit(MuonBP(lr=0.1, period=1), Muon(lr=0.1, convention="sum", nesterov=False, scale="rms")),),
        why="its blocks are the shards",
    ),
    Case(
        "normuon",
        NorMuon(lr=0.1),
        # card 6: two statistics a matrix all-reduced over shards
        lambda m, n, matrices, mesh: (
            forms.muon_owner(m, n, matrices, mesh)
            + 2 * forms.ring(mesh.shards) * 2 * forms.WIDTH * forms.dealt(matrices, mesh)
        ),
        scale_invariant=True,
        same_as=(Limit(NorMuon(lr=0.1, kernel="svd"), NorMuon(lr=0.1, kernel="svd", variant="paper")),),
    ),
    Case(
        "normuon shard",
        NorMuon(lr=0.1, rescale="shard", form="gather"),
        forms.gather,
        sharded=None,
        scale_invariant=True,
        why="each shard keeps its own norm, as microsoft/dion does",
    ),
    Case("numuon", NuMuon(lr=0.1, rank_schedule=RankSchedule(start=0.3)), forms.muon_owner, scale_invariant=True),
    Case(
        "numuon krylov",
        NuMuon(lr=0.1, rank_schedule=RankSchedule(start=0.3), krylov=KrylovSettings(oversampling=1)),
        forms.muon_owner,
        scale_invariant=True,
    ),
    Case(
        "numuon warm",
        NuMuon(
            lr=0.1,
            rank_schedule=RankSchedule(shape="cosine", start=0.6, final=0.3, steps=3),
            krylov=KrylovSettings(iterations=1, oversampling=1, warm_start=True),
            form="gather",
        ),
        forms.gather,
        scale_invariant=True,
    ),
    Case("dion", Dion(lr=0.1, rank=2), forms.low_rank(2, lambda r: r), scale_invariant=True),
    Case(
        "dion as published",
        Dion(lr=0.1, rank=2, left_factor="rcqr"),
        forms.low_rank(2, lambda r: r),
        scale_invariant=True,
        same_as=(Limit(Dion(lr=0.1, rank=3, left_factor="rcqr"), Dion(lr=0.1, rank=3)),),
    ),
    Case(
        "dion own buffers",
        Dion(lr=0.1, rank=2, cleared="own", average_buffers_every=2),
        averaged_buffers(2, 2, forms.low_rank(2, lambda r: r)),
        scale_invariant=True,
    ),
    Case(
        "orth_dion",
        OrthDion(lr=0.1, rank=2),
        _GRAM,
        scale_invariant=True,
        same_as=(
            # one column is orthonormal once it has length one, but for Dion's 1e-8 in the divisor
            Limit(OrthDion(lr=0.1, rank=1), OrthDion(lr=0.1, rank=1, right_factor="colnorm"), 1e-7),
            # what is kept and what is cleared are the same at beta 1
            Limit(OrthDion(lr=0.1, rank=3), OrthDion(lr=0.1, rank=3, error_feedback="code")),
        ),
    ),
    # factors of rank 5 are no smaller than the gradients, so replicas exchange these
    Case(
        "orth_dion large rank", OrthDion(lr=0.1, rank=5), forms.low_rank(5, lambda r: 2 * r * r), scale_invariant=True
    ),
    Case("orth_dion code", OrthDion(lr=0.1, rank=2, error_feedback="code", beta=0.3), _GRAM, scale_invariant=True),
    Case(
        "orth_dion colnorm",
        OrthDion(lr=0.1, rank=2, right_factor="colnorm"),
        forms.low_rank(2, lambda r: r),
        scale_invariant=True,
    ),
    Case(
        "orth_dion raw",
        OrthDion(lr=0.1, rank=2, right_factor="qr_raw"),
        forms.gathered_right_factor(2),
        scale_invariant=True,
    ),
    Case(
        "orth_dion polar",
        OrthDion(lr=0.1, rank=2, right_factor="polar"),
        _GRAM,
        scale_invariant=True,
        same_as=(
            Limit(
                OrthDion(lr=0.1, rank=3, right_factor="polar"),
                OrthDion(lr=0.1, rank=3, right_factor="interp", tau=1.0),
            ),
            # card 1, test 3: all of the momentum's polar factor
            Limit(
                OrthDion(lr=0.1, rank=7, right_factor="polar", error_feedback="code", beta=0.2),
                Muon(lr=0.1, mu=0.8, convention="sum", nesterov=False, kernel="svd", scale="none"),
            ),
        ),
    ),
    Case("orth_dion interp", OrthDion(lr=0.1, rank=2, right_factor="interp", tau=0.5), _GRAM, scale_invariant=True),
    Case(
        "orth_dion blocks",
        OrthDion(lr=0.1, rank=3, right_factor="block_qr", block=2),
        # two passes of two blocks of 2 x 2, the second padded
        forms.low_rank(3, lambda r: 2 * 2 * 2 * 2),
        scale_invariant=True,
        same_as=(
            Limit(
                OrthDion(lr=0.1, rank=3, right_factor="block_qr", block=1),
                OrthDion(lr=0.1, rank=3, right_factor="colnorm"),
                1e-7,
            ),
        ),
    ),
    Case(
        "orth_dion auto",
        OrthDion(lr=0.1, rank=2, gram_passes="auto"),
        forms.low_rank(2, lambda r: r * r),
        scale_invariant=True,
    ),
    Case(
        "orth_dion all to all",
        OrthDion(lr=0.1, rank=2, orthonormalization="all_to_all"),
        owned_right_factor(2),
        scale_invariant=True,
        same_as=(Limit(OrthDion(lr=0.1, rank=3, orthonormalization="all_to_all"), OrthDion(lr=0.1, rank=3)),),
    ),
    Case(
        "orth_dion svd",
        OrthDion(lr=0.1, rank=2, right_factor="exact_svd"),
        exact_pairs(2, owners=False),
        scale_invariant=True,
    ),
    Case(
        "orth_dion svd by owners",
        OrthDion(lr=0.1, rank=2, right_factor="exact_svd", orthonormalization="all_to_all"),
        exact_pairs(2, owners=True),
        scale_invariant=True,
    ),
    Case(
        "ada_orth_dion",
        AdaOrthDion(lr=0.1, rank=2, rank_min=1, rank_multiple=1, step_up=1, replica_sync="factors"),
        scale_invariant=True,
        same_as=(Limit(AdaOrthDion(lr=0.1, rank=3, rank_max=3, gamma=1e9, rank_multiple=1), OrthDion(lr=0.1, rank=3)),),
        why="bytes follow the ranks: see test_adaptive_rank_bytes.py",
    ),
    Case(
        "adadion_v1",
        AdaDionV1(lr=0.1, rank_max=2, wire_form="pad_to_cap"),
        adaptive(2, per_matrix=2),
        scale_invariant=True,
    ),
    Case(
        "adadion_v2",
        AdaDionV2(lr=0.1, rank_max=2, rank_min=1, rank_multiple=1, gamma=0.9, wire_form="pad_to_cap"),
        forms.low_rank(2, lambda r: r),
        scale_invariant=True,
    ),
    Case(
        "adadion_v3",
        AdaDionV3(lr=0.1, rank_max=2, rank_min=1, rank_multiple=1, wire_form="pad_to_cap", buffer_limit=None),
        adaptive(2, modes=True),
        scale_invariant=True,
    ),
    Case(
        "adadion_v3 limited",
        AdaDionV3(lr=0.1, rank_max=2, align_modes=True, wire_form="pad_to_cap", buffer_limit=1.5),
        adaptive(2, modes=True, per_matrix=2),
        replicated=None,
        scale_invariant=True,
        why="the limit sees the mean square of the replicas' own buffers",
    ),
    Case("lion", Lion(lr=0.1), forms.nothing, scale_invariant=True),
    Case("signum", Signum(lr=0.1), forms.nothing, scale_invariant=True),
    Case(
        "dion2",
        Dion2(lr=0.1),
        submatrix(0.25, columns=True),
        sharded=None,
        scale_invariant=True,
        why="every shard chooses among its own rows, and columns are chosen without shards",
    ),
    Case(
        "dion2 global",
        Dion2(lr=0.1, scope="global", select_dim="rows", fraction=0.5),
        submatrix(0.5, whole=True),
        scale_invariant=True,
        same_as=(
            Limit(
                Dion2(lr=0.1, fraction=1.0, ef_decay=0.9),
                Muon(lr=0.1, mu=0.9, convention="sum", nesterov=False, coefficients="polar_express", scale="spectral"),
            ),
        ),
    ),
    Case(
        "dion3",
        Dion3(lr=0.1),
        submatrix(0.25, norms=2),
        sharded=None,
        scale_invariant=True,
        why="every shard chooses among its own rows",
    ),
    Case(
        "dion3 global",
        Dion3(lr=0.1, scope="global", fraction=0.5),
        submatrix(0.5, whole=True, norms=2),
        scale_invariant=True,
    ),
    Case(
        "ef21_muon",
        EF21Muon(lr=0.1, codec="topk(fraction=0.3, values=fp64)"),
        gathered(lambda rows, n: -(-3 * rows * n // 10) * (8 + 4)),
        sharded=None,
        replicated=None,
        scale_invariant=True,
        same_as=(
            Limit(EF21Muon(lr=0.1, codec="fp64"), Muon(lr=0.1, nesterov=False)),
            Limit(EF21Muon(lr=0.1, codec="fp64", exchange="codec"), EF21Muon(lr=0.1, codec="fp64")),
        ),
        why="each worker sends the largest numbers of its own difference, of its own rows",
    ),
    Case(
        "ef21_muon rank",
        EF21Muon(lr=0.1, rank=2, codec="fp64"),
        gathered(lambda rows, n: (rows + n) * 2 * 8),
        sharded=None,
        replicated=None,
        scale_invariant=True,
        why="each worker sends factors of its own difference, of its own rows",
    ),
    Case(
        "onebit_adam",
        OneBitAdam(lr=0.1, warmup_steps=2),
        dense_then_signs,
        sharded=None,
        replicated=None,
        identical=None,
        scale_invariant=True,
        same_as=(Limit(OneBitAdam(lr=0.1, warmup_steps=4), AdamW(lr=0.1), 0.0),),
        why="each worker's slices have scales of their own, and their number is that of the replicas",
    ),
    Case("torch", torch_rule(torch.optim.AdamW)(lr=0.1), forms.nothing, scale_invariant=True),
    Case(
        "torch schedule-free",
        torch_rule(ScheduleFreeAdamW)(lr=0.1),
        forms.nothing,
        scale_invariant=True,
        decoupled=False,
        why="its decay pulls at an average of the parameters, not at the parameters",
    ),
    Case(
        "torch gathered",
        torch_rule(torch.optim.AdamW)(lr=0.1, runs_on="gathered"),
        None,
        scale_invariant=True,
        why="gathers the parameter in the first step only; test_torch_optimizer.py counts",
    ),
)
