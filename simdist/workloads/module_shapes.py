"""A user's ``nn.Module`` for plans: made on the meta device, so that it may be larger than any machine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_leaves

from simdist.errors import InputError
from simdist.workloads.callables import Reference, call
from simdist.workloads.module_layout import param_specs, trained, unit_names
from simdist.workloads.module_units import measured_units
from simdist.workloads.workload import Role, Task, Workload

_RUN = "to train it give simdist.workloads.ModuleWorkload its loss and its dataset"


class ModuleShapes(Workload):
    """Your own nn.Module by its factory; it can be planned, not run.

    The backward pass that is counted starts from the sum of all that the module returns.

    Attributes:
        model: returns the module. It is called under ``torch.device("meta")``: nothing is allocated.
        inputs: returns the inputs of one worker's batch, a tensor or a tuple of them; null: the module's own method
            ``example_inputs()``.
        units: submodules that are FSDP units of their own, as in :class:`simdist.workloads.ModuleWorkload`.
        roles: parameter name pattern to role, likewise.
    """

    name: str = "module_shapes"
    model: Reference
    inputs: Reference | None = None
    units: tuple[str, ...] | None = None
    roles: dict[str, Role] = Field(default_factory=dict)

    def build(self, seed: int, dtype: torch.dtype, device: torch.device) -> ModuleShapesTask:
        if device.type != "meta":
            raise InputError(f"got the module of {self.model!r} without data, which can be planned, not run; {_RUN}")
        with device:
            module = call(self.model, "model")
            if not isinstance(module, nn.Module):
                raise InputError(f"model {self.model!r} returned {type(module).__name__}; expected an nn.Module")
            given = self._example(module)
        if not trained(module):
            raise InputError(f"model {self.model!r} returned a module without trained parameters; expected some")
        inputs = tuple(_on_meta(x, dtype) for x in (given if isinstance(given, tuple | list) else (given,)))
        return ModuleShapesTask(self, module.to(device=device, dtype=dtype), inputs)

    def _example(self, module: nn.Module) -> Any:
        if self.inputs is not None:
            return call(self.inputs, "inputs")
        own = getattr(module, "example_inputs", None)
        if not callable(own):
            raise InputError(
                f"model {self.model!r} returned a module without a method example_inputs(); expected one that returns "
                "the inputs of one worker's batch, or --set workload.inputs=FILE.py:FUNCTION with a function that does"
            )
        try:
            return own()
        except Exception as error:  # whatever a user's method raises
            raise InputError(f"example_inputs() of {self.model!r} raised {type(error).__name__}: {error}") from error


class ModuleShapesTask(Task):
    """Units and parameters of the module; no data."""

    def __init__(self, settings: ModuleShapes, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        self.data_hash = "none (plan)"
        sizes = [x.shape[0] for x in inputs if isinstance(x, Tensor) and x.ndim]
        self.samples_per_step = sizes[0] if sizes else 1
        self.validation: Sequence[tuple[Tensor, ...]] = []
        shapes = {name: value.shape for name, value in trained(module).items()}
        specs = param_specs(module, settings.roles)
        held = {spec.name: trained(module)[spec.name].detach().reshape(spec.shape) for spec in specs}
        self._initial = held

        def run(params: dict[str, Tensor]) -> Tensor:
            own = {name: params[name].reshape(shape) for name, shape in shapes.items()}
            found = tree_leaves(functional_call(module, own, inputs))
            sums = [x.sum() for x in found if isinstance(x, Tensor) and x.requires_grad]
            if not sums:
                raise InputError(f"model {settings.model!r} returned nothing that depends on its parameters")
            return torch.stack(sums).sum()

        leaves = {name: value.clone().requires_grad_() for name, value in held.items()}
        try:
            self.units = measured_units(module, run, leaves, specs, unit_names(module, settings.units))
        except InputError:
            raise
        except Exception as error:  # whatever a user's module raises on shapes alone
            raise InputError(
                f"the module of {settings.model!r} raised {type(error).__name__} on meta tensors of shapes "
                f"{[tuple(x.shape) for x in inputs if isinstance(x, Tensor)]}: {error}; expected a forward pass that "
                "does not look at values"
            ) from error

    def initial(self) -> dict[str, Tensor]:
        return dict(self._initial)

    def batch(self, worker: int, step: int) -> tuple[Tensor, ...]:
        raise InputError(f"a module by its factory has no data; {_RUN}")

    def loss(self, params: dict[str, Tensor], batch: tuple[Tensor, ...]) -> Tensor:
        raise InputError(f"a module by its factory has no loss; {_RUN}")


def _on_meta(x: Any, dtype: torch.dtype) -> Any:
    if not isinstance(x, Tensor):
        return x
    return x.to("meta", dtype) if x.is_floating_point() else x.to("meta")
