"""Codecs: what is really put on the wire for a tensor, and what the receiver makes of it.

A codec is a value: its fields are its settings, and a scenario names it as ``int8`` or ``int8(bucket=256)``. Codecs are
pure tensor functions, so that algorithms with memory (error feedback) may use them as well as the wire does.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal, TypeAlias

import torch
from pydantic import ValidationError
from torch import Tensor

from simdist.errors import InputError
from simdist.registry import Registry, called
from simdist.settings import Settings, first_problem

Payload: TypeAlias = "tuple[Tensor, ...]"

#: ``noise(shape)`` draws float32 numbers uniform in [0, 1) from the transfer's keyed stream. Sender and receiver are
#: given the same stream from its start, so what both draw in the same order need not travel.
Noise: TypeAlias = Callable[[Sequence[int]], Tensor]


class Codec(Settings, ABC):
    """Encodes messages into the tensors that travel, and back.

    A message is the last dimension of ``x``; all dimensions before it count messages (of workers, of destinations),
    and each is treated by itself.

    Attributes:
        name: what scenarios and the ledger's ``codec`` column call it.
        reduction: how sums of encoded messages are formed. ``sum``: payloads may be summed hop by hop, as any plan
            does. ``two_shot``: slices go to their owners (all-to-all), who decode, sum in the run's dtype, encode the
            sum anew and give it to all (all-gather). ``gather``: everybody receives all payloads and sums them.
        pointwise: whether every number is encoded by itself, to a payload of one tensor of the same shape; then
            messages of any shape are passed as they are.
        random: whether encoding draws ``noise``: each member its ``own``, or all the same (``shared``).
    """

    name: ClassVar[str]
    reduction: ClassVar[Literal["sum", "two_shot", "gather"]] = "two_shot"
    pointwise: ClassVar[bool] = False
    random: ClassVar[Literal["no", "own", "shared"]] = "no"

    @abstractmethod
    def encode(self, x: Tensor, noise: Noise) -> Payload:
        """Return the tensors that travel for messages ``x`` ``[..., length]``; their bytes are the payload.

        Each has the leading dimensions of ``x``, so that one message's part can be cut out.
        """

    @abstractmethod
    def decode(self, payload: Payload, length: int, dtype: torch.dtype, noise: Noise) -> Tensor:
        """Return what the receiver gets, ``[..., length]`` in the run's ``dtype``."""

    def lossless(self, dtype: torch.dtype) -> bool:
        """Return True when values of ``dtype`` arrive unchanged (payloads may then be summed before encoding)."""
        return False

    def sum_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """Return the number format in which decoded messages are summed, in a run of ``dtype``."""
        return dtype

    def returned(self, total: Tensor, noise: Callable[[], Noise] | None = None) -> Tensor:
        """Return what everybody gets of a sum of decoded messages ``[..., length]``, for ``reduction = "sum"``.

        As a rule, the sum encoded like any message. Otherwise where encoding a second time would change more than the
        number format: what travels back is the sum of the payloads.
        """
        return self.round_trip(total, noise)

    @property
    def label(self) -> str:
        """The name, with the settings that are not the defaults; :func:`codec_named` understands it.

        >>> codec_named("bf16(accumulate=wire)").label
        'bf16(accumulate=wire)'
        """
        given = [f"{key}={value}" for key, value in self.model_dump(exclude_defaults=True).items()]
        return f"{self.name}({', '.join(given)})" if given else self.name

    def round_trip(self, x: Tensor, noise: Callable[[], Noise] | None = None) -> Tensor:
        """Return what becomes of messages ``x`` on their way; ``noise()`` begins the stream anew."""
        begin = noise or (lambda: silent)
        return self.decode(self.encode(x, begin()), x.shape[-1] if x.ndim else 1, x.dtype, begin())


def silent(shape: Sequence[int]) -> Tensor:
    """Stand in as the noise of codecs that draw none."""
    raise AssertionError(f"a codec that says random = 'no' draws noise of shape {tuple(shape)}")


def payload_bytes(payload: Payload, copies: int = 1) -> int:
    """Count the bytes of an encoded payload; ``copies`` is the number of workers stacked in it."""
    total = sum(part.numel() * part.element_size() for part in payload)
    assert total % copies == 0, "stacked workers have equal payloads"
    return total // copies


class Cast(Codec):
    """Base of the codecs that change the number format only (card 15).

    Attributes:
        accumulate: where sums are taken: in the ``run``'s dtype (what an all-to-all with local sums gives), or in the
            ``wire``'s, rounding after every addition, as native low-precision reductions do. Additions follow the
            pairwise tree over the members; a ring's order would round differently.
    """

    accumulate: Literal["run", "wire"] = "run"

    dtype: ClassVar[torch.dtype]
    reduction: ClassVar[Literal["sum", "two_shot", "gather"]] = "sum"
    pointwise: ClassVar[bool] = True

    def lossless(self, dtype: torch.dtype) -> bool:
        return torch.promote_types(self.dtype, dtype) == self.dtype

    def sum_dtype(self, dtype: torch.dtype) -> torch.dtype:
        return dtype if self.accumulate == "run" or self.lossless(dtype) else self.dtype

    def encode(self, x: Tensor, noise: Noise) -> Payload:
        return (x.to(self.dtype),)

    def decode(self, payload: Payload, length: int, dtype: torch.dtype, noise: Noise) -> Tensor:
        return payload[0].to(dtype)


codecs: Registry[type[Codec]] = Registry("codec")


def codec_named(text: str) -> Codec:
    """Return a codec by name or import path, with settings in parentheses if need be.

    ``fp32``, ``int8(bucket=256)``, ``path/to/file.py:MyCodec(levels=3)``; a path may also lead to an instance.

    Raises:
        InputError: for an unknown name or setting, or a path to something that is no codec.

    >>> codec_named("bf16") == codec_named("bf16(accumulate=run)")
    True
    """
    name, settings = called("codec", text)
    found: Any = codecs.get(name)
    if isinstance(found, Codec) and not settings:
        return _checked(found, text)
    if not (isinstance(found, type) and issubclass(found, Codec)):
        raise InputError(
            f"got codec {text!r}, which is {found!r}; expected a subclass of simdist.codecs.Codec, or an "
            f"instance of one (without settings in parentheses)"
        )
    try:
        return _checked(found(**settings), text)
    except ValidationError as error:
        raise InputError(f"got codec {text!r}: {first_problem(error, found)}") from None


def _checked(codec: Codec, text: str) -> Codec:
    if list(inspect.signature(codec.encode).parameters) != ["x", "noise"]:
        raise InputError(
            f"got codec {text!r}, whose encode has the parameters {list(inspect.signature(codec.encode).parameters)}; "
            f"expected encode(self, x, noise) and decode(self, payload, length, dtype, noise): write those (the "
            f"noise is for codecs that round at random), and `reduction` in place of `linear`"
        )
    return codec
