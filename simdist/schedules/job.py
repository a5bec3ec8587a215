"""What a schedule needs to make its worker program: the task and how it is to be trained."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from simdist.optimizers.rule import Rule
from simdist.parallelism import Compressions, Layout, Reduction
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
        compressions: how gradients are compressed on each axis.
        vectors_apart: whether biases and norms travel apart from matrices.
    """

    task: Task
    rule: Rule
    mesh: MeshShape
    steps: int
    seed: int
    lr_schedule: LearningRate
    reshard_after_forward: bool | None = None
    vectors_apart: bool = False
    evaluate_every: int = 0
    measure_every: int = 0
    compressions: Compressions = field(default_factory=Compressions)

    def layout(self) -> Layout:
        units, rule, mesh = self.task.units, self.rule, self.mesh
        return Layout(units, rule, mesh, self.reshard_after_forward, self.vectors_apart)

    def reduction(self, layout: Layout) -> Reduction:
        """Return the gradients' way to the rules, with the job's compressions."""
        rules = {name: a.rule for a in layout.assignments for name in a.stack.names}
        return Reduction(layout, self.compressions, lambda name, step: self.lr(rules[name], step))

    def evaluates(self, step: int) -> bool:
        """Whether step ``step`` (1 to ``steps``) is followed by a validation."""
        return step == self.steps or (self.evaluate_every > 0 and step % self.evaluate_every == 0)

    def measures(self, step: int) -> bool:
        """Whether rules note diagnostics in step ``step``."""
        return self.measure_every > 0 and (step == 1 or step % self.measure_every == 0)

    def lr(self, rule: Rule, step: int) -> float:
        """Return the scheduled learning rate of a rule at step ``step``."""
        return self.lr_schedule.at(step - 1, self.steps, rule.lr)
