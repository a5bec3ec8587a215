"""Laws of every cast. A new one joins by being registered, and by a line in PRECISION that states its error."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from simdist.codecs import Cast, Codec, codec_named, codecs, payload_bytes, silent

#: bytes a number, and the greatest relative error of a normal number, as each codec states them
PRECISION = {"fp64": (8, 0.0), "fp32": (4, 2.0**-24), "bf16": (2, 2.0**-8), "fp16": (2, 2.0**-11)}
DTYPES = [torch.float32, torch.float64]


def normals(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Numbers that are normal in every format: 1e-3 < |x| < 1e3."""
    generator = torch.Generator().manual_seed(0)
    sizes = 10.0 ** (6 * torch.rand(shape, generator=generator, dtype=torch.float64) - 3)
    signs = torch.randint(0, 2, shape, generator=generator) * 2 - 1
    return (signs * sizes).to(dtype)


@pytest.fixture(params=PRECISION)
def codec(request: pytest.FixtureRequest) -> Codec:
    return codec_named(request.param)


def test_every_cast_is_under_law() -> None:
    assert {name for name, thing in codecs.items() if issubclass(thing, Cast)} == set(PRECISION)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_error_of_a_round_trip_is_within_the_stated_precision(codec: Codec, dtype: torch.dtype) -> None:
    x = normals(50, 40, dtype=dtype)
    got = codec.round_trip(x)
    assert got.dtype == dtype
    assert got.shape == x.shape
    error = ((got - x).double() / x.double()).abs().max().item()
    assert error <= PRECISION[codec.name][1]


@pytest.mark.parametrize("dtype", DTYPES)
def test_lossless_is_said_exactly_where_nothing_is_lost(codec: Codec, dtype: torch.dtype) -> None:
    x = normals(200, dtype=dtype) * (1 + torch.rand(200, dtype=dtype, generator=torch.Generator().manual_seed(1)))
    assert codec.lossless(dtype) == torch.equal(codec.round_trip(x), x)


def test_a_second_trip_loses_nothing_more(codec: Codec) -> None:
    once = codec.round_trip(normals(300))
    assert torch.equal(codec.round_trip(once), once)


@pytest.mark.parametrize("shape", [(), (1,), (7,), (3, 5), (2, 3, 4)])
def test_payload_bytes_are_those_of_the_encoding(codec: Codec, shape: tuple[int, ...]) -> None:
    payload = codec.encode(normals(*shape), silent)
    assert payload_bytes(payload) == sum(len(part.reshape(-1).view(torch.uint8)) for part in payload)
    assert payload_bytes(payload) == PRECISION[codec.name][0] * math.prod(shape)


def test_a_cohort_is_encoded_as_each_worker_by_itself(codec: Codec) -> None:
    x = normals(2, 3, 4, 5) * torch.tensor([1.0, 1e4, 1e-4])[:, None, None]
    payload = codec.encode(x, silent)
    together = codec.decode(payload, x.shape[-1], x.dtype, silent)
    for r in range(2):
        for f in range(3):
            alone = codec.encode(x[r, f], silent)
            assert torch.equal(together[r, f], codec.decode(alone, x.shape[-1], x.dtype, silent))
            assert payload_bytes(payload, copies=6) == payload_bytes(alone)


def test_unequal_copies_are_a_mistake_of_ours(codec: Codec) -> None:
    with pytest.raises(AssertionError, match="equal payloads"):
        payload_bytes(codec.encode(normals(5), silent), copies=3)


def test_a_diverged_number_is_still_seen(codec: Codec) -> None:
    x = torch.tensor([1.0, math.nan, -1.0])
    assert codec.round_trip(x).isnan().tolist() == [False, True, False]


def test_zero_is_exact_and_signs_are_kept(codec: Codec) -> None:
    x = torch.tensor([0.0, 1.0, -1.0, 0.5, -2.0])
    assert torch.equal(codec.round_trip(x), x)


def test_the_original_is_not_written_to(codec: Codec) -> None:
    x = normals(20)
    before, version = x.clone(), x._version
    codec.round_trip(x)
    assert torch.equal(x, before)
    assert x._version == version


def test_half_precision_saturates() -> None:
    x = torch.tensor([1e6, -1e6, 65504.0, math.inf, -math.inf])
    limit = 65504.0
    assert codec_named("fp16").round_trip(x).tolist() == [limit, -limit, limit, limit, -limit]


def test_bfloat16_has_the_range_of_single_precision() -> None:
    assert codec_named("bf16").round_trip(torch.tensor([1e38, 1e-38])).tolist() == pytest.approx(
        [1e38, 1e-38], rel=4e-3
    )
