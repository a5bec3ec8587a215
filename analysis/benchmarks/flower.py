"""Makes the environment that Flower is measured in, as its Ray is another version than ours."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata
from pathlib import Path

FLOWER = "flwr==1.42.0"
#: prints what that Flower needs for simulations, one requirement a line. Its lower bound of certifi (certificates, no
#: use to a simulation on one machine) is dropped: some package indexes lag behind it by days
REQUIREMENTS = """
from importlib.metadata import requires
from packaging.requirements import Requirement
for line in requires("flwr"):
    need = Requirement(line)
    if need.marker is None or need.marker.evaluate({"extra": "simulation"}):
        need.marker = None
        print("certifi" if need.name == "certifi" else need)
"""


def make_environment(python: Path) -> None:
    """Make the virtual environment whose interpreter is ``python``, unless Flower is installed there already.

    Raises:
        SystemExit: when a package cannot be had.
    """
    if installed(python):
        return
    folder = python.parents[1]
    print(f"Making an environment with {FLOWER} in {folder}; this takes a few minutes.", flush=True)
    print("(pip may complain about the version of certifi, which does not matter here.)", flush=True)
    _run(sys.executable, "-m", "venv", "--clear", str(folder))
    pip = (str(python), "-m", "pip", "install", "-qq", "--disable-pip-version-check")
    _run(*pip, "packaging")
    _run(*pip, "--no-deps", FLOWER)
    needs = subprocess.run([str(python), "-c", REQUIREMENTS], check=True, capture_output=True, text=True).stdout
    # the same torch as ours; a local tag such as +cpu is no part of what an index knows
    torch = f"torch=={metadata.version('torch').partition('+')[0]}"
    _run(*pip, *needs.split("\n")[:-1], torch)


def installed(python: Path) -> bool:
    """Return whether Flower's simulation can be imported there."""
    if not python.exists():
        return False
    code = "import flwr.simulation, ray, torch"
    return subprocess.run([str(python), "-c", code], capture_output=True, check=False).returncode == 0


def _run(*command: str) -> None:
    if subprocess.run(command, check=False).returncode:
        sys.exit(f"{' '.join(command)} failed; without Flower: python -m analysis.benchmarks")
