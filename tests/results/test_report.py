"""The page stands alone, shows each figure and the honest footnote, and replaces nothing that is not ours."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from simdist.errors import InputError
from simdist.results.report import report

RATES = (1e7, 1e9)
SCRIPT = Path(__file__).parents[2] / "analysis" / "bandwidth_vs_convergence.py"


def test_page_embeds_every_figure_and_loads_nothing(write_run, tmp_path: Path) -> None:
    write_run("sweep/a", optimizer="adamw", sent=4e6, retimed=RATES)
    write_run("sweep/b", optimizer="dion", sent=4e5, flop_seconds=0.02, retimed=RATES, nu=1.1)
    page = report([tmp_path / "sweep"])
    text = page.read_text()
    assert page == tmp_path / "sweep" / "report.html"
    assert text.count('src="data:image/svg+xml;base64,') == 8
    assert "http" not in text
    assert {path.suffix for path in (page.parent / "figures").iterdir()} == {".png", ".svg"}
    for words in ("Dion", "validation loss", "may not claim", "--over network.bandwidth=10Mbit/s,1Gbit/s"):
        assert words in text
    first = page.read_bytes()
    assert report([tmp_path / "sweep"]).read_bytes() == first


def test_several_runs_go_to_their_common_parent_and_one_run_to_itself(write_run, tmp_path: Path) -> None:
    one, two = write_run("x/a", optimizer="adamw"), write_run("x/b", optimizer="muon")
    assert report([one]) == one / "report.html"
    assert report([one, two]) == tmp_path / "x" / "report.html"
    assert report([one, two], tmp_path / "elsewhere") == tmp_path / "elsewhere" / "report.html"


def test_figures_left_out_and_unfinished_runs_are_mentioned(write_run, tmp_path: Path) -> None:
    write_run("x/a")
    (write_run("x/stopped") / "summary.json").unlink()
    text = report([tmp_path / "x"]).read_text()
    assert "left out, since every run was timed at one bandwidth only" in text
    assert "Not finished, so not shown: stopped" in text


def test_hostile_names_are_escaped(write_run) -> None:
    run = write_run(optimizer="<script>alert(1)</script>")
    assert "<script>" not in report([run]).read_text()


def test_a_strange_file_in_the_way_is_kept(write_run, tmp_path: Path) -> None:
    run = write_run()
    (run / "report.html").write_text("my own notes")
    with pytest.raises(InputError, match="was not written by `simdist report`"):
        report([run])
    assert (run / "report.html").read_text() == "my own notes"
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file; expected a folder"):
        report([run], tmp_path / "file")


def test_analysis_script_writes_figures_numbers_and_a_markdown_table(write_run, tmp_path: Path) -> None:
    write_run("runs/a", optimizer="adamw", sent=4e6, retimed=RATES)
    write_run("runs/b", optimizer="dion", sent=4e5, flop_seconds=0.02, retimed=RATES)
    out = tmp_path / "figures"
    command = [sys.executable, "-W", "error", str(SCRIPT), str(tmp_path / "runs"), "--out", str(out)]
    environment = {**os.environ, "PYTHONPATH": str(SCRIPT.parents[1])}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert "| AdamW | 0.01 |" in done.stdout
    numbers = json.loads((out / "time_to_target.json").read_text())
    # Same curve for both: all 200 steps, 0.02 s + 3.2e6 bits / 10 Mbit/s each.
    assert numbers["seconds_to_target"]["Dion"]["10000000"] == pytest.approx(200 * 0.34)
    assert (out / "time_vs_bandwidth.png").exists()
    assert len((out / "time_to_target.csv").read_text().splitlines()) == 1 + 2 * 3
