"""FSDP units of an ``nn.Module``, with the FLOPs and activations of each, from one pass forward and backward."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from simdist.workloads.flops import FlopCounter, SavedTensors
from simdist.workloads.module_layout import unit_of
from simdist.workloads.workload import Activations, ParamSpec, Unit


def measured_units(
    module: nn.Module,
    loss: Callable[[dict[str, Tensor]], Tensor],
    params: dict[str, Tensor],
    specs: Sequence[ParamSpec],
    names: Sequence[str],
) -> tuple[Unit, ...]:
    """Cut a module into units and count them: forward by unit, the backward total in proportion to it.

    What no unit's own call does (a read-out that uses the model's parameters directly) is the root's.

    Args:
        loss: runs the module with parameters of one worker's batch.
        params: leaves that require grad.
        specs: of the parameters.
        names: submodules that are units.
    """
    counter, saved = FlopCounter(), SavedTensors([*params.values(), *module.buffers()])
    inputs: dict[str, float] = defaultdict(float)
    counter.scopes.append("root")
    with counter, saved.watching(lambda: counter.scopes[-1]), _scoped(module, names, counter.scopes, inputs):
        value = loss(params)
    with FlopCounter() as backward:
        torch.autograd.grad(value, list(params.values()), allow_unused=True)
    ratio = backward.flops / counter.flops if counter.flops else 0.0

    members: dict[str, list[ParamSpec]] = {name: [] for name in ("root", *names)}
    for spec in specs:
        members[unit_of(spec.name, list(names))].append(spec)
    present = [name for name, held in members.items() if held]
    forward = {name: counter.by_scope[name] for name in present}
    # the rest: outside of all units, or in one whose parameters are all in units inside of it
    forward[present[0]] += counter.flops - sum(forward.values())
    for tally in (saved.numbers, saved.bytes_besides):
        tally[present[0]] += sum(size for name, size in tally.items() if name not in present)
    kept = {name: Activations(saved.numbers[name], inputs[name], saved.bytes_besides[name]) for name in present}
    return tuple(
        Unit(name, tuple(members[name]), forward[name], ratio * forward[name], name == "root", kept[name])
        for name in present
    )


@contextmanager
def _scoped(module: nn.Module, names: Sequence[str], scopes: list[str], inputs: dict[str, float]) -> Iterator[None]:
    """Keep ``scopes`` at the units that run, and note how many numbers each is given."""

    def enter(name: str, given: Any) -> None:
        scopes.append(name)
        inputs[name] += sum(x.numel() for x in tree_leaves(given) if isinstance(x, Tensor) and x.is_floating_point())

    hooks = []
    for name in names:
        inner = module.get_submodule(name)
        hooks.append(
            inner.register_forward_pre_hook(
                lambda _, args, kwargs, name=name: enter(name, (args, kwargs)), with_kwargs=True
            )
        )
        hooks.append(inner.register_forward_hook(lambda *_: scopes.pop() and None))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
