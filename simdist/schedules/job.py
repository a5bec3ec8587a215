"""What a schedule needs to make its worker program: the task and how it is to be trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from simdist.optimizers.rule import Rule
from simdist.parallelism import Layout
from simdist.program import MeshShape
from simdist.schedules.learning_rate import LearningRate

if TYPE_CHECKING:
    from simdist.workloads.workload import Task


@dataclass(frozen=True)
class Job:
    """One training job.

    Attributes:
        evaluate_every: steps between validations, besides the one at the end (0: only that one).
        measure_every: steps between diagnostics (0: none).
    """

    task: Task
    rule: Rule
    mesh: MeshShape
    steps: int
    seed: int
    lr_schedule: LearningRate
    reshard_after_forward: bool | None = None
    evaluate_every: int = 0
    measure_every: int = 0

    def layout(self) -> Layout:
        return Layout(self.task.units, self.rule, self.mesh, self.reshard_after_forward)

    def evaluates(self, step: int) -> bool:
        """Whether step ``step`` (1 to ``steps``) is followed by a validation."""
        return step == self.steps or (self.evaluate_every > 0 and step % self.evaluate_every == 0)

    def measures(self, step: int) -> bool:
        """Whether rules note diagnostics in step ``step``."""
        return self.measure_every > 0 and (step == 1 or step % self.measure_every == 0)

    def lr(self, rule: Rule, step: int) -> float:
        """Return the scheduled learning rate of a rule at step ``step``."""
        return self.lr_schedule.at(step - 1, self.steps, rule.lr)
