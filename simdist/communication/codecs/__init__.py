"""Codecs by name. A new one: a file here, and its import below."""

from simdist.communication.codecs import casts as casts
from simdist.communication.codecs.codec import Codec, codecs, payload_bytes

__all__ = ["Codec", "codecs", "payload_bytes"]
