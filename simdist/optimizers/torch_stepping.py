"""One step of a torch optimizer on one tensor as a pure function: nothing outside of it changes."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy
import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from simdist.optimizers.torch_memory import Memory, recall, remember
from simdist.optimizers.torch_operations import Operations

Make = Callable[[Parameter], Optimizer]


class Stepped(NamedTuple):
    """The new values of the parameter, what the optimizer now remembers, and the operations that this took."""

    x: Tensor
    memory: Memory
    operations: float


def stepped(
    make: Make,
    x: Tensor,
    grad: Tensor,
    memory: Memory | None,
    *,
    lr: float,
    made_with: float,
    draws: int,
    by_number: bool = False,
) -> Stepped:
    """Step once. ``memory`` None means the first step.

    Args:
        make: returns a new optimizer over the one parameter that it is given.
        lr: the rate of this step, and ``made_with`` the one that the optimizer was made with. A class that keeps some
            multiple of its rate (GrokFastAdamW) gets that multiple.
        draws: seed of everything that the optimizer draws at random in this step.
        by_number: whether it acts on each number by itself, so that only work on tensors like ``x`` counts.
    """
    p = Parameter(x.detach().clone())
    with isolated(draws, x.device):
        optimizer: Any = make(p)
        (group,) = optimizer.param_groups
        own = group.get("lr", made_with)
        if memory is not None:
            # a constructor may change its parameters (Nero), which is for the first step only
            p.data.copy_(x)
            recall(optimizer, p, memory)
        elif has_modes(type(optimizer)):
            # once: from here on the memory knows the mode
            optimizer.train()
        group["lr"] = lr if own == made_with else own * (lr / made_with)
        p.grad = grad.detach().clone()
        # again, as constructors may draw, which happens in every step here
        _seed(draws, x.device)
        with Operations(x.shape if by_number else None) as count:
            optimizer.step()
        return Stepped(p.detach(), remember(optimizer, p), count.total)


def has_modes(torch_class: type[Optimizer]) -> bool:
    """Return whether a class evaluates other parameters than it trains, which ``eval()`` and ``train()`` exchange."""
    return callable(getattr(torch_class, "train", None)) and callable(getattr(torch_class, "eval", None))


def in_eval_mode(make: Make, x: Tensor, memory: Memory) -> Tensor:
    """Return what ``eval()`` makes of the parameter ``x`` after a step that left ``memory``, which stays as it is.

    Args:
        make: returns a new optimizer with modes (:func:`has_modes`) over the one parameter that it is given.
    """
    p = Parameter(x.detach().clone())
    with isolated(0, x.device):
        optimizer: Any = make(p)
        p.data.copy_(x)
        recall(optimizer, p, memory)
        optimizer.eval()
    return p.detach()


@contextmanager
def isolated(draws: int, device: torch.device) -> Iterator[None]:
    """Seed every global stream of random numbers for the while, and keep warnings (of torch's future, mostly) quiet."""
    # third-party classes draw from these global streams, numpy's legacy one too: so they are seeded here and put back
    python, of_numpy = random.getstate(), numpy.random.get_state()  # noqa: NPY002
    devices = [device] if device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _seed(draws, device)
            yield
    finally:
        random.setstate(python)
        numpy.random.set_state(of_numpy)  # noqa: NPY002


def _seed(draws: int, device: torch.device) -> None:
    random.seed(draws)
    numpy.random.seed(draws % 2**32)  # noqa: NPY002
    torch.default_generator.manual_seed(draws)
    if device.type == "cuda":
        torch.cuda.manual_seed(draws)
