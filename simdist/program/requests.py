"""The closed list of what a worker can ask the world for.

Requests are plain frozen values. A worker suspends with a *wave*, a tuple of requests that are in flight together,
and is resumed with one answer per request. All dimensions are negative (counted from the end), so that the same
program also runs for a stacked cohort whose tensors carry leading worker axes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

if TYPE_CHECKING:
    from simdist.program.mesh import Axis, Label

#: kinds of payload; ``packed``: bytes that the program encoded by itself, which travel as they are
Wire: TypeAlias = Literal["params", "grads", "factors", "statistics", "vectors", "packed"]


@dataclass(frozen=True, eq=False)
class Reduce:
    """Every member receives the sum (or mean) of all members' tensors."""

    axis: Axis
    tensor: Any
    mean: bool
    label: Label


@dataclass(frozen=True, eq=False)
class AllGather:
    """Every member receives all members' tensors, concatenated along ``dim`` in member order."""

    axis: Axis
    tensor: Any
    dim: int
    label: Label


@dataclass(frozen=True, eq=False)
class ReduceScatter:
    """Member i receives the i-th of ``axis.size`` equal chunks (along ``dim``) of the sum (or mean)."""

    axis: Axis
    tensor: Any
    dim: int
    mean: bool
    label: Label


@dataclass(frozen=True, eq=False)
class AllToAll:
    """Member i receives chunk i (of ``split_dim``) of every member, concatenated along ``concat_dim``."""

    axis: Axis
    tensor: Any
    split_dim: int
    concat_dim: int
    label: Label


@dataclass(frozen=True, eq=False)
class Broadcast:
    """Every member receives member ``root``'s tensor."""

    axis: Axis
    tensor: Any
    root: int
    label: Label


@dataclass(frozen=True, eq=False)
class Send:
    """Hand a tensor to another worker; with ``wait`` the sender resumes when the last byte has arrived."""

    to: int
    tensor: Any
    tag: str
    wait: bool
    label: Label
    note: Any = None


@dataclass(frozen=True, eq=False)
class Receive:
    """Wait for a message; ``source`` None takes the earliest from anybody (ties: lowest worker)."""

    source: int | None
    tag: str | None


@dataclass(frozen=True, eq=False)
class Compute:
    """Be busy for ``flops`` operations on ``memory_bytes`` of memory; the clock turns them into seconds."""

    flops: float
    memory_bytes: float
    what: str
    label: Label


@dataclass(frozen=True, eq=False)
class Sleep:
    """Be idle for simulated seconds."""

    seconds: float


@dataclass(frozen=True, eq=False)
class Message:
    """The answer to a Receive."""

    source: int
    tag: str
    tensor: Any
    note: Any


Collective: TypeAlias = Reduce | AllGather | ReduceScatter | AllToAll | Broadcast
Request: TypeAlias = Collective | Send | Receive | Compute | Sleep
Wave: TypeAlias = tuple[Request, ...]
