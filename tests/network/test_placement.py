"""Which worker sits on which host."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from simdist.errors import InputError
from simdist.network import Dragonfly, FatTree, Star, TwoLevel, Wan
from simdist.network.placement import PlacementSettings
from tests.network.catalogue import Sample, each_sample


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[int], int, int]:
    """The cluster of each host, the room of a host, and a number of workers that have room."""
    clusters = draw(st.lists(st.integers(0, 4), min_size=1, max_size=12))
    room = draw(st.integers(1, 4))
    return clusters, room, draw(st.integers(1, room * len(clusters)))


def placed(placement: str, case: tuple[list[int], int, int]) -> tuple[int, ...]:
    clusters, room, workers = case
    keys = {"placement": placement, "workers_per_host": room, "host_count": len(clusters)}
    return PlacementSettings.model_validate(keys).place(workers, clusters)


@pytest.mark.parametrize("placement", ["packed", "spread"])
@given(cases())
def test_every_worker_has_a_place_and_no_host_more_than_it_holds(
    placement: str, case: tuple[list[int], int, int]
) -> None:
    clusters, room, workers = case
    hosts = placed(placement, case)
    assert len(hosts) == workers
    assert set(hosts) <= set(range(len(clusters)))
    assert max(Counter(hosts).values()) <= room


@given(cases())
def test_packed_fills_one_host_after_the_other(case: tuple[list[int], int, int]) -> None:
    hosts = placed("packed", case)
    assert list(hosts) == sorted(hosts)
    assert set(list(Counter(hosts).values())[:-1]) <= {case[1]}
    assert set(hosts) == set(range(max(hosts) + 1))


@given(cases())
def test_spread_uses_every_cluster_before_one_twice_and_every_host_of_it_too(case: tuple[list[int], int, int]) -> None:
    clusters, room, _ = case
    hosts = placed("spread", case)
    on_host, in_cluster = Counter(hosts), Counter(clusters[host] for host in hosts)
    for one in set(clusters):
        # a cluster has less than another, by more than one, only if it is full
        full = in_cluster[one] == room * clusters.count(one)
        assert full or in_cluster[one] >= max(in_cluster.values()) - 1
        own = [on_host[host] for host, cluster in enumerate(clusters) if cluster == one]
        assert max(own) - min(own) <= 1


@each_sample
def test_given_hosts_permute_the_workers_and_nothing_else(sample: Sample) -> None:
    topology, count = sample.topology, sample.topology.hosts_needed(sample.workers)
    here = sample.network
    packed = [here.hosts.index(host) for host in here.hosts]
    hosts = topology.place(sample.workers, [0] * count)
    turned = topology.model_copy(update={"placement": tuple(reversed(hosts)), "host_count": count})
    there = turned.network(sample.workers)
    assert there.hosts == tuple(reversed(here.hosts))
    last = sample.workers - 1
    for worker in packed:
        route, mirrored = here.route(0, worker), there.route(last, last - worker)
        if here.hosts[worker] != here.hosts[0]:
            assert mirrored == route


def test_by_default_each_worker_has_its_own_host_in_order() -> None:
    assert Star().network(4).hosts == ("host0", "host1", "host2", "host3")


def test_packed_and_spread_by_hand() -> None:
    two = TwoLevel(island_size=2, workers_per_host=2)
    assert two.network(8).hosts == tuple(f"host{i}" for i in (0, 0, 1, 1, 2, 2, 3, 3))
    assert two.network(8).islands == (0, 0, 0, 0, 1, 1, 1, 1)
    spread = two.model_copy(update={"placement": "spread"})
    assert spread.network(8).hosts == tuple(f"host{i}" for i in (0, 2, 1, 3, 0, 2, 1, 3))
    assert spread.network(8).islands == (0, 1, 0, 1, 0, 1, 0, 1)


def test_more_hosts_than_workers_let_spread_reach_all_clusters() -> None:
    assert FatTree(placement="spread", host_count=16).network(4).hosts == ("host0", "host4", "host8", "host12")
    assert FatTree(host_count=16).network(4).islands == (0, 0, 0, 0)
    assert Dragonfly(placement="spread", host_count=24).network(4).islands == (0, 1, 2, 0)


def test_a_full_cluster_is_passed_over() -> None:
    network = Wan(regions={"us": 3, "eu": 1}, placement="spread").network(4)
    assert network.hosts == ("us/host0", "eu/host0", "us/host1", "us/host2")


def test_hosts_are_islands_where_nothing_else_is() -> None:
    assert Star(workers_per_host=2).network(4).islands == (0, 0, 1, 1)
    assert Star(placement=(1, 0, 1)).network(3).islands == (1, 0, 1)
    assert Star().network(4).islands == (0, 1, 2, 3)


def test_given_hosts_may_be_crowded_and_left_empty() -> None:
    network = Star(placement=[2, 2, 2, 0]).network(4)
    assert network.hosts == ("host2", "host2", "host2", "host0")


@pytest.mark.parametrize(
    ("settings", "workers", "message"),
    [
        (
            {"host_count": 3, "workers_per_host": 2},
            7,
            "got 3 hosts with room for 2 each, for 7 workers; .* 6 workers, .*host_count=4, or .*workers_per_host=3",
        ),
        ({"host_count": 1, "placement": "spread"}, 2, "at most 1 workers"),
        ({"placement": [0, 1]}, 3, "placement: got 2 hosts for 3 workers"),
        (
            {"placement": [0, 4], "host_count": 4},
            2,
            "got host 4 of 4 hosts; expected indices from 0 to 3, or network.host_count=5",
        ),
    ],
)
def test_what_does_not_fit_is_refused(settings: dict[str, Any], workers: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Star.model_validate(settings).network(workers)


@pytest.mark.parametrize("wrong", ["spred", [], [0, -1], [0, True], ["a"], 3, None, {0: 1}])
def test_impossible_placements_are_refused(wrong: Any) -> None:
    with pytest.raises(ValidationError, match="expected 'packed', 'spread', or the index"):
        PlacementSettings(placement=wrong)
