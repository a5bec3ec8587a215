"""What a link is, beyond bandwidth and latency: headers, duplex, time per message, and what varies with time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import model_validator

from simdist.network.trace import Trace
from simdist.network.variation import Jitter, Outage, Outages, Together, Variation
from simdist.settings import NaturalInt, PositiveInt, Settings
from simdist.units import Rate, Seconds

if TYPE_CHECKING:
    from simdist.network.sharing import Floats


class LinkSettings(Settings):
    """Properties that all links of a network share (keys of ``network.*``).

    Attributes:
        duplex: ``full``: each direction of a link has its bandwidth; ``half``: both directions share it.
        mtu: largest IP packet in bytes (Ethernet: 1500); None: ``bandwidth`` is what payloads get.
        header_bytes: share of a packet that is no payload: IPv4 20, TCP 20, TCP timestamps 12 (RFC 791, 9293, 7323).
        frame_bytes: what a link carries around each packet; Ethernet (IEEE 802.3): preamble 8, header 14, check
            sequence 4, gap 12. Linux ``tc`` counts 14.
        message_overhead: software time in seconds for each message between two hosts, added to its latency (o of
            LogGP, Alexandrov et al. 1995, both ends together).
        host_bandwidth: bit/s that all transfers between workers of one host share (memory, NVLink), one such resource
            per host; None: not limited.
        host_latency: seconds of latency of such a transfer.
        jitter: random variation of the bandwidth.
        trace: recorded variation of the bandwidth.
        outages: times at which links are down.
    """

    duplex: Literal["full", "half"] = "full"
    mtu: PositiveInt | None = None
    header_bytes: NaturalInt = 52
    frame_bytes: NaturalInt = 38
    message_overhead: Seconds = 0.0
    host_bandwidth: Rate | None = None
    host_latency: Seconds = 0.0
    jitter: Jitter | None = None
    trace: Trace | None = None
    outages: tuple[Outage, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> LinkSettings:
        if self.mtu is not None and self.mtu <= self.header_bytes:
            raise ValueError(
                f"got mtu {self.mtu} with header_bytes {self.header_bytes}, which leaves no room for payload; "
                "expected a larger mtu, such as 1500"
            )
        if self.jitter is not None and self.trace is not None:
            raise ValueError(
                "got both jitter and trace; expected one of them: a recorded bandwidth has its own variation, "
                "which random jitter would add to a second time"
            )
        return self

    @property
    def efficiency(self) -> float:
        """Share of a link's bandwidth that payloads get: full packets, derived from sizes and never fitted.

        >>> LinkSettings(mtu=1500).efficiency == 1448 / 1538
        True
        """
        if self.mtu is None:
            return 1.0
        return (self.mtu - self.header_bytes) / (self.mtu + self.frame_bytes)

    def variation(self, names: Sequence[str], bandwidths: Floats) -> Variation | None:
        """Return how the named links, with these bandwidths (bit/s), vary with time; None if they do not.

        Raises:
            InputError: for a trace file that is wrong, or a link that is not there.
        """
        parts: list[Variation] = []
        if self.trace is not None:
            parts.append(self.trace.on(names, bandwidths))
        if self.jitter is not None:
            parts.append(self.jitter.on(len(names)))
        if self.outages:
            parts.append(Outages(self.outages, names))
        return Together(parts) if parts else None
