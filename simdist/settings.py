"""Base class of every piece of configuration: frozen, strict, and without surprises.

Optimizers, workloads, topologies and the scenario itself are pydantic models: their fields *are* the
hyper-parameters, so a resolved scenario prints, saves, compares and is checked in one way.
"""

from __future__ import annotations

import math
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict


class Settings(BaseModel):
    """A frozen settings object that refuses unknown keys, NaN and infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True)


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


PositiveInt = Annotated[int, BeforeValidator(_no_text_number), AfterValidator(_above_zero)]
NaturalInt = Annotated[int, BeforeValidator(_no_text_number), AfterValidator(_zero_or_more)]
PositiveFloat = Annotated[float, BeforeValidator(_no_text_number), AfterValidator(_above_zero)]
NaturalFloat = Annotated[float, BeforeValidator(_no_text_number), AfterValidator(_zero_or_more)]
Fraction = Annotated[float, BeforeValidator(_no_text_number), AfterValidator(_at_most_one)]
#: a share of something, of which there must be some: above 0, at most 1
Share = Annotated[Fraction, AfterValidator(_not_zero)]
