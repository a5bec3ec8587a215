"""The scenario: everything that decides what a run computes, sends and how long that takes. Where all axes meet.

A scenario is a frozen value. It comes from a Python file, a YAML file or :meth:`Scenario.from_dict`, with the
same checks; :meth:`Scenario.to_dict` gives plain data that repeats the run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    SerializeAsAny,
    ValidationInfo,
    field_validator,
    model_validator,
)

from simdist.choosing import Kind, plain, problem
from simdist.codecs.setting import CodecName as Codec
from simdist.communication.plans import collectives_named
from simdist.compression.compression import Compression, compressions
from simdist.devices import STRAGGLERS, ComputeSettings
from simdist.errors import InputError
from simdist.execution.overlap import Overlap, overlaps
from simdist.execution.settings import EngineSettings
from simdist.network.topology import Topology, topologies
from simdist.optimizers.rule import MeshShape, Rule, optimizers
from simdist.optimizers.torch_optimizer import adapted
from simdist.schedules.learning_rate import LearningRate
from simdist.schedules.schedule import Schedule, schedules
from simdist.settings import NaturalInt, PositiveInt, Settings
from simdist.units import Seconds
from simdist.workloads.workload import Unit, Workload, workloads
from simdist.yaml_text import dump

if TYPE_CHECKING:
    import torch

WORKLOAD = Kind(workloads, Workload, "simdist.workloads")
OPTIMIZER = Kind(optimizers, Rule, "simdist.optimizers", adapt=adapted, adapts="torch.optim.Optimizer")
SCHEDULE = Kind(schedules, Schedule, "simdist.schedules", default="every_step")
NETWORK = Kind(topologies, Topology, "simdist.network", key="topology", default="star")
COMPRESSION = Kind(compressions, Compression, "simdist.compression")
OVERLAP = Kind(overlaps, Overlap, "simdist.execution.overlap", key="policy", default="none")
KINDS = (WORKLOAD, OPTIMIZER, SCHEDULE, NETWORK, COMPRESSION, OVERLAP, STRAGGLERS)


def _names_a_folder(value: str) -> str:
    if not value.strip(" .") or any(c in '/\\:*?"<>|' or not c.isprintable() for c in value):
        raise ValueError(f"got {value!r}; expected a name that can be part of a folder's name, such as 'orth-dion'")
    return value


FolderName = Annotated[str, AfterValidator(_names_a_folder)]


class MeshSettings(Settings):
    """The worker mesh: DDP is R x 1, FSDP is 1 x F, HSDP is R x F.

    Attributes:
        workers: says nothing new, but is checked: replicas x shards.
        reshard_after_forward: whether an FSDP unit is gathered again for the backward pass; null is FSDP2's own
            default: all units but the root.
    """

    replicas: PositiveInt = 1
    shards: PositiveInt = 1
    workers: PositiveInt | None = None
    reshard_after_forward: bool | None = None

    @model_validator(mode="after")
    def _workers_agree(self) -> MeshSettings:
        if self.workers is not None and self.workers != self.replicas * self.shards:
            raise ValueError(
                f"got workers {self.workers} with {self.replicas} replicas x {self.shards} shards; "
                f"expected workers {self.replicas * self.shards}, or a mesh whose product is {self.workers}"
            )
        return self

    @property
    def shape(self) -> MeshShape:
        return MeshShape(self.replicas, self.shards)


class WireSettings(Settings):
    """The codec of each kind of payload (``simdist list codecs``).

    Attributes:
        params: gathered parameters.
        grads: reduced gradients.
        factors: what an optimizer sends: low-rank factors, whole updates, ...
        statistics: small sums such as Gram matrices and norms.
        vectors: biases and norms, parameters and gradients: where given they travel apart from the matrices, as QSDP
            keeps them in full precision; null: with the others.
    """

    params: Codec = "fp32"
    grads: Codec = "fp32"
    factors: Codec = "fp32"
    statistics: Codec = "fp32"
    vectors: Codec | None = None


Compressed = Annotated[
    SerializeAsAny[Compression] | None,
    BeforeValidator(lambda value: None if value is None else COMPRESSION.choose(value)),
]


class CompressionSettings(Settings):
    """Gradient compression with a memory, by axis (``simdist list codecs``); null averages gradients as usual.

    On an axis of size one there is nothing to compress, and the section changes nothing, so that one scenario serves
    any mesh.

    Attributes:
        replicas: in place of the all-reduce over replicas (DDP, HSDP). Parameters whose rule brings replicas together
            by itself (Dion's factors) are left to it.
        shards: in place of FSDP's reduce-scatter.
    """

    replicas: Compressed = None
    shards: Compressed = None

    @field_validator("replicas", "shards")
    @classmethod
    def _defined_there(cls, value: Compression | None, info: ValidationInfo) -> Compression | None:
        if value is not None:
            value.check(str(info.field_name))
        return value


class EvaluationSettings(Settings):
    """How often the validation loss is measured, in steps (0: only at the end); on what, the workload says."""

    every: NaturalInt = 0


class DiagnosticsSettings(Settings):
    """How often rules note their diagnostics, in steps (0: never)."""

    every: NaturalInt = 0


class CheckpointSettings(Settings):
    """When the state of a lock-step run is written to its folder, so that ``simdist resume`` can go on from there.

    An interrupted run (Ctrl-C, SIGTERM) is saved in any case. Values do not depend on any of this.

    Attributes:
        every: steps between checkpoints; null: only by time.
        every_seconds: wall seconds between checkpoints; null: only by steps.
        keep: how many of the latest are kept.
    """

    every: PositiveInt | None = None
    every_seconds: Seconds | None = 600.0
    keep: PositiveInt = 2


class Scenario(Settings):
    """One training run: what is trained, by whom, under which optimizer, wire and network."""

    name: FolderName = "run"
    seed: NaturalInt = 0
    steps: PositiveInt = 100
    dtype: Literal["float32", "float64"] = "float32"
    workload: Annotated[SerializeAsAny[Workload], BeforeValidator(WORKLOAD.choose)]
    mesh: MeshSettings = Field(default_factory=MeshSettings)
    optimizer: Annotated[SerializeAsAny[Rule], BeforeValidator(OPTIMIZER.choose)]
    schedule: Annotated[SerializeAsAny[Schedule], BeforeValidator(SCHEDULE.choose)] = Field(
        default_factory=lambda: SCHEDULE.choose("every_step")
    )
    lr_schedule: LearningRate = Field(default_factory=LearningRate)
    wire: WireSettings = Field(default_factory=WireSettings)
    compression: CompressionSettings = Field(default_factory=CompressionSettings)
    network: Annotated[SerializeAsAny[Topology], BeforeValidator(NETWORK.choose)] = Field(
        default_factory=lambda: NETWORK.choose("star")
    )
    compute: ComputeSettings = Field(default_factory=ComputeSettings)
    overlap: Annotated[SerializeAsAny[Overlap], BeforeValidator(OVERLAP.choose)] = Field(
        default_factory=lambda: OVERLAP.choose("none")
    )
    engine: EngineSettings = Field(default_factory=EngineSettings)
    evaluation: EvaluationSettings = Field(default_factory=EvaluationSettings)
    diagnostics: DiagnosticsSettings = Field(default_factory=DiagnosticsSettings)
    checkpoint: CheckpointSettings = Field(default_factory=CheckpointSettings)

    @field_validator("network")
    @classmethod
    def _known_plan(cls, value: Topology) -> Topology:
        try:
            collectives_named(value.collectives)
        except InputError as error:
            raise problem("network", "collectives", value.collectives, str(error)) from error
        return value

    @model_validator(mode="after")
    def _axes_agree(self) -> Scenario:
        workers, engine = self.workers, self.engine
        mesh = f"{self.mesh.replicas} x {self.mesh.shards} = {workers} workers"
        if engine.actors is not None and engine.actors > workers:
            raise ValueError(f"engine.actors: got {engine.actors} for {mesh}; expected at most one actor per worker")
        per_actor = engine.workers_per_actor
        if per_actor is not None and per_actor > workers:
            raise ValueError(f"engine.workers_per_actor: got {per_actor} for {mesh}; expected at most {workers}")
        if per_actor is not None and engine.actors is not None and engine.actors != -(-workers // per_actor):
            raise ValueError(
                f"engine.actors: got {engine.actors} with workers_per_actor {per_actor} for {mesh}; "
                f"expected {-(-workers // per_actor)} actors, or only one of the two keys"
            )
        for worker in self.compute.speeds:
            if worker >= workers:
                raise ValueError(
                    f"compute.speeds: got worker {worker} for {mesh}; expected worker indices from 0 to {workers - 1}"
                )
        if self.compute.profile is not None and not self.schedule.lockstep:
            raise ValueError(
                f"compute.profile: got {self.compute.profile!r} with schedule {self.schedule.name!r}, whose workers do "
                "not compute unit by unit; expected compute.profile: null"
            )
        for axis, method in (("replicas", self.compression.replicas), ("shards", self.compression.shards)):
            if method is not None and not self.schedule.compresses:
                raise ValueError(
                    f"compression.{axis}: got {method.name!r} with schedule {self.schedule.name!r}, which averages no "
                    f"gradients over {axis}; expected schedule 'every_step', or a codec such as wire.grads='int8'"
                )
        if self.checkpoint.every is not None and not self.schedule.lockstep:
            raise ValueError(
                f"checkpoint.every: got {self.checkpoint.every} with schedule {self.schedule.name!r}, whose workers "
                "are never between two steps at once; expected null: `simdist resume` starts such a run anew"
            )
        wrong = self.overlap.problem(self.mesh.shards, self.schedule.lockstep)
        if wrong is not None:
            raise ValueError(f"overlap.policy: {wrong}")
        if engine.stacked and not self.schedule.lockstep:
            key = "engine.name" if engine.name == "stacked" else "engine.block"
            raise ValueError(
                f"{key}: got 'stacked' with schedule {self.schedule.name!r}, where workers do not run in lock step; "
                f"expected 'inline'"
            )
        return self

    @property
    def workers(self) -> int:
        """Number of emulated training participants."""
        return self.mesh.shape.workers

    @property
    def torch_dtype(self) -> torch.dtype:
        import torch

        return {"float32": torch.float32, "float64": torch.float64}[self.dtype]

    def to_dict(self) -> dict[str, Any]:
        """Return the resolved scenario as plain data; :meth:`from_dict` gives an equal scenario back."""
        data: dict[str, Any] = plain(self, KINDS)
        return data

    def to_yaml(self) -> str:
        """Return the text of ``scenario.yaml``."""
        return dump(self.to_dict())

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Scenario:
        """Return the scenario that plain data describes.

        Raises:
            InputError: naming every key that is wrong, what was got and what was expected.
        """
        from simdist.loading import checked

        return checked(cls, data)


class Sweep(Settings):
    """Every combination of some values, over a base scenario.

    Attributes:
        base: the scenario that the values are put into.
        over: dotted keys to lists of values, such as ``{"optimizer.lr": [0.01, 0.02]}``.
        name: part of the output folder's name.
    """

    name: FolderName = "sweep"
    base: Scenario
    over: dict[str, list[Any]] = Field(default_factory=dict)

    @field_validator("over")
    @classmethod
    def _has_values(cls, value: dict[str, list[Any]]) -> dict[str, list[Any]]:
        for key, values in value.items():
            if not values:
                raise ValueError(f"got no values for {key!r}; expected a list of at least one")
        return value

    def to_yaml(self) -> str:
        """Return the text of ``sweep.yaml``, which ``simdist sweep`` reads."""
        return dump(plain(self, KINDS))


def check_machine(scenario: Scenario) -> None:
    """Raise InputError when the scenario asks this machine for something that it does not have."""
    if scenario.engine.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise InputError(
                "engine.device: got 'cuda', but torch finds no CUDA device here; "
                "expected 'cpu', or a machine with a GPU and a CUDA build of torch"
            )


def check_fits(scenario: Scenario, units: Sequence[Unit]) -> None:
    """Raise InputError when the workers do not fit the network or a file, or the parameters the mesh or the optimizer.

    Args:
        scenario: what is going to run.
        units: the task's parameters (see :class:`simdist.workloads.workload.Task`).
    """
    scenario.network.network(scenario.workers)
    scenario.compute.check(scenario.workers, [unit.name for unit in units])
    mesh = scenario.mesh.shape
    for param in (param for unit in units for param in unit.params):
        if param.role == "matrix":
            scenario.optimizer.check(param.shape, param.name, mesh)
