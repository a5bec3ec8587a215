"""Folders at a URL: only what has changed travels, the summary last, and what a store refuses is said in one line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from simdist.errors import InputError, RunError
from simdist.results.landing import fetched, landing
from simdist.results.remote import NOTE, claim_url, is_url, local_files, pull, push


class Journal(MemoryFileSystem):
    """A store that notes what is written, and refuses what a test tells it to."""

    protocol = "journal"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    written: ClassVar[list[str]] = []
    refused: ClassVar[set[str]] = set()

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return super()._strip_protocol(path.replace("journal://", "memory://"))

    def put_file(self, lpath: str, rpath: str, **options: Any) -> None:
        name = rpath.rpartition("/")[2]
        if name in self.refused:
            raise PermissionError(f"Access Denied: {name}")
        self.written.append(name)
        super().put_file(lpath, rpath, **options)

    def pipe_file(self, path: str, value: bytes, **options: Any) -> None:
        if NOTE in self.refused:
            raise PermissionError("Access Denied")
        super().pipe_file(path, value, **options)

    def rm_file(self, path: str) -> None:
        self.written.append(f"-{path.rpartition('/')[2]}")
        super()._rm(path)


fsspec.register_implementation("journal", Journal)
URL = "journal://bucket/results/mine"


@pytest.fixture(autouse=True)
def store() -> Iterator[type[Journal]]:
    for kept in (Journal.store, Journal.written, Journal.refused):
        kept.clear()
    Journal.pseudo_dirs[:] = [""]
    yield Journal
    Journal.refused.clear()


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A folder with the files of a run, one of them in a folder of its own, and a draft."""
    folder = tmp_path / "run"
    files = {
        "summary.json": '{"status": "done"}',
        "scenario.yaml": "steps: 3",
        "environment.json": "{}",
        "trace.json": "",
        "checkpoints/step-2/manifest.json": "{}",
        "checkpoints/step-2/block-0.pt": "weights",
        "checkpoints/.step-3.writing/block-0.pt": "half",
    }
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def contents(folder: Path) -> dict[str, str]:
    return {name: (folder / name).read_text() for name in local_files(folder)}


@pytest.mark.parametrize("how", ["memory://somewhere/run", "file://{}/there/run"])
def test_what_is_pulled_is_what_was_pushed(run: Path, tmp_path: Path, how: str) -> None:
    url = how.format(tmp_path)
    assert len(push(run, url)) == 6
    pull(url, tmp_path / "back")
    assert contents(tmp_path / "back") == contents(run)


def test_only_what_changed_travels_and_a_summary_never_stands_for_less_than_is_there(run: Path) -> None:
    push(run, URL)
    assert Journal.written[-2:] == ["manifest.json", "summary.json"]
    Journal.written.clear()
    assert push(run, URL) == []
    assert Journal.written == []
    (run / "trace.json").write_text("[]")
    (run / "summary.json").write_text('{"status": "failed"}')
    shutil.rmtree(run / "checkpoints" / "step-2")
    assert push(run, URL) == ["trace.json", "summary.json"]
    assert Journal.written == ["-summary.json", "-block-0.pt", "-manifest.json", "trace.json", "summary.json"]


def test_what_is_missing_or_torn_there_travels_again(run: Path) -> None:
    push(run, URL)
    there = fsspec.filesystem("journal")
    there.rm(f"{URL}/trace.json")
    there.pipe_file(f"{URL}/scenario.yaml", b"st")
    assert push(run, URL) == ["scenario.yaml", "trace.json"]


def test_files_of_others_stay_and_a_partial_copy_removes_nothing(run: Path, tmp_path: Path) -> None:
    push(run, URL)
    there = fsspec.filesystem("journal")
    there.pipe_file(f"{URL}/notes.txt", b"of another program")
    pull(URL, tmp_path / "part", lambda name: name == "scenario.yaml")
    assert local_files(tmp_path / "part") == ["scenario.yaml"]
    (tmp_path / "part" / "report.html").write_text("page")
    assert push(tmp_path / "part", URL, mirror=False) == ["report.html"]
    push(run, URL)
    pull(URL, tmp_path / "all")
    assert set(local_files(tmp_path / "all")) == {*local_files(run), "notes.txt"}, (
        "report.html was pushed by us, and went"
    )


def test_a_push_that_broke_off_goes_on(run: Path, tmp_path: Path) -> None:
    Journal.refused.add("trace.json")
    with pytest.raises(RunError, match=r"could not be written \(no permission: Access Denied: trace.json\)"):
        push(run, URL)
    assert not fsspec.filesystem("journal").exists(f"{URL}/summary.json")
    Journal.refused.clear()
    push(run, URL)
    pull(URL, tmp_path / "back")
    assert contents(tmp_path / "back") == contents(run)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("s4://bucket/run", r"Protocol not known: s4\); expected a protocol .* Did you mean 's3'"),
        ("s3://bucket/run", r"needs a package that is not installed .*s3fs"),
        ("journal://", "names no folder; expected one, such as 'journal://results'"),
        ("ftp://127.0.0.1:1/run", "cannot be opened .*refused"),
    ],
)
def test_urls_that_cannot_be_used_are_refused_before_anything_is_run(url: str, message: str, run: Path) -> None:
    with pytest.raises(InputError, match=message):
        claim_url(url, "run")
    with pytest.raises(InputError, match=message):
        push(run, url)


def test_a_place_that_cannot_be_written_is_refused_before_anything_is_run() -> None:
    Journal.refused.add(NOTE)
    with pytest.raises(InputError, match=r"'journal://.*/mine' could not be used \(no permission: Access Denied"):
        claim_url(URL, "run")


def test_nothing_is_overwritten_but_a_sweep_goes_on(run: Path, tmp_path: Path) -> None:
    assert not claim_url(URL, "run")
    assert not claim_url(URL, "run"), "what a first try left when it could not start"
    push(run, URL)
    for kind in ("run", "sweep"):
        with pytest.raises(InputError, match="which already holds a run"):
            claim_url(URL, kind)  # type: ignore[arg-type]  # a plain str in the loop
    fsspec.filesystem("journal").pipe_file("journal://other/file.txt", b"")
    with pytest.raises(InputError, match="holds something that simdist did not make"):
        claim_url("journal://other", "run")
    fsspec.filesystem("journal").pipe_file("journal://sweep/sweep.yaml", b"")
    assert claim_url("journal://sweep", "sweep")
    with pytest.raises(InputError, match="which already holds a sweep"):
        claim_url("journal://sweep", "run")


def test_where_there_is_nothing_nothing_can_be_pulled(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="where there is nothing; expected a run folder"):
        pull(URL, tmp_path)


def test_what_is_a_url() -> None:
    assert not any(map(is_url, ["runs/mine", "/tmp/x", "C:\\runs", "./a:b", "file.py:Name", ""]))


# -- a local folder in front of a URL --------------------------------------------------------------------------------


def test_a_run_lands_at_its_end_and_after_each_checkpoint(run: Path, tmp_path: Path) -> None:
    with landing(URL, "run") as place:
        assert place.folder is not None
        shutil.copytree(run, place.folder)
        (place.folder / "summary.json").unlink()
        place.publish(place.folder / "checkpoints" / "step-2")
        assert fsspec.filesystem("journal").exists(f"{URL}/checkpoints/step-2/block-0.pt")
        (place.folder / "summary.json").write_text("{}")
        assert place.shown(place.folder / "x") == f"{URL}/x"
    assert not place.folder.exists(), "the local copy goes"
    pull(URL, tmp_path / "back")
    assert local_files(tmp_path / "back") == local_files(run)


def test_a_run_that_fails_lands_and_its_message_names_the_url(run: Path) -> None:
    def failing() -> None:
        with landing(URL, "run") as place:
            assert place.folder is not None
            shutil.copytree(run, place.folder)
            raise RunError(f"loss is nan; everything is in {place.folder}")

    with pytest.raises(RunError, match=f"^loss is nan; everything is in {URL}$"):
        failing()
    assert fsspec.filesystem("journal").exists(f"{URL}/summary.json")


def test_results_that_cannot_land_are_kept_and_a_run_goes_on_without(run: Path) -> None:
    heard: list[str] = []

    def failing() -> None:
        with landing(URL, "run", heard.append) as place:
            assert place.folder is not None
            shutil.copytree(run, place.folder)
            Journal.refused.add("block-0.pt")
            place.publish(place.folder / "checkpoints" / "step-2")
            assert len(heard) == 1, "said, not raised"

    with pytest.raises(RunError, match=r"no permission.*The results are kept in (.*)") as caught:
        failing()
    assert "Access Denied: block-0.pt" in heard[0]
    kept = Path(str(caught.value).rpartition("kept in ")[2])
    assert contents(kept) == contents(run)
    shutil.rmtree(kept.parent)


def test_a_sweep_lands_run_by_run_and_goes_on_from_what_is_there(run: Path) -> None:
    there = fsspec.filesystem("journal")
    for names in (["a", "b"], ["b", "c"]):
        with landing(URL, "sweep") as place:
            assert place.folder is not None
            finished = local_files(place.folder)
            if names[0] == "b":
                assert "a/summary.json" in finished
                assert "a/trace.json" not in finished, "the marks are enough"
                shutil.rmtree(place.folder / "b")
            place.folder.mkdir(exist_ok=True)
            (place.folder / "sweep.yaml").write_text(f"over: {names}")
            place.publish(place.folder / "sweep.yaml")
            for name in names:
                shutil.copytree(run, place.folder / name)
                place.publish(place.folder / name)
                assert there.exists(f"{URL}/{name}/summary.json")
        assert there.exists(f"{URL}/a/trace.json"), "what was finished before stays whole"
    assert there.cat_file(f"{URL}/sweep.yaml") == b"over: ['b', 'c']"


def test_what_is_added_to_fetched_results_is_brought_back(run: Path) -> None:
    push(run, URL)
    there = fsspec.filesystem("journal")
    with fetched(URL) as place:
        assert place.folder is not None
        assert place.folder.name == "mine"
        assert not (place.folder / "checkpoints").exists()
        (place.folder / "report.html").write_text("page")
    assert there.cat_file(f"{URL}/report.html") == b"page"
    assert there.exists(f"{URL}/checkpoints/step-2/block-0.pt")
    with fetched(URL, checkpoints=True) as place:
        assert place.folder is not None
        shutil.rmtree(place.folder / "checkpoints")
    assert not there.exists(f"{URL}/checkpoints/step-2/block-0.pt")
    assert json.loads(there.cat_file(f"{URL}/summary.json")) == {"status": "done"}


def test_a_folder_of_this_machine_stays_where_it_is(tmp_path: Path) -> None:
    with landing(str(tmp_path / "new"), "run") as place:
        assert place.folder == tmp_path / "new"
        place.publish(tmp_path)
        assert place.shown(tmp_path) == str(tmp_path)
    with landing(None, "run") as place:
        assert place.folder is None
    with fetched(str(tmp_path)) as place:
        assert place.folder == tmp_path
