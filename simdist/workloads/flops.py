"""FLOPs and activations of a unit, forward and backward, counted on the functional code itself.

The formulas of ``torch.utils.flop_counter`` are for matrix products, convolutions and attention. Elementwise operations
(norms, activations, rotary embeddings, residual sums, gathers, softmax) have none and are booked as zero: in a
transformer they are a few percent of the arithmetic, and on real devices they cost memory bandwidth, which
``compute.mfu`` stands for.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from simdist.workloads.workload import Activations


class FlopCounter(TorchDispatchMode):
    """Adds up torch's formulas over the operations that are run.

    ``FlopCounterMode`` gives the same sum (there is a test), but imports torch's compiler on first use, more than a
    second in every process that builds a workload.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves it without types
        self.flops = 0.0
        #: names set by the caller, innermost last; the innermost one is credited
        self.scopes: list[str] = []
        self.by_scope: dict[str, float] = defaultdict(float)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # with True torch wraps the method below in torch._dynamo.disable; versions without this hook ignore it
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            flops = float(formula(*args, **(kwargs or {}), out_val=out))
            self.flops += flops
            if self.scopes:
                self.by_scope[self.scopes[-1]] += flops
        return out


class SavedTensors:
    """Adds up what autograd saves for the backward pass, every storage once, by scope.

    Args:
        exempt: parameters and constants, which are there anyway.
    """

    def __init__(self, exempt: Iterable[Tensor] = ()) -> None:
        # kept alive, so that no later storage can be taken for one of them
        self._seen = {storage_of(x): x for x in exempt}
        #: floating-point numbers, and bytes of all else
        self.numbers: dict[str, float] = defaultdict(float)
        self.bytes_besides: dict[str, float] = defaultdict(float)

    @contextmanager
    def watching(self, scope: Callable[[], str] = lambda: "") -> Iterator[None]:
        """Count what is saved meanwhile; ``scope()`` says for whom."""

        def note(x: Tensor) -> Tensor:
            if storage_of(x) not in self._seen:
                self._seen[storage_of(x)] = x
                size = x.untyped_storage().nbytes()
                if x.is_floating_point():
                    self.numbers[scope()] += size / x.element_size()
                else:
                    self.bytes_besides[scope()] += size
            return x

        with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
            yield


def storage_of(x: Tensor) -> int:
    """Return what identifies the memory that a tensor views, on the meta device too (there all pointers are 0)."""
    identity: int = x.untyped_storage()._cdata
    return identity


class Cost(NamedTuple):
    """FLOPs of the forward and of the backward pass, and what is kept in between."""

    forward: float
    backward: float
    activations: Activations

    def times(self, count: float) -> Cost:
        """Return what so many times the batch costs."""
        return Cost(self.forward * count, self.backward * count, self.activations.times(count))


def cost_of(
    function: Callable[[dict[str, Tensor], Tensor], Tensor],
    shapes: Mapping[str, tuple[int, ...]],
    x: Tensor,
    constants: Iterable[Tensor] = (),
) -> Cost:
    """Return what ``function(params, x)`` costs, run with zeros on the device of ``x``.

    The backward count is that of a real backward pass, to the parameters and, where ``x`` requires grad, to ``x``.
    A small ``x`` on the CPU is counted in milliseconds; on the meta device nothing is computed, but torch's meta
    kernels import the compiler, more than a second per process, so meta is for models too large to run here.

    Args:
        constants: tensors that ``function`` uses besides, and that exist once for the whole model.
    """
    params = {name: torch.zeros(shape, device=x.device, requires_grad=True) for name, shape in shapes.items()}
    wanted = [*params.values(), *([x] if x.requires_grad else [])]
    saved = SavedTensors([*params.values(), x, *constants])
    with FlopCounter() as forward, saved.watching():
        y = function(params, x)
    with FlopCounter() as backward:
        torch.autograd.grad(y.sum(), wanted, allow_unused=True)
    return Cost(
        forward.flops, backward.flops, Activations(saved.numbers[""], float(x.numel()), saved.bytes_besides[""])
    )


def count_flops(
    function: Callable[[dict[str, Tensor], Tensor], Tensor],
    shapes: Mapping[str, tuple[int, ...]],
    x: Tensor,
) -> tuple[float, float]:
    """Return (forward, backward) FLOPs of ``function(params, x)``: see :func:`cost_of`."""
    return cost_of(function, shapes, x)[:2]
