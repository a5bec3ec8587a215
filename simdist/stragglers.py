"""Stragglers: how much longer than usual each worker computes in a step.

A worker's slowness in a step multiplies the seconds of all that it computes then; sleeps and transfers stay as they
are. It depends on (step, worker) and the settings alone, so that a run and its re-timing see the same stragglers. Where
workers do not run in lock step, a worker's k-th computation takes the place of step k. Workers that are always slower
than others are ``compute.speeds``.
"""

from __future__ import annotations

import csv
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, NamedTuple, TypeAlias

import numpy as np
from pydantic import AfterValidator

from simdist.errors import InputError
from simdist.registry import Registry
from simdist.settings import AbsolutePath, Fraction, NaturalFloat, NaturalInt, Settings

#: step (from 1) to the slowness of each worker: 1 is as usual, 2 takes twice as long
Slowness: TypeAlias = "Callable[[int], tuple[float, ...]]"


class Stragglers(Settings, ABC):
    """How workers' speeds vary from step to step.

    Attributes:
        name: name in the registry.
    """

    name: str

    @abstractmethod
    def slowness(self, workers: int) -> Slowness:
        """Return the slowness of so many workers.

        Raises:
            InputError: when a file cannot be read, or does not fit so many workers.
        """


stragglers: Registry[type[Stragglers]] = Registry("straggler model")


@stragglers.register("lognormal")
class Lognormal(Stragglers):
    """Every worker is faster or slower in every step: independent log-normal slowness of mean one.

    exp(sigma z - sigma^2 / 2) with a standard normal z for each (step, worker). A worker's draws do not depend on how
    many others there are.

    Attributes:
        sigma: standard deviation of the slowness' logarithm; 0: nobody straggles.
        seed: of the draws.
    """

    name: str = "lognormal"
    sigma: NaturalFloat
    seed: NaturalInt = 0

    def slowness(self, workers: int) -> Slowness:
        def at(step: int) -> tuple[float, ...]:
            normal = np.random.default_rng((self.seed, step)).standard_normal(workers)
            return tuple(np.exp(self.sigma * normal - self.sigma**2 / 2).tolist())

        return at


def _not_faster(value: float) -> float:
    if not 1 <= value < math.inf:
        raise ValueError(f"got {value!r}; expected 1 or more: how many times as long a straggler takes")
    return value


@stragglers.register("occasional")
class Occasional(Stragglers):
    """Now and then a worker is slow: by a factor, with a probability, independently in every step.

    With computing time c a synchronous step of n workers waits for (1 + (factor - 1) (1 - (1 - p)^n)) c on average, as
    one straggler is enough. Gradient coding (Tandon, Lei, Dimakis & Karampatziakis 2017) is about such stragglers.

    Attributes:
        probability: that a worker is slow in a step.
        factor: how many times as long it takes then.
        seed: of the draws. With the same seed, whoever is slow at a probability is slow at all higher ones.
    """

    name: str = "occasional"
    probability: Fraction
    factor: Annotated[NaturalFloat, AfterValidator(_not_faster)]
    seed: NaturalInt = 0

    def slowness(self, workers: int) -> Slowness:
        def at(step: int) -> tuple[float, ...]:
            slow = np.random.default_rng((self.seed, step)).random(workers) < self.probability
            return tuple(np.where(slow, self.factor, 1.0).tolist())

        return at


@stragglers.register("trace")
class Trace(Stragglers):
    """Recorded slowness, from a CSV file with the columns step, worker and slowness.

    Steps count from 1, workers from 0; a worker without a row for a step is as fast as usual.

    Attributes:
        path: the file.
        repeat: begin again after the last step that the file names; else nobody straggles from there on.
    """

    name: str = "trace"
    path: AbsolutePath
    repeat: bool = False

    def slowness(self, workers: int) -> Slowness:
        recorded: dict[int, dict[int, float]] = {}
        for row in _rows(Path(self.path)):
            if row.worker >= workers:
                raise InputError(
                    f"{row.where}: got worker {row.worker} with {workers} workers; "
                    f"expected worker indices from 0 to {workers - 1}"
                )
            in_step = recorded.setdefault(row.step, {})
            if row.worker in in_step:
                raise InputError(
                    f"{row.where}: got worker {row.worker} in step {row.step} twice; expected one row for each"
                )
            in_step[row.worker] = row.slowness
        if not recorded:
            raise InputError(f"got {self.path} without a row; {_EXPECTED}")
        period = max(recorded)

        def at(step: int) -> tuple[float, ...]:
            in_step = recorded.get((step - 1) % period + 1 if self.repeat else step, {})
            return tuple(in_step.get(worker, 1.0) for worker in range(workers))

        return at


_COLUMNS = ("step", "worker", "slowness")
_EXPECTED = f"expected a line of headings, {','.join(_COLUMNS)}, and rows such as 3,0,1.5"


class _Row(NamedTuple):
    where: str
    step: int
    worker: int
    slowness: float


def _rows(path: Path) -> Iterator[_Row]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            table = csv.DictReader(file, skipinitialspace=True)
            columns = [column.strip() for column in table.fieldnames or []]
            table.fieldnames = columns
            if sorted(columns) != sorted(_COLUMNS):
                raise InputError(f"{path}, line 1: got the columns {', '.join(columns) or 'none'}; {_EXPECTED}")
            for cells in table:
                where = f"{path}, line {table.line_num}"
                if None in cells or None in cells.values() or "" in cells.values():
                    raise InputError(f"{where}: got another number of values than {len(columns)}; {_EXPECTED}")
                yield _Row(
                    where,
                    _whole(cells["step"], 1, f"{where}: step"),
                    _whole(cells["worker"], 0, f"{where}: worker"),
                    _above_zero(cells["slowness"], f"{where}: slowness"),
                )
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(
            f"got compute.stragglers.path {str(path)!r}, which cannot be read ({error}); expected a CSV file"
        ) from error


def _whole(text: str, least: int, where: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if value < least:
        raise InputError(f"{where}: got {text!r}; expected a whole number from {least} on")
    return value


def _above_zero(text: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise InputError(f"{where}: got {text!r}; expected a number above zero, such as 1.5 for half as long again")
    return value
