"""Update rules as values: ``init`` makes a state, ``update`` turns (parameter, gradient, state) into new ones.

A rule works on a *stack* of parameters of equal shape, so that one collective and one batched kernel serve many
matrices, and owners can be dealt out ("worker j orthonormalises matrix j", as microsoft/dion does).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Collection
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, NamedTuple

from pydantic import AfterValidator
from torch import Tensor

from simdist.program import MeshShape, Worker
from simdist.program.state import tensors_of
from simdist.registry import Registry
from simdist.settings import Fraction, NaturalFloat, PositiveFloat, Settings


def _below_one(value: float) -> float:
    if value >= 1:
        raise ValueError(f"got {value!r}; expected a number from 0 to less than 1")
    return value


#: a decay factor of a running mean or sum: 0 remembers nothing, 1 would never forget
Decay = Annotated[Fraction, AfterValidator(_below_one)]


@dataclass(frozen=True)
class Stack:
    """Parameters of equal shape and role that one rule updates together.

    Attributes:
        names: the real parameters, in order.
        shape: full unsharded shape of one of them, (m, n) for matrices, (m,) for vectors.
        rows: rows of one worker's shard, ceil(m / shards); missing rows of the last shards are zeros and stay so.
        count: length of the stack; beyond ``len(names)`` come all-zero dummies whose bytes are real (card 0).
        decay: whether weight decay applies (hidden matrices only).
    """

    names: tuple[str, ...]
    shape: tuple[int, ...]
    rows: int
    count: int
    mesh: MeshShape
    decay: bool

    @property
    def local_numel(self) -> int:
        """Numbers that one worker holds of the whole stack, padding and dummies included."""
        return self.count * self.rows * math.prod(self.shape[1:])

    @property
    def title(self) -> str:
        """Name for the ledger's ``tensor`` column."""
        return "+".join(self.names) + (
            f"+{self.count - len(self.names)} dummies" if self.count > len(self.names) else ""
        )


class Rule(Settings, ABC):
    """An update rule; its fields are its hyper-parameters.

    Tensors handed to a rule are ``[..., count, rows, n]`` (``[..., count, rows]`` for vectors), this worker's rows.
    """

    name: str
    lr: PositiveFloat
    weight_decay: NaturalFloat = 0.0

    #: True when the rule acts on each number by itself, so that it runs on shards without communication
    elementwise: ClassVar[bool] = False

    @classmethod
    def to_plan(cls, given: Collection[str]) -> dict[str, Any]:
        """Return values for settings that a rule cannot be without, where a plan was not given them.

        Bytes and seconds do not depend on a learning rate. What they do depend on has a usual value, which the plan
        shows.

        Args:
            given: the settings that were given.
        """
        lr = cls.model_fields["lr"]
        return {"lr": 1e-3} if lr.is_required() and "lr" not in given else {}

    def multiple(self, mesh: MeshShape) -> int:
        """Return the number that a stack's length is padded to a multiple of (1: no dummies)."""
        return 1

    def check(self, shape: tuple[int, ...], name: str, mesh: MeshShape) -> None:
        """Raise InputError when the rule cannot treat a matrix of this full shape (rank too large, ...)."""

    def syncs_replicas(self, shape: tuple[int, ...], mesh: MeshShape) -> bool:
        """Return True when the rule itself brings the replicas together (low-rank factors instead of gradients).

        Otherwise gradients arrive averaged over replicas.
        """
        return False

    def rule_for(self, role: str) -> Rule:
        """Return the rule for a parameter of this role (``matrix``, ``embedding``, ``head``, ``vector``)."""
        return self

    def decayed(self, stack: Stack, x: Tensor, lr: float) -> Tensor:
        """Return ``(1 - lr wd) x`` for hidden matrices, else ``x``: decoupled decay with the unscaled rate (card 0)."""
        return x * (1.0 - lr * self.weight_decay) if stack.decay and self.weight_decay > 0 else x

    @abstractmethod
    def init(self, stack: Stack, x: Tensor, worker: Worker) -> Any:
        """Return the state for parameters ``x``: a NamedTuple of tensors (with or without leading worker axes)."""

    @abstractmethod
    async def update(
        self, stack: Stack, x: Tensor, grad: Tensor, state: Any, lr: float, worker: Worker
    ) -> tuple[Tensor, Any]:
        """Return the new parameters and state.

        ``grad`` is this worker's rows of the gradient, averaged over shards, and over replicas unless
        :meth:`syncs_replicas`. ``lr`` is the scheduled learning rate. ``worker`` comes labelled for the ledger. With
        ``worker.measures`` the rule notes diagnostics by ``worker.observe``.
        """

    def evaluated(self, stack: Stack, x: Tensor, state: Any, worker: Worker) -> Tensor:
        """Return the parameters at which the model is to be judged: this worker's rows of them, laid out as ``x``.

        ``x`` itself, but for methods that train other parameters than they hand out (schedule-free, averages of
        iterates). Validation, the final parameters and their hash are taken there. Local, and no part of training.
        """
        return x

    def state_bytes(self, state: Any, worker: Worker) -> float:
        """Return the bytes of a state that one worker holds; an update reads and writes them all.

        Numbers without dimensions (counters) do not count.
        """
        return float(sum(worker.ops.own_bytes(x) for x in tensors_of(state) if x.ndim))


class NoState(NamedTuple):
    """The state of a rule that remembers nothing."""


optimizers: Registry[type[Rule]] = Registry("optimizer")

__all__ = ["MeshShape", "NoState", "Rule", "Stack", "optimizers"]
