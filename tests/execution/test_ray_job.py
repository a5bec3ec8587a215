"""``ray job submit`` of simdist commands to a running head: what travels, where results land, and to which bits."""

from __future__ import annotations

import importlib.util
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from simdist.running import run
from simdist.scenario import Scenario
from simdist.yaml_text import dump

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("aiohttp_cors") is None, reason="Ray's job server needs ray[default]"),
]

RAY = [sys.executable, "-m", "ray.scripts.scripts"]
SIMDIST = [sys.executable, "-m", "simdist.cli"]
START_SECONDS = 120
SCENARIO: dict[str, Any] = {
    "name": "mine",
    "steps": 3,
    "workload": {"name": "teacher", "rows": 6, "columns": 5},
    "mesh": {"shards": 4},
    "optimizer": {"name": "orth_dion", "lr": 0.02, "rank": 2},
}

Submit = Callable[..., subprocess.CompletedProcess[str]]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
    return port


@pytest.fixture(scope="module")
def submit() -> Iterator[Submit]:
    """Start a head with a job server on loopback; return a function that submits a command and waits for its end."""
    folder = Path(tempfile.mkdtemp(prefix="ray-"))  # sockets in it must have short names
    nothing = folder / "nothing"
    nothing.mkdir()
    port, board = free_port(), free_port()
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith("RAY_")},
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        # a key of its own: nothing is left in the home folder, and nobody else's cluster is met
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(24),
    }
    options = ["--head", "--block", "--node-ip-address=127.0.0.1", f"--port={port}", "--num-cpus=2"]
    options += ["--dashboard-host=127.0.0.1", f"--dashboard-port={board}", "--disable-usage-stats"]
    # Ray's default is one port for all: the agent of a second Ray on this machine would take no jobs
    options.append(f"--dashboard-agent-listen-port={free_port()}")
    options += ["--object-store-memory=100000000", f"--temp-dir={folder}"]
    log = (folder / "head.log").open("w")
    head = subprocess.Popen([*RAY, "start", *options], env=environment, stdout=log, stderr=log, start_new_session=True)
    address = f"http://127.0.0.1:{board}"

    def submitted(working_dir: Path, *command: str) -> subprocess.CompletedProcess[str]:
        call = [*RAY, "job", "submit", "--address", address, "--working-dir", str(working_dir), "--", *command]
        return subprocess.run(call, env=environment, capture_output=True, text=True, timeout=280, check=False)

    def answers() -> bool:
        """Whether jobs are taken: the server answers some seconds before the agent that starts them does."""
        listing = [*RAY, "job", "list", "--address", address]
        if subprocess.run(listing, env=environment, capture_output=True, check=False).returncode:
            return False
        tried = submitted(nothing, "true")
        assert tried.returncode == 0 or "No available agent" in tried.stderr, tried.stderr
        return tried.returncode == 0

    try:
        deadline = time.monotonic() + START_SECONDS
        while not answers():
            assert head.poll() is None, (folder / "head.log").read_text()
            assert time.monotonic() < deadline, "the job server did not answer"
            time.sleep(1)
        yield submitted
    finally:
        head.send_signal(signal.SIGTERM)  # it ends the processes that it has started
        try:
            head.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(head.pid, signal.SIGKILL)
        log.close()
        shutil.rmtree(folder, ignore_errors=True)


def hashes(folder: Path) -> tuple[str, str, str]:
    found = json.loads((folder / "summary.json").read_text())
    return found["status"], found["params_sha256"], found["ledger_sha256"]


@pytest.fixture
def inside(tmp_path: Path) -> Path:
    """The folder that travels: a scenario alone."""
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "scenario.yaml").write_text(dump(SCENARIO))
    return tmp_path / "work"


def test_a_submitted_run_ends_up_at_a_url_with_the_bits_of_a_local_one(
    submit: Submit, inside: Path, tmp_path: Path
) -> None:
    out = tmp_path / "bucket" / "mine"
    engine = ["--engine", "ray", "--ray-address", "auto", "--set", "engine.actors=2"]
    done = submit(inside, *SIMDIST, "run", "scenario.yaml", *engine, "--out", f"file://{out}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"Run folder: file://{out}" in done.stdout
    run(Scenario.from_dict(SCENARIO), out=tmp_path / "local", progress=False)
    assert hashes(out) == hashes(tmp_path / "local")


def test_a_submitted_sweep_runs_its_points_on_the_cluster(submit: Submit, inside: Path, tmp_path: Path) -> None:
    out = tmp_path / "bucket" / "sweep"
    command = [*SIMDIST, "sweep", "scenario.yaml", "--over", "seed=0,1,2", "--ray-address", "auto"]
    done = submit(inside, *command, "--out", f"file://{out}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "[3/3] seed=" in done.stdout
    for seed in (0, 1, 2):
        run(Scenario.from_dict({**SCENARIO, "seed": seed}), out=tmp_path / str(seed), progress=False)
        assert hashes(out / f"seed={seed}") == hashes(tmp_path / str(seed))


def test_a_submitted_command_that_fails_fails_the_job_in_one_message(submit: Submit, inside: Path) -> None:
    done = submit(inside, *SIMDIST, "run", "scenario.yaml", "--set", "optimizer.lr=fast")
    assert done.returncode != 0
    assert "optimizer.lr" in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
