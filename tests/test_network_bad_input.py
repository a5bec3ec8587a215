"""Bad input about networks, plans, placement and overlap (issue 4, section 3): status 2 and one clear message."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from tests.test_bad_input import Call, expect
from tests.test_bad_input import call as call
from tests.test_bad_input import scenario as scenario

FOUR = [f"host{number}" for number in range(4)]
LINK = {"bandwidth": "1Gbit/s", "latency": "1ms"}


@pytest.mark.parametrize(
    ("changes", "fragments"),
    [
        # links
        (["network.mtu=40"], ["network: got mtu 40 with header_bytes 52", "no room for payload", "1500"]),
        (["network.mtu=0"], ["network.mtu: got 0"]),
        (["network.header_bytes=-1"], ["network.header_bytes: got -1"]),
        (["network.duplex=hlaf"], ["network.duplex: got 'hlaf'", "Did you mean 'half'?"]),
        (["network.topology=ring", "network.upload=1Mbit/s"], ["got upload with topology 'ring'", "'star'"]),
        (["network.host_bandwidth=0"], ["network.host_bandwidth: got 0"]),
        (["network.message_overhead=-1us"], ["network.message_overhead: got '-1us'"]),
        # bandwidth that varies
        (["network.jitter.sigma=0.1"], ["network.jitter.every: got nothing"]),
        (["network.jitter={sigma: 0.1}"], ["network.jitter.every: got nothing"]),
        (["network.jitter={sigma: -1, every: 1ms}"], ["network.jitter.sigma: got -1"]),
        (["network.jitter={sigma: 1, every: 0}"], ["network.jitter.every: got 0 seconds"]),
        (["network.outages=[{start: 1s}]"], ["network.outages.0.duration: got nothing"]),
        (["network.outages=[{start: 1s, duration: -1s}]"], ["network.outages.0.duration: got '-1s'"]),
        (["network.outages=[{start: 1s, duration: .inf}]"], ["network.outages.0.duration: got inf"]),
        (
            ["network.outages=[{start: 1s, duration: 1s, link: 'host9->switch'}]"],
            ["network.outages: got the link 'host9->switch'", "a name such as 'host0->switch'"],
        ),
        (["network.jitter={sigma: 1, every: 1s}", "network.trace={path: x.csv}"], ["both jitter and trace"]),
        (["network.trace={path: nowhere.csv}"], ["network.trace.path", "nowhere.csv", "does not exist"]),
        # topologies that do not fit
        (["network.topology=torus", "network.dims=[3, 3]"], ["network.dims"]),
        (["network.topology=fat-tree", "network.ports=3"], ["network.ports"]),
        (["network.topology=two-level", "network.island_size=3"], ["network.island_size 3 for 4 hosts", "such as 2"]),
        (["network.topology=wan", "network.regions={us: 2, eu: 1}"], ["network.regions"]),
        (["network.topology=wan"], ["network.regions: got nothing"]),
        (
            ["network.topology=wan", "network.regions={us: 2, eu: 2}", "network.latencies=[[null, 1ms]]"],
            ["got latencies with 1 rows", "us, eu"],
        ),
        # placement
        (["network.host_count=3"], ["network.host_count: got 3 hosts", "for 4 workers", "network.host_count=4"]),
        (
            ["network.host_count=1", "network.workers_per_host=2"],
            ["network.host_count: got 1 hosts", "network.workers_per_host=4"],
        ),
        (["network.placement=[0, 1, 2]"], ["network.placement: got 3 hosts for 4 workers"]),
        (["network.placement=[0, 0, 1, 5]", "network.host_count=2"], ["network.placement: got host 5 of 2 hosts"]),
        (["network.placement=[0, -1, 1, 2]"], ["network.placement: got [0, -1, 1, 2]"]),
        (["network.placement=pakced"], ["network.placement: got 'pakced'", "Did you mean 'packed'?"]),
        # plans
        (["network.collectives=rign"], ["network.collectives: got", "'rign'", "Did you mean 'ring'?"]),
        (["network.collectives=ring(chunk=1MiB)"], ["network.collectives: got", "'ring(chunk=1MiB)'", "chunk"]),
        (["network.collectives=json:loads"], ["network.collectives: got", "json:loads"]),
        # overlap
        (["overlap=fdsp"], ["overlap.policy: got", "'fdsp'", "Did you mean 'fsdp'?"]),
        (["overlap.prefetch=2"], ["overlap.prefetch: got an unknown key"]),
        (["overlap=ddp"], ["overlap.policy: got 'ddp' with 4 shards", "expected 'fsdp'", "mesh.shards 1"]),
        (["overlap=fsdp", "overlap.prefetch=-1"], ["overlap.prefetch: got -1"]),
        (["overlap=fsdp", "overlap.bucket=1MiB"], ["overlap.bucket: got an unknown key"]),
        (
            ["mesh.shards=1", "mesh.replicas=4", "overlap=ddp", "overlap.bucket=25 apples"],
            ["overlap.bucket: ", "'25 apples'"],
        ),
        (
            [
                "mesh.shards=1",
                "mesh.replicas=4",
                "schedule=async_server",
                "optimizer={name: sgd, lr: 0.1}",
                "overlap=fsdp",
            ],
            ["overlap.policy: got 'fsdp' with a schedule whose workers", "expected 'none'"],
        ),
        (
            [
                "mesh.shards=1",
                "mesh.replicas=4",
                "schedule=async_server",
                "optimizer={name: sgd, lr: 0.1}",
                "overlap=ddp",
            ],
            ["overlap.policy: got 'ddp' with a schedule whose workers", "expected 'none'"],
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) and "=" in value[0] else "",
)
def test_bad_settings(call: Call, scenario: str, changes: list[str], fragments: list[str]) -> None:
    expect(call("check", scenario, *(f"--set={change}" for change in changes)), *fragments)


@pytest.mark.parametrize("members", [3, 5, 6, 7])
@pytest.mark.parametrize("plan", ["halving_doubling", "recursive_doubling", "double_binary_tree", "two_level", "auto"])
def test_plans_handle_any_number_of_members(call: Call, scenario: str, plan: str, members: int) -> None:
    """None is only for powers of two: those that fold the others in say how in their docstrings."""
    size = [f"--set=mesh.shards={members}", f"--set=network.collectives={plan}"]
    assert call("check", scenario, *size) == (0, "")


# -- graphs from files ------------------------------------------------------------------------------------------------


def graph_file(path: Path, edges: list[dict[str, Any]]) -> list[str]:
    path.write_text(json.dumps({"nodes": [{"id": host} for host in FOUR], "edges": edges}))
    return ["--set=network.topology=file", f"--set=network.path={path}"]


def chain(*changed: dict[str, Any]) -> list[dict[str, Any]]:
    """A line of four hosts, whose first links differ as given."""
    links = [{"source": one, "target": other, **LINK} for one, other in itertools.pairwise(FOUR)]
    return [link | change for link, change in zip(links, [*changed, *[{}] * 3], strict=False)]


def test_a_good_graph(call: Call, scenario: str, tmp_path: Path) -> None:
    assert call("check", scenario, *graph_file(tmp_path / "good.json", chain())) == (0, "")


@pytest.mark.parametrize(
    ("edges", "fragments"),
    [
        (chain()[:2], ["disconnected", "host3"]),
        ([*chain(), {"source": "host1", "target": "host1", **LINK}], ["host1"]),
        ([*chain(), chain()[0]], ["parallel links between 'host0' and 'host1'"]),
        ([{"source": "host0", "target": "host1", "latency": "1ms"}, *chain()[1:]], ["no bandwidth", "host0"]),
        ([{"source": "host0", "target": "host1", "bandwidth": 1e9}, *chain()[1:]], ["no latency", "host0"]),
        (chain({"bandwidth": 0}), ["bandwidth", "host0", "above zero"]),
        (chain({"bandwidth": "-1Mbit/s"}), ["bandwidth", "host0"]),
        (chain({"latency": "-1ms"}), ["latency", "host0"]),
        (chain({"bandwidth": "1GB/s"}), ["bandwidth", "'1GB/s'", "'8Gbit/s'"]),
        (chain({"duplex": "both"}), ["duplex 'both'", "'full' or 'half'"]),
    ],
)
def test_bad_graphs(
    call: Call, scenario: str, tmp_path: Path, edges: list[dict[str, Any]], fragments: list[str]
) -> None:
    expect(call("check", scenario, *graph_file(tmp_path / "graph.json", edges)), *fragments)


def test_a_link_to_nowhere(call: Call, scenario: str, tmp_path: Path) -> None:
    status, message = call("check", scenario, *graph_file(tmp_path / "graph.json", chain({"target": "host9"})))
    assert status == 2
    assert "got a link to 'host9'" in message
    assert "Did you mean 'host3'?" in message


def test_a_half_duplex_link_has_one_bandwidth(call: Call, scenario: str, tmp_path: Path) -> None:
    back = [
        {"source": link["target"], "target": link["source"], **LINK, "bandwidth": "2Gbit/s", "duplex": "half"}
        for link in chain()
    ]
    there = [link | {"duplex": "half"} for link in chain()]
    file = tmp_path / "graph.json"
    options = graph_file(file, [*there, *back])
    file.write_text(json.dumps({**json.loads(file.read_text()), "directed": True}))
    expect(call("check", scenario, *options), "half-duplex", "one bandwidth", "2e+09")


def test_one_way_streets(call: Call, scenario: str, tmp_path: Path) -> None:
    file = tmp_path / "graph.json"
    options = graph_file(file, chain())
    file.write_text(json.dumps({**json.loads(file.read_text()), "directed": True}))
    expect(call("check", scenario, *options), "disconnected", "cannot reach")


# -- traces -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "fragments"),
    [
        ("seconds,bandwidth\n5,1Mbit/s\n", ["line 2", "got 5 seconds in the first row", "gap"]),
        ("seconds,bandwidth\n0,1Mbit/s\n3,2Mbit/s\n2,1Mbit/s\n", ["line 4", "got 2 seconds after 3"]),
        ("seconds,bandwidth\n0,-1Mbit/s\n", ["line 2", "bandwidth", "'-1Mbit/s'"]),
        ("seconds,bandwidth\n0,nan\n", ["line 2", "bandwidth", "nan"]),
        ("seconds,factor\n0,-0.5\n", ["line 2", "factor", "-0.5"]),
        ("seconds,bandwidth\n0,1Mbit/s\n1,0\n", ["line 3", "down for ever"]),
        ("seconds,bandwidth\n0,1MB/s\n", ["line 2", "'1MB/s'", "'8Mbit/s'"]),
        ("seconds,bandwidth\n0\n", ["line 2", "another number of values"]),
        ("seconds,bandwidth\n0,\n", ["line 2", "another number of values"]),
        ("seconds,bandwith\n0,1\n", ["line 1", "bandwith"]),
        ("seconds,bandwidth\n", ["without a row"]),
        ("", ["line 1", "none"]),
        ("seconds,bandwidth,link\n0,1,host7->switch\n", ["'host7->switch'", "Did you mean 'host3->switch'?"]),
        ("seconds,bandwidth,link\n0,1,*\n0,1,host0->switch\n", ["'host0->switch'", "each link in one of them"]),
    ],
)
def test_bad_traces(call: Call, scenario: str, tmp_path: Path, text: str, fragments: list[str]) -> None:
    file = tmp_path / "trace.csv"
    file.write_text(text)
    expect(call("check", scenario, f"--set=network.trace={{path: {file}}}"), "trace.csv", *fragments)


def test_a_trace_that_is_no_table(call: Call, scenario: str, tmp_path: Path) -> None:
    file = tmp_path / "trace.csv"
    file.write_bytes(b"\xff\xfe\x00\x01")
    expect(call("check", scenario, f"--set=network.trace={{path: {file}}}"), "trace.csv", "no CSV file")


# -- re-timing --------------------------------------------------------------------------------------------------------


def test_a_re_timing_refuses_what_a_run_refuses(call: Call, scenario: str, tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    status, message = call("run", scenario, "--set=steps=1", f"--out={run}")
    assert status == 0, message
    for change, *fragments in (
        ("overlap=ddp", "overlap.policy: got 'ddp' with 4 shards"),
        ("overlap.prefetch=2", "overlap.prefetch: got an unknown key"),
        ("network.placement=[0, 1]", "network.placement: got 2 hosts for 4 workers"),
        ("network.collectives=rign", "Did you mean 'ring'?"),
        ("network.mtu=40", "got mtu 40"),
        ("network.trace={path: nowhere.csv}", "nowhere.csv"),
    ):
        expect(call("retime", run, f"--set={change}", f"--out={tmp_path / 'out'}"), *fragments)
        assert not (tmp_path / "out").exists(), change
