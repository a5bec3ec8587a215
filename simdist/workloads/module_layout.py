"""How a user's ``nn.Module`` is cut into FSDP units, and which role each parameter gets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase

from torch import Tensor, nn

from simdist.errors import InputError, suggest
from simdist.workloads.workload import ParamSpec, Role


def trained(module: nn.Module) -> dict[str, Tensor]:
    """Return the parameters that are trained, by name; tied ones once, under their first name."""
    return {name: value for name, value in module.named_parameters() if value.requires_grad}


def held_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape in which simdist holds a parameter: at most two dimensions, at least one.

    Convolution kernels (out, in, height, width) become (out, in * height * width).
    """
    if len(shape) <= 2:
        return shape or (1,)
    rest = 1
    for size in shape[1:]:
        rest *= size
    return (shape[0], rest)


def unit_names(module: nn.Module, patterns: tuple[str, ...] | None) -> list[str]:
    """Return the submodules that are units, in registration order; what they do not hold is the root unit's.

    By default the elements of every ModuleList and Sequential at the outermost level where there is one. A pattern
    is a submodule's name in which ``*`` stands for one part: ``encoder.*``.

    Raises:
        InputError: for a pattern that matches no submodule with trained parameters.
    """
    names = [name for name, child in module.named_modules() if name and trained(child)]
    if patterns is None:
        chosen = set(_elements(module))
        return [name for name in names if name in chosen]
    for pattern in patterns:
        if not any(_matches(name, pattern) for name in names):
            raise InputError(
                f"got unit {pattern!r}, which matches no submodule with parameters; "
                f"expected names such as {', '.join(names[:8]) or '(the model has none)'}.{suggest(pattern, names)}"
            )
    return [name for name in names if any(_matches(name, pattern) for pattern in patterns)]


def _matches(name: str, pattern: str) -> bool:
    parts, wanted = name.split("."), pattern.split(".")
    return len(parts) == len(wanted) and all(map(fnmatchcase, parts, wanted))


def _elements(module: nn.Module) -> Iterator[str]:
    level = [("", module)]
    while level:
        lists = [(name, child) for name, child in level if isinstance(child, nn.ModuleList | nn.Sequential)]
        if lists:
            for name, child in lists:
                yield from (f"{name}.{key}".lstrip(".") for key, _ in child.named_children())
            return
        level = [(f"{name}.{key}".lstrip("."), inner) for name, child in level for key, inner in child.named_children()]


def unit_of(parameter: str, units: list[str]) -> str:
    """Return the innermost unit that holds the parameter, or ``"root"``."""
    holders = [name for name in units if parameter.startswith(f"{name}.")]
    return max(holders, key=len, default="root")


def param_specs(module: nn.Module, overrides: Mapping[str, Role]) -> list[ParamSpec]:
    """Return a spec for each trained parameter.

    Weights of Linear are ``matrix``, of the last Linear ``head``, of Embedding ``embedding``; all else is ``vector``,
    updated number by number: gains, biases, convolution kernels, parameters of the module's own. ``overrides`` maps
    name patterns (``fnmatch``) to roles; later ones win.

    Raises:
        InputError: for an override that matches nothing, or makes a matrix of a one-dimensional parameter.
    """
    parameters = trained(module)
    modules = dict(module.named_modules())
    roles: dict[str, Role] = {name: _role(modules, name) for name in parameters}
    matrices = [name for name, role in roles.items() if role == "matrix"]
    if matrices:
        roles[matrices[-1]] = "head"
    for pattern, role in overrides.items():
        matched = [name for name in parameters if fnmatchcase(name, pattern)]
        if not matched:
            raise InputError(
                f"got a role for {pattern!r}, which matches no parameter; "
                f"expected names such as {', '.join(list(parameters)[:8])}.{suggest(pattern, parameters)}"
            )
        for name in matched:
            if role != "vector" and parameters[name].ndim < 2:
                raise InputError(
                    f"got role {role!r} for {name!r} of shape {tuple(parameters[name].shape)}; expected 'vector' for "
                    "parameters with less than two dimensions"
                )
            roles[name] = role
    return [ParamSpec(name, held_shape(tuple(value.shape)), roles[name]) for name, value in parameters.items()]


def _role(modules: Mapping[str, nn.Module], name: str) -> Role:
    owner = modules[name.rpartition(".")[0]]
    if name.rpartition(".")[2] != "weight":
        return "vector"
    if isinstance(owner, nn.Linear):
        return "matrix"
    return "embedding" if isinstance(owner, nn.Embedding | nn.EmbeddingBag) else "vector"
