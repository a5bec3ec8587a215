"""Compute settings: devices, measured profiles and stragglers as a scenario names them, and their bad input."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.fidelity.measure_profile import main as measure_profile
from simdist.assembly import build_compute
from simdist.cli import app
from simdist.devices import STRAGGLERS, ComputeSettings, devices
from simdist.loading import load_scenario, override
from simdist.profiles import read_profile
from simdist.scenario import Scenario
from simdist.stragglers import Lognormal, Occasional, Stragglers, Trace, stragglers
from simdist.yaml_text import dump, parse

Call = Callable[..., tuple[int, str]]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    """Call the command line in this process; return its exit status, and what it wrote to stdout or stderr."""

    def called(*arguments: str) -> tuple[int, str]:
        with pytest.raises(SystemExit) as ended:
            app(list(arguments), prog_name="simdist")
        status = int(ended.value.code or 0)
        captured = capsys.readouterr()
        return status, captured.err if status else captured.out

    return called


@pytest.fixture
def scenario(tmp_path: Path) -> str:
    """A file with three units (root, matrices.0, matrices.1) on four workers, in which computing takes a while."""
    data = {
        "steps": 4,
        "workload": {"name": "teacher", "rows": 8, "columns": 6, "bias": True},
        "mesh": {"shards": 4},
        "optimizer": {"name": "adamw", "lr": 0.01},
        "compute": {"device": "custom", "peak_flops": 1e6, "mfu": 1.0},
    }
    file = tmp_path / "scenario.yaml"
    file.write_text(dump(data))
    return str(file)


# -- devices -------------------------------------------------------------------------------------------------

#: TFLOP/s (dense bf16) and TB/s of the makers' data sheets
DATA_SHEETS = {
    "b200": (2250, 8.0),
    "h200": (989, 4.8),
    "h100": (989, 3.35),
    "a100": (312, 2.039),
    "mi300x": (1307.4, 5.3),
    "l40s": (362.05, 0.864),
    "a40": (149.7, 0.696),
    "rtx4090": (165.2, 1.008),
    "v100": (125, 0.9),
}


def test_presets_are_those_of_the_data_sheets() -> None:
    found = {
        name: (device.peak_flops / 1e12, device.memory_bytes_per_second / 1e12) for name, device in devices.items()
    }
    assert found.pop("cpu-core") == pytest.approx((3e9 * 2 * 8 * 2 / 1e12, 3.2e9 * 8 / 2 / 1e12))
    assert found == {name: pytest.approx(peaks) for name, peaks in DATA_SHEETS.items()}


@pytest.mark.parametrize("name", devices.names())
def test_both_peaks_are_listed_with_their_source(call: Call, name: str) -> None:
    device = devices.get(name)
    assert device.source in device.summary
    assert f"{device.peak_flops / 1e12:g} TFLOP/s, {device.memory_bytes_per_second / 1e12:g} TB/s" in device.summary
    status, listed = call("list", "devices")
    assert status == 0
    assert name in listed


@given(st.sampled_from(devices.names()), st.floats(1e-3, 1.0), st.floats(1e-3, 1.0))
def test_utilisations_are_shares_of_the_peaks(name: str, mfu: float, mbu: float) -> None:
    compute = ComputeSettings(device=name, mfu=mfu, mbu=mbu)
    assert compute.flops_per_second == devices.get(name).peak_flops * mfu
    assert compute.memory_bytes_per_second == devices.get(name).memory_bytes_per_second * mbu


def test_a_custom_device_without_a_memory_rate_only_calculates() -> None:
    assert ComputeSettings(device="custom", peak_flops=1e12).memory_bytes_per_second is None
    given_rate = ComputeSettings(device="custom", peak_flops=1e12, peak_memory=1e11, mbu=0.5)
    assert given_rate.memory_bytes_per_second == 5e10


def test_speeds_become_slowness(scenario: str) -> None:
    compute = build_compute(load_scenario(scenario, ["compute.speeds.2=0.5"]))
    assert compute.slowness == (1.0, 1.0, 2.0, 1.0)


# -- stragglers: laws of every model -------------------------------------------------------------------------


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    file = tmp_path / "trace.csv"
    file.write_text("step, worker, slowness\n3,1,2.5\n1,0,1.5\n1,1,0.5\n")
    return file


@pytest.fixture(params=stragglers.names())
def straggler(request: pytest.FixtureRequest, trace: Path) -> Stragglers:
    settings: dict[str, dict[str, Any]] = {
        "lognormal": {"sigma": 0.5},
        "occasional": {"probability": 0.3, "factor": 4.0},
        "trace": {"path": str(trace), "repeat": True},
    }
    chosen = STRAGGLERS.choose({"name": request.param, **settings[request.param]})
    assert isinstance(chosen, Stragglers)
    return chosen


def test_every_step_is_the_same_however_often_and_in_whatever_order_it_is_asked(straggler: Stragglers) -> None:
    steps = range(1, 30)
    forth, back = straggler.slowness(4), straggler.slowness(4)
    assert [forth(step) for step in steps] == [back(step) for step in reversed(steps)][::-1]
    assert len({forth(step) for step in steps}) > 1, "steps differ"


def test_slowness_is_a_positive_number_for_each_worker(straggler: Stragglers) -> None:
    for step in range(1, 50):
        found = straggler.slowness(7)(step)
        assert len(found) == 7
        assert all(0 < value < math.inf for value in found)


def test_workers_do_not_depend_on_how_many_others_there_are(straggler: Stragglers) -> None:
    few, many = straggler.slowness(3), straggler.slowness(9)
    assert [many(step)[:3] for step in range(1, 30)] == [few(step) for step in range(1, 30)]


def test_settings_come_back_from_a_saved_scenario(straggler: Stragglers, scenario: str) -> None:
    chosen = load_scenario(scenario).model_copy(update={"compute": ComputeSettings(stragglers=straggler)})
    assert Scenario.from_dict(parse(chosen.to_yaml(), "a test")).compute.stragglers == straggler


# -- stragglers: each model ----------------------------------------------------------------------------------


def draws(model: Stragglers, steps: int = 400, workers: int = 50) -> list[float]:
    slowness = model.slowness(workers)
    return [value for step in range(1, steps + 1) for value in slowness(step)]


@pytest.mark.parametrize("sigma", [0.1, 0.5, 1.0])
def test_lognormal_slowness_has_mean_one_and_the_stated_spread(sigma: float) -> None:
    found = draws(Lognormal(sigma=sigma))
    error = math.sqrt(math.expm1(sigma**2) / len(found))  # of the mean, from the variance exp(sigma^2) - 1
    assert statistics.fmean(found) == pytest.approx(1.0, abs=4 * error)
    assert statistics.stdev(map(math.log, found)) == pytest.approx(sigma, rel=0.03)
    assert statistics.fmean(map(math.log, found)) == pytest.approx(
        -(sigma**2) / 2, abs=4 * sigma / math.sqrt(len(found))
    )


def test_without_spread_nobody_straggles() -> None:
    assert set(draws(Lognormal(sigma=0.0), 5)) == {1.0}
    assert set(draws(Occasional(probability=0.0, factor=9.0), 5)) == {1.0}
    assert set(draws(Occasional(probability=1.0, factor=9.0), 5)) == {9.0}


def test_seeds_and_steps_are_different_draws() -> None:
    firsts = {Lognormal(sigma=1.0, seed=seed).slowness(1)(step) for seed in range(8) for step in range(1, 9)}
    assert len(firsts) == 64


def test_occasional_stragglers_come_as_often_as_stated() -> None:
    found = draws(Occasional(probability=0.2, factor=3.0))
    assert set(found) == {1.0, 3.0}
    assert found.count(3.0) / len(found) == pytest.approx(0.2, abs=4 * math.sqrt(0.2 * 0.8 / len(found)))


def test_a_synchronous_step_with_occasional_stragglers_has_the_stated_mean() -> None:
    """(1 + (factor - 1) (1 - (1 - p)^n)) c."""
    slowness = Occasional(probability=0.05, factor=5.0).slowness(8)
    steps = 4000
    some = 1 - 0.95**8
    mean = statistics.fmean(max(slowness(step)) for step in range(1, steps + 1))
    assert mean == pytest.approx(1 + 4 * some, abs=4 * 4 * math.sqrt(some * (1 - some) / steps))


@given(st.floats(0, 1), st.floats(0, 1), st.integers(1, 1000))
def test_more_probable_stragglers_are_never_faster(one: float, other: float, step: int) -> None:
    low, high = (Occasional(probability=p, factor=2.0).slowness(6)(step) for p in sorted((one, other)))
    assert all(a <= b for a, b in zip(low, high, strict=True))


def test_traces_by_hand(trace: Path) -> None:
    once, again = (Trace(path=str(trace), repeat=repeat).slowness(3) for repeat in (False, True))
    assert [once(step) for step in (1, 2, 3, 4, 5, 6)] == [(1.5, 0.5, 1.0), (1,) * 3, (1.0, 2.5, 1.0), *[(1,) * 3] * 3]
    assert [again(step) for step in (4, 5, 6, 7)] == [once(step) for step in (1, 2, 3, 1)]


# -- profiles ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("write", [dump, json.dumps], ids=["yaml", "json"])
def test_profiles_are_read_from_both_kinds_of_files(tmp_path: Path, write: Callable[[Any], str]) -> None:
    file = tmp_path / "profile"
    file.write_text(write({"forward": {"root": "2ms", "matrices.0": 1e-3}, "backward": 0.5, "optimizer": "5ms"}))
    assert read_profile(str(file)).seconds == {
        ("forward", "root"): 2e-3,
        ("forward", "matrices.0"): 1e-3,
        ("backward", None): 0.5,
        ("optimizer", None): 5e-3,
    }


def test_files_are_named_from_the_working_directory_and_found_from_any(
    tmp_path: Path, scenario: str, trace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "profile.yaml").write_text("optimizer: 1ms")
    monkeypatch.chdir(tmp_path)
    settings = ["compute.profile=profile.yaml", "compute.stragglers=trace", f"compute.stragglers.path={trace.name}"]
    found = load_scenario(scenario, settings)
    monkeypatch.chdir("/")
    again = Scenario.from_dict(parse(found.to_yaml(), "a test"))
    assert again == found
    compute = build_compute(again)
    assert compute.profile == {("optimizer", None): 1e-3}
    assert compute.slowness_in(1) == (1.5, 0.5, 1.0, 1.0)


def test_another_device_drops_the_old_profile_and_keeps_the_stragglers(scenario: str) -> None:
    measured = load_scenario(scenario, ["compute.profile=p.yaml", "compute.stragglers={name: lognormal, sigma: 0.2}"])
    changed = override(measured, {"compute.device": "a100"})
    assert changed.compute == ComputeSettings(device="a100", mfu=1.0, stragglers=Lognormal(sigma=0.2))
    assert override(measured, {"compute.stragglers": None}).compute.stragglers is None


def test_what_is_measured_here_is_a_profile(scenario: str, tmp_path: Path) -> None:
    """The tool's file is taken by the scenario that it was measured on."""
    out = tmp_path / "profile.yaml"
    measure_profile([scenario, "--out", str(out), "--repeats", "3"])
    seconds = read_profile(str(out)).seconds
    assert set(seconds) == {("forward", None), ("backward", None)}
    assert all(value > 0 for value in seconds.values())
    assert build_compute(load_scenario(scenario, [f"compute.profile={out}"])).profile == seconds


# -- through the command line --------------------------------------------------------------------------------

LOGNORMAL = ["--set=compute.stragglers=lognormal", "--set=compute.stragglers.sigma=0.3"]


def test_check_prints_what_was_chosen(call: Call, scenario: str) -> None:
    status, printed = call("check", scenario, *LOGNORMAL)
    assert status == 0, printed
    assert parse(printed, "the output")["compute"]["stragglers"] == {"name": "lognormal", "sigma": 0.3, "seed": 0}


def test_a_retimed_run_has_the_times_of_a_run_with_those_settings(call: Call, scenario: str, tmp_path: Path) -> None:
    profile = tmp_path / "profile.yaml"
    profile.write_text("{forward: 1ms, backward: {matrices.0: 3ms}, optimizer: 500us}")
    settings = [*LOGNORMAL, f"--set=compute.profile={profile}"]
    assert call("run", scenario, f"--out={tmp_path / 'plain'}")[0] == 0
    ran = call("run", scenario, f"--out={tmp_path / 'full'}", *settings)
    assert ran[0] == 0, ran
    assert call("retime", str(tmp_path / "plain"), f"--out={tmp_path / 'retimed'}", *settings)[0] == 0
    columns = ["simulated_seconds", "compute_seconds", "exposed_comm_seconds"]
    (retimed,) = (tmp_path / "retimed").glob("**/steps.parquet")
    times = [pq.read_table(file, columns=columns) for file in (tmp_path / "full" / "steps.parquet", retimed)]
    assert times[0] == times[1]
    assert times[0] != pq.read_table(tmp_path / "plain" / "steps.parquet", columns=columns)
    profile.write_text("forward: {matrices.7: 1ms}")
    status, message = call("retime", str(tmp_path / "plain"), f"--set=compute.profile={profile}")
    assert (status, f"{profile}, forward.matrices.7: got" in message) == (2, True), message


def refused(answer: tuple[int, str], *fragments: str) -> None:
    status, message = answer
    assert status == 2, message
    assert message.count("Error: ") == 1
    assert "Traceback" not in message
    for fragment in ("got", "expected", *fragments):
        assert fragment in message, message


@pytest.mark.parametrize(
    ("changes", "fragments"),
    [
        (["stragglers=lognoraml"], ["compute.stragglers.name: ", "Did you mean 'lognormal'?"]),
        (["stragglers=lognormal"], ["compute.stragglers.sigma: got nothing"]),
        (["stragglers=lognormal", "stragglers.sigma=-1"], ["compute.stragglers.sigma: got -1"]),
        (["stragglers=lognormal", "stragglers.sigma=.nan"], ["compute.stragglers.sigma: got nan"]),
        (["stragglers=lognormal", "stragglers.sigm=1"], ["compute.stragglers.sigm: ", "Did you mean 'sigma'?"]),
        (["stragglers={name: occasional, probability: 1.5, factor: 2}"], ["compute.stragglers.probability: got 1.5"]),
        (["stragglers={name: occasional, probability: 0.5, factor: 0.5}"], ["compute.stragglers.factor: got 0.5"]),
        (["stragglers={name: trace}"], ["compute.stragglers.path: got nothing"]),
        (["stragglers={name: trace, path: nowhere.csv}"], ["compute.stragglers.path", "nowhere.csv", "cannot be read"]),
        (["stragglers=3"], ["compute.stragglers: got 3"]),
        (["stragglers.sigma=0.3"], ["compute.stragglers"]),
        (["profile=nowhere.yaml"], ["compute.profile", "nowhere.yaml", "cannot be read"]),
        (["profile=''"], ["compute.profile: got ''"]),
        (["profile=[1]"], ["compute.profile: got [1]", "a text"]),
        (["peak_memory=0"], ["compute.peak_memory: got 0"]),
        (["mbu=0"], ["compute.mbu: got 0"]),
        (["mbu=1.1"], ["compute.mbu: got 1.1"]),
        (["device=h100", "peak_memory=1e12"], ["got peak_memory 1e+12 with device 'h100'", "'custom'"]),
    ],
    ids=lambda value: " ".join(value) if "=" in value[0] else "",
)
def test_bad_settings(call: Call, scenario: str, changes: list[str], fragments: list[str]) -> None:
    refused(call("check", scenario, *(f"--set=compute.{change}" for change in changes)), *fragments)


@pytest.mark.parametrize(
    ("text", "fragments"),
    [
        ("", ["got None", "forward, backward or optimizer"]),
        ("3ms", ["got '3ms'"]),
        ("{}", ["got {}"]),
        ("forwards: 1ms", [", forwards: ", "Did you mean 'forward'?"]),
        ("forward: {}", [", forward: got no units"]),
        ("forward:", [", forward: got None"]),
        ("forward: {root: -1}", [", forward.root: got -1", "zero or more"]),
        ("forward: {root: .nan}", [", forward.root: got nan"]),
        ("backward: .inf", [", backward: got inf"]),
        ("backward: true", [", backward: got True"]),
        ("optimizer: 5 bananas", [", optimizer: got '5 bananas'", "5ms"]),
        ("optimizer: {root: 1ms}", [", optimizer: got {'root': '1ms'}"]),
        (
            "backward: {matrices.2: 1ms}",
            [", backward.matrices.2: got", "matrices.0, matrices.1, root.", "Did you mean 'matrices."],
        ),
        ("forward: 1ms\nforward: 2ms", [", line 2"]),
        ("forward: [1", ["not valid YAML"]),
        ("forward: \xff", ["cannot be read"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_profiles(call: Call, scenario: str, tmp_path: Path, text: str, fragments: list[str]) -> None:
    file = tmp_path / "profile.yaml"
    file.write_text(text, encoding="latin-1")
    refused(call("check", scenario, f"--set=compute.profile={file}"), str(file), *fragments)


@pytest.mark.parametrize(
    ("rows", "fragments"),
    [
        ("", ["line 1: got the columns none", "step,worker,slowness"]),
        ("step,worker\n1,0\n", ["line 1: got the columns step, worker"]),
        ("step,worker,slowness\n", ["without a row"]),
        ("step,worker,slowness\n1,0,1.5\n2,1\n", ["line 3: got another number of values than 3"]),
        ("step,worker,slowness\n1,,1.5\n", ["line 2: got another number of values than 3"]),
        ("step,worker,slowness\n0,0,1.5\n", ["line 2: step: got '0'", "from 1 on"]),
        ("step,worker,slowness\n1.5,0,1.5\n", ["line 2: step: got '1.5'"]),
        ("step,worker,slowness\n1,-1,1.5\n", ["line 2: worker: got '-1'"]),
        ("step,worker,slowness\n1,3,1\n1,4,1\n", ["line 3: got worker 4 with 4 workers", "from 0 to 3"]),
        ("step,worker,slowness\n1,0,0\n", ["line 2: slowness: got '0'", "above zero"]),
        ("step,worker,slowness\n1,0,-2\n", ["line 2: slowness: got '-2'"]),
        ("step,worker,slowness\n1,0,nan\n", ["line 2: slowness: got 'nan'"]),
        ("step,worker,slowness\n1,0,slow\n", ["line 2: slowness: got 'slow'"]),
        ("step,worker,slowness\n1,0,2\n1,0,3\n", ["line 3: got worker 0 in step 1 twice"]),
        ("step,worker,slowness\n1,0,\xff\n", ["cannot be read"]),
    ],
)
def test_bad_traces(call: Call, scenario: str, tmp_path: Path, rows: str, fragments: list[str]) -> None:
    file = tmp_path / "trace.csv"
    file.write_text(rows, encoding="latin-1")
    settings = f"--set=compute.stragglers={{name: trace, path: {file}}}"
    refused(call("check", scenario, settings), str(file), *fragments)


def test_irregular_schedules_have_no_profile(call: Call, scenario: str, tmp_path: Path) -> None:
    (tmp_path / "profile.yaml").write_text("forward: 1ms")
    irregular = ["--set=schedule=async_server", "--set=mesh.shards=1", "--set=mesh.replicas=4"]
    refused(
        call("check", scenario, *irregular, f"--set=compute.profile={tmp_path / 'profile.yaml'}"),
        "compute.profile: got",
        "'async_server'",
        "compute.profile: null",
    )
    assert call("check", scenario, *irregular, *LOGNORMAL)[0] == 0, "stragglers are fine there"
