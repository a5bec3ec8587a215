"""What the project says about itself is true: versions, pins, and the example and paths of its guides."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement

import simdist

ROOT = Path(__file__).parents[1]
PROJECT = (ROOT / "pyproject.toml").read_text("utf-8")
CONSTRAINTS = [
    Requirement(line) for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines() if not line.startswith("#")
]
PYTHONS = ["3.10", "3.11", "3.12", "3.13"]
GUIDES = ["CONTRIBUTING.md", "docs/architecture.md"]


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_versions_agree() -> None:
    assert f'version = "{simdist.__version__}"' in PROJECT
    assert re.search(
        rf"^## {re.escape(simdist.__version__)}\b", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE
    )


@pytest.mark.parametrize("python", PYTHONS)
def test_every_direct_dependency_has_one_pin_that_satisfies_it(python: str) -> None:
    wanted = [Requirement(text) for text in re.findall(r'"([A-Za-z][\w.-]*(?:>=[\d.]+)?)",?', dependencies())]
    assert len(wanted) > 15
    pins: dict[str, str] = {}
    for pin in CONSTRAINTS:
        (specifier,) = pin.specifier
        assert specifier.operator == "==", pin
        assert "+" not in specifier.version, f"{pin}: a local tag exists on one machine only"
        if applies(pin.marker, python):
            assert plain(pin.name) not in pins, f"{pin}: two pins for Python {python}"
            pins[plain(pin.name)] = specifier.version
    for requirement in wanted:
        assert plain(requirement.name) in pins, f"{requirement} has no pin for Python {python}"
        assert requirement.specifier.contains(pins[plain(requirement.name)]), requirement


def dependencies() -> str:
    """The lists of dependencies in pyproject.toml, without simdist's own extras."""
    start = PROJECT.index("dependencies = [")
    return re.sub(r'"simdist\[.*?\]"', "", PROJECT[start : PROJECT.index("[project.scripts]")])


def applies(marker: Marker | None, python: str) -> bool:
    return marker is None or marker.evaluate({"python_version": python})


@pytest.mark.parametrize("guide", GUIDES)
def test_paths_that_a_guide_names_exist(guide: str) -> None:
    text = (ROOT / guide).read_text("utf-8")
    named = set(re.findall(r"`((?:simdist|tests|scenarios|docs)/[\w./]*)`", text))
    named |= set(re.findall(r"\]\(([\w./]+)\)", text)) if guide == "CONTRIBUTING.md" else set()
    assert named
    missing = {path for path in named if not (ROOT / path).exists()}
    assert not missing


def test_the_guide_prints_the_optimizer_that_there_is() -> None:
    """``tests/optimizers/test_lion.py`` judges what it does."""
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text("utf-8"), re.DOTALL)
    assert code == (ROOT / "simdist/optimizers/lion.py").read_text("utf-8")
