"""Base class of every piece of configuration: frozen, strict, and without surprises.

Optimizers, workloads, topologies and the scenario itself are pydantic models: their fields *are* the
hyper-parameters, so a resolved scenario prints, saves, compares and is checked in one way.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, ValidationError

from simdist.errors import suggest


class Settings(BaseModel):
    """A frozen settings object that refuses unknown keys, NaN and infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True)


def first_problem(error: ValidationError, settings: type[Settings]) -> str:
    """Return the first thing that is wrong with the settings of a named thing, in one sentence."""
    problem = error.errors()[0]
    key = ".".join(map(str, problem["loc"]))
    if problem["type"] == "extra_forbidden":
        known = list(settings.model_fields)
        return f"it has no setting {key!r}; expected one of {', '.join(known) or 'none'}.{suggest(key, known)}"
    message: str = problem["msg"].removeprefix("Value error, ")
    return f"{key}: {message}" if key else message


def _no_text_number(value: Any) -> Any:
    # ``--set optimizer.lr=abc`` should say "expected a number", not try to coerce booleans and dates.
    if isinstance(value, bool):
        raise ValueError(f"got {value!r}; expected a number")
    return value


def _above_zero(value: float) -> float:
    if not value > 0 or math.isinf(value):
        raise ValueError(f"got {value!r}; expected a number above zero")
    return value


def _zero_or_more(value: float) -> float:
    if not value >= 0 or math.isinf(value):
        raise ValueError(f"got {value!r}; expected zero or more")
    return value


def _at_most_one(value: float) -> float:
    if not 0 <= value <= 1:
        raise ValueError(f"got {value!r}; expected a number from 0 to 1")
    return value


def _not_zero(value: float) -> float:
    if value <= 0:
        raise ValueError(f"got {value!r}; expected a fraction above 0, at most 1, such as 0.25")
    return value


def _whole_path(value: str) -> str:
    if not value.strip():
        raise ValueError(f"got {value!r}; expected the path of a file")
    return str(Path(value).expanduser().resolve())


PositiveInt = Annotated[int, BeforeValidator(_no_text_number), AfterValidator(_above_zero)]
NaturalInt = Annotated[int, BeforeValidator(_no_text_number), AfterValidator(_zero_or_more)]
PositiveFloat = Annotated[float, BeforeValidator(_no_text_number), AfterValidator(_above_zero)]
NaturalFloat = Annotated[float, BeforeValidator(_no_text_number), AfterValidator(_zero_or_more)]
Fraction = Annotated[float, BeforeValidator(_no_text_number), AfterValidator(_at_most_one)]
#: a share of something, of which there must be some: above 0, at most 1
Share = Annotated[Fraction, AfterValidator(_not_zero)]
#: a file, relative to the working directory; kept with its whole path, so that a saved scenario works from any folder
AbsolutePath = Annotated[str, AfterValidator(_whole_path)]
