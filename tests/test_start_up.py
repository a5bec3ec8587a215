"""What a short command loads: start-up is most of a one-step run, so nothing is imported that it does not use.

No clock is read. On an idle machine a one-step run took 1.5 to 1.8 s more than ``import torch`` by itself.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

#: libraries that a one-step run on one machine has no use for
HEAVY = {
    "ray",  # other engines
    "matplotlib",
    "PIL",
    "pandas",
    "scipy",
    "fsspec",  # results elsewhere
    "jsonschema",
    "torch._dynamo",  # compilers and what they bring along
    "torch._inductor",
    "sympy",
    "torch.distributed.tensor",
    "torch.distributed.fsdp",
    "torchvision",
    "IPython",
    "pytest",
}
#: modules beyond those of ``import torch``; 713 when this was written, most of them networkx, simdist itself and rich
MOST = 900

PROGRAM = """
import sys
import torch
before = set(sys.modules)
from simdist.cli import app
try:
    app(sys.argv[1:])
except SystemExit as end:
    assert not end.code, end.code
import json
print(json.dumps([sorted(set(sys.modules)), sorted(set(sys.modules) - before)]))
"""

SCENARIO = """
name: short
steps: 1
workload: {name: teacher}
optimizer: {name: adamw, lr: 0.01}
mesh: {shards: 2}
"""


def loaded(*arguments: str) -> tuple[set[str], set[str]]:
    """Return the modules that a command loads, all of them and those beyond torch's own."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments], capture_output=True, text=True, check=True, timeout=300
    )
    every, own = json.loads(done.stdout.splitlines()[-1])
    return set(every), set(own)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("start_up")


def test_a_one_step_run_and_its_re_timing_load_nothing_heavy(folder: Path) -> None:
    (folder / "short.yaml").write_text(SCENARIO, encoding="utf-8")
    run = str(folder / "run")
    commands = (
        ("run", str(folder / "short.yaml"), "--out", run, "--quiet"),
        ("retime", run, "--set", "network.bandwidth=10Mbit/s"),
    )
    for command in commands:
        every, own = loaded(*command)
        assert not every & HEAVY, command
        assert "networkx" in own, "this looks at the right process"
        assert len(own) < MOST, command
