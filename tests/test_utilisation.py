"""The bandwidth that a run needs to keep its workers computing: found to one percent, and true where it is re-timed."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from simdist.cli import app
from simdist.results.tables import find_runs
from simdist.results.utilisation_table import TARGETS, Utilisation, UtilisationTable
from simdist.running import run
from simdist.scenario import Scenario
from simdist.utilisation import GRID, PRECISION, search, utilisations

STAR: dict[str, Any] = {"topology": "star", "bandwidth": "1Mbit/s", "latency": 0}


def trained(folder: Path, **changes: Any) -> Path:
    """A small run in which every gradient is averaged, at no latency."""
    chosen = {
        "steps": 3,
        "workload": {"name": "teacher", "rows": 16, "columns": 8, "matrices": 2},
        "mesh": {"replicas": 4},
        "optimizer": {"name": "adamw", "lr": 0.02},
        "network": STAR,
        "compute": {"device": "custom", "peak_flops": 1e6, "mfu": 1.0},
        **changes,
    }
    return run(Scenario.from_dict(chosen), out=folder, progress=False)


def table_of(folder: Path) -> UtilisationTable:
    return utilisations(find_runs([folder]))


def retimed_share(folder: Path, bandwidth: float, out: Path) -> float:
    with pytest.raises(SystemExit) as ended:
        app(["retime", str(folder), f"--set=network.bandwidth={bandwidth!r}", "--out", str(out)])
    assert not ended.value.code
    (retimed,) = out.iterdir()
    steps = pq.read_table(retimed / "steps.parquet")
    return float(sum(steps["compute_seconds"].to_pylist()) / steps["simulated_seconds"][-1].as_py())


# -- the search --------------------------------------------------------------------------------------------------------


@given(half=st.floats(4.0, 14.0), most=st.floats(0.1, 1.0), steep=st.floats(0.5, 3.0))
def test_the_least_bandwidth_is_found_to_one_percent(half: float, most: float, steep: float) -> None:
    """u(B) = most / (1 + (B0 / B)^steep): met from B0 (target / (most - target))^(1 / steep) on, or never."""
    assume(all(abs(most - target) > 1e-6 for target in TARGETS))

    def share(bandwidth: float) -> float:
        return float(most / (1 + (10**half / bandwidth) ** steep))

    found = search("x", share)
    assert list(found.curve) == sorted(found.curve)
    for target, bandwidth in found.needed.items():
        if share(GRID[-1]) < target:
            assert bandwidth is None
        elif share(GRID[0]) >= target:
            assert bandwidth == GRID[0]
        else:
            assert bandwidth is not None
            true = 10**half * (target / (most - target)) ** (1 / steep)
            assert true * (1 - 1e-9) <= bandwidth <= true * PRECISION * (1 + 1e-9)


@given(dip=st.integers(8, 20))
def test_where_more_bandwidth_hurts_the_last_crossing_counts(dip: int) -> None:
    def share(bandwidth: float) -> float:
        return 0.3 if abs(math.log10(bandwidth / GRID[dip])) < 0.2 else float(bandwidth > 1e5)

    for bandwidth in search("x", share).needed.values():
        assert bandwidth == pytest.approx(GRID[dip] * 10**0.2, rel=PRECISION - 1)


def test_ten_times_the_bandwidth_is_not_priced_twice() -> None:
    asked: list[float] = []

    def share(bandwidth: float) -> float:
        asked.append(bandwidth)
        return 1 / (1 + 1e9 / bandwidth)

    search("x", share)
    assert len(asked) == len(set(asked)) < 70


# -- runs --------------------------------------------------------------------------------------------------------------


def test_one_exchange_at_no_latency_has_a_closed_form(tmp_path: Path) -> None:
    """u = C / (C + V / B) with compute seconds C and V bits in the way: B = V u / (C (1 - u))."""
    folder = trained(tmp_path / "run")
    summary = json.loads((folder / "summary.json").read_text())
    busy, bits = summary["compute_seconds_per_step"], summary["exposed_comm_seconds_per_step"] * 1e6
    (row,) = table_of(folder).rows
    assert tuple(row.needed) == TARGETS
    for target, bandwidth in row.needed.items():
        true = bits * target / (busy * (1 - target))
        assert bandwidth is not None
        assert true * (1 - 1e-9) <= bandwidth <= true * PRECISION * (1 + 1e-9)
    for bandwidth, share in row.curve.items():
        assert share == pytest.approx(busy / (busy + bits / bandwidth), rel=1e-9)
    assert row.most == pytest.approx(1.0)


ISLANDS: dict[str, Any] = {"topology": "two-level", "bandwidth": "1Mbit/s", "latency": "50us", "island_size": 2}
NETWORKS: dict[str, dict[str, Any]] = {
    "latency": {"network": {**STAR, "latency": "10us"}},
    "islands": {"network": ISLANDS, "mesh": {"replicas": 2, "shards": 2}, "overlap": {"policy": "fsdp"}},
    "buckets": {"overlap": {"policy": "ddp", "bucket": 512, "first_bucket": 512}},
    "auto": {"network": {**STAR, "latency": "100us", "collectives": "auto"}},
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_retiming_at_the_stated_bandwidth_meets_the_target(name: str, tmp_path: Path) -> None:
    folder = trained(tmp_path / "run", **NETWORKS[name])
    (row,) = table_of(folder).rows
    met = {target: rate for target, rate in row.needed.items() if rate is not None}
    assert met
    target, bandwidth = max(met.items())
    assert retimed_share(folder, bandwidth, tmp_path / "on") >= target
    assert retimed_share(folder, bandwidth / PRECISION**2, tmp_path / "below") < target
    assert all(one <= other for one, other in zip(list(met.values()), list(met.values())[1:], strict=False))


def test_latency_and_unequal_workers_forbid_targets_whatever_the_bandwidth(tmp_path: Path) -> None:
    compute = {"device": "custom", "peak_flops": 1e6, "mfu": 1.0, "speeds": {0: 0.25}}
    (row,) = table_of(trained(tmp_path / "run", compute=compute)).rows
    # three workers wait three quarters of the time for the fourth
    assert row.most == pytest.approx((1 + 3 / 4) / 4, rel=1e-6)
    assert set(row.needed.values()) == {None}


def test_one_worker_needs_no_bandwidth(tmp_path: Path) -> None:
    table = table_of(trained(tmp_path / "run", mesh={"replicas": 1}))
    assert table.texts() == [["AdamW", *["any"] * len(TARGETS), "100.0%"]]


def test_runs_that_differ_in_values_only_are_priced_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    priced: list[str] = []

    def counted(label: str, *rest: Any) -> Utilisation:
        priced.append(label)
        return search(label, *rest)

    monkeypatch.setattr("simdist.utilisation.search", counted)
    for lr in (0.01, 0.02):
        trained(tmp_path / "sweep" / f"{lr}", optimizer={"name": "adamw", "lr": lr})
    trained(tmp_path / "sweep" / "muon", optimizer={"name": "muon", "lr": 0.02, "auxiliary": {"lr": 0.01}})
    table = table_of(tmp_path / "sweep")
    assert [row.label for row in table.rows] == ["AdamW lr=0.01", "AdamW lr=0.02", "Muon"]
    assert table.rows[0].needed == table.rows[1].needed
    assert len(priced) == 2


# -- the command -------------------------------------------------------------------------------------------------------


def test_the_report_prints_draws_and_saves_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained(tmp_path / "sweep" / "run")
    irregular = {"schedule": "async_server", "mesh": {"replicas": 3}, "optimizer": {"name": "sgd", "lr": 0.01}}
    trained(tmp_path / "sweep" / "irregular", **irregular)
    with pytest.raises(SystemExit) as ended:
        app(["report", str(tmp_path / "sweep")])
    assert not ended.value.code
    printed = capsys.readouterr().out
    assert "Bandwidth needed for a compute utilisation" in printed
    assert "SGD is not in the table of bandwidths" in printed
    assert "irregular programs cannot be re-timed" in printed
    page = (tmp_path / "sweep" / "report.html").read_text()
    assert "SGD is left out" in page
    (row,) = table_of(tmp_path / "sweep" / "run").rows
    for text in UtilisationTable([row], {}).texts()[0][1:]:
        assert f"<td>{text}</td>" in page
    figures = tmp_path / "sweep" / "figures"
    assert (figures / "computing_vs_bandwidth.png").exists()
    with (figures / "utilisation.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert {float(line["compute_utilisation"]): float(line["bandwidth_bit_per_second"]) for line in lines} == {
        target: pytest.approx(rate, rel=1e-3) for target, rate in row.needed.items()
    }
