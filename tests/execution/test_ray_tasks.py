"""Calls that fill folders on Ray: what comes back, what is tried again and what is not, and how many run at a time."""

from __future__ import annotations

import functools
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import ray

from simdist.errors import InputError
from simdist.execution import ray_tasks
from simdist.execution.ray_tasks import Call, fill_folders

pytestmark = pytest.mark.usefixtures("cluster")


@pytest.fixture(autouse=True)
def by_value() -> None:
    # a task cannot import a test
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])


def never(news: str) -> None:
    raise AssertionError(news)


def fill(files: dict[str, bytes], problem: str, folder: Path) -> str:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return problem


def files_in(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_folders_come_back_whole_and_replace_earlier_tries(tmp_path: Path) -> None:
    files = {
        "a": {"one": b"1", "deep/down/two": b"", "big": os.urandom(2 * ray_tasks.PIECE + 5)},
        "b": {"one": b"2"},
        "none": {},
    }
    problems = {"a": "", "b": "loss is nan", "none": "could not begin"}
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "stale").write_text("of an earlier try")
    calls = [Call(name, functools.partial(fill, files[name], problems[name])) for name in files]
    assert dict(fill_folders(calls, tmp_path, None, never)) == problems, "a failure of its own is not tried again"
    assert {path.name: files_in(path) for path in tmp_path.iterdir()} == {"a": files["a"], "b": files["b"]}


def fill_and_die(deaths: Path, limit: int, folder: Path) -> str:
    """Leave a mark and half of the result, and be killed while that travels, ``limit`` times; then do the work."""
    (deaths / f"{time.time_ns()}").touch()
    folder.mkdir(parents=True)
    if len(list(deaths.iterdir())) > limit:
        (folder / "result").write_text("whole")
        return ""
    (folder / "half").write_text("of a try that died")

    def send_and_die(path: Path, name: str) -> Iterator[ray_tasks.Piece]:
        yield name, path.read_bytes()
        time.sleep(0.2)  # so that it has arrived
        os.kill(os.getpid(), signal.SIGKILL)

    ray_tasks._pieces_of = send_and_die
    return ""


def test_a_task_that_is_lost_is_tried_again_and_leaves_nothing_behind(tmp_path: Path) -> None:
    news: list[str] = []
    (tmp_path / "deaths").mkdir()
    calls = [
        Call("unlucky", functools.partial(fill_and_die, tmp_path / "deaths", 1)),
        Call("other", functools.partial(fill, {"result": b"1"}, "")),
    ]
    assert dict(fill_folders(calls, tmp_path, None, news.append)) == {"unlucky": "", "other": ""}
    assert news == ["unlucky: its task died: its process was killed, or crashed. Trying again (1 of 3 times)"]
    assert files_in(tmp_path / "unlucky") == {"result": b"whole"}
    assert not list(tmp_path.glob(".*"))


def test_a_task_that_is_lost_each_time_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_tasks, "RETRIES", 1)
    news: list[str] = []
    (tmp_path / "deaths").mkdir()
    call = Call("fatal", functools.partial(fill_and_die, tmp_path / "deaths", 9))
    ((name, problem),) = fill_folders([call], tmp_path, None, news.append)
    assert (name, problem) == ("fatal", "its task died: its process was killed, or crashed (1 new tries)")
    assert len(news) == 1
    assert len(list((tmp_path / "deaths").iterdir())) == 2


def fill_slowly(marks: Path, seconds: float, folder: Path) -> str:
    began = time.monotonic()
    try:
        (marks / f"{os.getpid()}-began").touch()
        while time.monotonic() < began + seconds:
            time.sleep(0.02)  # what ends a task cannot interrupt a system call
    finally:
        (marks / f"{began} {time.monotonic()}").touch()
    return ""


def fill_together(marks: Path, most: int, calls: int, folder: Path) -> str:
    """Stay until ``most`` calls are under way (a process takes seconds to start), and somewhat longer."""
    began = time.monotonic()
    (marks / f"{began}-began").touch()

    def counted(pattern: str) -> int:
        return len(list(marks.glob(pattern)))

    while counted("*-began") < calls and counted("*-began") - counted("* *") < most:
        if time.monotonic() > began + 50:
            return "nobody came"
        time.sleep(0.02)
    time.sleep(0.1)
    (marks / f"{began} {time.monotonic()}").touch()
    return ""


def spans(marks: Path) -> list[tuple[float, float]]:
    found = [path.name.split() for path in marks.iterdir() if " " in path.name]
    return sorted((float(began), float(ended)) for began, ended in found)


@pytest.mark.parametrize(
    ("at_once", "actors", "most"),
    [(1, 0, 1), (2, 0, 2), (None, 3, 1), (None, 2, 2), (1, 2, 1), (None, 99, 1)],
    ids=["one at a time", "two at a time", "no room for 2 x 3", "room for 2 x 2", "one at a time of 2", "alone"],
)
def test_no_more_calls_run_at_a_time_than_are_wanted_or_have_room(
    at_once: int | None, actors: int, most: int, tmp_path: Path
) -> None:
    """The cluster has 4 CPUs."""
    (tmp_path / "marks").mkdir()
    slow = functools.partial(fill_together, tmp_path / "marks", most, 4)
    calls = [Call(str(index), slow, actors=actors) for index in range(4)]
    assert dict(fill_folders(calls, tmp_path, at_once, never)) == dict.fromkeys("0123", "")
    found = spans(tmp_path / "marks")
    together = [sum(began <= start < ended for began, ended in found) for start, _ in found]
    assert len(found) == 4
    assert max(together) == most


def test_whoever_stops_early_ends_the_tasks_and_leaves_no_half_folder(tmp_path: Path) -> None:
    (tmp_path / "marks").mkdir()
    calls = [Call("quick", functools.partial(fill, {"x": b""}, ""))]
    calls += [Call(f"slow{i}", functools.partial(fill_slowly, tmp_path / "marks", 60)) for i in range(2)]
    began = time.monotonic()
    results = fill_folders(calls, tmp_path, None, never)
    assert next(results) == ("quick", "")
    while len(list((tmp_path / "marks").glob("*-began"))) < 2:
        assert time.monotonic() - began < 50
        time.sleep(0.05)
    results.close()  # type: ignore[attr-defined]  # it is a generator
    assert time.monotonic() - began < 50
    assert len(spans(tmp_path / "marks")) == 2, "each could tidy up"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["marks", "quick"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"cpus": 1000}, r"engine.threads: got 1000 for x, but the largest node .* has \d+ CPUs; expected at most"),
        ({"cuda": True}, "engine.device: got 'cuda', but the Ray cluster has no GPU"),
    ],
)
def test_what_no_node_can_take_is_refused_instead_of_waiting(
    call: dict[str, int | bool], message: str, tmp_path: Path
) -> None:
    nothing: Callable[[Path], str] = functools.partial(fill, {}, "")
    with pytest.raises(InputError, match=message):
        next(fill_folders([Call("x", nothing, **call)], tmp_path, None, never))  # type: ignore[arg-type]  # mixed values


def test_a_cluster_that_may_grow_is_given_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_tasks, "PATIENCE_SECONDS", 0.1)
    monkeypatch.setattr(ray_tasks, "GROW_SECONDS", 0.5)
    monkeypatch.setattr(ray_tasks, "can_grow_to", lambda: 2000.0)  # as with an autoscaler
    news: list[str] = []
    nothing: Callable[[Path], str] = functools.partial(fill, {}, "")
    with pytest.raises(InputError, match=r"got 1000 for x, .* \(no such node came within 0.5 s\)"):
        next(fill_folders([Call("x", nothing, cpus=1000)], tmp_path, None, news.append))
    assert len(news) == 1
    assert news[0].startswith("Waiting for the cluster to grow: engine.threads: got 1000 for x")
