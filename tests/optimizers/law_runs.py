"""Training runs that the laws look at from several sides: each is done once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any

import pytest
from torch import Tensor

from simdist.errors import InputError
from simdist.optimizers import Assignment, MeshShape, Rule
from simdist.program import Worker
from tests.optimizers.catalogue import CASES, Case
from tests.optimizers.harness import (
    DRIVERS,
    MESHES,
    Cohort,
    Coroutines,
    Driver,
    Gradient,
    Outcome,
    Parameter,
    mean_gradient,
    random_gradient,
    train,
)

#: three tall and two wide matrices; no side divides by four, and four shards of five rows leave one shard empty
PARAMETERS = (*(Parameter(name, (10, 7)) for name in "abc"), *(Parameter(name, (5, 9)) for name in "de"))
STEPS = 4
#: every worker's own gradients, drawn once
GRADIENT = cache(random_gradient(PARAMETERS))
ALONE = MeshShape(1, 1)

Where = tuple[Driver, MeshShape]

_INLINE, _STACKED = Coroutines(), Cohort()
#: a cohort of one is what the others are held to, and eight coroutines show no more than four do
EVERYWHERE: list[Where] = [
    *((_INLINE, mesh) for mesh in MESHES if mesh.workers <= 4),
    *((_STACKED, mesh) for mesh in MESHES if mesh != ALONE),
]
#: more shards than any matrix has rows: most hold nothing but padding, as with FSDP2
FINELY: Where = (_STACKED, MeshShape(1, 12))
#: each driver on a mesh with both axes; with four shards one of them is empty
SMALL: list[Where] = [(_INLINE, MeshShape(2, 2)), (_STACKED, MeshShape(2, 4))]


def over_cases() -> pytest.MarkDecorator:
    """Run a test as ``test(case)`` over the whole catalogue."""
    return pytest.mark.parametrize("case", CASES, ids=[case.id for case in CASES])


def over_runs(
    where: Sequence[Where] = EVERYWHERE, only: Callable[[Case, MeshShape], bool] = lambda case, mesh: True
) -> pytest.MarkDecorator:
    """Run a test as ``test(case, driver, mesh)`` over the catalogue, where the case promises it (``only``).

    A rule that refuses a mesh for these matrices (a rank above a worker's rows) is left out there.
    """
    runs = [(case, driver, mesh) for case in CASES for driver, mesh in where if only(case, mesh)]
    found = [(case, driver, mesh) for case, driver, mesh in runs if _fits(case.rule, mesh)]
    ids = [f"{case.id}-{driver.name}-{mesh.replicas}x{mesh.shards}" for case, driver, mesh in found]
    return pytest.mark.parametrize(("case", "driver", "mesh"), found, ids=ids)


def _fits(rule: Rule, mesh: MeshShape) -> bool:
    try:
        for parameter in PARAMETERS:
            rule.check(parameter.shape, parameter.name, mesh)
    except InputError:
        # elsewhere every case of the catalogue must run
        assert mesh == FINELY[1], f"{rule} refuses {mesh}"
        return False
    return True


@cache
def _outcome(rule: Rule, mesh: MeshShape, driver: str, joint: MeshShape | None, identical: bool) -> Outcome:
    gradient: Gradient = GRADIENT
    if joint is not None:
        mean = mean_gradient(gradient, joint)
        gradient = _same_for_all(lambda name, step, worker: mean(name, step))
    elif identical:
        gradient = _same_for_all(gradient)
    (chosen,) = (each for each in DRIVERS if each.name == driver)
    return train(chosen, mesh, rule, PARAMETERS, gradient, steps=STEPS)


def _same_for_all(gradient: Gradient) -> Gradient:
    return lambda name, step, worker: gradient(name, step, 0)


def random_run(rule: Rule, mesh: MeshShape, driver: Driver) -> Outcome:
    """Every worker sees gradients of its own."""
    return _outcome(rule, mesh, driver.name, None, False)


def joint_run(rule: Rule, workers: MeshShape, on: MeshShape) -> Outcome:
    """Workers ``on`` a smaller mesh, all of whom see the mean of what all ``workers`` see."""
    # the mean depends on the number of workers only, so meshes of equal size share the run
    return _outcome(rule, on, _STACKED.name, MeshShape(1, workers.workers), False)


def identical_run(rule: Rule, mesh: MeshShape, driver: Driver = _STACKED) -> Outcome:
    """All workers see the same gradients."""
    return _outcome(rule, mesh, driver.name, None, True)


@cache
def watched_run(rule: Rule, mesh: MeshShape, driver: Driver) -> tuple[Outcome, list[tuple[str, Tensor, Tensor]]]:
    """:func:`random_run` once more, and every tensor that an update was given, with a copy made before it."""
    seen: list[tuple[str, Tensor, Tensor]] = []

    def watch(
        step: int, assignment: Assignment, x: Tensor, grad: Tensor, state: Any, worker: Worker
    ) -> tuple[Tensor, Tensor, Any]:
        for path, value in [("parameters", x), ("gradient", grad), *leaves(state)]:
            if isinstance(value, Tensor):
                seen.append((f"{path} of step {step}", value, value.clone()))
        return x, grad, state

    return train(driver, mesh, rule, PARAMETERS, GRADIENT, steps=STEPS, before=watch), seen


def leaves(state: Any, path: str = "state") -> Iterator[tuple[str, Any]]:
    """Every value of a nested state, with its path."""
    if isinstance(state, dict):
        for key, value in state.items():
            yield from leaves(value, f"{path}[{key!r}]")
    elif isinstance(state, (list, tuple)):
        names = getattr(state, "_fields", None) or range(len(state))
        for name, value in zip(names, state, strict=True):
            yield from leaves(value, f"{path}.{name}")
    else:
        yield path, state


def bits(outcome: Outcome) -> list[tuple[str, Any]]:
    """All that a run ends with: parameters, padding, states."""
    found = []
    for i, trained in enumerate(outcome.results):
        for x, state, assignment in zip(trained.shards, trained.states, trained.assignments, strict=True):
            where = f"worker {i}, {assignment.stack.title}"
            found += [(f"{where}, parameters", x), *((f"{where}, {path}", leaf) for path, leaf in leaves(state))]
    return found


def differing(one: Outcome, other: Outcome) -> list[str]:
    """Names of what differs, in any bit, between two runs of one setting."""
    mine, others = bits(one), bits(other)
    assert [path for path, _ in mine] == [path for path, _ in others]
    return [path for (path, a), (_, b) in zip(mine, others, strict=True) if not _same(a, b)]


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        # NaN counts as equal to itself: whether anything is finite is another law
        return a.dtype == b.dtype and a.shape == b.shape and bool(((a == b) | (a.isnan() & b.isnan())).all())
    return type(a) is type(b) and bool(a == b)
