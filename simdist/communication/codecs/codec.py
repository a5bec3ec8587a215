"""Codecs: what is really put on the wire for a tensor, and what the receiver makes of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from simdist.errors import InputError
from simdist.registry import Registry


class Codec(ABC):
    """Encodes a tensor into the tensors that travel, and back.

    A tensor may carry leading worker axes (stacked engine); a codec must treat every worker's part by itself.

    Attributes:
        name: what the ledger's ``codec`` column shows.
        linear: whether encoded payloads may be summed hop by hop; others force gather-then-sum plans.
    """

    name: ClassVar[str]
    linear: ClassVar[bool] = True

    @abstractmethod
    def encode(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return the tensors that travel for ``x``; their bytes are the payload."""

    @abstractmethod
    def decode(self, payload: tuple[Tensor, ...], dtype: torch.dtype) -> Tensor:
        """Return what the receiver gets, in the run's dtype and the shape of the encoded tensor."""

    def lossless(self, dtype: torch.dtype) -> bool:
        """Return True when values of ``dtype`` arrive unchanged (payloads may then be summed before encoding)."""
        return False

    def round_trip(self, x: Tensor) -> Tensor:
        """Return what becomes of ``x`` on its way: the values really lose the wire's precision."""
        return self.decode(self.encode(x), x.dtype)


def payload_bytes(payload: tuple[Tensor, ...], copies: int = 1) -> int:
    """Count the bytes of an encoded payload; ``copies`` is the number of workers stacked in it."""
    total = sum(part.numel() * part.element_size() for part in payload)
    assert total % copies == 0, "stacked workers have equal payloads"
    return total // copies


class Cast(Codec):
    """Base of the codecs that change the number format only."""

    dtype: ClassVar[torch.dtype]

    def lossless(self, dtype: torch.dtype) -> bool:
        return torch.promote_types(self.dtype, dtype) == self.dtype

    def encode(self, x: Tensor) -> tuple[Tensor, ...]:
        return (x.to(self.dtype),)

    def decode(self, payload: tuple[Tensor, ...], dtype: torch.dtype) -> Tensor:
        return payload[0].to(dtype)


codecs: Registry[Codec] = Registry("codec")


def codec_named(name: str) -> Codec:
    """Return a codec by name or import path (``file.py:my_codec``, an instance).

    Raises:
        InputError: for an unknown name, or a path to something that is no codec.
    """
    found = codecs.get(name)
    if not isinstance(found, Codec):
        raise InputError(
            f"got codec {name!r}, which is {found!r}; expected an instance of a subclass of "
            f"simdist.communication.codecs.Codec, such as `my_codec = MyCodec()` in that file"
        )
    return found
