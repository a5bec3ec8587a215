"""Figures carry units, one line per run, styles that differ without colour, and the same bytes each time."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from simdist.results.plots import Drawn, draw_all, save
from simdist.results.plots_points import choose_target, timings
from simdist.results.plots_style import BAR_STYLES, LINE_STYLES
from simdist.results.tables import find_runs
from simdist.results.utilisation_table import Utilisation, UtilisationTable

RATES = (1e7, 1e8, 1e9, 1e10)


def drawn_from(path: Path) -> dict[str, Drawn]:
    runs = find_runs([path])
    return {drawn.name: drawn for drawn in draw_all(runs, timings(runs), choose_target(runs))}


@pytest.fixture
def figures(write_run, tmp_path: Path) -> dict[str, Drawn]:
    write_run("a", optimizer="adamw", sent=4e6, flop_seconds=0.01, retimed=RATES)
    write_run("b", optimizer="dion", sent=4e5, flop_seconds=0.02, retimed=RATES, nu=1.2, drift=0.01)
    return drawn_from(tmp_path)


def lines(axes, labels=("AdamW", "Dion")) -> list:
    return [line for line in axes.lines if line.get_label() in labels]


def test_every_figure_is_drawn_when_the_data_is_there(figures) -> None:
    assert len(figures) == 9
    assert [name for name, drawn in figures.items() if drawn.figure is None] == []


@pytest.mark.parametrize(
    ("name", "x", "y"),
    [
        ("loss_vs_steps", "Optimizer steps", "Validation loss (nats per byte)"),
        ("loss_vs_bytes", "Bytes sent per worker (log)", "Validation loss (nats per byte)"),
        ("time_vs_bandwidth", "Bandwidth per link (log)", "Simulated seconds to validation loss"),
        ("computing_vs_bandwidth", "Bandwidth per link (log)", "Share of time computing"),
        ("bytes_by_purpose", "Sent per worker and step (MB)", ""),
        ("time_split", "Simulated time per step (ms)", ""),
    ],
)
def test_axes_say_what_they_show_in_which_unit(figures, name: str, x: str, y: str) -> None:
    axes = figures[name].figure.axes[0]
    assert axes.get_xlabel() == x
    assert axes.get_ylabel().startswith(y)


@pytest.mark.parametrize("name", ["loss_vs_steps", "loss_vs_bytes", "time_vs_bandwidth", "computing_vs_bandwidth"])
def test_one_line_per_run_and_a_legend_entry_for_each(figures, name: str) -> None:
    figure = figures[name].figure
    assert [line.get_label() for line in lines(figure.axes[0])] == ["AdamW", "Dion"]
    assert [text.get_text() for text in figure.legends[0].get_texts()][:2] == ["AdamW", "Dion"]


def test_time_panels_are_low_middle_high_and_share_their_loss_axis(figures) -> None:
    axes = figures["loss_vs_time"].figure.axes
    assert [panel.get_title() for panel in axes] == ["10 Mbit/s", "1 Gbit/s", "10 Gbit/s"]
    assert len({panel.get_ylim() for panel in axes}) == 1
    assert figures["loss_vs_time"].figure.get_supxlabel().startswith("Simulated time (seconds")


def test_bandwidth_ticks_read_as_rates(figures) -> None:
    figure = figures["time_vs_bandwidth"].figure
    figure.canvas.draw()
    ticks = [tick.get_text() for tick in figure.axes[0].get_xticklabels()]
    assert ticks == ["10 Mbit/s", "100 Mbit/s", "1 Gbit/s", "10 Gbit/s"]


def test_crossover_is_marked_and_the_winners_are_named(figures) -> None:
    axes = figures["time_vs_bandwidth"].figure.axes[0]
    [mark] = [line for line in axes.lines if line.get_gid() == "crossover"]
    # Seconds a step are 0.01 + 3.2e7/B and 0.02 + 3.2e6/B: straight log-log lines between 1 and 10 Gbit/s.
    before, after = math.log(0.042 / 0.0232), math.log(0.0132 / 0.02032)
    assert mark.get_xdata()[0] == pytest.approx(1e9 * 10 ** (before / (before - after)), rel=1e-6)
    texts = [text.get_text() for text in axes.texts]
    assert "Dion fastest" in texts
    assert any(text.startswith("above ") and text.endswith(": AdamW") for text in texts)


def test_bars_stack_to_the_bytes_of_a_step(figures) -> None:
    axes = figures["bytes_by_purpose"].figure.axes[0]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["AdamW", "Dion"]
    assert sum(bars[0].get_width() for bars in axes.containers) == pytest.approx(4.0)
    assert len({bars[0].get_hatch() for bars in axes.containers}) == 4


def test_bars_stack_to_the_time_of_a_step(figures) -> None:
    axes = figures["time_split"].figure.axes[0]
    parts = {bars.get_label(): [bar.get_width() for bar in bars] for bars in axes.containers}
    # 10 and 20 ms of computing, a quarter of it over traffic; 32 and 3.2 Mbit over 100 Mbit/s
    assert parts["computing"] == pytest.approx([7.5, 15.0])
    assert parts["computing, traffic hidden"] == pytest.approx([2.5, 5.0])
    assert parts["exposed traffic"] == pytest.approx([320.0, 32.0])
    assert [text.get_text() for text in axes.texts] == ["330 ms", "52 ms"]
    assert len({bars[0].get_hatch() for bars in axes.containers}) == 3


def test_priced_utilisation_replaces_that_of_the_retimings(write_run, tmp_path: Path) -> None:
    write_run("a", optimizer="adamw")
    write_run("b", optimizer="dion")
    runs = find_runs([tmp_path])
    curve = {10.0 ** (half / 2): 1 / (1 + 10 ** (8 - half / 2)) for half in range(6, 31)}
    used = UtilisationTable([Utilisation("Dion", {0.5: 1e8}, curve)], {"AdamW": "no reason"})
    [drawn] = [
        d for d in draw_all(runs, timings(runs), choose_target(runs), used) if d.name == "computing_vs_bandwidth"
    ]
    [line] = lines(drawn.figure.axes[0])
    assert line.get_label() == "Dion"
    assert {float(x): float(y) for x, y in line.get_xydata()}.items() <= curve.items()
    left, right = drawn.figure.axes[0].get_xlim()
    assert 1e5 < left < 1e8 < right < 1e12  # where nothing changes any more is not shown


def test_styles_differ_without_colour() -> None:
    assert len({style.marker for style in LINE_STYLES}) == len(LINE_STYLES)
    assert len({str(style.dashes) for style in LINE_STYLES}) == len(LINE_STYLES)
    assert len({hatch for _, hatch in BAR_STYLES}) == len(BAR_STYLES)


def test_nu_band_spans_the_matrices(figures) -> None:
    [line] = lines(figures["nu_vs_steps"].figure.axes[0])
    assert line.get_ydata() == pytest.approx(1.2 * 1.1)
    band = figures["nu_vs_steps"].figure.axes[0].collections[0].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == pytest.approx((1.2, 1.44))


def test_drift_is_the_mean_over_matrices(figures) -> None:
    [line] = lines(figures["drift_vs_steps"].figure.axes[0])
    assert line.get_xdata().tolist() == list(range(5, 201, 5))
    assert line.get_ydata() == pytest.approx(0.01 * line.get_xdata())


def test_files_are_the_same_bytes_each_time(figures, write_run, tmp_path: Path) -> None:
    again = drawn_from(tmp_path)
    for name in figures:
        first = save(figures[name].figure, tmp_path / "one" / name)
        second = save(again[name].figure, tmp_path / "two" / name)
        assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
        assert b"dc:date" not in first[1].read_bytes()


def test_one_run_without_retimings_leaves_figures_out_with_a_reason(write_run, tmp_path: Path) -> None:
    write_run(retimed=())
    figures = drawn_from(tmp_path)
    reasons = {name: drawn.reason for name, drawn in figures.items() if drawn.figure is None}
    assert set(reasons) == {"time_vs_bandwidth", "computing_vs_bandwidth", "nu_vs_steps", "drift_vs_steps"}
    assert "one bandwidth only (100 Mbit/s); `simdist retime" in reasons["time_vs_bandwidth"]


def test_runs_that_share_no_bandwidth_show_their_own_networks(write_run, tmp_path: Path) -> None:
    write_run("a", optimizer="adamw", bandwidth=1e7)
    write_run("b", optimizer="muon", bandwidth=1e8)
    drawn = drawn_from(tmp_path)["loss_vs_time"]
    assert [axes.get_title() for axes in drawn.figure.axes] == ["Each run under its own network"]
    assert "No bandwidth is common" in drawn.caption


def test_a_run_that_sends_nothing_has_no_figure_of_bytes(write_run, tmp_path: Path) -> None:
    write_run(sent=0.0)
    figures = drawn_from(tmp_path)
    assert "sent no bytes" in figures["loss_vs_bytes"].reason
    assert "no run sent any bytes" in figures["bytes_by_purpose"].reason
