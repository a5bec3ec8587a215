"""Scenarios: choosing by name, resolved data that repeats the run, overrides in any order, learning rates."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from simdist.devices import ComputeSettings
from simdist.errors import InputError
from simdist.loading import load, load_scenario, override, parse_set
from simdist.network import Star
from simdist.optimizers import AdamW, OrthDion
from simdist.scenario import Scenario, Sweep, check_fits
from simdist.schedules.learning_rate import LearningRate
from simdist.workloads import ByteGPT
from simdist.workloads.workload import ParamSpec, Unit
from simdist.yaml_text import dump, parse

SMALL: dict[str, Any] = {"workload": "byte_gpt", "optimizer": {"name": "adamw", "lr": 1e-3}, "mesh": {"shards": 4}}


@pytest.fixture
def small() -> Scenario:
    return Scenario.from_dict(SMALL)


def test_sections_become_the_things_themselves(small: Scenario) -> None:
    assert isinstance(small.workload, ByteGPT)
    assert isinstance(small.optimizer, AdamW)
    assert isinstance(small.network, Star)
    assert small.optimizer.lr == 1e-3
    assert small.workers == 4


def test_instances_and_sections_are_the_same(small: Scenario) -> None:
    assert Scenario(workload=ByteGPT(), optimizer=AdamW(lr=1e-3), mesh={"shards": 4}) == small


floats = st.floats(min_value=1e-12, max_value=1e15, allow_nan=False)
names = st.text(st.characters(codec="utf-8", categories=["L", "N", "P", "S", "Zs"]), min_size=1, max_size=8)


@st.composite
def scenarios(draw: st.DrawFn) -> Scenario:
    replicas, shards = draw(st.integers(1, 4)), draw(st.integers(1, 8))
    engine: dict[str, Any] = {"name": draw(st.sampled_from(["inline", "stacked", "ray"]))}
    if engine["name"] == "ray":
        engine["actors"] = draw(st.none() | st.integers(1, replicas * shards))
        engine["block"] = draw(st.sampled_from(["inline", "stacked"]))
    optimizer = draw(
        st.sampled_from([{"name": "adamw"}, {"name": "muon"}, {"name": "orth_dion", "rank": 8}, {"name": "sgd"}])
    )
    name = draw(
        names.filter(lambda text: text.strip(" .") and not set(text) & set('/\\:*?"<>|') and text.isprintable())
    )
    return Scenario.from_dict(
        {
            "name": name,
            "seed": draw(st.integers(0, 2**63)),
            "steps": draw(st.integers(1, 10**6)),
            "dtype": draw(st.sampled_from(["float32", "float64"])),
            "workload": {"name": "byte_gpt", "depth": draw(st.integers(1, 9))},
            "mesh": {
                "replicas": replicas,
                "shards": shards,
                "workers": draw(st.none() | st.just(replicas * shards)),
                "reshard_after_forward": draw(st.none() | st.booleans()),
            },
            "optimizer": {**optimizer, "lr": draw(floats), "weight_decay": draw(floats)},
            "lr_schedule": {"warmup": draw(st.integers(0, 50)), "shape": "cosine", "final": draw(st.floats(0, 1))},
            "wire": {"params": draw(st.sampled_from(["fp32", "bf16", "fp16", "fp64"]))},
            "network": {
                "topology": draw(st.sampled_from(["star", "two-level"])),
                "bandwidth": draw(floats | st.integers(1, 10**12)),
                "latency": draw(floats | st.sampled_from(["5ms", "50us", "3ns", 0])),
            },
            "compute": {
                **draw(st.sampled_from([{"device": "a100"}, {"device": "custom", "peak_flops": 5e12}])),
                "speeds": draw(st.dictionaries(st.integers(0, replicas * shards - 1), floats)),
            },
            "engine": engine,
        }
    )


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(scenarios())
def test_saved_scenarios_come_back_equal(scenario: Scenario) -> None:
    assert Scenario.from_dict(scenario.to_dict()) == scenario
    assert Scenario.from_dict(parse(scenario.to_yaml(), "a test")) == scenario


yaml_data = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@settings(deadline=None)
@given(yaml_data)
@example({"\x85": "a\u2028b\r\n\ufeff"})
def test_yaml_writes_what_it_reads(data: Any) -> None:
    assert parse(dump(data), "a test") == data


@pytest.mark.parametrize("text", ["1e-3", "no", "010", "1:30", "2020-01-01", "~", "null", "=", "0x1F", "1_000"])
def test_yaml_quotes_texts_that_look_like_something_else(text: str) -> None:
    import yaml

    written = dump({"name": text})
    assert parse(written, "a test") == {"name": text}
    assert yaml.safe_load(written) == {"name": text}, "other YAML readers must not misread it either"


USER_CLASSES = """
from simdist import scenario as s
from simdist.optimizers import AdamW
from simdist.workloads import ByteGPT

class Mine(AdamW):
    '''My rule.'''
    name: str = "mine"
    twist: float = 0.5

def scenario():
    return s.Scenario(workload=ByteGPT(), optimizer=Mine(lr=0.1, twist=0.25))
"""


def test_a_users_class_is_found_again_from_the_saved_scenario(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(USER_CLASSES)
    loaded = load_scenario(str(file))
    data = loaded.to_dict()
    assert data["optimizer"]["name"] == f"{file.resolve()}:Mine"
    assert data["optimizer"]["twist"] == 0.25
    saved = tmp_path / "scenario.yaml"
    saved.write_text(loaded.to_yaml())
    assert load_scenario(str(saved)) == loaded
    assert load_scenario(str(tmp_path)) == loaded, "a run folder means its scenario.yaml"


def test_a_class_inside_a_function_cannot_be_saved() -> None:
    class Hidden(AdamW):
        name: str = "hidden"

    scenario = Scenario(workload=ByteGPT(), optimizer=Hidden(lr=0.1))
    with pytest.raises(InputError, match="top level"):
        scenario.to_dict()


def test_overrides_leave_other_sections_alone(small: Scenario) -> None:
    changed = override(small, {"network.bandwidth": "10Mbit/s", "steps": 7})
    assert changed.network.bandwidth == 1e7
    assert changed.steps == 7
    assert changed.optimizer is small.optimizer


def test_numbers_in_exponent_notation_are_numbers() -> None:
    assert parse_set(["optimizer.lr=1e-3", "wire={params: bf16}", "name=no", "seed=7"]) == {
        "optimizer.lr": 1e-3,
        "wire": {"params": "bf16"},
        "name": "no",
        "seed": 7,
    }


def test_overrides_do_not_depend_on_their_order(small: Scenario) -> None:
    texts = ["optimizer.lr=0.5", "optimizer.name=orth_dion", "optimizer.rank=4", "network.topology=two-level"]
    results = [override(small, parse_set(order)) for order in itertools.permutations(texts)]
    assert all(result == results[0] for result in results)
    assert results[0].optimizer == OrthDion(lr=0.5, rank=4)


def test_another_optimizer_starts_from_its_own_defaults(small: Scenario) -> None:
    changed = override(small, {"optimizer.name": "orth_dion", "optimizer.lr": 0.5, "optimizer.rank": 4})
    assert changed.optimizer == OrthDion(lr=0.5, rank=4)
    kept = override(small, {"optimizer.name": "adamw", "optimizer.weight_decay": 0.1})
    assert kept.optimizer == AdamW(lr=1e-3, weight_decay=0.1), "the same name changes nothing else"
    assert override(small, {"optimizer": {"name": "orth_dion", "lr": 0.5, "rank": 4}}) == changed


def test_another_topology_keeps_what_was_said_about_links(small: Scenario) -> None:
    slow = override(small, {"network.bandwidth": "10Mbit/s", "network.collectives": "direct"})
    other = override(slow, {"network": "two-level"})
    assert (other.network.topology, other.network.bandwidth, other.network.collectives) == ("two-level", 1e7, "direct")
    assert other.network.latency == type(other.network)().latency


def test_another_engine_drops_what_only_ray_knows(small: Scenario) -> None:
    on_ray = override(small, {"engine.name": "ray", "engine.actors": 2, "engine.threads": 2})
    inline = override(on_ray, {"engine.name": "inline"})
    assert (inline.engine.actors, inline.engine.threads) == (None, 2)


def test_another_device_drops_the_old_peak(small: Scenario) -> None:
    custom = override(small, {"compute.device": "custom", "compute.peak_flops": 1e12, "compute.speeds.2": 0.5})
    assert custom.compute.flops_per_second == 1e12 * 0.4
    assert custom.compute.speeds == {2: 0.5}
    a100 = override(custom, {"compute.device": "a100"})
    assert a100.compute == ComputeSettings(device="a100", speeds={2: 0.5})


def test_sweeps_are_read_from_both_kinds_of_files(tmp_path: Path, small: Scenario) -> None:
    sweep = Sweep(base=small, over={"optimizer.lr": [1e-5, 0.1], "optimizer": [OrthDion(lr=0.5, rank=4), "muon"]})
    (tmp_path / "sweep.yaml").write_text(sweep.to_yaml())
    read = load(str(tmp_path / "sweep.yaml"), ["seed=5"])
    assert isinstance(read, Sweep)
    assert read.base == override(small, {"seed": 5})
    assert read.over["optimizer.lr"] == [1e-5, 0.1]
    assert read.over["optimizer"][0]["name"] == "orth_dion"
    assert read.over["optimizer"][0]["rank"] == 4
    assert read.over["optimizer"][1] == "muon"


def test_learning_rates_meet_their_corner_points() -> None:
    assert [LearningRate().at(step, 10, 0.5) for step in (0, 9)] == [0.5, 0.5]
    warm = LearningRate(warmup=4, shape="cosine", final=0.1)
    assert [warm.at(step, 24, 1.0) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert warm.at(14, 24, 1.0) == pytest.approx(0.55)
    assert warm.at(24, 24, 1.0) == pytest.approx(0.1)
    assert LearningRate(warmup=10).at(4, 5, 1.0) == 0.5, "a run may be shorter than its warm-up"


def units(*shapes: tuple[int, ...]) -> list[Unit]:
    params = tuple(
        ParamSpec(f"p{i}", shape, "matrix" if len(shape) == 2 else "vector") for i, shape in enumerate(shapes)
    )
    return [Unit("root", params, 0.0, 0.0, root=True)]


def test_shards_may_be_more_than_rows(small: Scenario) -> None:
    """Four shards of three rows, or one: the last are empty, as in FSDP2."""
    check_fits(small, units((4, 9), (3, 9), (1,)))


def test_a_rank_may_be_as_large_as_the_matrix_but_not_larger(small: Scenario) -> None:
    scenario = override(small, {"optimizer": {"name": "orth_dion", "lr": 0.1, "rank": 9}})
    check_fits(scenario, units((12, 9)))
    with pytest.raises(InputError, match=r"optimizer\.rank 9"):
        check_fits(scenario, units((12, 8)))
