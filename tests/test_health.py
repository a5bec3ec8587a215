"""What the project says about itself is true: versions, pins, and the example and paths of its guides."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from packaging.markers import Marker
from packaging.requirements import Requirement

import simdist
from simdist.optimizers import MeshShape, Rule, optimizers
from simdist.registry import load_file, summary_of
from tests.optimizers.harness import (
    DRIVERS,
    MESHES,
    Driver,
    Parameter,
    first_value,
    mean_gradient,
    random_gradient,
    train,
)

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
    # the example's own two files
    missing = {path for path in named if not (ROOT / path).exists() and "lion" not in path}
    assert not missing


@pytest.fixture
def lion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Rule:
    """The guide's example of an optimizer, registered for one test."""
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text("utf-8"), re.DOTALL)
    (tmp_path / "lion.py").write_text(code, "utf-8")
    monkeypatch.setattr(optimizers, "_things", dict(optimizers.items()))
    load_file(tmp_path / "lion.py")
    rule = optimizers.get("lion")
    assert summary_of(rule) == "Steps of equal size in every number, by the sign of the momentum."
    return rule.model_validate({"lr": 0.1, "weight_decay": 0.5})


@pytest.mark.parametrize("driver", DRIVERS, ids=lambda d: d.name)
@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_the_guide_s_optimizer_follows_its_formula(lion: Rule, driver: Driver, mesh: MeshShape) -> None:
    parameter = Parameter("a", (10, 7))
    gradient = random_gradient([parameter])
    x, m = first_value(parameter), torch.zeros(10, 7, dtype=torch.float64)
    for step in range(5):
        g = mean_gradient(gradient, mesh)("a", step)
        x = (1 - 0.1 * 0.5) * x - 0.1 * torch.sign(0.9 * m + 0.1 * g)
        m = 0.99 * m + 0.01 * g
    outcome = train(driver, mesh, lion, [parameter], gradient)
    for trained in outcome.results:
        torch.testing.assert_close(trained.parameters["a"], x, rtol=0, atol=1e-12)
    assert outcome.sent(factors=4) == 0
