"""A codec as a setting: its name, checked and kept as text."""

from __future__ import annotations

from functools import lru_cache
from typing import Annotated

from pydantic import AfterValidator

from simdist.codecs.codec import codec_named
from simdist.registry import absolute

#: :func:`simdist.codecs.codec_named`, asked for every tensor of every worker in every step
known_codec = lru_cache(maxsize=None)(codec_named)


def _absolute(name: str) -> str:
    codec_named(name)
    return absolute(name)


#: ``topk(fraction=0.1)``, or ``path/to/file.py:MyCodec``; an unknown one is refused
CodecName = Annotated[str, AfterValidator(_absolute)]
