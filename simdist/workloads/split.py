"""Examples in memory: a fixed training and validation split, and batches drawn from keyed streams."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from simdist.errors import InputError
from simdist.program.random import stream


class Examples:
    """Tensors whose dimension 0 counts examples, split once and for all.

    Which examples are held out does not depend on the seed of the run, so that validation losses of runs with
    different seeds compare. Floating-point tensors are cast to the task's dtype.

    Attributes:
        sha256: of all examples, before the cast.
    """

    def __init__(
        self,
        tensors: tuple[Tensor, ...],
        validation_fraction: float,
        validation_batches: int,
        batch: int,
        seed: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        count = len(tensors[0])
        held_out = int(count * validation_fraction)
        if held_out < batch:
            raise InputError(
                f"got {count} examples, {held_out} of them held out for validation, with batch {batch}; expected at "
                f"least one batch in the validation part: use a smaller batch, or {batch / validation_fraction:.0f} "
                "examples or more"
            )
        self.sha256 = hash_tensors(tensors)
        order = torch.randperm(count, generator=stream(0, "split"))
        ready = tuple(_cast(tensor[order], dtype).to(device) for tensor in tensors)
        self._training = tuple(tensor[held_out:] for tensor in ready)
        self._seed, self._batch, self._device = seed, batch, device
        #: as many batches of equal size as the validation part holds, up to ``validation_batches``
        self.validation = [
            tuple(tensor[i * batch : (i + 1) * batch] for tensor in ready)
            for i in range(min(validation_batches, held_out // batch))
        ]

    def batch(self, worker: int, step: int) -> tuple[Tensor, ...]:
        """Return examples drawn with replacement."""
        draws = stream(self._seed, "batch", worker, step)
        index = torch.randint(0, len(self._training[0]), (self._batch,), generator=draws).to(self._device)
        return tuple(tensor[index] for tensor in self._training)


def hash_tensors(tensors: tuple[Tensor, ...]) -> str:
    """Return the sha256 of the tensors' dtypes, shapes and bytes."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() else tensor
