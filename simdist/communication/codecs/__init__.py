"""Codecs by name. A new one: a file here, and its import below."""

from simdist.communication.codecs import casts as casts
from simdist.communication.codecs.codec import Codec, codec_named, codecs, payload_bytes

__all__ = ["Codec", "codec_named", "codecs", "payload_bytes"]
