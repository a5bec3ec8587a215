"""What a plan says of memory: the bytes that one worker needs at once, by what they are.

Added up is what is there at the peak of the backward pass:

- what the worker program holds between steps, as its meta state says (:meth:`LockstepProgram.held`): this worker's
  rows of parameters, optimizer states and compression memories, in the run's number format;
- gradients of these rows, in the run's number format;
- on several shards, unsharded parameters: the units that stay gathered between the passes (FSDP2: the root), the
  largest of the others, and as many more as the overlap policy gathers ahead; and the unsharded gradient of the
  largest unit. In the working format;
- activations: what autograd saves for the backward pass (counted on meta tensors), in the working format; or with
  activation checkpointing per unit, the units' inputs and what is saved inside the unit that keeps most.

The *working format* is that in which parameters arrive (``wire.params``: 2 bytes a number for bf16), as with FSDP2's
mixed precision; where that is no format for numbers but a code, the run's own.

Not counted: workspace of the update (whole matrices that an owner gathers), buffers of collectives and kernels,
fragmentation, what the driver takes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from simdist.codecs import codec_named
from simdist.codecs.codec import payload_bytes, silent

if TYPE_CHECKING:
    from simdist.parallelism import Layout
    from simdist.scenario import Scenario
    from simdist.workloads.workload import Unit


@dataclass(frozen=True)
class Memory:
    """Bytes of one worker.

    Attributes:
        held: between steps, by what they are.
        gradients: of this worker's rows.
        unsharded: parameters and gradients of units that are gathered.
        activations: without activation checkpointing; None: the workload does not say.
        checkpointed: with it.
        device: what there is; None: not known.
    """

    held: Mapping[str, float]
    gradients: float
    unsharded: float
    activations: float | None
    checkpointed: float | None
    device: float | None

    def total(self, checkpointing: bool) -> float:
        """Return all of it; activations that are not known count as nothing."""
        activations = self.checkpointed if checkpointing else self.activations
        return sum(self.held.values()) + self.gradients + self.unsharded + (activations or 0.0)

    @property
    def verdict(self) -> str:
        """Whether it fits the device: ``fits``, ``fits with activation checkpointing``, ``does not fit``."""
        if self.device is None:
            return "size of the device's memory not known"
        known = self.activations is not None
        if self.total(checkpointing=False) <= self.device:
            return "fits" if known else "fits without activations, which are not known"
        if known and self.total(checkpointing=True) <= self.device:
            return "fits with activation checkpointing"
        return "does not fit"

    def to_dict(self) -> dict[str, float | str | None]:
        """Return every part, both sums and the verdict, for ``plan.json``."""
        return {
            **{f"{kind}_bytes": size for kind, size in self.held.items()},
            "gradients_bytes": self.gradients,
            "unsharded_bytes": self.unsharded,
            "activations_bytes": self.activations,
            "checkpointed_activations_bytes": self.checkpointed,
            "total_bytes": self.total(checkpointing=False),
            "total_with_checkpointing_bytes": self.total(checkpointing=True),
            "device_bytes": self.device,
            "verdict": self.verdict,
        }


def memory_of(scenario: Scenario, units: Sequence[Unit], layout: Layout, held: Mapping[str, float]) -> Memory:
    """Return the memory of one worker.

    Args:
        units: of the task, with their activations.
        layout: how they are sharded.
        held: bytes between steps.
    """
    rows = sum(piece.size for unit in layout.units for piece in unit.pieces)
    width = working_width(scenario)
    kept, dropped = _activations(units, width)
    return Memory(
        held=dict(held),
        gradients=float(rows * scenario.torch_dtype.itemsize),
        unsharded=_unsharded_numbers(scenario, layout) * width,
        activations=kept,
        checkpointed=dropped,
        device=scenario.compute.memory_bytes,
    )


def working_width(scenario: Scenario) -> int:
    """Return the bytes of a number as the passes work with it (see the head of this file)."""
    codec = codec_named(scenario.wire.params)
    if not codec.pointwise:
        return scenario.torch_dtype.itemsize
    return payload_bytes(codec.encode(torch.empty(1, dtype=scenario.torch_dtype, device="meta"), silent))


def _unsharded_numbers(scenario: Scenario, layout: Layout) -> float:
    shards = layout.mesh.shards
    if shards == 1:
        return 0.0
    sizes = {unit.name: sum(piece.size for piece in unit.pieces) * shards for unit in layout.units}
    stay = [unit.name for unit in layout.units if not unit.regather]
    others = sorted((size for name, size in sizes.items() if name not in stay), reverse=True)
    gathered = sum(sizes[name] for name in stay) + sum(others[: 1 + scenario.overlap.gathered_ahead])
    return float(gathered + max(sizes.values()))


def _activations(units: Sequence[Unit], width: int) -> tuple[float | None, float | None]:
    """Return bytes without and with activation checkpointing, None where a unit does not say."""
    inputs, interiors = 0.0, [0.0]
    for unit in units:
        found = unit.activations
        if found is None:
            return None, None
        inputs += found.inputs * width
        interiors.append(found.numbers * width + found.bytes_besides)
    return inputs + sum(interiors), inputs + max(interiors)
