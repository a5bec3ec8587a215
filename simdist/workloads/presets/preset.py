"""What a preset is."""

from __future__ import annotations

from dataclasses import dataclass

from simdist.registry import Registry
from simdist.workloads.decoder import Decoder


@dataclass(frozen=True)
class Preset:
    """A published model.

    Attributes:
        model: its settings.
        parameters: how many it has.
        source: of the sizes; says what is assumed.
    """

    model: Decoder
    parameters: int
    source: str

    @property
    def summary(self) -> str:
        """One line for ``simdist list``."""
        return f"{self.parameters:,} parameters: {self.source}"


presets: Registry[Preset] = Registry("model")
