"""Which engine runs the workers, and with what of this machine."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from simdist.settings import NaturalInt, PositiveInt, Settings


class EngineSettings(Settings):
    """How the worker programs are executed; values do not depend on it, but for the rounding of ``stacked``.

    Attributes:
        name: ``inline`` (one coroutine per worker in this process), ``stacked`` (one coroutine for all workers, whose
            tensors carry leading worker axes) or ``ray`` (actors, each holding a block of workers).
        actors: number of Ray actors; default one per core or GPU, and never more than workers.
        workers_per_actor: the same from the other side; the last actor may hold fewer.
        block: how a Ray actor runs its block.
        device: where the tensors live.
        threads: torch threads of each process; default one, which keeps sums in the same order on every machine, and
            all cores where one stacked cohort has the process to itself.
        retries: how often a run on Ray starts again from its last checkpoint when an actor or node is lost; null: 3.
        chunk: workers whose gradients a stacked engine computes at a time; default: chosen by the engine.
    """

    name: Literal["inline", "stacked", "ray"] = "inline"
    actors: PositiveInt | None = None
    workers_per_actor: PositiveInt | None = None
    block: Literal["inline", "stacked"] = "inline"
    device: Literal["cpu", "cuda"] = "cpu"
    threads: PositiveInt | None = None
    retries: NaturalInt | None = None
    chunk: PositiveInt | None = None

    @model_validator(mode="after")
    def _keys_mean_something(self) -> EngineSettings:
        if self.chunk is not None and not self.stacked:
            raise ValueError(
                f"got chunk {self.chunk} with engine {self.name!r}, whose workers are not stacked; "
                f"expected it with name 'stacked', or with name 'ray' and block 'stacked'"
            )
        if self.name == "ray":
            return self
        given = {"actors": self.actors, "workers_per_actor": self.workers_per_actor, "retries": self.retries}
        for key, value in given.items():
            if value is not None:
                raise ValueError(f"got {key} {value} with engine {self.name!r}; expected it only with name 'ray'")
        if self.block != "inline":
            raise ValueError(
                f"got block {self.block!r} with engine {self.name!r}; expected it only with name 'ray' "
                f"(for one stacked cohort in this process write name 'stacked')"
            )
        return self

    @property
    def stacked(self) -> bool:
        """Whether workers run as stacked cohorts, here or inside Ray actors."""
        return self.name == "stacked" or self.block == "stacked"
