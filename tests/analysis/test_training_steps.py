"""How measured training steps are kept, repeated and judged; what is committed is held to the targets."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from analysis.fidelity.training import measure
from analysis.fidelity.training.judging import HEADINGS, cells, judge, order_kept
from analysis.fidelity.training.measure import AGREE, LAUNCHES, STEPS, Launch, Measured, profile_file, read_cases
from analysis.fidelity.training.predict import Prediction
from simdist.profiles import read_profile


def launch(seconds: float, **changes: object) -> Launch:
    one = Launch("ddp", 2, 20e6, (seconds, seconds + 0.01, seconds - 0.01), 1e6, "2026-01-01", "6.1", "2.13")
    return replace(one, **changes)  # type: ignore[arg-type]  # fields by name


def predicted(error: float, seconds: float = 1.0, **changes: object) -> Prediction:
    case = Measured("ddp", 2, 20e6, (launch(seconds),))
    return replace(Prediction(case, seconds * (1 + error), 0.1, 2**20, 1e6), **changes)  # type: ignore[arg-type]  # fields by name


def test_launches_come_back_from_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "STEPS_FILE", tmp_path / "steps.csv")
    written = [launch(1.25), launch(1.5), launch(0.75, method="fsdp", members=4)]
    for one in written:
        measure._append(one)
    assert [one for case in read_cases() for one in case.launches] == written


def test_a_case_is_repeated_until_it_is_known() -> None:
    same = [launch(1.0)] * LAUNCHES
    assert not Measured("ddp", 2, 20e6, tuple(same[1:])).complete
    assert Measured("ddp", 2, 20e6, tuple(same)).complete
    moved = Measured("ddp", 2, 20e6, (*same[1:], launch(1.0 + 2 * AGREE)))
    assert not moved.complete
    third = replace(moved, launches=(*moved.launches, launch(1.01)))
    assert third.complete
    assert third.seconds == 1.01


def test_targets_can_be_missed() -> None:
    good = [predicted(0.01), predicted(-0.02, 2.0), predicted(0.0, 3.0)]
    assert judge(good)[1]
    assert not judge([*good, predicted(0.11)])[1]
    assert not judge([predicted(0.04), predicted(-0.04, 2.0), predicted(0.0, 3.0)])[1]
    assert not judge([*good[:2], predicted(0.0, 3.0, frame_bytes=1.02e6)])[1]


def test_small_messages_are_told_but_not_judged() -> None:
    lines, met = judge([predicted(0.0), predicted(0.5, 2.0, largest_payload=1000)])
    assert met
    assert "50.0%" in lines[-1]


def test_order_is_kendalls() -> None:
    assert order_kept([predicted(0.1, 1.0), predicted(-0.1, 1.5)])
    assert not order_kept([predicted(0.3, 1.0), predicted(-0.3, 1.5)])


def test_what_is_committed_is_whole() -> None:
    cases = read_cases()
    assert all(case.complete for case in cases)
    for case in cases:
        assert min(len(one.seconds) for one in case.launches) >= 5
        assert {key for key, _ in read_profile(str(profile_file(case.method, case.members))).seconds} == {
            "forward",
            "backward",
            "optimizer",
        }
    assert {case.method for case in cases} == set(STEPS)


def test_rows_fit_the_headings() -> None:
    assert len(cells(predicted(0.0))) == len(HEADINGS)
