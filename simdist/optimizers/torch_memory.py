"""What a torch optimizer remembers, as plain data: taken out after a step, and put into a new instance before the next.

A torch optimizer changes itself in place. A rule must not, so each step makes a new instance, gives it the memory of
the last one, and takes a copy of what it holds afterwards. That is more than ``state_dict``: also the attributes of
the instance (counters, wrapped optimizers, generators), wherever the class keeps what it needs.

Plain means dicts with texts as keys, lists, tensors, numbers, texts and None, as checkpoints hold them. What is
something else is a dict with the key :data:`KIND`, which says how it is made again.
"""

from __future__ import annotations

import importlib
from collections import deque
from collections.abc import Callable
from functools import cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from simdist.errors import ProgramError

#: key of a dict that stands for something other than a dict
KIND = "$kind"

Memory = dict[str, Any]

_SEQUENCES: dict[str, tuple[type[Any], Callable[[list[Any]], Any]]] = {
    "tuple": (tuple, tuple),  # torch.Size too
    "set": (set, set),
    "deque": (deque, deque),
}


@cache
def _common() -> frozenset[str]:
    """Return the attributes that every torch optimizer has, none of which holds numbers of the class itself.

    Not when this file is imported: to make an optimizer torch imports its compiler, which takes seconds.
    """
    return frozenset(vars(Optimizer([torch.zeros(1)], {})))


def remember(optimizer: Optimizer, p: Tensor) -> Memory:
    """Return copies of all that ``optimizer`` holds about its one parameter ``p``, and of its settings."""
    (group,) = optimizer.param_groups
    return {
        "state": _encode(dict(optimizer.state), p),
        "group": {key: _encode(value, p) for key, value in group.items() if key != "params"},
        "attributes": {key: _encode(value, p) for key, value in vars(optimizer).items() if key not in _common()},
        "marks": _encode(vars(p), p),  # what a class hangs on the parameter itself
    }


def recall(optimizer: Optimizer, p: Tensor, memory: Memory) -> None:
    """Put a memory into a new optimizer over ``p``, as if it had been there all along."""
    (group,) = optimizer.param_groups
    # first the attributes: a wrapped optimizer may own what follows, and then both say the same
    for key, value in memory["attributes"].items():
        now = vars(optimizer).get(key)
        vars(optimizer)[key] = _decode(value, p, now, key)
    vars(p).update(_decode(memory["marks"], p, vars(p), "parameter"))
    state = _decode(memory["state"], p, dict(optimizer.state), "state")
    optimizer.state.clear()
    optimizer.state.update(state)
    group.update({key: _decode(value, p, group.get(key), key) for key, value in memory["group"].items()})


def over_tensors(memory: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Return the memory with ``change`` applied to every tensor in it."""
    if isinstance(memory, Tensor):
        return change(memory)
    if isinstance(memory, dict):
        return {key: over_tensors(value, change) for key, value in memory.items()}
    return [over_tensors(item, change) for item in memory] if isinstance(memory, list) else memory


def _encode(value: Any, p: Tensor) -> Any:
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, (int, float)):  # NumPy's numbers and enumerations too
        return int(value) if isinstance(value, int) else float(value)
    if isinstance(value, Tensor):
        return {KIND: "parameter"} if value is p else value.detach().clone()
    if isinstance(value, list):
        return [_encode(item, p) for item in value]
    if isinstance(value, dict):
        if all(isinstance(key, str) for key in value) and KIND not in value:
            return {key: _encode(item, p) for key, item in value.items()}
        return {KIND: "dict", "items": [[_encode(key, p), _encode(item, p)] for key, item in value.items()]}
    for kind, (own, _) in _SEQUENCES.items():
        if isinstance(value, own):
            length = getattr(value, "maxlen", None)
            return {KIND: kind, "items": [_encode(item, p) for item in value], "maxlen": length}
    if isinstance(value, torch.dtype):
        return {KIND: "dtype", "name": str(value).removeprefix("torch.")}
    if isinstance(value, torch.Generator):
        return {KIND: "generator", "device": str(value.device), "state": value.get_state()}
    if isinstance(value, Optimizer):
        return {KIND: "optimizer", **remember(value, p)}
    if callable(value) or isinstance(value, (type, ModuleType)) or not hasattr(value, "__dict__"):
        return {KIND: "constructed", "class": type(value).__name__}
    own = type(value)
    attributes = {key: _encode(item, p) for key, item in vars(value).items()}
    return {KIND: "object", "class": f"{own.__module__}:{own.__qualname__}", "attributes": attributes}


def _decode(value: Any, p: Tensor, now: Any, where: str) -> Any:
    """Return what ``value`` stands for; ``now`` is what the new instance has in that place."""
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, list):
        return [_decode(item, p, None, where) for item in value]
    if not isinstance(value, dict):
        return value
    kind = value.get(KIND)
    if kind is None:
        inner = now if isinstance(now, dict) else {}
        return {key: _decode(item, p, inner.get(key), f"{where}.{key}") for key, item in value.items()}
    if kind == "parameter":
        return p
    if kind == "dict":
        inner = now if isinstance(now, dict) else {}
        pairs = [(_decode(key, p, None, where), item) for key, item in value["items"]]
        return {key: _decode(item, p, inner.get(key), where) for key, item in pairs}
    if kind in _SEQUENCES:
        items = [_decode(item, p, None, where) for item in value["items"]]
        return deque(items, value["maxlen"]) if kind == "deque" else _SEQUENCES[kind][1](items)
    if kind == "dtype":
        return getattr(torch, value["name"])
    if kind == "generator":
        generator = torch.Generator(value["device"])
        generator.set_state(value["state"])
        return generator
    if kind == "optimizer":
        recall(now, p, value)
        return now
    if kind == "object":
        module, _, name = value["class"].partition(":")
        own: Any = importlib.import_module(module)
        for part in name.split("."):
            own = getattr(own, part)
        # what the constructor made holds what cannot be saved, such as functions
        made = now if type(now) is own else own.__new__(own)
        holds = vars(made)
        holds.update({k: _decode(item, p, holds.get(k), f"{where}.{k}") for k, item in value["attributes"].items()})
        return made
    if now is None:
        raise ProgramError(
            f"the optimizer keeps a {value['class']} in {where!r}, which cannot be saved; expected tensors, numbers, "
            "texts, lists, dicts, or objects that hold these"
        )
    return now
