"""What the study runs: contestants, the grid of learning rates, and which runs their results so far call for."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

SCENARIO = "scenarios/orth_dion_verdict.py"
#: the one grid of learning rates, factor 2, for every method and model
GRID = tuple(round(0.00125 * 2**k, 8) for k in range(11))
SEEDS = (0, 1, 2)
#: learning rates whose loss under seed 0 is within this fraction of the best get the other seeds too
MARGIN = 0.01
#: what every spectral method shares and the scenario says already
SHARED: dict[str, Any] = {"weight_decay": 0.1, "scale": "spectral", "auxiliary": {"lr": 0.003}}

#: (learning rate, seed) -> final validation loss, inf where the run diverged
Losses = Mapping[tuple[float, int], float]


@dataclass(frozen=True)
class Contestant:
    """One method in one setting, to be run at several learning rates and seeds.

    Attributes:
        study: its group: contestants of a study train on the same model and data.
        label: unique in the study.
        optimizer: the section of the scenario, without ``lr``.
        settings: further ``--set`` keys.
        start: where on :data:`GRID` the walk begins.
        single: run once, at ``start`` under seed 0: for bytes, which do not depend on either.
    """

    study: str
    label: str
    optimizer: dict[str, Any]
    settings: dict[str, Any] = field(default_factory=dict)
    start: float = 0.08
    single: bool = False


def wanted(contestant: Contestant, losses: Losses) -> list[tuple[float, int]]:
    """Return the runs that are due next; empty when the contestant is done.

    Three neighbouring learning rates under seed 0, then on in the direction of less loss until the best has a worse
    one on either side (or the grid ends); then the other seeds at the best, and at all within :data:`MARGIN` of it.
    """
    if contestant.single:
        return [] if losses else [(contestant.start, 0)]
    at = GRID.index(contestant.start)
    first = [(GRID[k], 0) for k in range(max(0, at - 1), min(len(GRID), at + 2))]
    if missing := [point for point in first if point not in losses]:
        return missing
    tried = sorted(lr for lr, seed in losses if seed == 0)
    best = min(tried, key=lambda lr: losses[lr, 0])
    # where all diverged, or an edge ties with them, smaller is the only way that helps
    if not math.isfinite(losses[best, 0]):
        best = tried[0]
    low, high = GRID.index(tried[0]), GRID.index(tried[-1])
    if best == tried[0] and low > 0:
        return [(GRID[low - 1], 0)]
    if best == tried[-1] and high < len(GRID) - 1:
        return [(GRID[high + 1], 0)]
    limit = losses[best, 0] + MARGIN * abs(losses[best, 0])
    close = [lr for lr in tried if losses[lr, 0] <= limit]
    return [point for point in itertools.product(close, SEEDS) if point not in losses]


def best_lr(losses: Losses) -> float:
    """Return the learning rate with the least mean loss among those that have all seeds (else the best so far)."""
    rates = sorted({lr for lr, _ in losses})
    whole = [lr for lr in rates if all((lr, seed) in losses for seed in SEEDS)]
    return min(whole or rates, key=lambda lr: sum(loss for (at, _), loss in losses.items() if at == lr))


def section(contestant: Contestant, lr: float) -> dict[str, Any]:
    """Return the whole ``optimizer`` section of a run."""
    return {**contestant.optimizer, "lr": lr}


def changes(contestant: Contestant, lr: float, seed: int) -> dict[str, Any]:
    """Return the keys that a run changes in :data:`SCENARIO`; what the scenario says already is left out."""
    keys = section(contestant, lr)
    if keys["name"] == "orth_dion":  # the scenario's own choice keeps its other keys
        keys = {key: value for key, value in keys.items() if key != "name" and SHARED.get(key) != value}
    flat = {f"optimizer.{key}": value for key, value in _flat(keys).items()}
    return {**contestant.settings, **flat, "seed": seed}


def command(contestant: Contestant, lr: float, seed: int) -> str:
    """Return the command that repeats one run."""
    parts = [f"--set {key}={_text(value)}" for key, value in changes(contestant, lr, seed).items()]
    return " ".join(["simdist run", SCENARIO, *parts])


def _flat(section: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in section.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def _text(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(map(_text, value)) + "]"
    return f"{value:g}" if isinstance(value, float) else str(value)


# --- contestants -------------------------------------------------------------------------------------------------

RANKS = (0.125, 0.25, 0.5)
#: label -> (convention, beta, learning rate to begin with)
MEMORIES: dict[str, tuple[str, float, float]] = {
    "EF-P 1": ("paper", 1.0, 0.16),
    "EF-C 0.05": ("code", 0.05, 0.04),
    "EF-C 0.3": ("code", 0.3, 0.08),
}
#: 0.69 M parameters
LARGE = {"workload.width": 112, "workload.depth": 4, "steps": 240, "lr_schedule.warmup": 24}
MUON = {"name": "muon", **SHARED}
ADAMW = {"name": "adamw", "weight_decay": 0.1}


def orth_dion(factor: str, convention: str, beta: float, rank: float) -> dict[str, Any]:
    """Return the section of Orth-Dion with a right factor and a memory; ``colnorm`` makes it Dion."""
    return {
        "name": "orth_dion",
        **SHARED,
        "right_factor": factor,
        "error_feedback": convention,
        "beta": beta,
        "rank_fraction": rank,
    }


def _grid(study: str, factors: Sequence[str], memories: Sequence[str], ranks: Sequence[float]) -> list[Contestant]:
    settings = LARGE if study == "large" else {}
    return [
        Contestant(
            study,
            f"{factor}, {memory}, r = {rank:g} d",
            orth_dion(factor, *MEMORIES[memory][:2], rank),
            settings,
            start,
        )
        for factor, memory, rank in itertools.product(factors, memories, ranks)
        # raw QR's loss falls towards learning rates that move nothing, with bumps on the way where a walk would stop
        for start in [GRID[2] if factor == "qr_raw" else MEMORIES[memory][2]]
    ]


def _references(study: str, ranks: Sequence[float]) -> list[Contestant]:
    settings = LARGE if study == "large" else {}
    dions = [
        Contestant(study, f"Dion, r = {rank:g} d", {"name": "dion", **SHARED, "rank_fraction": rank}, settings, 0.04)
        for rank in ranks
    ]
    return [
        Contestant(study, "Muon", MUON, settings, 0.08),
        Contestant(study, "AdamW", ADAMW, settings, 0.01),
        *dions,
    ]


def _beta() -> list[Contestant]:
    """EF-C between and beyond the grid's 0.05, 0.3 and 1; mu = 1 - beta."""
    return [
        Contestant("small", f"{factor}, EF-C {beta:g}, r = 0.25 d", orth_dion(factor, "code", beta, 0.25), {}, start)
        for beta, start in ((0.02, 0.04), (0.1, 0.04), (0.6, 0.16))
        for factor in ("colnorm", "qr_pos")
    ]


def _adaptive() -> list[Contestant]:
    """Adaptive rank from r = d/4 on, beside the fixed ranks of the grid; r_cap is 0.7 d."""
    section = {"name": "ada_orth_dion", **SHARED, "rank_fraction": 0.25}
    return [Contestant("small", "Ada-Orth-Dion, EF-P 1, r from 0.25 d", section, {}, 0.16)]


def _wires() -> list[Contestant]:
    """Bytes of adaptive rank on four shards, active and padded, beside the fixed ranks it starts from and may reach."""
    ada = {"name": "ada_orth_dion", **SHARED, "rank_fraction": 0.25}
    fixed = orth_dion("qr_pos", "paper", 1.0, 0.25)
    sections = {
        "fixed r = 0.25 d": fixed,
        "fixed r = 0.7 d": {**fixed, "rank_fraction": 0.7},
        "adaptive, active": {**ada, "wire_form": "active"},
        "adaptive, pad_to_cap": {**ada, "wire_form": "pad_to_cap"},
    }
    settings = {"mesh.shards": 4, "engine.name": "stacked", "wire.factors": "bf16", "wire.params": "bf16"}
    return [Contestant("wire", label, section, settings, 0.16, single=True) for label, section in sections.items()]


#: name -> (spectrum of A, gradient noise); 64 x 64 matrices
TEACHERS: dict[str, tuple[Any, float]] = {
    "rank 8, exact": ((1.0,) * 8, 0.0),
    "flat, exact": (0.0, 0.0),
    "1/k, exact": (1.0, 0.0),
    "1/k, noisy": (1.0, 0.1),
}


def _teacher() -> list[Contestant]:
    found = []
    for (name, (spectrum, noise)), rank, factor in itertools.product(
        TEACHERS.items(), (4, 8, 32), ("colnorm", "qr_pos", "polar")
    ):
        section = {**orth_dion(factor, "paper", 1.0, rank / 64), "weight_decay": 0.0}
        settings = {
            "workload.name": "teacher",
            "workload.rows": 64,
            "workload.columns": 64,
            "workload.bias": False,
            "workload.spectrum": spectrum,
            "workload.noise": noise,
            "diagnostics.every": 5,
        }
        found.append(Contestant(f"teacher: {name}", f"{factor}, r = {rank}", section, settings, 0.16))
    return found


def families() -> list[list[Contestant]]:
    """Return all contestants, those of a family run side by side in one process; the decisive ones come first."""
    qr, memories = ("qr_pos", "colnorm", "polar", "qr_raw"), ("EF-P 1", "EF-C 0.05")
    found = [_grid("small", [factor], [memory], RANKS) for factor in qr for memory in memories]
    found.append(_references("small", RANKS))
    muon, adamw = _references("large", ())
    published = _grid("large", ("qr_pos", "colnorm", "polar"), ("EF-P 1",), (0.25,))
    found += [[one] for one in (published[0], published[1], muon, published[2])]
    found += [_grid("small", ["exact_svd"], [memory], RANKS) for memory in memories]
    found += [_adaptive(), _wires()]
    found += [_grid("small", [factor], ["EF-C 0.3"], RANKS) for factor in qr]
    teachers = _teacher()
    found += [[one for one in teachers if one.study == study] for study in dict.fromkeys(t.study for t in teachers)]
    found += [[adamw], _beta()]
    # what takes longest and decides least: the rest goes on with the next call where an earlier one was stopped
    found += [[one] for one in _grid("large", ("qr_pos", "colnorm"), ("EF-C 0.05",), (0.25,))]
    found += [_grid("small", ["exact_svd"], ["EF-C 0.3"], RANKS)]
    found += [[one] for one in _grid("large", ("qr_raw",), ("EF-P 1",), (0.25,))]
    found += [[one] for one in _grid("large", ("polar",), ("EF-C 0.05",), (0.25,))]
    return found
