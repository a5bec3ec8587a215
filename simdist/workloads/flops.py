"""FLOPs of a unit, forward and backward, counted with ``torch.utils.flop_counter`` on the functional code itself.

The formulas are for matrix products, convolutions and attention. Elementwise operations (norms, activations,
rotary embeddings, residual sums, gathers, softmax) have none and are booked as zero: in a transformer they are a few
percent of the arithmetic, and on real devices they cost memory bandwidth, which ``compute.mfu`` stands for.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


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


def count_flops(
    function: Callable[[dict[str, Tensor], Tensor], Tensor],
    shapes: Mapping[str, tuple[int, ...]],
    x: Tensor,
) -> tuple[float, float]:
    """Return (forward, backward) FLOPs of ``function(params, x)``, run with zeros on the device of ``x``.

    The backward count is that of a real backward pass, to the parameters and, where ``x`` requires grad, to ``x``.
    A small ``x`` on the CPU is counted in milliseconds; on the meta device nothing is computed, but torch's meta
    kernels import the compiler, more than a second per process, so meta is for models too large to run here.
    """
    params = {name: torch.zeros(shape, device=x.device, requires_grad=True) for name, shape in shapes.items()}
    wanted = [*params.values(), *([x] if x.requires_grad else [])]
    with FlopCounter() as forward:
        y = function(params, x)
    with FlopCounter() as backward:
        torch.autograd.grad(y.sum(), wanted, allow_unused=True)
    return forward.flops, backward.flops
