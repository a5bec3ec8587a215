"""Laws of every codec, over all that are registered and the variants of ``catalogue.py``."""

from __future__ import annotations

import math

import pytest
import torch

from simdist.codecs import Codec, Noise, codec_named, codecs, payload_bytes
from simdist.errors import InputError
from tests.codecs.catalogue import CATALOGUE, Stated
from tests.codecs.noises import of_message, seeded, spread

LENGTHS = [1, 2, 3, 7, 8, 9, 16, 31, 100, 1023, 1024, 1025, 4096, 5000]
DTYPES = [torch.float32, torch.float64]


@pytest.fixture(params=CATALOGUE)
def case(request: pytest.FixtureRequest) -> tuple[Codec, Stated]:
    return codec_named(request.param), CATALOGUE[request.param]


@pytest.fixture
def codec(case: tuple[Codec, Stated]) -> Codec:
    return case[0]


def test_every_registered_codec_is_under_law() -> None:
    missing = set(codecs.names()) - {text.partition("(")[0] for text in CATALOGUE}
    assert not missing, f"tests/codecs/catalogue.py: add a line for {missing}"


def test_labels_lead_back_to_the_codec(codec: Codec) -> None:
    assert codec_named(codec.label) == codec
    assert codecs.get(codec.name) is type(codec)


def test_payloads_have_the_stated_bytes(case: tuple[Codec, Stated]) -> None:
    codec, stated = case
    for length in LENGTHS:
        payload = codec.encode(spread(2, 3, length), seeded()())
        assert payload_bytes(payload, copies=6) == stated.bytes(length), length
        # nothing about a message shows in its size
        assert payload_bytes(codec.encode(torch.zeros(length), seeded()())) == stated.bytes(length)
        assert all(part.shape[:2] == (2, 3) for part in payload)


@pytest.mark.parametrize("dtype", DTYPES)
def test_messages_keep_their_shape_and_dtype(codec: Codec, dtype: torch.dtype) -> None:
    for length in LENGTHS:
        for lead in ((), (3,), (1, 2)):
            found = codec.round_trip(spread(*lead, length, dtype=dtype), seeded())
            assert found.shape == (*lead, length)
            assert found.dtype == dtype
            assert found.isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_many_messages_are_encoded_as_each_by_itself(codec: Codec, dtype: torch.dtype) -> None:
    for length in (1, 7, 45):
        x = spread(2, 3, length, dtype=dtype) * torch.tensor([1.0, 1e3, 1e-3], dtype=dtype)[:, None]
        # also where the messages lie in between each other
        for many in (x, x.movedim(-1, 0).contiguous().movedim(0, -1)):
            together = codec.round_trip(many, seeded())
            for r in range(2):
                for f in range(3):
                    alone = codec.round_trip(x[r, f].clone(), of_message(seeded(), (2, 3), (r, f)))
                    assert torch.equal(together[r, f], alone)


def test_noise_may_be_the_same_for_several_messages(codec: Codec) -> None:
    """Groups of an axis draw the same noise: it has size one where they are counted."""
    x = spread(2, 3, 20)

    def begin() -> Noise:
        noise = seeded()()
        return lambda shape: noise((1, *shape[1:]))

    assert torch.equal(codec.round_trip(x, begin)[1], codec.round_trip(x[1], seeded()))


def test_the_same_noise_gives_the_same_bits(codec: Codec) -> None:
    x = spread(3, 50)
    assert torch.equal(codec.round_trip(x, seeded(4)), codec.round_trip(x, seeded(4)))
    if codec.random == "no":
        assert torch.equal(codec.round_trip(x), codec.round_trip(x, seeded(5)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_zeros_arrive_as_zeros(case: tuple[Codec, Stated], dtype: torch.dtype) -> None:
    codec, stated = case
    for length in (1, 6, 40):
        assert not codec.round_trip(torch.zeros(2, length, dtype=dtype), seeded()).any()
    x = spread(100, dtype=dtype) * (torch.arange(100) % 3 == 0)
    found = codec.round_trip(x, seeded())
    assert bool((found[x == 0] == 0).all()) == stated.keeps_zero
    assert found.any()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_diverged_number_is_still_seen(case: tuple[Codec, Stated], bad: float, dtype: torch.dtype) -> None:
    codec, stated = case
    if math.isinf(bad) and not stated.keeps_infinity:
        return  # tests/codecs/test_casts.py: fp16 saturates
    for length in (1, 5, 30):
        for place in {0, length // 2, length - 1}:
            x = spread(3, length, dtype=dtype)
            x[1, place] = bad
            seen = ~codec.round_trip(x, seeded()).isfinite().all(-1)
            assert seen.tolist() == [False, True, False]


def test_the_original_is_not_written_to(codec: Codec) -> None:
    x = spread(2, 40)
    before, version = x.clone(), x._version
    codec.round_trip(x, seeded())
    assert torch.equal(x, before)
    assert x._version == version


@pytest.mark.parametrize("dtype", DTYPES)
def test_powers_of_two_pass_through(codec: Codec, dtype: torch.dtype) -> None:
    x = spread(2, 30, dtype=dtype)
    for factor in (2.0**-5, 2.0**7):
        assert torch.equal(codec.round_trip(factor * x, seeded()), factor * codec.round_trip(x, seeded()))


def test_signs_pass_through_where_rounding_has_no_preference(codec: Codec) -> None:
    if codec.random == "own":
        return  # noise rounds up, not away from zero
    x = spread(2, 30)
    assert torch.equal(codec.round_trip(-x, seeded()), -codec.round_trip(x, seeded()))


def test_the_error_is_as_small_as_stated(case: tuple[Codec, Stated]) -> None:
    """What error feedback needs, on average over the noise."""
    codec, stated = case
    if stated.contraction is None:
        return
    for length in (1, 6, 40, 230):
        for message in (spread(length), torch.randn(length, generator=torch.Generator().manual_seed(1))):
            x = message.double().expand(400, length)
            errors = (codec.round_trip(x, seeded()) - x).square().sum(-1)
            energy = message.double().square().sum()
            chance = 4 * errors.std() / math.sqrt(len(errors))
            assert errors.mean() <= (1 - stated.contraction(length)) * energy + chance + 1e-12 * energy
            assert (errors <= energy * (1 + 1e-6)).all()


def test_the_mean_over_the_noise_is_the_message(case: tuple[Codec, Stated]) -> None:
    codec, stated = case
    if not stated.unbiased:
        return
    draws = 10_000
    message = torch.tensor([3.0, -1.3, 0.07, 0.4, -2.2, 0.0, 1.0], dtype=torch.float64)
    found = codec.round_trip(message.expand(draws, -1), seeded())
    assert found.std(0).max() > 0, "nothing was drawn"
    sigma = found.std(0) / math.sqrt(draws)
    assert ((found.mean(0) - message).abs() <= 4 * sigma + 1e-6).all()


def test_biased_codecs_do_not_say_otherwise(case: tuple[Codec, Stated]) -> None:
    """The law above would see it: its message is not on the lattice of those that round to the nearest."""
    codec, stated = case
    message = torch.tensor([3.0, -1.3, 0.07, 0.4, -2.2, 0.0, 1.0], dtype=torch.float64)
    missed = (codec.round_trip(message.expand(2000, -1), seeded()).mean(0) - message).abs().max()
    assert stated.unbiased or stated.whole or missed > 1e-6


def test_what_keeps_everything_loses_nothing(case: tuple[Codec, Stated]) -> None:
    codec, stated = case
    for length in (1, 8, 45):
        x = spread(2, length)
        assert torch.equal(codec.round_trip(x, seeded()), x) or not stated.whole


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("topk(fraction=0)", "fraction: got 0.0; expected a fraction above 0"),
        ("topk(fraction=1.5)", "expected a number from 0 to 1"),
        ("topk(k=0)", "k: got 0; expected a number above zero"),
        ("topk(k=3, fraction=0.1)", "got both k = 3 and fraction = 0.1; expected one of them"),
        ("topk(k=9, chunk=4)", "got k = 9 of every chunk of 4; expected at most 4"),
        ("topk(values=int8)", "values: .*'fp32'"),
        ("randk(chunk=5)", "no setting 'chunk'; expected one of"),
        ("randk(fraction=-1)", "expected a number from 0 to 1"),
        ("int8(bucket=0)", "bucket: got 0; expected a number above zero"),
        ("int8(rounding=up)", "rounding: .*'stochastic' or 'nearest'"),
        ("int8(scale=min)", "scale: .*'max' or 'norm'"),
        ("fp8_e4m3(block=-1)", "block: got -1; expected a number above zero"),
        ("qsdp(bits=1)", "bits: got 1; expected 2 to 16 bits"),
        ("sparseloco(chunk=5000)", "chunk: got 5000; expected 1 to 4096, as positions have 12 bits"),
        ("sparseloco(k=65, chunk=64)", "got k = 65 of every chunk of 64; expected at most 64"),
        ("natural(rounding=down)", "rounding: .*'stochastic' or 'nearest'"),
        ("sign(scale=2)", "no setting 'scale'"),
    ],
)
def test_bad_settings_are_refused(text: str, match: str) -> None:
    with pytest.raises(InputError, match=match):
        codec_named(text)
