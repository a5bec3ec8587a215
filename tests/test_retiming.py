"""``simdist retime``: a recorded run priced under another network has exactly the times of a full run there."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from simdist.cli import app
from simdist.loading import override
from simdist.retiming import TRACED
from simdist.running import run
from simdist.scenario import Scenario
from simdist.yaml_text import parse

TIMES = ("simulated_seconds", "compute_seconds", "exposed_comm_seconds")
STAR: dict[str, Any] = {"topology": "star", "bandwidth": "20Mbit/s", "latency": "1ms"}
ISLANDS: dict[str, Any] = {
    "topology": "two-level",
    "bandwidth": "20Mbit/s",
    "latency": "1ms",
    "island_size": 4,
    "island_bandwidth": "10Gbit/s",
    "island_latency": "5us",
}
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "adamw": {},
    "muon": {"auxiliary": {"lr": 0.01}},
    "dion": {"rank": 3},
    "orth_dion": {"rank": 3},
}
#: the same work takes different workers differently long
UNEQUAL = {0: 0.5, 3: 2.0, 6: 0.3}


def scenario(optimizer: str, network: dict[str, Any], **changes: Any) -> Scenario:
    """A small HSDP 2 x 4 run in which computing and talking take about equally long."""
    return Scenario.from_dict(
        {
            "steps": 3,
            "workload": {"name": "teacher", "rows": 18, "columns": 12, "matrices": 3},
            "mesh": {"replicas": 2, "shards": 4},
            "optimizer": {"name": optimizer, "lr": 0.02, **OPTIMIZERS[optimizer]},
            "network": network,
            "compute": {"device": "custom", "peak_flops": 1e6, "mfu": 1.0},
            "evaluation": {"every": 2},
            "diagnostics": {"every": 2},
            **changes,
        }
    )


class Folders:
    """Runs scenarios, once each, and re-times them through the command line."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self._made: dict[str, Path] = {}

    def run(self, chosen: Scenario) -> Path:
        key = chosen.to_yaml()
        if key not in self._made:
            self._made[key] = run(chosen, out=self.base / f"run{len(self._made)}", progress=False)
        return self._made[key]

    def fresh(self) -> Path:
        return self.base / f"out{len(list(self.base.iterdir()))}"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    return Folders(tmp_path_factory.mktemp("retiming"))


def simdist(*arguments: Any) -> int:
    with pytest.raises(SystemExit) as ended:
        app([str(argument) for argument in arguments], prog_name="simdist")
    return int(ended.value.code or 0)


def same(retimed: Path, full: Path) -> None:
    """Assert that a re-timing is what a full run wrote, to the last bit; only wall time differs."""
    for name in ("steps", "ledger"):
        mine, theirs = (pq.read_table(folder / f"{name}.parquet").to_pydict() for folder in (retimed, full))
        assert mine.keys() == theirs.keys()
        for column in mine.keys() - {"wall_seconds"}:
            assert mine[column] == theirs[column], (name, column)
    mine, theirs = (json.loads((folder / "summary.json").read_text()) for folder in (retimed, full))
    for summary in (mine, theirs):
        for key in ("wall_seconds", "peak_rss_bytes"):
            summary.pop(key)
    assert mine == theirs
    if (retimed / "trace.json").exists():
        assert (retimed / "trace.json").read_bytes() == (full / "trace.json").read_bytes()


def check(folders: Folders, chosen: Scenario, changes: dict[str, Any]) -> None:
    out = folders.fresh()
    options = [f"--set={key}={value}" for key, value in changes.items()]
    assert simdist("retime", folders.run(chosen), *options, "--out", out) == 0
    (retimed,) = out.iterdir()
    same(retimed, folders.run(override(chosen, changes)))


CHANGES: list[dict[str, Any]] = [
    {"network.bandwidth": "137Mbit/s"},
    {"network.bandwidth": "1Mbit/s", "network.latency": "13us"},
    {"network.latency": "70ms"},
    {"compute.peak_flops": 3.3e5},
    {"compute.device": "a40", "compute.mfu": 0.3},
    {"compute.speeds.2": 0.25, "compute.speeds.5": 1.7},
    {"network.collectives": "direct"},
    {"network.collectives": "auto"},
    {"overlap.policy": "fsdp"},
    {"overlap.policy": "fsdp", "overlap.prefetch": 0, "network.bandwidth": "3Mbit/s"},
]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("network", [STAR, ISLANDS], ids=["star", "two-level"])
def test_the_same_network_gives_the_run_s_own_times(folders: Folders, optimizer: str, network: dict[str, Any]) -> None:
    chosen = scenario(optimizer, network)
    check(folders, chosen, {"network.bandwidth": network["bandwidth"]})
    steps = pq.read_table(folders.run(chosen) / "steps.parquet").to_pydict()
    assert all(value > 0 for name in TIMES for value in steps[name])


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("network", [STAR, ISLANDS], ids=["star", "two-level"])
@pytest.mark.parametrize("changes", CHANGES[:2], ids=" ".join)
def test_another_bandwidth(folders: Folders, optimizer: str, network: dict[str, Any], changes: dict[str, Any]) -> None:
    check(folders, scenario(optimizer, network), changes)


@pytest.mark.parametrize("speeds", [{}, UNEQUAL], ids=["equal", "unequal"])
@pytest.mark.parametrize("changes", CHANGES, ids=" ".join)
def test_everything_that_decides_seconds(folders: Folders, speeds: dict[int, float], changes: dict[str, Any]) -> None:
    compute = {"device": "custom", "peak_flops": 1e6, "mfu": 1.0, "speeds": speeds}
    check(folders, scenario("orth_dion", ISLANDS, compute=compute), changes)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_another_topology(folders: Folders, optimizer: str) -> None:
    there = {"network.topology": "two-level", "network.island_bandwidth": "3Gbit/s", "network.bandwidth": "50Mbit/s"}
    check(folders, scenario(optimizer, STAR), there)
    check(folders, scenario(optimizer, ISLANDS), {"network.topology": "star", "network.latency": "3ms"})


def test_every_value_gets_a_folder_and_more_bandwidth_is_never_slower(folders: Folders) -> None:
    chosen, out = scenario("dion", ISLANDS, compute={"device": "a40", "speeds": UNEQUAL}), folders.fresh()
    bandwidths = ["100kbit/s", "1Mbit/s", "7Mbit/s", "100Mbit/s", "1Gbit/s", "100Gbit/s"]
    over = f"network.bandwidth={','.join(bandwidths)}"
    assert (
        simdist("retime", folders.run(chosen), "--over", over, "--over", "network.latency=1ms,5us", "--out", out) == 0
    )
    assert len(list(out.iterdir())) == 12
    ends: dict[str, list[float]] = {}
    for latency in ("1ms", "5us"):
        columns = []
        for bandwidth in bandwidths:
            folder = out / f"bandwidth={bandwidth.replace('/', '-')},latency={latency}"
            data = parse((folder / "network.yaml").read_text(), "a test")
            meant = override(chosen, {"network.bandwidth": bandwidth, "network.latency": latency})
            assert Scenario.from_dict({**chosen.to_dict(), **data}) == meant
            columns.append(pq.read_table(folder / "steps.parquet")["simulated_seconds"].to_pylist())
        for slower, faster in itertools.pairwise(columns):
            assert all(a >= b for a, b in zip(slower, faster, strict=True))
        assert columns[0][-1] > 10 * columns[-1][-1]
        ends[latency] = [column[-1] for column in columns]
    assert all(a > b for a, b in zip(ends["1ms"], ends["5us"], strict=True))


def test_without_out_the_run_folder_takes_them(folders: Folders, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(folders.run(scenario("adamw", STAR)), copy)
    before = (copy / "steps.parquet").read_bytes()
    for _ in range(2):  # the second time replaces the first
        assert simdist("retime", copy, "--over", "network.bandwidth=1Mbit/s,1Gbit/s") == 0
    found = sorted(folder.name for folder in (copy / "retimed").iterdir())
    assert found == ["bandwidth=1Gbit-s", "bandwidth=1Mbit-s"]
    assert (copy / "steps.parquet").read_bytes() == before


def test_many_networks_at_once_get_no_time_line_each(folders: Folders, capsys: pytest.CaptureFixture[str]) -> None:
    run = folders.run(scenario("adamw", STAR))
    for count in (TRACED, TRACED + 1):
        out = folders.fresh()
        over = ",".join(f"{mega}Mbit/s" for mega in range(1, count + 1))
        assert simdist("retime", run, "--over", f"network.bandwidth={over}", "--out", out) == 0
        assert len(list(out.glob("*/trace.json"))) == (count if count <= TRACED else 0)
        assert ("No trace.json" in capsys.readouterr().out) == (count > TRACED)


def test_a_run_of_an_earlier_version_gets_the_new_columns(folders: Folders, tmp_path: Path) -> None:
    chosen = scenario("adamw", STAR)
    copy, out = tmp_path / "run", folders.fresh()
    shutil.copytree(folders.run(chosen), copy)
    pq.write_table(pq.read_table(copy / "steps.parquet").drop_columns(["hidden_comm_seconds"]), copy / "steps.parquet")
    assert simdist("retime", copy, "--set=network.bandwidth=20Mbit/s", "--out", out) == 0
    (retimed,) = out.iterdir()
    same(retimed, folders.run(chosen))


# -- what is refused ---------------------------------------------------------------------------------------------------


def refused(capsys: pytest.CaptureFixture[str], *arguments: Any) -> str:
    status = simdist("retime", *arguments)
    message = capsys.readouterr().err
    assert status == 2, message
    assert message.startswith("Error: ")
    assert "Traceback" not in message
    return message


@pytest.mark.parametrize(
    ("option", "fragments"),
    [
        (None, ["got nothing to change", "--over network.bandwidth="]),
        ("--set=seed=1", ["seed: re-timing changes seconds only", "simdist run --set seed="]),
        ("--over=optimizer.lr=0.1,0.2", ["optimizer.lr: re-timing changes seconds only"]),
        ("--set=mesh.shards=2", ["mesh.shards: "]),
        ("--set=network.mode=paced", ["network.mode: ", "nothing can be paced"]),
        ("--set=network.bandwith=1Gbit/s", ["network.bandwith: got an unknown key", "Did you mean 'bandwidth'?"]),
        ("--set=network.bandwidth=1GB/s", ["network.bandwidth: ", "'1GB/s'", "'8Gbit/s'"]),
        ("--set=network.topology=twolevel", ["network.topology: ", "Did you mean 'two-level'?"]),
        ("--set=network.island_size=3", ["network.island_size 3 for 8 hosts"]),
        ("--set=compute.speeds.8=0.5", ["compute.speeds: got worker 8"]),
        ("--set=compute.device=h300", ["got unknown device 'h300'"]),
        ("--over=network.bandwidth=", ["without values"]),
    ],
)
def test_bad_keys(
    folders: Folders, capsys: pytest.CaptureFixture[str], option: str | None, fragments: list[str]
) -> None:
    out = folders.fresh()
    message = refused(capsys, folders.run(scenario("adamw", ISLANDS)), *([option] if option else []), "--out", out)
    for fragment in fragments:
        assert fragment in message, message
    assert not out.exists()


FASTER = "--set=network.bandwidth=1Gbit/s"


def test_folders_that_are_no_finished_lockstep_run(
    folders: Folders, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "no run folder" in refused(capsys, tmp_path, FASTER)
    assert "no run folder" in refused(capsys, tmp_path / "nowhere", FASTER)

    good = folders.run(scenario("adamw", STAR))
    copy = shutil.copytree(good, tmp_path / "copy")
    (copy / "summary.json").unlink()
    assert "not finished" in refused(capsys, copy, FASTER)
    summary = {**json.loads((good / "summary.json").read_text()), "status": "interrupted"}
    (copy / "summary.json").write_text(json.dumps(summary))
    assert "not finished (interrupted)" in refused(capsys, copy, FASTER)

    copy = shutil.copytree(good, tmp_path / "damaged")
    (copy / "program.json").write_text((copy / "program.json").read_text()[:-5])
    assert "is damaged" in refused(capsys, copy, FASTER)
    assert "out" not in {path.name for path in copy.iterdir()}

    irregular = scenario("adamw", STAR, mesh={"replicas": 3}, schedule="async_server")
    assert "irregular programs cannot be re-timed" in refused(capsys, folders.run(irregular), FASTER)


def test_nothing_else_is_overwritten(folders: Folders, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = folders.run(scenario("adamw", STAR))
    # a sweep over bandwidths has run folders of the very same names
    theirs = shutil.copytree(good, tmp_path / "sweep" / "bandwidth=1Gbit-s")
    before = {path.name: path.read_bytes() for path in theirs.iterdir()}
    assert "holds something else" in refused(capsys, good, FASTER, "--out", tmp_path / "sweep")
    assert {path.name: path.read_bytes() for path in theirs.iterdir()} == before
    (tmp_path / "thesis.tex").write_text("precious")
    assert "cannot be used" in refused(capsys, good, FASTER, "--out", tmp_path / "thesis.tex")
    assert (tmp_path / "thesis.tex").read_text() == "precious"
