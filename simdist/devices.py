"""Compute settings: how fast simulated workers compute.

Presets hold what the maker's data sheet says: the dense (not sparse) bf16 peak of the matrix units, and the memory's
peak rate. ``compute.mfu`` and ``compute.mbu`` say which shares of them a training step reaches.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Annotated

from pydantic import BeforeValidator, Field, SerializeAsAny, field_validator, model_validator

from simdist.choosing import Kind
from simdist.errors import suggest
from simdist.profiles import read_profile
from simdist.registry import Registry
from simdist.settings import AbsolutePath, Fraction, NaturalInt, PositiveFloat, Settings, Share
from simdist.stragglers import Stragglers, stragglers
from simdist.units import Bytes

STRAGGLERS = Kind(stragglers, Stragglers, "simdist.stragglers")


@dataclass(frozen=True)
class Device:
    """A preset: peaks in FLOP/s and in bytes per second of its memory, that memory's size, and the numbers' source.

    ``memory_bytes`` is what the data sheet says in decimal gigabytes. The boards have some percent more (80 GB are
    80 GiB), about what driver and libraries take. None: as much as the machine has.
    """

    peak_flops: float
    memory_bytes_per_second: float
    memory_bytes: float | None
    source: str

    @property
    def summary(self) -> str:
        size = "" if self.memory_bytes is None else f", {self.memory_bytes / 1e9:g} GB"
        return f"{self.peak_flops / 1e12:g} TFLOP/s, {self.memory_bytes_per_second / 1e12:g} TB/s{size}: {self.source}"


CUSTOM = "custom"

devices: Registry[Device] = Registry("device")
for _name, _device in {
    "b200": Device(2250e12, 8e12, 180e9, "NVIDIA HGX B200 data sheet, bf16 dense (4,500 with sparsity), HBM3e"),
    "h200": Device(989e12, 4.8e12, 141e9, "NVIDIA H200 SXM data sheet, bf16 dense (1,979 with sparsity), HBM3e"),
    "h100": Device(989e12, 3.35e12, 80e9, "NVIDIA H100 SXM data sheet, bf16 dense (1,979 with sparsity), HBM3"),
    "a100": Device(312e12, 2.039e12, 80e9, "NVIDIA A100 80GB SXM data sheet, bf16 dense (624 with sparsity), HBM2e"),
    "mi300x": Device(
        1307.4e12, 5.3e12, 192e9, "AMD Instinct MI300X data sheet, bf16 dense (2,614.9 with sparsity), HBM3"
    ),
    "l40s": Device(362.05e12, 864e9, 48e9, "NVIDIA L40S data sheet, bf16 dense (733 with sparsity), GDDR6"),
    "a40": Device(149.7e12, 696e9, 48e9, "NVIDIA A40 data sheet, bf16 dense (299.4 with sparsity), GDDR6"),
    "rtx4090": Device(
        165.2e12, 1.008e12, 24e9, "NVIDIA Ada GPU architecture white paper, bf16 dense with fp32 accumulate, GDDR6X"
    ),
    "v100": Device(125e12, 900e9, 32e9, "NVIDIA V100 SXM2 data sheet, fp16 tensor cores (this chip has no bf16), HBM2"),
    "cpu-core": Device(
        96e9,
        12.8e9,
        None,
        "one AVX2 core, fp32: 3 GHz x 2 FMA units x 8 lanes x 2 operations; half a channel of DDR4-3200",
    ),
}.items():
    devices.register(_name)(_device)


class ComputeSettings(Settings):
    """How fast simulated workers compute; wall time is never read.

    An operation takes as long as its arithmetic or its memory traffic, whichever is longer (roofline); measured seconds
    stand in for that where there are some. The defaults of both utilisations are assumptions, not measurements.

    Attributes:
        device: a preset of ``simdist list devices``, or ``custom``.
        mfu: model FLOPs utilisation, the share of the peak that a training step reaches.
        peak_flops: peak FLOP/s of one worker, with ``device: custom`` and only then.
        mbu: memory bandwidth utilisation, the share of the memory's peak rate that is reached.
        peak_memory: bytes per second of one worker's memory, with ``device: custom`` and only then; without it memory
            is never the bottleneck.
        memory: bytes of one worker's memory, with ``device: custom`` and only then (``simdist plan`` says what fits).
        speeds: relative speed by worker index, for workers that differ from 1.0 (0.5 takes twice as long).
        profile: file of measured seconds (see :mod:`simdist.profiles`), of a worker of speed one.
        stragglers: how speeds vary from step to step (see :mod:`simdist.stragglers`): ``lognormal``, ``occasional``,
            ``trace``; null: not at all.
    """

    device: str = "h100"
    mfu: Fraction = 0.4
    peak_flops: PositiveFloat | None = None
    mbu: Share = 0.8
    peak_memory: PositiveFloat | None = None
    memory: Bytes | None = None
    speeds: dict[NaturalInt, PositiveFloat] = Field(default_factory=dict)
    profile: AbsolutePath | None = None
    stragglers: Annotated[
        SerializeAsAny[Stragglers] | None,
        BeforeValidator(lambda value: None if value is None else STRAGGLERS.choose(value)),
    ] = None

    @field_validator("device")
    @classmethod
    def _known_device(cls, value: str) -> str:
        known = [*devices.names(), CUSTOM]
        if value not in known:
            raise ValueError(
                f"got unknown device {value!r}; expected one of {', '.join(known)}.{suggest(value.lower(), known)}"
            )
        return value

    @field_validator("mfu")
    @classmethod
    def _above_zero(cls, value: float) -> float:
        if value == 0:
            raise ValueError(f"got {value!r}; expected a number above 0, at most 1")
        return value

    @model_validator(mode="after")
    def _peak_with_custom(self) -> ComputeSettings:
        if self.device == CUSTOM and self.peak_flops is None:
            raise ValueError("got device 'custom' without peak_flops; expected peak_flops in FLOP/s, such as 50e12")
        for key in ("peak_flops", "peak_memory", "memory"):
            value = getattr(self, key)
            if self.device != CUSTOM and value is not None:
                known = "memory" if key == "memory" else "peak"
                raise ValueError(
                    f"got {key} {value:g} with device {self.device!r}, whose {known} is known; "
                    f"expected device 'custom' with {key}"
                )
        return self

    def check(self, workers: int, units: Collection[str]) -> None:
        """Read the files that are named here.

        Args:
            workers: how many there are.
            units: names of the model's FSDP units.

        Raises:
            InputError: when a file cannot be read, or does not fit the workers or units.
        """
        if self.profile is not None:
            read_profile(self.profile).check_units(units)
        if self.stragglers is not None:
            self.stragglers.slowness(workers)

    @property
    def flops_per_second(self) -> float:
        """Speed of a worker of relative speed one in FLOP/s: peak x mfu."""
        peak = self.peak_flops if self.peak_flops is not None else devices.get(self.device).peak_flops
        return peak * self.mfu

    @property
    def memory_bytes_per_second(self) -> float | None:
        """Rate at which such a worker reads or writes its memory, peak x mbu; None: never the bottleneck."""
        peak = self.peak_memory if self.device == CUSTOM else devices.get(self.device).memory_bytes_per_second
        return None if peak is None else peak * self.mbu

    @property
    def memory_bytes(self) -> float | None:
        """Size of one worker's memory; None: not known."""
        return self.memory if self.device == CUSTOM else devices.get(self.device).memory_bytes
