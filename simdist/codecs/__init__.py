"""Codecs by name: pure functions from tensors to payloads and back. A new one: a file here, and its import below."""

from simdist.codecs import casts as casts
from simdist.codecs import float8 as float8
from simdist.codecs import integers as integers
from simdist.codecs import natural as natural
from simdist.codecs import shifted_lattice as shifted_lattice
from simdist.codecs import sign as sign
from simdist.codecs import sparse as sparse
from simdist.codecs import sparseloco as sparseloco
from simdist.codecs.codec import Cast, Codec, Noise, Payload, codec_named, codecs, payload_bytes, silent
from simdist.codecs.packed import Packed, from_bytes, to_bytes

__all__ = [
    "Cast",
    "Codec",
    "Noise",
    "Packed",
    "Payload",
    "codec_named",
    "codecs",
    "from_bytes",
    "payload_bytes",
    "silent",
    "to_bytes",
]
