"""Any ``torch.optim.Optimizer`` as a rule, by its import path: ``optimizer.name: "pytorch_optimizer:AdaBelief"``.

The class stays as it is. Each parameter has an instance of its own, made anew in every step around a copy of what the
last one remembered (:mod:`simdist.optimizers.torch_memory`), so that states are explicit and nothing changes in place.
Two ways to run on shards:

- ``shards``, for classes that act on each number by itself: this worker's rows of the whole stack are one tensor, and
  nothing travels.
- ``gathered``, for all others, and right for every class: the gradient's rows are all-gathered, ``(F-1)/F m n`` numbers
  a matrix and worker (padding rows of the last shards included: ``(F-1) rows n``), and every worker steps the whole
  matrix, without its padding, and keeps its rows. States are of whole matrices. The other rows of the parameter are
  gathered once, in the first step (as ``params`` on the wire, whose codec rounds the start values), and then known
  from the worker's own steps; or, with ``gather_parameters``, in every step.

One instance per parameter means that a statistic over all parameters (the step size of D-Adaptation and Prodigy, a
global norm for clipping) is taken over one parameter at a time here. On one matrix this is the class's own result; on
a model it is a variant of it, "per tensor", and the same on every mesh and engine.
"""

from __future__ import annotations

import inspect
import sys
from contextlib import suppress
from functools import lru_cache
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import AfterValidator, ConfigDict, Field, ValidationError, create_model, field_validator, model_validator
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from simdist.errors import InputError
from simdist.optimizers.adamw import AdamW
from simdist.optimizers.rule import MeshShape, Rule, Stack, optimizers
from simdist.optimizers.torch_class import Signature, signature_of
from simdist.optimizers.torch_elementwise import ELEMENTWISE, SURVEYED, acts_by_number, path_of
from simdist.optimizers.torch_running import (
    TorchState,
    evaluated_gathered,
    evaluated_on_shards,
    held_bytes,
    run_gathered,
    run_on_shards,
)
from simdist.optimizers.torch_stepping import has_modes, isolated
from simdist.optimizers.torch_trial import difference_on_shards, try_out
from simdist.program import Worker
from simdist.program.state import Loose
from simdist.registry import name_of
from simdist.settings import NaturalFloat, PositiveFloat


class TorchOptimizer(Rule):
    """A torch optimizer as a rule; the class's own keyword arguments are fields beside those here.

    ``weight_decay`` goes to hidden matrices only, as with every rule; what it does there is the class's own.
    ``lr`` follows ``lr_schedule``; other rates that a class may have stay constant. A class with ``train()`` and
    ``eval()`` (schedule-free, SPlus) steps in train mode, and is validated and saved as ``eval()`` has it.

    Attributes:
        runs_on: see the head of this file; null is ``shards`` for the classes of
            :data:`simdist.optimizers.torch_elementwise.ELEMENTWISE`, ``gathered`` for all others. ``shards`` for
            a class of your own is tried out on small matrices, and refused where it makes a difference there; that is
            no proof, as a class may act late.
        gather_parameters: whether the parameters are gathered in every step: for schedules that change them between
            steps, at twice the traffic. Gathered on shards only.
        auxiliary: AdamW for embeddings, head and vectors, so that the class gets hidden matrices only; null: all.
        group: further keys of the parameter group, such as ``use_muon: true``.
        kwargs: arguments that the class takes as ``**kwargs``; it alone knows which.
        base: the optimizer that a class such as Lookahead wraps: its ``name``, and its own arguments but ``lr``.
    """

    model_config = ConfigDict(allow_inf_nan=True)  # classes do have infinite defaults

    runs_on: Literal["shards", "gathered"] | None = None
    gather_parameters: bool = False
    auxiliary: AdamW | None = None
    group: dict[str, Any] = Field(default_factory=dict)
    kwargs: dict[str, Any] = Field(default_factory=dict)
    base: dict[str, Any] | None = None

    torch_class: ClassVar[type[Optimizer]]
    signature: ClassVar[Signature]

    def __hash__(self) -> int:
        # arguments may be dicts, which have no hash; equal settings print alike
        return hash(repr(self))

    @field_validator("kwargs")
    @classmethod
    def _takes_more(cls, value: dict[str, Any]) -> dict[str, Any]:
        if value and not cls.signature.open:
            raise ValueError(f"got {value!r}, but {cls.__name__} takes no **kwargs; expected arguments by their names")
        own = sorted(value.keys() & cls.signature.arguments.keys())
        if own:
            raise ValueError(f"got {', '.join(own)}; expected arguments of the signature beside 'kwargs', not in it")
        return value

    @field_validator("base")
    @classmethod
    def _wraps(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        if cls.signature.wraps != (value is not None):
            expected = "{name: torch.optim:SGD, momentum: 0.9}, say" if cls.signature.wraps else "null"
            raise ValueError(f"got {value!r} for {cls.__name__}; expected {expected}")
        return value

    @model_validator(mode="after")
    def _works(self) -> TorchOptimizer:
        try_out(self, 2)
        if self.gather_parameters and self.on_shards:
            raise InputError(
                f"got optimizer.gather_parameters true for {self.title}, which runs on shards and gathers "
                "nothing; expected false, or runs_on 'gathered'"
            )
        if self.gather_parameters and self.has_modes:
            raise InputError(
                f"got optimizer.gather_parameters true for {self.title}, whose eval() needs whole parameters after "
                "the step, which are kept only without it; expected false"
            )
        if self.runs_on == "shards":
            _check_shards(self)
        return self

    @property
    def title(self) -> str:
        """The class's name, for messages and bookings."""
        return self.torch_class.__name__

    @property
    def on_shards(self) -> bool:
        """Whether workers step their own rows by themselves."""
        if self.runs_on is None:
            plain = self.base is None and not self.group and not self.kwargs
            return plain and acts_by_number(self.torch_class, self.arguments(decay=True))
        return self.runs_on == "shards"

    @property
    def has_modes(self) -> bool:
        """Whether the class evaluates other parameters than it trains (``train()``, ``eval()``)."""
        return has_modes(self.torch_class)

    def rule_for(self, role: str) -> Rule:
        return self if role == "matrix" or self.auxiliary is None else self.auxiliary

    def check(self, shape: tuple[int, ...], name: str, mesh: MeshShape) -> None:
        try:
            with isolated(0, torch.device("cpu")):
                self.make(Parameter(torch.zeros(shape)), decay=True)
            try_out(self, len(shape))
        except InputError as error:
            hint = "" if self.auxiliary else "; or write optimizer.auxiliary: {lr: 0.001}, AdamW for all but matrices"
            raise InputError(
                f"parameter {name!r} of shape {shape}: {error}{hint if len(shape) != 2 else ''}"
            ) from error

    def arguments(self, decay: bool) -> dict[str, Any]:
        """Return the keyword arguments that differ from the class's defaults, without weight decay unless ``decay``."""
        values = {key: getattr(self, key) for key in self.signature.arguments}
        if "weight_decay" in values and not decay:
            values["weight_decay"] = 0.0
        defaults = {key: argument.default for key, argument in self.signature.arguments.items()}
        return {**{k: v for k, v in values.items() if v != _frozen(defaults[k])}, **self.kwargs}

    def make(self, p: Parameter, decay: bool) -> Optimizer:
        """Return a new instance over one parameter.

        Raises:
            InputError: with what its constructor says.
        """
        params: Any = [{"params": [p], **self.group}] if self.base is None else based(self).make(p, decay)
        arguments = self.arguments(decay)
        try:
            return self.torch_class(params, **arguments)
        except Exception as error:  # whatever a constructor raises
            if self.base is None and not self.group:
                with suppress(Exception):  # of classes that know no parameter groups
                    return self.torch_class([p], **arguments)
            raise InputError(f"{self.title} refuses its arguments: {type(error).__name__}: {error}") from error

    def init(self, stack: Stack, x: Tensor, worker: Worker) -> TorchState:
        return TorchState(0, Loose())

    async def update(
        self, stack: Stack, x: Tensor, grad: Tensor, state: Any, lr: float, worker: Worker
    ) -> tuple[Tensor, TorchState]:
        run = run_on_shards if self.on_shards else run_gathered
        return await run(self, stack, x, grad, state, lr, worker)

    def evaluated(self, stack: Stack, x: Tensor, state: Any, worker: Worker) -> Tensor:
        if not self.has_modes:
            return x
        find = evaluated_on_shards if self.on_shards else evaluated_gathered
        return find(self, stack, x, state, worker)

    def state_bytes(self, state: Any, worker: Worker) -> float:
        return held_bytes(state)

    def __reduce__(self) -> Any:
        return _rebuilt, (self.name, {key: getattr(self, key) for key in type(self).model_fields})


def _check_shards(rule: TorchOptimizer) -> None:
    """Refuse ``runs_on: shards`` for classes that need whole matrices, as far as that can be known."""
    path = path_of(rule.torch_class)
    if path.partition(":")[0] in SURVEYED and path not in ELEMENTWISE:
        raise InputError(
            f"got optimizer.runs_on 'shards' for {path}, which is not among the classes that act on each number by "
            "itself (simdist/optimizers/torch_elementwise.py); expected 'gathered', or null"
        )
    difference = difference_on_shards(rule)
    if not difference < 1e-9:
        raise InputError(
            f"got optimizer.runs_on 'shards' for {rule.title}, which does not act on each number by itself: on small "
            f"matrices its steps on shards differ by {difference:.1e} from those on whole matrices; expected "
            "'gathered', or null"
        )


@lru_cache(maxsize=256)
def based(rule: TorchOptimizer) -> TorchOptimizer:
    """Return the optimizer that a wrapper such as Lookahead wraps.

    Raises:
        InputError: when ``base`` does not say one.
    """
    rest = dict(rule.base or {})
    found = optimizers.get(rest.pop("name", None))
    inner = adapted(found)
    if inner is None:
        raise InputError(f"got base {rule.base!r}; expected the import path of a torch optimizer as its name")
    if has_modes(inner.torch_class):
        raise InputError(
            f"got base {rule.base!r}, which evaluates other parameters than it trains (train(), eval()), while "
            f"{rule.title} switches no modes of what it wraps; expected an optimizer without modes"
        )
    known = [*inner.signature.arguments, "group", "kwargs", "base"]
    for key in rest:
        if key not in known or key == "lr":
            raise InputError(f"base.{key}: got an unknown key; expected {', '.join(known)} (lr: beside base)")
    try:
        return inner.model_validate({**rest, "lr": rule.lr})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise InputError(f"base.{where}: got {first['input']!r}; {first['msg']}") from None


def adapted(found: Any) -> type[TorchOptimizer] | None:
    """Return the rule for a torch optimizer's class, None for anything else.

    Raises:
        InputError: for a class that cannot be a rule, with the reason.
    """
    return torch_rule(found) if inspect.isclass(found) and issubclass(found, Optimizer) else None


_RULES: dict[type[Optimizer], type[TorchOptimizer]] = {}


def torch_rule(torch_class: type[Optimizer]) -> type[TorchOptimizer]:
    """Return a torch optimizer's class as a class of rules, with the keyword arguments as its fields.

    >>> torch_rule(torch.optim.NAdam)(lr=0.002, betas=(0.9, 0.99)).on_shards
    True

    Raises:
        InputError: for a class that cannot be a rule, with the reason.
    """
    if torch_class in _RULES:
        return _RULES[torch_class]
    signature, path = signature_of(torch_class), _path(torch_class)
    fields: dict[str, Any] = {"name": (str, path), "weight_decay": (_NoDecay, 0.0)}
    for key, argument in signature.arguments.items():
        if hasattr(TorchOptimizer, key) or key in TorchOptimizer.model_fields.keys() - {"lr", "weight_decay"}:
            raise InputError(
                f"got the torch optimizer {path}, whose argument {key!r} means something else here; expected another "
                "name for it, in a subclass of yours"
            )
        default = ... if argument.required else _frozen(argument.default)
        fields[key] = (Annotated[argument.annotation, AfterValidator(_frozen)], default)
    given = signature.arguments.get("lr")
    fields["lr"] = (PositiveFloat, given.default if given and isinstance(given.default, (int, float)) else ...)
    if "weight_decay" in signature.arguments:
        fields["weight_decay"] = (NaturalFloat, fields["weight_decay"][1] or 0.0)
    made = create_model(torch_class.__name__, __base__=TorchOptimizer, __module__=torch_class.__module__, **fields)
    # so that the path of the rule is that of the torch class
    made.__module__ = torch_class.__module__ if ".py:" in path else path.rpartition(":")[0]
    made.__qualname__ = torch_class.__qualname__
    made.__doc__ = f"{path} as a rule."
    made.torch_class, made.signature = torch_class, signature
    _RULES[torch_class] = made
    return made


def _path(torch_class: type[Optimizer]) -> str:
    """Return the shortest import path of a class; that of a user's file is the file's."""
    short = path_of(torch_class)
    package, _, name = short.partition(":")
    return short if getattr(sys.modules.get(package), name, None) is torch_class else name_of(torch_class)


def _no_decay(value: float) -> float:
    if value:
        raise ValueError(f"got {value!r}, but this class takes no weight_decay; expected 0")
    return value


_NoDecay = Annotated[float, AfterValidator(_no_decay)]


def _frozen(value: Any) -> Any:
    """Return lists as tuples, which torch's classes expect and which cannot change."""
    if isinstance(value, (list, tuple)):
        return tuple(_frozen(item) for item in value)
    return {key: _frozen(item) for key, item in value.items()} if isinstance(value, dict) else value


def _rebuilt(name: str, values: dict[str, Any]) -> TorchOptimizer:
    """Return a rule in another process (pickle's way)."""
    made = adapted(optimizers.get(name))
    assert made is not None
    return made.model_construct(**values)
