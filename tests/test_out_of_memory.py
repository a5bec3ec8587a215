"""A run that needs more memory than there is says so, what helps, and where the rest of it is saved."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from simdist.errors import RunError
from simdist.running import run
from simdist.scenario import Scenario

GREEDY = """
import torch
from simdist.workloads.teacher import Teacher, TeacherTask


class Greedy(Teacher):
    name: str = "greedy"

    def build(self, seed, dtype, device):
        return GreedyTask(self, seed, dtype, device)


class GreedyTask(TeacherTask):
    def batch(self, worker, step):
        if step == 3:
            torch.empty(10**15)
        return super().batch(worker, step)
"""


@pytest.mark.parametrize(
    ("engine", "helps"),
    [
        ({"name": "inline"}, "engine.name 'stacked'"),
        ({"name": "stacked", "chunk": 4}, "engine.chunk below 4"),
        ({"name": "stacked"}, "a small engine.chunk"),
    ],
    ids=str,
)
def test_out_of_memory_is_told_with_what_helps(tmp_path: Path, engine: dict[str, Any], helps: str) -> None:
    (tmp_path / "greedy.py").write_text(GREEDY)
    chosen = Scenario.from_dict(
        {
            "steps": 4,
            "workload": {"name": f"{tmp_path}/greedy.py:Greedy", "rows": 8, "columns": 6, "matrices": 2},
            "mesh": {"replicas": 8},
            "optimizer": {"name": "adamw", "lr": 0.01},
            "engine": engine,
        }
    )
    with pytest.raises(RunError) as caught:
        run(chosen, out=tmp_path / "run", progress=False)
    message = str(caught.value)
    assert "out of memory after step 2 (can't allocate memory: you tried to allocate" in message
    assert f"; what helps: {helps}" in message
    assert f"everything up to step 2 is in {tmp_path / 'run'}" in message
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["steps"] == 2
