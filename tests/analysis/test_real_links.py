"""Real throttled links: the committed measurements are complete and predicted; the test bed refuses and tidies up."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from analysis.fidelity.real_links import links
from analysis.fidelity.real_links.__main__ import MEASURED
from analysis.fidelity.real_links.cases import LONGEST, Case, Measurement, all_cases, append, read
from analysis.fidelity.real_links.links import Hosts, burst_bytes, frames_per_piece
from analysis.fidelity.real_links.predict import CALIBRATION, predicted
from simdist.errors import InputError

RATE = 100_000_000


def packet_threads() -> list[int]:
    return [int(comm.parent.name) for comm in Path("/proc").glob("[0-9]*/comm") if "ksoftirqd" in comm.read_text()]


def measurement(case: Case, **changed: object) -> Measurement:
    """Return a measurement of links that take no time but the bytes'."""
    plain = Measurement(case, (1.0,) * case.repeats, (0.0,) * case.repeats, (1,) * case.members, 0.0, 1, 0, "", "", "")
    return plain._replace(**changed)


def test_every_case_was_measured() -> None:
    """No case is left out but by the stated rule."""
    measured = read(MEASURED)
    assert {found.case for found in measured} == set(all_cases())
    assert len(measured) == len(set(all_cases()))
    for found in measured:
        assert len(found.seconds) == found.case.repeats >= 5
        assert found.case.least_seconds <= LONGEST


def test_measurements_survive_their_file(tmp_path: Path) -> None:
    found = [
        measurement(CALIBRATION),
        measurement(Case("broadcast", 3, 60, RATE), cpu_seconds=0.25, tx_bytes=(1, 2, 3)),
    ]
    append(tmp_path / "m.csv", found[:1])
    append(tmp_path / "m.csv", found[1:])
    assert read(tmp_path / "m.csv") == found
    assert read(tmp_path / "none.csv") == []


def test_a_message_takes_its_frames_and_the_overhead() -> None:
    """By hand: 1448 payload bytes per frame of 1514; a full bucket is a head start; acknowledgements go back."""
    case = Case("send", 2, 1_448_000, RATE)
    plain = predicted(measurement(case), overhead=0.001)
    assert plain.seconds == pytest.approx(1000 * 1514 * 8 / RATE + 0.001, rel=1e-12)
    word = 48 + 66  # "ready" in either direction; 48 bytes stand before the payload, too, and need one more packet
    assert plain.frame_bytes == pytest.approx((1_448_000 + 48 + 1001 * 66 + word, 1001 * 33 + word))
    ahead = predicted(measurement(case, burst_bytes=12_500), overhead=0.001)
    assert ahead.seconds == pytest.approx(plain.seconds - 0.001, rel=1e-12)


@pytest.mark.parametrize(("members", "acknowledgements"), [(2, 0), (3, 33), (8, 33)])
def test_rings_share_their_links_with_acknowledgements(members: int, acknowledgements: int) -> None:
    """Between two hosts they ride on the data that goes the other way."""
    payload = 4 * 1448 * members * 100
    found = predicted(measurement(Case("all_reduce", members, payload, RATE)), overhead=0.0)
    chunks = 2 * (members - 1) / members * payload / 1448
    assert found.seconds == pytest.approx(chunks * (1514 + acknowledgements) * 8 / RATE, rel=1e-3)
    assert sum(found.frame_bytes) == pytest.approx(members * chunks * (1514 + acknowledgements), rel=5e-3)


@pytest.mark.parametrize("count", [2, 8])
@pytest.mark.parametrize("rate", [20e6, 500e6])
def test_buckets_hold_a_piece(count: int, rate: float) -> None:
    """A piece that is larger than the bucket would never leave."""
    assert burst_bytes(rate, count) >= (frames_per_piece(rate, count) + 1) * 1514
    assert frames_per_piece(rate, count) >= 1


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (("sys.platform", "darwin"), "need Linux"),
        (("os.geteuid", lambda: 1000), "needs root"),
        (("shutil.which", lambda tool: None if tool == "tc" else tool), "package iproute2"),
    ],
)
def test_refusals(monkeypatch: pytest.MonkeyPatch, broken: tuple[str, object], said: str) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(shutil, "which", lambda tool: tool)
    module, name = broken[0].split(".")
    monkeypatch.setattr(getattr(links, module), name, broken[1])
    with pytest.raises(InputError, match=said), Hosts(2, RATE):
        pass


@pytest.mark.root
def test_links_carry_their_rate_and_vanish_with_their_maker(tmp_path: Path) -> None:
    """A stream gets rate * 1448 / 1514 to a few percent; a killed maker leaves no process behind."""
    script = tmp_path / "stream.py"
    script.write_text(
        "import json, os, socket, time\n"
        "rank, size = int(os.environ['RANK']), 2_000_000\n"
        "address = (os.environ['MASTER_ADDR'], 5000)\n"
        "if rank == 0:\n"
        "    with socket.create_server(address) as server:\n"
        "        peer = server.accept()[0]\n"
        "        start = time.perf_counter(); left = size\n"
        "        while left: left -= len(peer.recv(65536))\n"
        "        print(json.dumps(time.perf_counter() - start))\n"
        "else:\n"
        "    while True:\n"
        "        try: peer = socket.create_connection(address); break\n"
        "        except ConnectionRefusedError: time.sleep(0.05)\n"
        "    peer.sendall(bytes(size)); peer.close(); print(0)\n"
    )
    with Hosts(2, RATE) as hosts:
        seconds = hosts.launch(script, timeout=30)[0]
        assert hosts.tx_bytes()[1] == pytest.approx(2_000_000 * 1514 / 1448, rel=0.01)
    assert seconds == pytest.approx(2_000_000 * 8 / (RATE * 1448 / 1514), rel=0.05)


@pytest.mark.root
def test_a_killed_maker_leaves_nothing_behind(tmp_path: Path) -> None:
    """Processes end, and the kernel's packet threads have their ordinary priority again."""
    sleeper = tmp_path / "sleep.py"
    sleeper.write_text(
        "import os, pathlib, time\n"
        "pathlib.Path(os.environ['PIDS'] + os.environ['RANK']).write_text(str(os.getpid()))\n"
        "time.sleep(60)\n"
    )
    code = (
        "from pathlib import Path\n"
        "from analysis.fidelity.real_links.links import Hosts\n"
        f"with Hosts(2, 1e8) as hosts: hosts.launch(Path({str(sleeper)!r}))"
    )
    pids = [tmp_path / "pid0", tmp_path / "pid1"]
    maker = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "PIDS": str(tmp_path / "pid")})
    deadline = time.monotonic() + 30
    while not all(pid.exists() and pid.read_text() for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    maker.kill()
    maker.wait()
    left = [Path("/proc", pid.read_text()) for pid in pids]
    while any(process.exists() for process in left) or set(map(os.sched_getscheduler, packet_threads())) - {0}:
        assert time.monotonic() < deadline
        time.sleep(0.05)
