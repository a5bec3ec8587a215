"""Quantisers against their formulas, number by number: integers, the shifted lattice, 8-bit floats, powers of two."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from simdist.codecs import codec_named
from tests.codecs.noises import seeded, spread

TOPS = {"int4": 7, "int8": 127, "int16": 32767}


def bucket_scales(x: Tensor, bucket: int, top: float, norm: bool = False) -> Tensor:
    """The scale of each number of one message, written bucket by bucket."""
    parts = x.double().split(bucket)
    return torch.cat([torch.full_like(p, float(p.norm() if norm else p.abs().max()) / top) for p in parts])


@pytest.mark.parametrize("name", TOPS)
@pytest.mark.parametrize("norm", [False, True])
def test_integers_are_the_two_lattice_points_around(name: str, norm: bool) -> None:
    x = spread(37)
    scales = bucket_scales(x, 10, TOPS[name], norm)
    found = codec_named(f"{name}(bucket=10, scale={'norm' if norm else 'max'})").round_trip(x, seeded()).double()
    codes = found / scales
    assert (codes - codes.round()).abs().max() < 1e-6 * TOPS[name]
    assert ((found - x.double()).abs() <= scales * (1 + 1e-6 * TOPS[name])).all()
    assert codes.abs().max() <= TOPS[name] * (1 + 1e-6)


@pytest.mark.parametrize("name", TOPS)
def test_nearest_integers_err_by_half_a_step(name: str) -> None:
    x = spread(37, dtype=torch.float64)
    scales = bucket_scales(x, 10, TOPS[name])
    found = codec_named(f"{name}(bucket=10, rounding=nearest)").round_trip(x, seeded())
    expected = (x / scales).round() * scales
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    assert ((found - x).abs() <= scales / 2 * (1 + 1e-3)).all()


def test_stochastic_rounding_has_the_stated_variance() -> None:
    """``s^2 f (1 - f)`` at the fraction f, at most s^2 / 4."""
    x = torch.tensor([127.0, 0.5, 3.25, 10.0], dtype=torch.float64)
    found = codec_named("int8").round_trip(x.expand(20_000, -1), seeded())
    expected = torch.tensor([0.0, 0.25, 0.1875, 0.0], dtype=torch.float64)
    torch.testing.assert_close(found.var(0), expected, rtol=0.05, atol=1e-12)


def test_16_bits_are_nearly_exact() -> None:
    x = spread(3000)
    error = (codec_named("int16").round_trip(x, seeded()) - x).abs().max() / x.abs().max()
    assert 0 < error < 2**-14.9


@pytest.mark.parametrize("name", ["int8", "qsdp"])
def test_coarse_scales_do_not_cut_the_largest_number_off(name: str) -> None:
    for seed in range(20):
        x = spread(6, seed=seed)
        found = codec_named(f"{name}(scale_format=bf16)").round_trip(x, seeded())
        step = float(x.abs().max()) / 127 * (1 + 2**-7)
        assert (found - x).abs().max() <= step


def test_the_shifted_lattice_is_as_the_card_writes_it() -> None:
    x = spread(25, dtype=torch.float64)
    noise = seeded()()
    shifts = noise((3,)).double() - 0.5
    scales = bucket_scales(x, 10, 127)
    u = shifts.repeat_interleave(10)[:25]
    expected = scales * ((x / scales - u).round() + u)
    found = codec_named("qsdp(bucket=10)").round_trip(x, seeded())
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-12)
    assert ((found - x).abs() <= scales / 2 * (1 + 1e-6)).all()


def test_the_shifted_lattice_needs_the_senders_noise() -> None:
    codec, x = codec_named("qsdp(bits=4)"), spread(25)
    payload = codec.encode(x, seeded(0)())
    wrong = codec.decode(payload, 25, x.dtype, seeded(1)())
    assert not torch.allclose(wrong, codec.decode(payload, 25, x.dtype, seeded(0)()))


@pytest.mark.parametrize(("name", "limit", "error"), [("fp8_e4m3", 448.0, 2.0**-4), ("fp8_e5m2", 57344.0, 2.0**-3)])
@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_8_bit_floats_have_the_stated_precision(name: str, limit: float, error: float, rounding: str) -> None:
    x = torch.cat([torch.tensor([limit]), spread(500), -torch.tensor([limit])])
    found = codec_named(f"{name}(rounding={rounding})").round_trip(x, seeded())
    allowed = error if rounding == "nearest" else 2 * error
    normal = x.abs() >= 2.0**-6
    assert normal.all() == (name == "fp8_e5m2") or normal.sum() > 400
    assert ((found - x).abs() <= allowed * x.abs())[normal].all()
    # the scale is 1: what arrives is a number of the format, and the largest is exact
    format_ = {"fp8_e4m3": torch.float8_e4m3fn, "fp8_e5m2": torch.float8_e5m2}[name]
    assert torch.equal(found, found.to(format_).float())
    assert (found[0], found[-1]) == (limit, -limit)
    if rounding == "nearest":
        assert torch.equal(found, x.to(format_).float())


@pytest.mark.parametrize(("name", "limit", "least"), [("fp8_e4m3", 448.0, 2.0**-9), ("fp8_e5m2", 57344.0, 2.0**-16)])
def test_8_bit_floats_round_small_numbers_to_their_neighbours_without_bias(
    name: str, limit: float, least: float
) -> None:
    """Below the normal range too, where the steps are equal."""
    x = torch.tensor([limit, 0.3 * least, 2.25 * least, 1.06, 0.0])
    found = codec_named(f"{name}(rounding=stochastic)").round_trip(x.expand(20_000, -1), seeded())
    assert sorted(set(found[:, 1].tolist())) == [0.0, least]
    assert sorted(set(found[:, 2].tolist())) == [2 * least, 3 * least]
    assert sorted(set(found[:, 3].tolist())) == [1.0, 1.125 if name == "fp8_e4m3" else 1.25]
    torch.testing.assert_close(found.mean(0), x, rtol=0.03, atol=0)


def test_8_bit_floats_saturate() -> None:
    """A scale below what the largest number needs cannot happen; the format's own limit is never passed either."""
    for seed in range(50):
        x = spread(9, seed=seed)
        for name, limit in (("fp8_e4m3", 448.0), ("fp8_e5m2", 57344.0)):
            stored, _ = codec_named(name).encode(x, seeded()())
            assert stored.float().abs().max() == limit
            assert stored.dtype in (torch.float8_e4m3fn, torch.float8_e5m2)


def test_natural_numbers_are_the_powers_around() -> None:
    x = spread(400, dtype=torch.float64)
    found = codec_named("natural").round_trip(x, seeded())
    exponents = found.abs().log2()
    assert torch.equal(exponents, exponents.round())
    assert torch.equal(found.sign(), x.sign())
    ratio = found / x
    assert ((ratio > 0.5) & (ratio < 2)).all()
    nearest = codec_named("natural(rounding=nearest)").round_trip(x, seeded())
    assert ((nearest - x).abs() <= x.abs() / 3).all()
    variance = codec_named("natural").round_trip(x[:20].expand(4000, -1), seeded()).var(0)
    assert (variance <= x[:20].square() / 8 * 1.1).all()
    powers = 2.0 ** torch.arange(-60, 60, dtype=torch.float64)
    assert torch.equal(codec_named("natural").round_trip(-powers, seeded()), -powers)


def test_natural_says_what_becomes_of_numbers_below_its_range() -> None:
    """Two to the 126 below the power above the largest, unbiased between the least power and zero."""
    least = 2.0**-125
    x = torch.tensor([1.0, least, 0.25 * least, 1e-60], dtype=torch.float64)
    found = codec_named("natural").round_trip(x.expand(10_000, -1), seeded()) / least
    assert set(found[:, 2].tolist()) == {0.0, 1.0}
    assert found[:, 2].mean() == pytest.approx(0.25, abs=4 * math.sqrt(0.1875 / 10_000))
    assert (found[:, 1] == 1).all()
    assert not found[:, 3].any()


def test_signs_share_the_mean_size() -> None:
    x = torch.tensor([3.0, -1.0, 0.0, -0.0, 4.0])
    assert codec_named("sign").round_trip(x).tolist() == pytest.approx([1.6, -1.6, 1.6, 1.6, 1.6])
    error = (codec_named("sign").round_trip(x) - x).square().sum()
    assert float(error) == pytest.approx(26 - 64 / 5)
