"""Whether blocks in different processes are at the same place of the same program, told by a few bytes per message.

Lock-step blocks know what the others send, so that messages have no headers of their own. If their programs disagree,
they would wait for each other for ever, or take one tensor for another. So each message is led by its :class:`Topic`.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

from simdist.errors import ProgramError

_FORM = struct.Struct("<iiI")

#: bytes of a topic that travels
SIZE = _FORM.size

#: in place of a wave's number: the step is over
END = -1


@dataclass(frozen=True)
class Topic:
    """What a block is about to exchange.

    Attributes:
        step: the step under way.
        wave: number of the wave within the step, or END.
        asked: what the wave asks for, an item per request, the same for all workers.
    """

    step: int
    wave: int
    asked: Sequence[str] = ()

    def encoded(self) -> bytes:
        """Return the topic as SIZE bytes; of what is asked only a check sum."""
        return _FORM.pack(self.step, self.wave, zlib.crc32("\n".join(self.asked).encode()))

    def compare(self, theirs: bytes, workers: range, others: range) -> None:
        """Compare with what another block sent.

        Args:
            theirs: the other block's topic, encoded.
            workers: of this block.
            others: the other block's workers.

        Raises:
            ProgramError: when the two are not at the same place.
        """
        if theirs == self.encoded():
            return
        step, wave, _ = _FORM.unpack(theirs)
        if (step, wave) == (self.step, self.wave):
            elsewhere = "ask for something else there"
        elif wave == END:
            elsewhere = f"have ended step {step}"
        else:
            elsewhere = f"are at request {wave + 1} of step {step}"
        mine = f"have ended step {self.step}"
        if self.wave != END:
            mine = f"ask for [{'; '.join(self.asked)}] as request {self.wave + 1} of step {self.step}"
        raise ProgramError(
            f"workers of a lock-step program must ask for the same things: {_named(workers)} {mine}, while "
            f"{_named(others)} {elsewhere}. Expected one sequence of collectives for all workers; workers that differ "
            "need a schedule with lockstep = False"
        )


def _named(workers: range) -> str:
    return f"workers {workers[0]} to {workers[-1]}" if len(workers) > 1 else f"worker {workers[0]}"
