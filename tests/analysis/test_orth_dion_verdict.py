"""The study on Orth-Dion: its walk over learning rates, its commands, its statistics, and the byte forms beside it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from analysis import byte_crossovers
from analysis.orth_dion_verdict import plan, run, statistics
from analysis.orth_dion_verdict.plan import GRID, SEEDS, Contestant, families, wanted
from simdist.loading import load_scenario, override

ROOT = Path(__file__).parents[2]
EVERYONE = [contestant for family in families() for contestant in family]


def walk(contestant: Contestant, best: float, curvature: float = 0.5) -> dict[tuple[float, int], float]:
    """Run the plan to its end on a loss that is a parabola in log lr with its minimum at ``best``."""
    losses: dict[tuple[float, int], float] = {}
    while due := wanted(contestant, losses):
        assert len(losses) < 50
        losses |= {(lr, seed): 2 + curvature * math.log2(lr / best) ** 2 + 0.001 * seed for lr, seed in due}
    return losses


@pytest.mark.parametrize("best", [0.01, 0.08, 0.64])
def test_the_walk_finds_the_best_and_brackets_it(best: float) -> None:
    losses = walk(Contestant("small", "x", {"name": "adamw"}, start=0.08), best)
    assert plan.best_lr(losses) == best
    tried = {lr for lr, seed in losses if seed == 0}
    assert {best / 2, best, best * 2} <= tried
    assert {(lr, seed) for lr, seed in losses if seed} == {(best, 1), (best, 2)}


def test_near_ties_get_all_seeds_and_the_mean_decides() -> None:
    losses = walk(Contestant("small", "x", {"name": "adamw"}, start=0.08), 0.08, curvature=0.001)
    assert len({lr for lr, seed in losses if seed == 1}) > 1
    losses = {(0.1, 0): 1.0, (0.2, 0): 1.1, (0.1, 1): 3.0, (0.2, 1): 1.2, (0.1, 2): 1.0, (0.2, 2): 1.0}
    assert plan.best_lr(losses) == 0.2


def test_the_walk_ends_where_the_grid_ends_and_where_all_diverge() -> None:
    contestant = Contestant("small", "x", {"name": "adamw"}, start=0.08)
    assert plan.best_lr(walk(contestant, 100.0)) == GRID[-1]
    losses: dict[tuple[float, int], float] = {}
    while due := wanted(contestant, losses):
        losses |= dict.fromkeys(due, math.inf)
    assert min(lr for lr, _ in losses) == GRID[0]


def test_contestants_are_told_apart() -> None:
    assert len({(one.study, one.label) for one in EVERYONE}) == len(EVERYONE)
    assert all(one.settings == family[0].settings for family in families() for one in family)


@pytest.mark.parametrize(
    "contestant", [family[-1] for family in families()], ids=lambda one: f"{one.study}-{one.label}"
)
def test_a_row_s_command_is_the_run_that_the_sweep_made(contestant: Contestant) -> None:
    words = plan.command(contestant, contestant.start, 2).split()
    assert words[:3] == ["simdist", "run", plan.SCENARIO]
    by_command = load_scenario(str(ROOT / plan.SCENARIO), words[4::2])
    assert set(words[3::2]) == {"--set"}
    base = load_scenario(str(ROOT / plan.SCENARIO), [f"{k}={json.dumps(v)}" for k, v in contestant.settings.items()])
    swept = override(base, {"optimizer": plan.section(contestant, contestant.start), "seed": 2})
    assert by_command == swept


def entry(losses: dict[tuple[float, int], float], curves: dict[int, list[float]] | None = None) -> statistics.Entry:
    found = statistics.Entry("small", "x")
    for (lr, seed), loss in losses.items():
        status = "done" if math.isfinite(loss) else "diverged"
        found.rows[lr, seed] = {"status": status, "final_val_loss": str(loss), "nu_mean": "", "command": f"lr {lr}"}
        values = (curves or {}).get(seed, [])
        found.curves[lr, seed] = [{"step": str(10 * (i + 1)), "val_loss": str(v)} for i, v in enumerate(values)]
    return found


def test_gaps_are_paired_by_seed() -> None:
    one = entry({(0.1, seed): 1.0 + seed for seed in SEEDS})
    other = entry({(0.2, seed): 1.5 + seed for seed in SEEDS})
    gap = statistics.gap(one, other)
    assert (gap.mean, gap.half, gap.count) == (-0.5, 0.0, 3)
    assert gap.clear
    assert statistics.pooled_gap([(one, other), (one, one)]).mean == -0.25
    noisy = entry({(0.2, 0): 2.0, (0.2, 1): 1.0, (0.2, 2): 3.0})
    assert not statistics.gap(one, noisy).clear


def test_steps_saved_are_interpolated() -> None:
    slow = entry({(0.1, 0): 1.0}, {0: [4.0, 3.0, 2.0, 1.0]})
    fast = entry({(0.1, 0): 0.5}, {0: [3.0, 1.5, 0.5, 0.5]})
    assert fast.steps_to(0, 1.0) == 25.0
    assert statistics.steps_saved(fast, slow).mean == pytest.approx(100 * (1 - 25 / 40))
    assert statistics.steps_saved(slow, fast).mean == -math.inf


def test_diverged_runs_are_counted_and_never_best() -> None:
    found = entry({(0.1, 0): 2.0, (0.2, 0): math.inf})
    assert (found.best, found.diverged) == (0.1, 1)


def test_what_was_written_is_read_back(tmp_path: Path) -> None:
    line = {"study": "small", "contestant": "Muon", "lr": 0.1, "seed": 0, "status": "done", "final_val_loss": 2.5}
    run.append(tmp_path / "results.csv", run.COLUMNS, [line])
    run.append(tmp_path / "results.csv", run.COLUMNS, [{**line, "seed": 1, "status": "diverged"}])
    assert run.read_losses(tmp_path / "results.csv") == {("small", "Muon"): {(0.1, 0): 2.5, (0.1, 1): math.inf}}


GOLDEN = [(768, 384, 1034880, 2064384, 1161216, 258048), (768, 96, 258720, 322560, 290304, 258048)]


@pytest.mark.parametrize(("side", "r", "dion", "gram", "all_to_all_qr", "muon"), GOLDEN)
def test_byte_forms_give_card_20(side: int, r: int, dion: int, gram: int, all_to_all_qr: int, muon: int) -> None:
    case = byte_crossovers.Case(side, side, 1, 8)
    names = ("Dion", "Orth-Dion, one Gram", "Orth-Dion, all-to-all QR", "Muon, all-to-all")
    sent = [byte_crossovers.METHODS[name](case, r) for name in names]
    assert sent == [dion, gram, all_to_all_qr, muon]


def test_cross_overs_are_where_two_forms_meet() -> None:
    case = byte_crossovers.Case(4096, 4096, 2, 8)
    at = {title: rank for _, title, rank in byte_crossovers.marks(case)}
    r = int(at["all-to-all QR = one Gram: r = m b/(4 F)"])
    assert byte_crossovers.all_to_all_qr(case, r) == byte_crossovers.gram(1)(case, r)
    fsdp = byte_crossovers.Case(4096, 4096, 1, 8)
    r = int(at["low rank = all-to-all Muon: r = m/F"])
    # but for Dion's column norms
    assert byte_crossovers.dion(fsdp, r) == pytest.approx(byte_crossovers.muon_all_to_all(fsdp, r), rel=1e-3)
    r = int(at["one Gram doubles Dion: r = n b/4"])
    assert byte_crossovers.gram(1)(fsdp, r) == pytest.approx(2 * byte_crossovers.dion(fsdp, r), rel=1e-3)
    r = int(at["factors = gradient: (m+n) r = m n"])
    assert case.compressed(r - 1)
    assert not case.compressed(r)
