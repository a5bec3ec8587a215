"""Compute devices: how many floating-point operations a worker does in a simulated second.

Presets hold the dense (not sparse) bf16 tensor-core peak of the maker's data sheet; ``compute.mfu`` says which share
of it a training step reaches.
"""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import Field, field_validator, model_validator

from simdist.errors import suggest
from simdist.registry import Registry
from simdist.settings import Fraction, NaturalInt, PositiveFloat, Settings


@dataclass(frozen=True)
class Device:
    """A preset: peak in FLOP/s, and where the number comes from."""

    peak_flops: float
    source: str

    @property
    def summary(self) -> str:
        peak = f"{self.peak_flops / 1e12:.4g} TFLOP/s" if self.peak_flops >= 1e12 else f"{self.peak_flops:.4g} FLOP/s"
        return f"{peak}: {self.source}"


CUSTOM = "custom"

devices: Registry[Device] = Registry("device")
for _name, _device in {
    "h100": Device(989e12, "NVIDIA H100 SXM data sheet, bf16 dense (1,979 with sparsity)"),
    "a100": Device(312e12, "NVIDIA A100 data sheet, bf16 dense (624 with sparsity)"),
    "a40": Device(149.7e12, "NVIDIA A40 data sheet, bf16 dense (299.4 with sparsity)"),
    "rtx4090": Device(165.2e12, "NVIDIA Ada GPU architecture white paper, bf16 with fp32 accumulate, dense"),
    "v100": Device(125e12, "NVIDIA V100 SXM2 data sheet, fp16 tensor cores (this chip has no bf16)"),
    "cpu-core": Device(96e9, "one AVX2 core, fp32: 3 GHz x 2 FMA units x 8 lanes x 2 operations"),
}.items():
    devices.register(_name)(_device)


class ComputeSettings(Settings):
    """How fast simulated workers compute; wall time is never read.

    Attributes:
        device: a preset of ``simdist list devices``, or ``custom``.
        mfu: model FLOPs utilisation, the share of the peak that a training step reaches.
        peak_flops: peak FLOP/s of one worker, with ``device: custom`` and only then.
        speeds: relative speed by worker index, for workers that differ from 1.0 (0.5 takes twice as long).
    """

    device: str = "h100"
    mfu: Fraction = 0.4
    peak_flops: PositiveFloat | None = None
    speeds: dict[NaturalInt, PositiveFloat] = Field(default_factory=dict)

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
        if self.device != CUSTOM and self.peak_flops is not None:
            raise ValueError(
                f"got peak_flops {self.peak_flops:g} with device {self.device!r}, whose peak is known; "
                f"expected device 'custom' with peak_flops"
            )
        return self

    def flops_per_second(self, worker: int) -> float:
        """Return worker ``worker``'s speed in FLOP/s: peak x mfu x relative speed."""
        peak = self.peak_flops if self.peak_flops is not None else devices.get(self.device).peak_flops
        return peak * self.mfu * self.speeds.get(worker, 1.0)
