"""What a run leaves behind: the files of the contract, numbers that add up, and what there is when it ends early."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pyarrow.types as types
import pytest

from simdist import running
from simdist.cli import report_error
from simdist.errors import RunError
from simdist.loading import load_scenario
from simdist.running import run
from simdist.scenario import Scenario

STEPS = 7
COLUMNS = {
    "step": types.is_integer,
    "train_loss": types.is_floating,
    "val_loss": types.is_floating,
    "lr": types.is_floating,
    "simulated_seconds": types.is_floating,
    "compute_seconds": types.is_floating,
    "exposed_comm_seconds": types.is_floating,
    "hidden_comm_seconds": types.is_floating,
    "sent_bytes_total": types.is_integer,
    "sent_bytes_per_worker": types.is_floating,
    "wall_seconds": types.is_floating,
}
LEDGER = {
    "step": types.is_integer,
    "op": types.is_string,
    "purpose": types.is_string,
    "tensor": types.is_string,
    "axis": types.is_string,
    "group_size": types.is_integer,
    "groups": types.is_integer,
    "payload_bytes": types.is_integer,
    "sent_bytes_per_worker": types.is_floating,
    "codec": types.is_string,
    "plan": types.is_string,
    "start_seconds": types.is_floating,
    "end_seconds": types.is_floating,
}
SUMMARY = {
    "workers": int,
    "steps": int,
    "final_train_loss": float,
    "final_val_loss": float,
    "simulated_seconds": float,
    "compute_seconds_per_step": float,
    "exposed_comm_seconds_per_step": float,
    "hidden_comm_seconds_per_step": float,
    "wall_seconds": float,
    "sent_bytes_total": int,
    "sent_bytes_per_worker_per_step": float,
    "engine": str,
    "params_sha256": str,
    "ledger_sha256": str,
    "peak_rss_bytes": int,
}


COMPUTE: dict[str, Any] = {"device": "custom", "peak_flops": 1e6, "mfu": 1.0}


def scenario(**changes: Any) -> Scenario:
    return Scenario.from_dict(
        {
            "name": "small",
            "seed": 3,
            "steps": STEPS,
            "workload": {"name": "teacher", "rows": 9, "columns": 8, "matrices": 3},
            "mesh": {"replicas": 2, "shards": 2},
            "optimizer": {"name": "orth_dion", "lr": 0.02, "rank": 2},
            "wire": {"params": "bf16"},
            "network": {"bandwidth": "1Mbit/s", "latency": "1ms"},
            "compute": COMPUTE,
            "evaluation": {"every": 3},
            "diagnostics": {"every": 2},
            **changes,
        }
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(scenario(), out=tmp_path_factory.mktemp("runs") / "small", progress=False)


def table(folder: Path, name: str) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = pq.read_table(folder / name).to_pydict()
    return found


def summary_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return found


def test_every_file_of_the_contract_is_there(folder: Path) -> None:
    names = {path.name for path in folder.iterdir()}
    expected = {"scenario.yaml", "environment.json", "steps.parquet", "ledger.parquet", "diagnostics.parquet"}
    assert names == expected | {"summary.json", "trace.json", "program.json"}


@pytest.mark.parametrize(("name", "columns"), [("steps.parquet", COLUMNS), ("ledger.parquet", LEDGER)])
def test_tables_have_the_columns_of_the_contract(folder: Path, name: str, columns: dict[str, Any]) -> None:
    schema = pq.read_schema(folder / name)
    for column, has_type in columns.items():
        assert has_type(schema.field(column).type), column


def test_a_row_per_step(folder: Path) -> None:
    steps = table(folder, "steps.parquet")
    assert steps["step"] == list(range(1, STEPS + 1))
    assert [loss is not None for loss in steps["val_loss"]] == [False, False, True, False, False, True, True]
    assert all(math.isfinite(loss) for loss in steps["train_loss"])
    assert steps["lr"] == [0.02] * STEPS
    assert steps["wall_seconds"] == sorted(steps["wall_seconds"])


def test_bytes_add_up_to_the_ledger(folder: Path) -> None:
    steps, ledger, summary = table(folder, "steps.parquet"), table(folder, "ledger.parquet"), summary_of(folder)
    sent, total = dict.fromkeys(steps["step"], 0), 0
    for step, size, in_all, per_worker, members, groups in zip(
        *(
            ledger[k]
            for k in ("step", "payload_bytes", "sent_bytes_total", "sent_bytes_per_worker", "group_size", "groups")
        ),
        strict=True,
    ):
        assert size > 0
        assert in_all == pytest.approx(per_worker * members * groups, rel=1e-12)
        sent[step] += in_all
    for step, cumulative, per_worker in zip(
        steps["step"], steps["sent_bytes_total"], steps["sent_bytes_per_worker"], strict=True
    ):
        total += sent[step]
        assert cumulative == total
        assert per_worker == sent[step] / 4
    assert summary["sent_bytes_total"] == total
    assert summary["sent_bytes_per_worker_per_step"] == pytest.approx(total / 4 / STEPS)


@pytest.mark.parametrize("speeds", [{}, {1: 0.25}], ids=["alike", "one slow"])
def test_computing_and_waiting_make_up_each_step(speeds: dict[int, float], tmp_path: Path) -> None:
    compute = {**COMPUTE, "speeds": speeds}
    steps = table(run(scenario(compute=compute), out=tmp_path / "run", progress=False), "steps.parquet")
    before = 0.0
    for now, busy, exposed in zip(
        steps["simulated_seconds"], steps["compute_seconds"], steps["exposed_comm_seconds"], strict=True
    ):
        assert busy > 0
        assert exposed > 0
        assert busy + exposed == pytest.approx(now - before, rel=1e-9)
        before = now


def test_the_summary_has_the_mean_step(folder: Path) -> None:
    summary, steps = summary_of(folder), table(folder, "steps.parquet")
    for name in ("compute_seconds", "exposed_comm_seconds", "hidden_comm_seconds"):
        assert summary[f"{name}_per_step"] == pytest.approx(sum(steps[name]) / STEPS, rel=1e-12)
    parts = summary["compute_seconds_per_step"] + summary["exposed_comm_seconds_per_step"]
    assert parts * STEPS == pytest.approx(summary["simulated_seconds"], rel=1e-9)


@pytest.mark.parametrize(("policy", "hides"), [("none", False), ("fsdp", True)])
def test_hidden_traffic_is_part_of_the_computing(policy: str, hides: bool, tmp_path: Path) -> None:
    steps = table(run(scenario(overlap={"policy": policy}), out=tmp_path / "run", progress=False), "steps.parquet")
    for hidden, busy in zip(steps["hidden_comm_seconds"], steps["compute_seconds"], strict=True):
        assert 0 <= hidden <= busy
        assert (hidden > 0) == hides


def test_transfers_happen_within_their_step(folder: Path) -> None:
    ends = table(folder, "steps.parquet")["simulated_seconds"]
    ledger = table(folder, "ledger.parquet")
    for step, start, end in zip(ledger["step"], ledger["start_seconds"], ledger["end_seconds"], strict=True):
        begin = ends[step - 2] if step > 1 else 0.0
        assert begin - 1e-12 <= start < end <= ends[step - 1] + 1e-12
    assert set(ledger["purpose"]) == {"param_gather", "grad_reduce", "optimizer"}
    assert set(ledger["plan"]) == {"ring"}
    assert {codec for codec, purpose in zip(ledger["codec"], ledger["purpose"], strict=True) if "param" in purpose} == {
        "bf16"
    }


def test_diagnostics_have_a_row_per_step_and_matrix(folder: Path) -> None:
    rows = table(folder, "diagnostics.parquet")
    assert rows["step"] == [step for step in (1, 2, 4, 6) for _ in range(3)]
    assert rows["matrix"] == [f"matrices.{i}" for i in range(3)] * 4
    for name in ("nu", "residual_ratio", "tracking_error", "effective_rank", "sign_fraction"):
        assert all(math.isfinite(value) for value in rows[name])


def test_the_summary_repeats_the_last_row(folder: Path) -> None:
    summary, steps = summary_of(folder), table(folder, "steps.parquet")
    for key, kind in SUMMARY.items():
        assert type(summary[key]) is kind, key
    assert (summary["status"], summary["workers"], summary["steps"], summary["engine"]) == ("done", 4, STEPS, "inline")
    for key, column in (
        ("final_train_loss", "train_loss"),
        ("final_val_loss", "val_loss"),
        ("simulated_seconds", "simulated_seconds"),
        ("sent_bytes_total", "sent_bytes_total"),
    ):
        assert summary[key] == steps[column][-1]
    assert all(len(summary[key]) == 64 for key in ("params_sha256", "ledger_sha256"))
    assert summary["peak_rss_bytes"] > 10**7
    assert summary["wall_seconds"] >= steps["wall_seconds"][-1]


def test_the_environment_says_what_a_result_depends_on(folder: Path) -> None:
    found = json.loads((folder / "environment.json").read_text())
    assert found["seed"] == 3
    assert {"data_sha256", "git_revision", "host", "versions"} <= found.keys()
    assert {"python", "torch", "simdist"} <= found["versions"].keys()


OVERLAPS: dict[str, dict[str, Any]] = {
    "nothing hidden": {},
    "fsdp": {"overlap": {"policy": "fsdp"}},
    "unequal": {"overlap": {"policy": "fsdp"}, "compute": {**COMPUTE, "speeds": {1: 0.25}}},
    "ddp": {"overlap": {"policy": "ddp", "bucket": 4096}, "mesh": {"replicas": 4, "shards": 1}},
    "islands": {"network": {"topology": "two-level", "bandwidth": "1Mbit/s", "island_size": 2}},
    "irregular": {"schedule": "async_server", "mesh": {"replicas": 4, "shards": 1}, "diagnostics": {}},
}


@pytest.fixture(scope="module", params=OVERLAPS)
def drawn(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose time line is looked at."""
    out = tmp_path_factory.mktemp("drawn") / "run"
    chosen = scenario(workload={"name": "teacher", "rows": 32, "columns": 24}, **OVERLAPS[request.param])
    return run(chosen, out=out, progress=False)


def events_of(folder: Path, kind: str) -> list[dict[str, Any]]:
    found = json.loads((folder / "trace.json").read_text())["traceEvents"]
    return [event for event in found if event["ph"] == kind]


def test_the_time_line_is_in_chromes_format(drawn: Path) -> None:
    """Google's Trace Event Format: complete events, counters and metadata with the fields that each must have."""
    text = json.loads((drawn / "trace.json").read_text())
    assert text["displayTimeUnit"] == "ms"
    fields = {"M": {"name", "pid", "tid", "args"}, "X": {"name", "pid", "tid", "ts", "dur", "args"}}
    fields["C"] = {"name", "pid", "ts", "args"}
    for event in text["traceEvents"]:
        assert event.keys() - {"ph"} == fields[event["ph"]]
        assert event["name"]
        assert all(math.isfinite(event.get(key, 0.0)) and event.get(key, 0.0) >= 0 for key in ("ts", "dur"))
        if event["ph"] == "C":
            assert all(isinstance(value, float) for value in event["args"].values())


def test_every_worker_has_named_rows_with_computing_first(drawn: Path) -> None:
    names = {(e["pid"], e["tid"]): e["args"]["name"] for e in events_of(drawn, "M") if e["name"] == "thread_name"}
    rows = {(event["pid"], event["tid"]) for event in events_of(drawn, "X")}
    assert rows == names.keys()
    assert {pid for pid, _ in rows} == set(range(4))
    assert {name for (_, tid), name in names.items() if tid == 0} == {"compute"}
    assert len(set(names.values())) == len({tid for _, tid in names})


def test_what_is_drawn_on_one_row_does_not_overlap(drawn: Path) -> None:
    rows: dict[tuple[int, int], list[tuple[float, float]]] = {}
    for event in events_of(drawn, "X"):
        assert event["dur"] > 0
        rows.setdefault((event["pid"], event["tid"]), []).append((event["ts"], event["ts"] + event["dur"]))
    for spans in rows.values():
        spans.sort()
        for (_, end), (start, _) in pairwise(spans):
            assert end <= start + 1e-9 * end  # both are rounded


def test_links_carry_no_more_than_they_can(drawn: Path) -> None:
    counters: dict[str, list[tuple[float, float]]] = {}
    for event in events_of(drawn, "C"):
        counters.setdefault(event["name"], []).append((event["ts"], event["args"]["percent of capacity"]))
    lockstep = (drawn / "program.json").exists()
    assert bool(counters) == lockstep
    for samples in counters.values():
        times, values = zip(*samples, strict=True)
        assert list(times) == sorted(set(times))
        assert max(values) <= 100.0
        assert min(values) == values[-1] == 0.0
        assert all(one != other for one, other in pairwise(values))
    if counters:
        assert max(value for samples in counters.values() for _, value in samples) == 100.0


def test_counters_hold_the_bytes_of_the_ledger(folder: Path) -> None:
    """On a star every byte leaves over its sender's uplink: the area under the counters is what was sent."""
    sent = 0.0
    samples: dict[str, list[tuple[float, float]]] = {}
    for event in events_of(folder, "C"):
        samples.setdefault(event["name"], []).append((event["ts"] / 1e6, event["args"]["percent of capacity"] / 100))
    for name, points in samples.items():
        if name.endswith("->switch"):
            sent += sum((until - at) * share for (at, share), (until, _) in pairwise(points)) * 1e6 / 8
    assert sent == pytest.approx(table(folder, "steps.parquet")["sent_bytes_total"][4], rel=1e-6)


def test_the_time_line_shows_the_first_five_steps(folder: Path) -> None:
    last = max(event["ts"] + event["dur"] for event in events_of(folder, "X"))
    assert last / 1e6 == pytest.approx(table(folder, "steps.parquet")["simulated_seconds"][4], rel=1e-9)


def test_the_saved_scenario_repeats_the_run(folder: Path, tmp_path: Path) -> None:
    again = load_scenario(str(folder / "scenario.yaml"))
    assert again == scenario()
    one, other = summary_of(folder), summary_of(run(again, out=tmp_path / "again", progress=False))
    for key in ("params_sha256", "ledger_sha256", "simulated_seconds", "final_val_loss"):
        assert one[key] == other[key]


def test_a_loss_that_is_no_number_ends_the_run_and_keeps_what_there_is(tmp_path: Path) -> None:
    diverging = scenario(optimizer={"name": "sgd", "lr": 1e30}, diagnostics={})
    with pytest.raises(RunError) as caught:
        run(diverging, out=tmp_path / "run", progress=False)
    step = summary_of(tmp_path / "run")["steps"]
    message = str(caught.value)
    assert f"at step {step} with optimizer 'sgd' (lr 1e+30); try a smaller optimizer.lr" in message
    assert f"everything up to step {step} is in {tmp_path / 'run'}" in message
    assert report_error(caught.value) == 3
    summary = summary_of(tmp_path / "run")
    assert (summary["status"], summary["final_train_loss"], summary["params_sha256"]) == ("failed", None, None)
    steps = table(tmp_path / "run", "steps.parquet")
    assert steps["step"] == list(range(1, step + 1))
    assert 1 < step < STEPS
    assert math.isfinite(steps["train_loss"][0])
    assert max(table(tmp_path / "run", "ledger.parquet")["step"]) == step


@pytest.mark.parametrize("optimizer", ["adamw", "muon", "dion", "orth_dion"])
def test_other_optimizers_that_diverge_end_as_clearly(optimizer: str, tmp_path: Path) -> None:
    """Not in the middle of a factorisation, with a traceback."""
    rank = {"rank": 2} if "dion" in optimizer else {}
    diverging = scenario(optimizer={"name": optimizer, "lr": 1e30, **rank})
    with pytest.raises(RunError, match=f"loss is .* with optimizer '{optimizer}'"):
        run(diverging, out=tmp_path / "run", progress=False)


def test_an_interrupted_run_keeps_what_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add_row = running.Session.add_row

    def interrupted(self: running.Session, step_bytes: int, row: dict[str, Any]) -> None:
        add_row(self, step_bytes, row)
        if row["step"] == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(running.Session, "add_row", interrupted)
    with pytest.raises(KeyboardInterrupt, match="interrupted; everything up to step 4 is in") as caught:
        run(scenario(), out=tmp_path / "run", progress=False)
    assert report_error(caught.value) == 130
    summary = summary_of(tmp_path / "run")
    assert (summary["status"], summary["steps"]) == ("interrupted", 4)
    assert table(tmp_path / "run", "steps.parquet")["step"] == [1, 2, 3, 4]
    assert len(json.loads((tmp_path / "run" / "program.json").read_text())["steps"]) == 4
    assert "traceEvents" in json.loads((tmp_path / "run" / "trace.json").read_text())


def test_folders_are_numbered_when_no_name_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    short = scenario(steps=1)
    assert [run(short, progress=False).name for _ in range(3)] == ["small", "small-2", "small-3"]
