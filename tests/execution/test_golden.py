"""The cases of docs/time.md that can be done by hand: the page and the code agree to 1e-12."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from simdist.communication.plans import collectives_named
from simdist.communication.trace import CollectiveOp
from simdist.execution.compute_model import ComputeModel
from simdist.execution.pricing import StepPricer
from simdist.scenario import NETWORK
from simdist.yaml_text import parse

PAGE = Path(__file__).parents[2] / "docs" / "time.md"
ROW = re.compile(r"^\| `(\{.*?\})` \| (\d+) \| (\w+) (\d+) \| (.*?) \| ([\d.]+) \|$", re.MULTILINE)
CASES = ROW.findall(PAGE.read_text("utf-8"))


def test_the_page_has_cases() -> None:
    assert len(CASES) >= 8


@pytest.mark.parametrize("exact", [False, True], ids=["closed", "replayed"])
@pytest.mark.parametrize("case", CASES, ids=[f"{number}-{case[2]}" for number, case in enumerate(CASES)])
def test_the_case_takes_what_the_page_says(case: tuple[str, ...], exact: bool) -> None:
    network, workers, operation, size, _, seconds = case
    topology = NETWORK.choose(parse(network, str(PAGE)))
    count = int(workers)
    pricer = StepPricer(
        topology.network(count),
        (1, count),
        collectives_named(topology.collectives),
        ComputeModel.of_speeds([1e12] * count),
        exact=exact,
    )
    step = ((CollectiveOp(operation, "shards", "optimizer", "w", "fp32", int(size)),),)
    assert pricer.price(step).duration == pytest.approx(float(seconds), rel=1e-12)
