"""Bandwidth that varies: jitter, traces, outages, what they do to transfers, and what is refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from simdist.errors import InputError
from simdist.network import LinkSettings, Network, Star, drain
from simdist.network.trace import Trace
from simdist.network.variation import Jitter, Outage, Outages, Variation, interval_of

LINKS = ("host0->switch", "switch->host0", "host1->switch", "switch->host1")


def star(**settings: Any) -> Network:
    """Two workers, links of 1000 bit/s without latency."""
    return Star(bandwidth=1000, latency=0, **settings).network(2)


def seconds(network: Network, size: int, start: float = 0.0) -> float:
    """How long so many bytes take from worker 0 to worker 1."""
    return float(drain(network.sharing, [network.route(0, 1)], [size], start)[0])


@pytest.fixture
def written(tmp_path: Path) -> Any:
    """Writes lines into a file and returns the settings that name it."""

    def write(*lines: str, **settings: Any) -> dict[str, Any]:
        path = tmp_path / "trace.csv"
        path.write_text("\n".join(lines) + "\n")
        return {"path": str(path), **settings}

    return write


# -- traces -----------------------------------------------------------------------------------------------------------


def test_a_network_without_variation_does_not_vary() -> None:
    assert not star().varies
    assert star().sharing.next_change(0.0) == math.inf


def test_a_trace_that_says_the_bandwidth_changes_nothing(written: Any) -> None:
    network = star(trace=written("seconds,bandwidth", "0,1000", "0.3,1kbit/s", period=0.7))
    assert network.varies
    assert seconds(network, 1001) == pytest.approx(seconds(star(), 1001), rel=1e-12)


@pytest.mark.parametrize("column", ["bandwidth", "factor"])
def test_a_constant_trace_is_another_bandwidth(written: Any, column: str) -> None:
    """Headers included, and headers taken off as of any bandwidth."""
    value = {"bandwidth": 250, "factor": 0.25}[column]
    network = star(trace=written(f"seconds,{column}", f"0,{value}"), mtu=1500)
    other = Star(bandwidth=250, latency=0, mtu=1500).network(2)
    np.testing.assert_allclose(network.sharing.capacities_at(3.0), other.capacities, rtol=1e-15)
    assert seconds(network, 1000) == pytest.approx(seconds(other, 1000), rel=1e-12)


def test_a_trace_by_hand(written: Any) -> None:
    """2000 bits at 1000 bit/s for 1 s, at 500 for 1 s, then at 2000 for 0.25 s."""
    network = star(trace=written("seconds, bandwidth", "0, 1kbit/s", "1s, 500", "2, 2000"))
    assert seconds(network, 250) == 2.25
    assert seconds(network, 250, start=1.0) == 1.75
    assert seconds(network, 250, start=5.0) == 1.0


def test_a_trace_begins_again_after_its_period(written: Any) -> None:
    network = star(trace=written("seconds,bandwidth", "0,1000", "1,0", period=1.5))
    assert [network.sharing.next_change(now) for now in (0.0, 1.0, 1.5, 2.5)] == [1.0, 1.5, 2.5, 3.0]
    assert seconds(network, 250) == 2.5
    assert seconds(network, 250, start=1.5e6) == pytest.approx(2.5, rel=1e-9)


def test_rows_can_speak_of_some_links(written: Any) -> None:
    """Each link has its own times; those that no row names keep their bandwidth."""
    rows = ["0,500,host0->switch", "0,100,*->host1", "2,200,*->host1", "4,800,host0->switch"]
    network = star(trace=written("seconds,bandwidth,link", *rows))
    at = [dict(zip(network.links, network.sharing.capacities_at(now).tolist(), strict=True)) for now in (0, 2, 4)]
    assert [one["host0->switch"] for one in at] == [500, 500, 800]
    assert [one["switch->host1"] for one in at] == [100, 200, 200]
    assert {one["host1->switch"] for one in at} == {1000}


@given(st.lists(st.floats(1e-3, 10), min_size=1, max_size=5), st.floats(0, 1e4), st.booleans())
def test_times_move_from_change_to_change(gaps: list[float], now: float, again: bool) -> None:
    """From any time on, each change lies ahead, shows a row of the trace, and rows come in their order."""
    rows = [f"{time!r},{1 + index}" for index, time in enumerate([0.0, *np.cumsum(gaps).tolist()])]
    trace = Trace(path="trace.csv", period=sum(gaps) * 1.5 if again else None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "is_file", lambda path: True)
        patch.setattr(Path, "open", lambda path, **_: __import__("io").StringIO("\n".join(["seconds,factor", *rows])))
        variation = trace.on(["cable"], np.array([7.0]))
    before = variation.factors(now)[0]
    for _ in range(2 * len(rows)):
        following = variation.next_change(now)
        if following == math.inf:
            assert not again
            assert before == len(rows)
            return
        assert following > now
        assert variation.factors(math.nextafter(following, 0))[0] == before
        after = variation.factors(following)[0]
        assert after == (before % len(rows)) + 1
        before, now = after, following


@pytest.mark.parametrize(
    ("lines", "settings", "message"),
    [
        ([], {}, "line 1: got the columns none; expected the columns seconds and bandwidth"),
        (["time,rate", "0,1"], {}, "line 1: got the columns time, rate"),
        (["seconds,bandwidth,factor", "0,1,1"], {}, "line 1: got the columns seconds, bandwidth, factor"),
        (["seconds,bandwidth"], {}, "without a row"),
        (["seconds,bandwidth", "1,5"], {}, r"line 2: got 1 seconds in the first row for '\*', which leaves a gap"),
        (["seconds,bandwidth", "0,5", "2,"], {}, "line 3: got 2 columns and another number of values"),
        (["seconds,bandwidth", "0,5", "2"], {}, "line 3: got 2 columns and another number of values"),
        (["seconds,bandwidth", "0,5", "2,5,6"], {}, "line 3: got 2 columns and another number of values"),
        (["seconds,bandwidth", "0,5", "0,6"], {}, "line 3: got 0 seconds after 0 .* expected times that grow"),
        (["seconds,bandwidth", "0,5", "3,5", "2,6"], {}, "line 4: got 2 seconds after 3"),
        (["seconds,bandwidth", "0,-5"], {}, "line 2: bandwidth: got '-5'; expected zero or more"),
        (["seconds,bandwidth", "0,nan"], {}, "line 2: bandwidth: got nan"),
        (["seconds,bandwidth", "0,5MB/s"], {}, "line 2: bandwidth: .* counts bytes"),
        (["seconds,factor", "0,half"], {}, "line 2: factor: got 'half'; expected a number such as 0.5"),
        (["seconds,factor", "0,inf"], {}, "line 2: factor: got 'inf'; expected zero or more"),
        (["seconds,bandwidth", "soon,5"], {}, "line 2: seconds: got 'soon'"),
        (["seconds,bandwidth", "0,5", "2,0"], {}, r"line 3: got a trace that leaves '\*' down for ever"),
        (["seconds,bandwidth", "0,0"], {"period": 1}, r"line 2: got a trace that leaves '\*' down for ever"),
        (["seconds,bandwidth", "0,5", "2,1"], {"period": 2}, "line 3: got 2 seconds; expected less than .*period 2"),
        (["seconds,bandwidth,link", "0,5,host0->swich"], {}, "the link 'host0->swich', .* mean 'host0->switch'"),
        (["seconds,bandwidth,link", "0,5,host0->switch", "0,6,*"], {}, "which both mean the link 'host0->switch'"),
    ],
)
def test_traces_that_cannot_be_are_refused(
    written: Any, lines: list[str], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        star(trace=written(*lines, **settings))


def test_a_missing_trace_and_one_that_is_no_text_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"network\.trace\.path .* does not exist"):
        star(trace={"path": str(tmp_path / "none.csv")})
    (tmp_path / "noise.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="is no CSV file"):
        star(trace={"path": str(tmp_path / "noise.csv")})


# -- jitter -----------------------------------------------------------------------------------------------------------


def draws(jitter: Jitter, links: int, count: int) -> Any:
    variation = jitter.on(links)
    return np.array([variation.factors((k + 0.5) * jitter.every) for k in range(count)])


def test_jitter_is_log_normal_with_mean_one() -> None:
    factors = draws(Jitter(sigma=0.5, every=1), 50, 400)
    assert factors.mean() == pytest.approx(1, abs=0.02)
    assert np.log(factors).std() == pytest.approx(0.5, abs=0.02)
    assert np.log(factors).mean() == pytest.approx(-0.125, abs=0.02)
    # each link and each interval has its own
    assert abs(np.corrcoef(factors[:, 0], factors[:, 1])[0, 1]) < 0.15
    assert abs(np.corrcoef(factors[:-1, 0], factors[1:, 0])[0, 1]) < 0.15


def test_common_jitter_is_the_same_on_all_links() -> None:
    factors = draws(Jitter(sigma=0.5, every=1, common=True), 3, 20)
    assert (factors == factors[:, :1]).all()
    assert len(set(factors[:, 0])) == 20


def test_jitter_follows_its_seed_and_the_time_not_the_order_of_questions() -> None:
    one, same, other = (Jitter(sigma=1, every=0.1, seed=seed).on(4) for seed in (1, 1, 2))
    times = [0.05, 7.3, 0.25, 7.3, 0.05]
    first, again = [one.factors(time) for time in times], [same.factors(time) for time in reversed(times)]
    np.testing.assert_array_equal(first, again[::-1])
    assert (first[0] != other.factors(0.05)).any()


@given(st.floats(0, 1e6), st.floats(1e-6, 1e3))
def test_intervals_hold_their_times_to_the_bit(now: float, length: float) -> None:
    number = interval_of(now, length)
    assert number * length <= now < (number + 1) * length
    assert interval_of((number + 1) * length, length) == number + 1


# -- outages ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("start", "expected"), [(0, 3.5), (0.5, 3.5), (1.75, 3.5), (2.0, 2.0), (5, 2.0)])
def test_an_outage_of_a_second_and_a_half_by_hand(start: float, expected: float) -> None:
    """2000 bits over 1000 bit/s take 2 s, and 1.5 s more if the link fails on the way."""
    assert seconds(star(outages=[{"start": start, "duration": "1500ms"}]), 250) == expected


def test_outages_that_overlap_count_once_and_those_of_other_links_do_not() -> None:
    outages = [
        {"start": 0.5, "duration": 1, "link": "host0->*"},
        {"start": 1, "duration": 1, "link": "*->host1"},
        {"start": 0, "duration": 99, "link": "*->host0"},
    ]
    assert seconds(star(outages=outages), 250) == 3.5


def test_an_outage_does_not_stop_what_stays_within_a_host() -> None:
    network = Network(
        Star().graph(2),
        ("host0", "host0", "host1"),
        links=LinkSettings(host_bandwidth=1000, outages=(Outage(start=0, duration=9),)),
    )
    assert seconds(network, 125) == 1.0


def test_outages_go_with_jitter() -> None:
    """The factors multiply: the times of a jittering link shift by the outage only if nothing else changes."""
    network = star(outages=[{"start": 0.25, "duration": 1}], jitter={"sigma": 0.3, "every": 100})
    jittering = star(jitter={"sigma": 0.3, "every": 100})
    assert seconds(network, 250) == pytest.approx(seconds(jittering, 250) + 1, rel=1e-12)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"outages": [{"start": 0, "duration": 0}]}, "expected a time above zero"),
        ({"outages": [{"start": -1, "duration": 1}]}, "expected zero or more"),
        ({"outages": [{"start": 0}]}, "duration"),
        ({"jitter": {"sigma": 0.1, "every": 0}}, "expected a time above zero"),
        ({"jitter": {"sigma": 0, "every": 1}}, "expected a number above zero"),
        ({"jitter": {"sigma": 0.1, "every": 1, "law": "normal"}}, "law"),
        ({"trace": {"path": "t.csv", "period": 0}}, "expected a time above zero"),
    ],
)
def test_impossible_settings_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        LinkSettings(**wrong)


def test_an_outage_of_an_unknown_link_is_refused() -> None:
    with pytest.raises(InputError, match=r"network\.outages: got the link 'router', .* such as 'host0->switch'"):
        star(outages=[{"start": 0, "duration": 1, "link": "router"}])


def test_the_settings_of_varying_links_survive_a_round_trip() -> None:
    settings = LinkSettings(jitter=Jitter(sigma=0.1, every=2), outages=(Outage(start=1, duration=2, link="a->b"),))
    assert LinkSettings.model_validate(settings.model_dump(mode="json")) == settings


@pytest.mark.parametrize(
    "variation",
    [Outages([Outage(start=1, duration=1)], LINKS), Jitter(sigma=0.5, every=1).on(4)],
    ids=["outages", "jitter"],
)
def test_factors_hold_until_the_next_change(variation: Variation) -> None:
    now = 0.0
    for _ in range(2):
        following = variation.next_change(now)
        middle, last = (now + following) / 2, math.nextafter(following, 0)
        np.testing.assert_array_equal(variation.factors(now), variation.factors(middle))
        np.testing.assert_array_equal(variation.factors(now), variation.factors(last))
        assert (variation.factors(now) != variation.factors(following)).any()
        now = following
