"""Windows of a text: training batches from keyed streams, and fixed ones of the held-out part."""

from __future__ import annotations

import torch
from torch import Tensor

from simdist.program.random import stream
from simdist.workloads.corpus import Corpus


class Windows:
    """Sequences of ``context + 1`` tokens of a corpus, in batches of ``batch``: int64 [batch, context + 1].

    Attributes:
        sha256: of the text.
    """

    def __init__(self, corpus: Corpus, context: int, batch: int, seed: int, device: torch.device) -> None:
        self.sha256 = corpus.sha256
        self._training = corpus.training.to(device)
        self._held_out = corpus.validation.to(device)
        self._window = torch.arange(context + 1, device=device)
        self._batch, self._seed, self._device = batch, seed, device

    def batch(self, worker: int, step: int) -> Tensor:
        """Return a worker's batch of a step: windows drawn with replacement."""
        last = len(self._training) - len(self._window)
        draws = stream(self._seed, "batch", worker, step)
        starts = torch.randint(0, last + 1, (self._batch, 1), generator=draws).to(self._device)
        return self._training[starts + self._window].long()

    def validation(self, batches: int) -> list[tuple[Tensor]]:
        """Return evenly spaced windows of the held-out part; the first few batches alone also span the whole of it."""
        last = len(self._held_out) - len(self._window)
        starts = torch.linspace(0, last, batches * self._batch, dtype=torch.float64).long().to(self._device)
        return [(self._held_out[starts[i::batches, None] + self._window].long(),) for i in range(batches)]
