"""Laws of every rule in the catalogue about workers: who they are, and how many, does not change what is learned.

``test_laws_inputs.py`` has the laws about gradients, states and inputs.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from simdist.optimizers import MeshShape, optimizers
from tests.optimizers.catalogue import CASES, Case, Limit
from tests.optimizers.harness import DRIVERS, MESHES, Cohort, Driver, Parameter, random_gradient, train
from tests.optimizers.law_runs import (
    ALONE,
    EVERYWHERE,
    FINELY,
    GRADIENT,
    PARAMETERS,
    SMALL,
    STEPS,
    bits,
    differing,
    identical_run,
    joint_run,
    over_runs,
    random_run,
    watched_run,
)

MANY = [(driver, mesh) for driver, mesh in EVERYWHERE if mesh.workers > 1]
REPLICAS = [(driver, mesh) for driver, mesh in EVERYWHERE if mesh.replicas > 1]


def test_every_registered_rule_is_in_the_catalogue() -> None:
    known = {type(case.rule) for case in CASES}
    missing = [name for name, rule in optimizers.items() if rule not in known]
    assert not missing, f"add a line to tests/optimizers/catalogue.py for {', '.join(missing)}"


def test_names_in_the_catalogue_are_unique() -> None:
    assert len({case.id for case in CASES}) == len(CASES)


def apart(results: list[Any], expected: Any) -> dict[str, float]:
    """How far any worker's parameters are from those expected."""
    return {
        name: max(float((trained.parameters[name] - value).abs().max()) for trained in results)
        for name, value in expected.parameters.items()
    }


def agree(results: list[Any], expected: Any, tolerance: float) -> None:
    distances = apart(results, expected)
    assert all(distance <= tolerance for distance in distances.values()), f"{distances}; expected at most {tolerance}"


def single(case: Case, mesh: MeshShape) -> MeshShape:
    """One worker; where the number of shards matters by design, one replica with as many shards."""
    return ALONE if case.sharded is not None else MeshShape(1, mesh.shards)


@over_runs(
    [*EVERYWHERE, FINELY],
    only=lambda case, mesh: mesh == single(case, mesh) or mesh.replicas == 1 or case.replicated is not None,
)
def test_many_workers_are_one_with_the_mean_gradient(case: Case, driver: Driver, mesh: MeshShape) -> None:
    """Sharded is unsharded, and replicas are one."""
    promised = [1e-10, case.sharded if mesh.shards > 1 else None, case.replicated if mesh.replicas > 1 else None]
    expected = joint_run(case.rule, mesh, single(case, mesh)).results[0]
    agree(random_run(case.rule, mesh, driver).results, expected, max(one for one in promised if one is not None))


@pytest.mark.parametrize("case", CASES, ids=[case.id for case in CASES])
def test_promises_are_withheld_for_a_reason(case: Case) -> None:
    """What the catalogue says to depend on the workers does; otherwise write the tolerance there."""
    shards, replicas, both = MeshShape(1, 4), MeshShape(4, 1), MeshShape(2, 2)
    cohort = DRIVERS[-1]
    found = {}
    if case.sharded is None:
        one = joint_run(case.rule, shards, ALONE).results[0]
        found["sharded"] = apart(random_run(case.rule, shards, cohort).results, one)
    if case.replicated is None:
        one = joint_run(case.rule, replicas, ALONE).results[0]
        found["replicated"] = apart(random_run(case.rule, replicas, cohort).results, one)
    if case.identical is None:
        one = identical_run(case.rule, single(case, both)).results[0]
        found["identical"] = apart(identical_run(case.rule, both).results, one)
    assert all(max(distances.values()) > 1e-8 for distances in found.values()), found


@over_runs(REPLICAS)
def test_replicas_hold_the_same_bits(case: Case, driver: Driver, mesh: MeshShape) -> None:
    results = random_run(case.rule, mesh, driver).results
    for i, trained in enumerate(results):
        for at, (x, assignment) in enumerate(zip(trained.shards, trained.assignments, strict=True)):
            copies = (
                list(x) if isinstance(driver, Cohort) else [results[w].shards[at] for w in mesh.group("replicas", i)]
            )
            assert all(torch.equal(copy, copies[0]) for copy in copies), assignment.stack.title


def with_identical_workers(case: Case, mesh: MeshShape) -> bool:
    """On all meshes, but where the promises for other gradients include this one a single mesh will do."""
    included = None not in (case.sharded, case.replicated)
    return case.identical is not None and mesh != single(case, mesh) and (not included or mesh == MeshShape(2, 4))


@over_runs(MANY, only=with_identical_workers)
def test_identical_workers_are_one_worker(case: Case, driver: Driver, mesh: MeshShape) -> None:
    assert case.identical is not None
    expected = identical_run(case.rule, single(case, mesh)).results[0]
    agree(identical_run(case.rule, mesh, driver).results, expected, case.identical)


@over_runs([*EVERYWHERE, FINELY], only=lambda case, mesh: case.sent is not None)
def test_bytes_are_those_of_the_closed_form(case: Case, driver: Driver, mesh: MeshShape) -> None:
    """DDP, FSDP, HSDP and one worker, with uneven shards, empty ones, and dummies."""
    assert case.sent is not None
    outcome = random_run(case.rule, mesh, driver)
    stacks = [assignment.stack for assignment in outcome.results[0].assignments]
    expected = STEPS * sum(case.sent(*stack.shape, len(stack.names), mesh) for stack in stacks)
    assert outcome.sent(factors=4, statistics=4, grads=4, params=4, packed=1) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("mesh", [mesh for mesh in MESHES if mesh.workers == 4], ids=str)
@pytest.mark.parametrize("case", CASES, ids=[case.id for case in CASES])
def test_drivers_agree_on_transfers_and_flops(case: Case, mesh: MeshShape) -> None:
    """One coroutine per worker or one for all: the same collectives in the same order, the same work."""
    one, other = (random_run(case.rule, mesh, driver) for driver in DRIVERS)
    assert one.transfers == other.transfers
    assert one.flops == other.flops


@over_runs([*EVERYWHERE, FINELY])
def test_dummies_and_padding_rows_stay_zero(case: Case, driver: Driver, mesh: MeshShape) -> None:
    """In parameters, and in whatever of the state has their shape."""
    outcome = random_run(case.rule, mesh, driver)
    for i, trained in enumerate(outcome.results):
        for assignment, x in zip(trained.assignments, trained.shards, strict=True):
            stack, mine = assignment.stack, f"worker {i}, {assignment.stack.title},"
            for path, value in bits(outcome):
                if not path.startswith(mine) or not isinstance(value, torch.Tensor) or value.shape[-3:] != x.shape[-3:]:
                    continue
                assert not value[..., len(stack.names) :, :, :].any(), f"{path}: dummies"
                for at, part in enumerate(value.unbind(1) if isinstance(driver, Cohort) else [value]):
                    shard = at if isinstance(driver, Cohort) else mesh.place("shards", i)
                    real = max(0, stack.shape[0] - shard * stack.rows)
                    assert not part[..., real:, :].any(), f"{path}: padding rows of shard {shard}"


@over_runs(SMALL)
def test_a_second_run_gives_the_same_bits(case: Case, driver: Driver, mesh: MeshShape) -> None:
    first, (again, _) = random_run(case.rule, mesh, driver), watched_run(case.rule, mesh, driver)
    assert not differing(first, again)
    assert first.transfers == again.transfers


@over_runs(SMALL)
def test_measuring_changes_no_bit_and_sends_no_byte(case: Case, driver: Driver, mesh: MeshShape) -> None:
    plain = random_run(case.rule, mesh, driver)
    measured = train(driver, mesh, case.rule, PARAMETERS, GRADIENT, steps=STEPS, measure=True)
    assert not differing(plain, measured)
    assert plain.transfers == measured.transfers
    assert plain.flops == measured.flops


LIMITS = [(case.id, limit) for case in CASES for limit in case.same_as]


@pytest.mark.parametrize(("driver", "mesh"), SMALL, ids=["inline", "stacked"])
@pytest.mark.parametrize(
    "limit", [limit for _, limit in LIMITS], ids=[f"{name}-is-{limit.other.name}" for name, limit in LIMITS]
)
def test_lossless_limits(limit: Limit, driver: Driver, mesh: MeshShape) -> None:
    assert limit.rule != limit.other
    parameters = [Parameter(name, limit.shape) for name in "abc"]
    one, other = (
        train(driver, mesh, rule, parameters, random_gradient(parameters), steps=STEPS)
        for rule in (limit.rule, limit.other)
    )
    agree(one.results, other.results[0], limit.tolerance)
