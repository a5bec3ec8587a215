"""All registered codecs, with variants of their settings, and what each states of itself. A new one joins by a line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil

Count = Callable[[int], int]
Share = Callable[[int], float]


@dataclass(frozen=True)
class Stated:
    """What a codec's docstring promises.

    Attributes:
        bytes: payload of a message of so many numbers.
        contraction: ``alpha`` for a message of so many numbers, ``E ||C(x) - x||^2 <= (1 - alpha) ||x||^2``; None where
            the codec promises none.
        unbiased: whether the mean over the noise is the message.
        keeps_infinity: whether infinities arrive as something that is not finite.
        keeps_zero: whether zeros among other numbers arrive as zeros.
        whole: whether everything arrives, up to the rounding of float32.
    """

    bytes: Count
    contraction: Share | None = None
    unbiased: bool = False
    keeps_infinity: bool = True
    keeps_zero: bool = True
    whole: bool = False


def width(each: float) -> Count:
    return lambda n: int(each * n)


def integers(bits: int, bucket: int = 1024, scale: int = 4) -> Count:
    return lambda n: ceil(n * bits / 8) + ceil(n / bucket) * scale


def kept(n: int, chunk: int, k: int) -> tuple[int, int]:
    """Return how many numbers of a message are kept, and the bits of a position in a chunk."""
    size = min(chunk, n)
    each = k if size == chunk else ceil(k * size / chunk)
    return n // size * each + ceil(each * (n % size) / size), (size - 1).bit_length()


def chunked(chunk: int, k: int, value: int) -> Count:
    def count(n: int) -> int:
        total, bits = kept(n, chunk, k)
        return total * value + ceil(total * bits / 8)

    return count


def sparseloco(chunk: int, k: int) -> Count:
    def count(n: int) -> int:
        total, _ = kept(n, chunk, k)
        return ceil(12 * total / 8) + ceil(2 * total / 8) + 24

    return count


def relative(error: float) -> Share:
    """Every number has at most this error relative to itself."""
    return lambda n: 1 - error**2


def largest_of(bucket: int) -> Share:
    """Nearest rounding never errs by more than the number, and a bucket's largest is (nearly) where it was."""
    return lambda n: 0.999 / min(bucket, n)


def per_cent(n: int) -> int:
    return -(-n // 100)


CATALOGUE: dict[str, Stated] = {
    "fp32": Stated(width(4), relative(2**-24), whole=True),
    "bf16": Stated(width(2), relative(2**-8)),
    "bf16(accumulate=wire)": Stated(width(2), relative(2**-8)),
    "fp16": Stated(width(2), relative(2**-10), keeps_infinity=False),
    "fp64": Stated(width(8), relative(0.0), whole=True),
    "int8": Stated(integers(8), unbiased=True),
    "int8(bucket=8, scale_format=bf16)": Stated(integers(8, 8, 2), unbiased=True),
    "int8(bucket=16, rounding=nearest)": Stated(integers(8, 16), largest_of(16)),
    "int8(scale=norm)": Stated(integers(8), unbiased=True),
    "int4": Stated(integers(4), unbiased=True),
    "int4(bucket=5, rounding=nearest)": Stated(integers(4, 5), largest_of(5)),
    "int16": Stated(integers(16), unbiased=True),
    "int16(rounding=nearest)": Stated(integers(16), largest_of(1024)),
    "fp8_e4m3": Stated(lambda n: n + 4, largest_of(1 << 20)),
    "fp8_e4m3(block=16)": Stated(lambda n: n + 4 * ceil(n / 16), largest_of(16)),
    "fp8_e4m3(rounding=stochastic)": Stated(lambda n: n + 4, unbiased=True),
    "fp8_e5m2": Stated(lambda n: n + 4, largest_of(1 << 20)),
    "fp8_e5m2(block=3, rounding=stochastic)": Stated(lambda n: n + 4 * ceil(n / 3), unbiased=True),
    "qsdp": Stated(integers(8), unbiased=True, keeps_zero=False),
    "qsdp(bits=5, bucket=16, scale_format=bf16)": Stated(integers(5, 16, 2), unbiased=True, keeps_zero=False),
    "qsdp(bits=16)": Stated(integers(16), unbiased=True, keeps_zero=False),
    "sign": Stated(lambda n: ceil(n / 8) + 4, lambda n: 1 / n, keeps_zero=False),
    "natural": Stated(lambda n: n + 2, unbiased=True),
    "natural(rounding=nearest)": Stated(lambda n: n + 2, relative(1 / 3)),
    "topk": Stated(lambda n: 8 * per_cent(n), lambda n: per_cent(n) / n),
    "topk(k=5, index=int64, values=fp16)": Stated(lambda n: 10 * min(5, n), lambda n: 0.999 * min(5, n) / n),
    "topk(k=3, chunk=20, index=packed, values=bf16)": Stated(chunked(20, 3, 2), lambda n: 0.999 * 3 / 20),
    "topk(fraction=1, values=fp64)": Stated(lambda n: 12 * n, relative(0.0), whole=True),
    "topk(k=1, chunk=1, index=packed)": Stated(width(4), relative(2**-24), whole=True),
    "randk": Stated(lambda n: 4 * per_cent(n), lambda n: per_cent(n) / n),
    "randk(k=3, rescale=True)": Stated(lambda n: 4 * min(3, n), unbiased=True),
    "randk(fraction=1, values=fp64)": Stated(width(8), relative(0.0), whole=True),
    "sparseloco": Stated(sparseloco(4096, 64), lambda n: 0.0),
    "sparseloco(k=7, chunk=30)": Stated(sparseloco(30, 7), lambda n: 0.0),
}
