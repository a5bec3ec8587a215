"""What a torch optimizer's class takes, read from its signature, and which classes cannot be rules."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import PydanticUserError, TypeAdapter, ValidationError
from torch.optim import Optimizer

from simdist.errors import InputError
from simdist.optimizers.torch_elementwise import path_of

#: a missing default, or an annotation that no scenario can hold
NOTHING = inspect.Parameter.empty


@dataclass(frozen=True)
class Argument:
    """A keyword argument: the type of what a scenario may say, and the default as the class has it."""

    annotation: Any
    default: Any

    @property
    def required(self) -> bool:
        return self.default is NOTHING


@dataclass(frozen=True)
class Signature:
    """How a class is called.

    Attributes:
        arguments: what a scenario may say. Arguments of other types (functions, tensors) keep their defaults.
        wraps: whether it takes another optimizer in place of parameters.
        open: whether it takes arguments beyond the signature (``**kwargs``).
    """

    arguments: dict[str, Argument]
    wraps: bool
    open: bool


def signature_of(torch_class: type[Optimizer]) -> Signature:
    """Read what a class takes.

    Raises:
        InputError: for a class that cannot be a rule, with the reason.
    """
    name = torch_class.__qualname__
    _refuse_other_protocols(torch_class)
    taken = list(inspect.signature(torch_class).parameters.values())
    if not taken or taken[0].kind in (taken[0].VAR_POSITIONAL, taken[0].VAR_KEYWORD):
        raise InputError(f"got the torch optimizer {name}, whose signature does not say what it takes; {_EXPECTED}")
    first, *rest = taken
    if "model" in first.name:
        raise InputError(f"got the torch optimizer {name}, which takes a model instead of parameters; {_EXPECTED}")
    hints = _hints(torch_class)
    arguments = {}
    for parameter in rest:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        argument = _argument(hints.get(parameter.name, parameter.annotation), parameter.default)
        if argument is not None:
            arguments[parameter.name] = argument
        elif parameter.default is NOTHING:
            raise InputError(
                f"got the torch optimizer {name}, which needs the argument {parameter.name!r} of type "
                f"{parameter.annotation}, which no scenario can hold; {_EXPECTED}"
            )
    wraps = "optimizer" in first.name
    if not wraps and "lr" not in arguments:
        raise InputError(
            f"got the torch optimizer {name}, which takes no learning rate 'lr', so that lr_schedule would do "
            f"nothing; {_EXPECTED}"
        )
    return Signature(arguments, wraps, any(p.kind is p.VAR_KEYWORD for p in rest))


_EXPECTED = (
    "expected a class like torch.optim.Adam: Optimizer(params, lr=..., ...) with numbers, texts and tuples as "
    "arguments, and step() after one gradient. A subclass in a file of yours can make it one: "
    "optimizer.name: my_file.py:Name"
)


#: classes that would run, and silently do something else than they should
_SILENT = {
    **dict.fromkeys(
        (f"pytorch_optimizer:{name}" for name in ("EmoNavi", "EmoLynx", "EmoFact")),
        "which steers by the loss, and takes it for zero when step() is not given a closure",
    ),
    "pytorch_optimizer:PCGrad": "which acts in pc_backward(), on the gradients of several losses, and not in step()",
    "pytorch_optimizer:LoRARite": "which moves only pairs of LoRA factors, marked in groups of its own",
}


def _refuse_other_protocols(torch_class: type[Optimizer]) -> None:
    """Refuse what does not step once from one gradient, by what the class offers."""
    name = torch_class.__qualname__
    if path_of(torch_class) in _SILENT:
        raise InputError(f"got the torch optimizer {name}, {_SILENT[path_of(torch_class)]}; {_EXPECTED}")
    if hasattr(torch_class, "first_step") and hasattr(torch_class, "second_step"):
        raise InputError(
            f"got the torch optimizer {name}, which takes two gradients per step (first_step, second_step), while "
            f"workers compute one; {_EXPECTED}"
        )
    closure = inspect.signature(torch_class.step).parameters.get("closure")
    if closure is not None and closure.default is NOTHING:
        raise InputError(
            f"got the torch optimizer {name}, whose step(closure) computes the loss again as often as it likes, while "
            f"workers compute one gradient per step; {_EXPECTED}"
        )


def _hints(torch_class: type[Optimizer]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(torch_class.__init__)
    except (NameError, TypeError, AttributeError):  # names that exist for type checkers only
        return {}


def _argument(annotation: Any, default: Any) -> Argument | None:
    """Return what a scenario may say for an argument, or None where it can say nothing."""
    sayable = Any if annotation is NOTHING or isinstance(annotation, str) else _sayable(annotation)
    if sayable is NOTHING or (default is not NOTHING and not _is_plain(default)):
        return None
    if default is not NOTHING:
        try:  # annotations are not always true: what does not hold for the default says nothing
            TypeAdapter(sayable).validate_python(default)
        except (ValidationError, PydanticUserError):
            sayable = Any
    return Argument(sayable, default)


_SCALARS = (bool, int, float, str, type(None))


def _sayable(annotation: Any) -> Any:
    """Return the part of an annotation that plain data can meet: no tensors, functions, modules."""
    if annotation is Any or annotation in _SCALARS:
        return annotation
    if isinstance(annotation, type) and issubclass(annotation, int):  # enumerations of numbers
        return int
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        return annotation
    if origin in (typing.Union, types.UnionType):
        members = [found for each in inner if (found := _sayable(each)) is not NOTHING]
        # X | Y cannot be written for members known only here, and Python 3.10 has no other way
        return typing.Union[tuple(members)] if members and members != [type(None)] else NOTHING  # noqa: UP007
    if origin is tuple:
        members = [each if each is Ellipsis else _sayable(each) for each in inner]
        return NOTHING if NOTHING in members else types.GenericAlias(tuple, tuple(members))
    if origin is not None and isinstance(origin, type) and issubclass(origin, Sequence):
        member = _sayable(inner[0])
        return NOTHING if member is NOTHING else types.GenericAlias(tuple, (member, ...))
    if annotation is dict or (isinstance(origin, type) and issubclass(origin, Mapping)):
        return dict[str, Any]
    return NOTHING


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(_is_plain(item) for item in value)
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(item) for key, item in value.items())
    return isinstance(value, _SCALARS)
