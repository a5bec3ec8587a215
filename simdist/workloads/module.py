"""A user's own ``nn.Module``, loss and dataset as a workload."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.func import functional_call

from simdist.errors import InputError
from simdist.settings import PositiveFloat, PositiveInt
from simdist.workloads.callables import Reference, call, resolve
from simdist.workloads.module_checks import check_behaviour, check_layers
from simdist.workloads.module_layout import param_specs, trained, unit_names
from simdist.workloads.module_units import measured_units
from simdist.workloads.split import Examples
from simdist.workloads.workload import Role, Task, Workload, workloads


@workloads.register("module")
class ModuleWorkload(Workload):
    """Your own nn.Module, loss and dataset, given as functions in a scenario file.

    The functions are stored as import paths (``/path/file.py:make_model``), so that a saved scenario repeats the run;
    such paths can be written too. They must be defined at the top level of a file.

    Attributes:
        model: returns the module. It is called with torch's random state set from the run's seed.
        loss: takes (output, target), returns the mean loss over the batch.
        dataset: returns a map-style dataset of (input, ..., target) tensors; all of it is held in memory.
        batch: examples per worker and step.
        units: submodules that are FSDP units of their own (``encoder.*``); null: the elements of every ModuleList
            and Sequential at the outermost level that has one.
        roles: parameter name pattern to role, where the default is not what you want: Linear weights are ``matrix``,
            of the last Linear ``head``, of Embedding ``embedding``, all else (also convolutions) ``vector``.
        validation_fraction: part of the dataset that is held out, the same for every seed.
        validation_batches: fixed batches of ``batch`` examples, at most as many as the held-out part gives.
    """

    name: str = "module"
    model: Reference
    loss: Reference
    dataset: Reference
    batch: PositiveInt = 32
    units: tuple[str, ...] | None = None
    roles: dict[str, Role] = Field(default_factory=dict)
    validation_fraction: Annotated[PositiveFloat, Field(lt=1)] = 0.1
    validation_batches: PositiveInt = 16

    def build(self, seed: int, dtype: torch.dtype, device: torch.device) -> ModuleTask:
        module = _seeded(f"{seed}/model", lambda: call(self.model, "model"))
        if not isinstance(module, nn.Module):
            raise InputError(f"model {self.model!r} returned {type(module).__name__}; expected an nn.Module")
        check_layers(module)
        if not trained(module):
            raise InputError(f"model {self.model!r} returned a module without trained parameters; expected some")
        # the data must not depend on the run's seed, or validation losses would not compare
        tensors = _seeded("dataset", lambda: _tensors(call(self.dataset, "dataset"), self.dataset))
        examples = Examples(tensors, self.validation_fraction, self.validation_batches, self.batch, seed, dtype, device)
        return ModuleTask(self, module.to(device, dtype), examples)


class ModuleTask(Task):
    """The module with its data; a batch is a tuple of tensors, the last one the target."""

    def __init__(self, settings: ModuleWorkload, module: nn.Module, examples: Examples) -> None:
        self.data_hash = examples.sha256
        self.samples_per_step = settings.batch
        self.validation: Sequence[tuple[Tensor, ...]] = examples.validation
        self._examples = examples
        self._module = module
        self._loss = resolve(settings.loss, "loss")
        # parameters are held in at most two dimensions (held_shape); the module wants them back in its own
        self._shapes = {name: value.shape for name, value in trained(module).items()}

        specs = param_specs(module, settings.roles)
        self._initial = {spec.name: trained(module)[spec.name].detach().reshape(spec.shape).clone() for spec in specs}
        first = self.batch(0, 0)
        if not first[0].is_meta:  # a plan has no values to look at
            check_behaviour(self.loss, module, self._initial, first, self.batch(1, 0), settings.loss)
        leaves = {name: value.clone().requires_grad_() for name, value in self._initial.items()}
        names = unit_names(module, settings.units)
        self.units = measured_units(module, lambda params: self.loss(params, first), leaves, specs, names)

    def initial(self) -> dict[str, Tensor]:
        return {name: value.clone() for name, value in self._initial.items()}

    def batch(self, worker: int, step: int) -> tuple[Tensor, ...]:
        return self._examples.batch(worker, step)

    def loss(self, params: dict[str, Tensor], batch: tuple[Tensor, ...]) -> Tensor:
        *inputs, target = batch
        own = {name: params[name].reshape(shape) for name, shape in self._shapes.items()}
        result: Tensor = self._loss(functional_call(self._module, own, tuple(inputs)), target)
        return result


def _seeded(purpose: str, function: Callable[[], Any]) -> Any:
    """Call a user's function with torch's global random state set from ``purpose``, and put the state back."""
    with torch.random.fork_rng(devices=[]):
        digest = hashlib.blake2b(purpose.encode(), digest_size=8).digest()
        torch.manual_seed(int.from_bytes(digest, "little") >> 1)
        return function()


def _tensors(dataset: Any, path: str) -> tuple[Tensor, ...]:
    """Stack a dataset's examples field by field."""
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        raise InputError(
            f"dataset {path!r} returned {type(dataset).__name__}; expected a map-style dataset (with a length and "
            "items), such as torch.utils.data.TensorDataset(inputs, targets)"
        )
    if len(dataset) == 0:
        raise InputError(f"dataset {path!r} returned an empty dataset; expected examples")
    if isinstance(dataset, torch.utils.data.TensorDataset):
        fields = dataset.tensors
    else:
        items = [dataset[i] for i in range(len(dataset))]
        if not all(isinstance(item, tuple | list) and len(item) == len(items[0]) for item in items):
            raise InputError(f"dataset {path!r} gave {type(items[0]).__name__}; expected tuples (input, ..., target)")
        try:
            fields = tuple(
                torch.stack([torch.as_tensor(value) for value in field]) for field in zip(*items, strict=True)
            )
        except (RuntimeError, TypeError, ValueError) as error:
            raise InputError(
                f"dataset {path!r} gave examples that do not stack: {error}; expected tensors of equal shape"
            ) from error
    if len(fields) < 2:
        raise InputError(f"dataset {path!r} gave {len(fields)} tensor(s) per example; expected (input, ..., target)")
    return tuple(fields)
