"""A codec as a setting: its name, checked and kept as text."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator

from simdist.codecs.codec import codec_named
from simdist.registry import absolute


def _known_codec(name: str) -> str:
    codec_named(name)
    return absolute(name)


#: ``topk(fraction=0.1)`` or the path to a class of one's own (see :func:`simdist.codecs.codec_named`)
CodecName = Annotated[str, AfterValidator(_known_codec)]
