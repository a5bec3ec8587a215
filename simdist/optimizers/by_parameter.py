"""Which rule for which parameter: routing by role, and stacking of equal shapes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from simdist.optimizers.rule import MeshShape, Rule, Stack


class Parameter(Protocol):
    """What routing needs to know of a parameter; ``simdist.workloads.workload.ParamSpec`` is one."""

    @property
    def name(self) -> str: ...

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def role(self) -> str: ...


@dataclass(frozen=True)
class Assignment:
    """A stack and the rule that updates it (the optimizer itself, or its auxiliary rule)."""

    stack: Stack
    rule: Rule


def stacks(rule: Rule, parameters: Iterable[Parameter], mesh: MeshShape) -> tuple[Assignment, ...]:
    """Group parameters into stacks, in the order in which their shapes first appear.

    Parameters of one stack share shape, rule, and whether weight decay applies (to hidden matrices only: role
    ``matrix``). A stack's length is padded with dummies to a multiple of ``rule.multiple(mesh)``; with more matrices
    than owners each owner holds several.

    Raises:
        InputError: when the rule cannot treat a matrix of this shape.
    """
    groups: dict[tuple[Rule, tuple[int, ...], bool], list[str]] = {}
    for parameter in parameters:
        chosen = rule.rule_for(parameter.role)
        shape = tuple(parameter.shape)
        chosen.check(shape, parameter.name, mesh)
        groups.setdefault((chosen, shape, parameter.role == "matrix"), []).append(parameter.name)
    return tuple(
        Assignment(_stack(tuple(names), shape, decay, chosen.multiple(mesh), mesh), chosen)
        for (chosen, shape, decay), names in groups.items()
    )


def _stack(names: tuple[str, ...], shape: tuple[int, ...], decay: bool, multiple: int, mesh: MeshShape) -> Stack:
    rows = -(-shape[0] // mesh.shards)
    count = -(-len(names) // multiple) * multiple
    return Stack(names=names, shape=shape, rows=rows, count=count, mesh=mesh, decay=decay)
