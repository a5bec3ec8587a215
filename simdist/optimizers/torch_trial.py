"""Trying a torch optimizer out on small tensors, so that what cannot work is refused before a run."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from simdist.errors import InputError
from simdist.optimizers.torch_memory import Memory
from simdist.optimizers.torch_stepping import in_eval_mode, stepped
from simdist.program.random import normal


class Tried(Protocol):
    """What is needed of a rule here; equal rules are tried once."""

    @property
    def title(self) -> str: ...

    @property
    def lr(self) -> float: ...

    @property
    def has_modes(self) -> bool: ...

    def make(self, p: Parameter, decay: bool) -> Optimizer: ...

    def __hash__(self) -> int: ...


#: sides of the matrices (and so on) for trying a class out; large ones for ranks that do not fit the small
_TRIALS = ((8, 6, 3, 2), (320, 288, 3, 2))


@lru_cache(maxsize=256)
def try_out(rule: Tried, dims: int) -> None:
    """Take two steps on a small tensor, and see what is to be evaluated.

    Raises:
        InputError: with what the class says, when it cannot step on a gradient alone.
    """
    for sides in _TRIALS:
        shape = sides[:dims]
        try:
            _steps(rule, normal(shape, 0, "x"), [normal(shape, 0, "g", step=i) for i in range(2)], torch.float32)
        except InputError:
            raise
        except Exception as error:  # whatever step() raises
            problem = error
        else:
            return
    raise InputError(
        f"got the torch optimizer {rule.title}, whose step() fails after one gradient on a small tensor: "
        f"{type(problem).__name__}: {problem}; expected a class that needs nothing else (no closure, no Hessian)"
    ) from problem


def difference_on_shards(rule: Tried, steps: int = 40) -> float:
    """Return how far two matrices are apart after steps on whole matrices, and in pieces of rows as one tensor.

    Both as they are trained and as they are evaluated.

    Infinity where pieces fail. The gradients have a common direction, so that learned step sizes grow, and shrink from
    step to step, so that clipping against a running norm sets in.
    """
    shape, pieces = (7, 4), (slice(0, 4), slice(4, 7))
    xs = [normal(shape, 0, "x", worker=i) for i in range(2)]
    grads = [
        [(normal(shape, 0, "g", worker=i) + 0.5 * normal(shape, 0, "g", i, step)) * 0.9**step for step in range(steps)]
        for i in range(2)
    ]
    whole = torch.stack([_steps(rule, x, gs) for x, gs in zip(xs, grads, strict=True)], 1)
    joint = [torch.stack(each) for each in zip(*grads, strict=True)]
    try:
        cut = [_steps(rule, torch.stack(xs)[:, rows], [g[:, rows] for g in joint]) for rows in pieces]
    except Exception:  # whatever step() raises for a tensor of three dimensions
        return math.inf
    return float((torch.cat(cut, 2) - whole).abs().max())


def _steps(rule: Tried, x: Tensor, grads: list[Tensor], dtype: torch.dtype = torch.float64) -> Tensor:
    """Return the parameter after these steps, as it is trained and as it is evaluated: [2, ...]."""

    def make(p: Parameter) -> Optimizer:
        return rule.make(p, decay=True)

    memory: Memory | None = None
    x = x.to(dtype)
    for i, grad in enumerate(grads):
        x, memory, _ = stepped(make, x, grad.to(dtype), memory, lr=rule.lr, made_with=rule.lr, draws=i)
    assert memory is not None
    return torch.stack([x, in_eval_mode(make, x, memory) if rule.has_modes else x])
