"""Rates in bits per second, sizes in bytes, times in seconds: strict parsing and readable printing.

Plain numbers mean bit/s, bytes and seconds. A text must carry a unit of the right kind. A rate written in
bytes (``100MB/s``) is refused with the value in bits that was probably meant, since a silent factor of eight is
the classic mistake of this field.
"""

from __future__ import annotations

import math
import re
from typing import Annotated, Any

from pydantic import BeforeValidator, PlainSerializer

_DECIMAL = {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
_BINARY = {"Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40}
_TIMES = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9, "min": 60.0, "h": 3600.0}
_NUMBER = r"\s*([0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?)\s*"
_RATE = re.compile(_NUMBER + r"([kKMGT]?)(?:bit/s|bps|b/s)\s*$")
_BYTE_RATE = re.compile(_NUMBER + r"((?:[KMGT]i|[kKMGT])?)(?:B/s|Byte/s|byte/s|Bps)\s*$")
_SIZE = re.compile(_NUMBER + r"((?:[KMGT]i|[kKMGT])?)(?:B|bytes?)\s*$")
_TIME = re.compile(_NUMBER + r"(s|ms|us|µs|ns|min|h)\s*$")


def _number(value: Any, kind: str, example: str) -> float | None:
    """Return a plain number as a float, or None for a text that still has to be parsed."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError(f"got {value!r}; expected a {kind} such as {example}")
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return None
    if not math.isfinite(value):
        raise ValueError(f"got {value!r}; expected a finite {kind} such as {example}")
    return float(value)


def parse_rate(value: Any) -> float:
    """Parse a bandwidth into bits per second; plain numbers are bit/s.

    Raises:
        ValueError: for a unit that is not a bit rate; a byte rate is answered with its value in bits.

    >>> parse_rate("100Mbit/s"), parse_rate("2.5Gbps"), parse_rate(1e6)
    (100000000.0, 2500000000.0, 1000000.0)
    """
    example = '"100Mbit/s" or "10Gbit/s" (a plain number means bit/s)'
    plain = _number(value, "rate", example)
    if plain is not None:
        return plain
    if match := _RATE.match(value):
        return float(match[1]) * _DECIMAL[match[2]]
    if match := _BYTE_RATE.match(value):
        scale = {**_DECIMAL, **_BINARY}[match[2]]
        bits = format_rate(float(match[1]) * scale * 8)
        raise ValueError(
            f"got {value!r}, which counts bytes; rates here are in bits: write {bits!r} if you meant bytes, "
            f"{value.strip().replace('Byte', 'B').replace('byte', 'B').replace('B', 'bit', 1)!r} if you meant bits"
        )
    raise ValueError(f"got {value!r}; expected a rate in bits per second such as {example}")


def parse_size(value: Any) -> int:
    """Parse a size into bytes; plain numbers are bytes.

    >>> parse_size("4MiB"), parse_size("10kB"), parse_size(12)
    (4194304, 10000, 12)
    """
    example = '"4MiB" or "64kB" (a plain number means bytes)'
    plain = _number(value, "size", example)
    if plain is None:
        match = _SIZE.match(value)
        if match is None:
            raise ValueError(f"got {value!r}; expected a size in bytes such as {example}")
        plain = float(match[1]) * {**_DECIMAL, **_BINARY}[match[2]]
    if plain != int(plain):
        raise ValueError(f"got {value!r}; expected a whole number of bytes")
    return int(plain)


def parse_time(value: Any) -> float:
    """Parse a time into seconds; plain numbers are seconds.

    >>> parse_time("5ms"), parse_time(0.25)
    (0.005, 0.25)
    """
    example = '"5ms" or "1.5s" (a plain number means seconds)'
    plain = _number(value, "time", example)
    if plain is not None:
        return plain
    match = _TIME.match(value)
    if match is None:
        raise ValueError(f"got {value!r}; expected a time such as {example}")
    return float(match[1]) * _TIMES[match[2]]


def _scaled(value: float, steps: list[tuple[float, str]], unit: str) -> str:
    for scale, prefix in steps:
        if abs(value) >= scale:
            return f"{value / scale:.6g}{prefix}{unit}"
    return f"{value:.6g}{unit}"


def format_rate(bits_per_second: float) -> str:
    """Write a rate with a decimal prefix.

    >>> format_rate(1e8)
    '100Mbit/s'
    """
    return _scaled(bits_per_second, [(1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")], "bit/s")


def format_size(size: float) -> str:
    """Write a size in bytes with a decimal prefix.

    >>> format_size(1_500_000)
    '1.5MB'
    """
    return _scaled(float(size), [(1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")], "B")


def format_time(seconds: float) -> str:
    """Write a time with a fitting unit.

    >>> format_time(0.0042), format_time(75)
    ('4.2ms', '75s')
    """
    if seconds == 0:
        return "0s"
    for scale, unit in [(1.0, "s"), (1e-3, "ms"), (1e-6, "us")]:
        if abs(seconds) >= scale:
            return f"{seconds / scale:.4g}{unit}"
    return f"{seconds / 1e-9:.4g}ns"


def _positive(value: float) -> float:
    if not value > 0:
        raise ValueError(f"got {value!r}; expected a number above zero")
    return value


def _not_negative(value: float) -> float:
    if not value >= 0:
        raise ValueError(f"got {value!r}; expected zero or more")
    return value


# Annotated field types for settings: they parse on input and stay plain numbers in the resolved scenario.
Rate = Annotated[float, BeforeValidator(lambda v: _positive(parse_rate(v)))]
Seconds = Annotated[float, BeforeValidator(lambda v: _not_negative(parse_time(v)))]
Bytes = Annotated[int, BeforeValidator(lambda v: int(_positive(parse_size(v)))), PlainSerializer(int)]
