"""Paths in a scenario lead to a node's own copy of the working directory, or are refused with the reason."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from simdist.errors import InputError
from simdist.execution.ray_shipping import Luggage, runtime_env


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project folder that is the working directory."""
    folder = tmp_path / "project"
    (folder / "data").mkdir(parents=True)
    for name in ("model.py", "codec.py", "data/text.txt", "times.yaml"):
        (folder / name).write_text("x")
    monkeypatch.chdir(folder)
    return folder


def test_paths_of_every_form_lead_to_the_copy(project: Path, tmp_path: Path) -> None:
    data: dict[str, Any] = {
        "workload": {"name": f"{project}/model.py:Mine", "corpus": f"file:{project}/data/text.txt", "width": 16},
        "wire": {"grads": f"{project}/codec.py:Mine(levels=3, file=a/b)", "params": "fp32"},
        "compute": {"profile": f"{project}/times.yaml", "speeds": {3: 0.5}},
        "lists": [f"{project}/data", None, "file:relative.txt", "/"],
    }
    luggage = Luggage.packed(data)
    copy = tmp_path / "copy"
    project.rename(copy)
    assert luggage.at(str(copy), "here") == {
        "workload": {"name": f"{copy}/model.py:Mine", "corpus": f"file:{copy}/data/text.txt", "width": 16},
        "wire": {"grads": f"{copy}/codec.py:Mine(levels=3, file=a/b)", "params": "fp32"},
        "compute": {"profile": f"{copy}/times.yaml", "speeds": {3: 0.5}},
        "lists": [f"{copy}/data", None, "file:relative.txt", "/"],
    }


def test_the_copy_comes_first_and_shared_paths_serve_what_has_none(project: Path, tmp_path: Path) -> None:
    shared = tmp_path / "shared.txt"
    shared.write_text("everywhere")
    luggage = Luggage.packed(
        {"here": str(project / "model.py"), "big": str(project / "times.yaml"), "out": str(shared)}
    )
    copy = tmp_path / "copy"
    shutil.copytree(project, copy)
    (copy / "times.yaml").unlink()  # stayed behind
    assert luggage.at(str(copy), "here") == {
        "here": str(copy / "model.py"),
        "big": str(project / "times.yaml"),
        "out": str(shared),
    }


def test_a_file_that_has_not_come_along_is_named_with_the_remedy(project: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere.txt"
    elsewhere.write_text("on the driver's machine only")
    luggage = Luggage.packed({"corpus": f"file:{elsewhere}", "absent": "/no/such/file"})
    elsewhere.unlink()
    with pytest.raises(InputError, match=r"elsewhere.txt', which is not on node 7; expected a file below .*project"):
        luggage.at(str(tmp_path), "node 7")
    # what the driver did not find either is refused where it is read, as on one machine
    assert Luggage.packed({"absent": "/no/such/file"}).at(str(tmp_path), "node 7") == {"absent": "/no/such/file"}


def test_a_job_brings_along_what_it_says(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = runtime_env()
    assert plain["working_dir"] == str(project)
    assert [Path(module).name for module in plain["py_modules"]] == ["simdist"]
    assert "/runs" in plain["excludes"]
    # the variable by which Ray tells a submitted job's driver
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", '{"runtime_env": {"working_dir": "gcs://_ray_pkg_1.zip"}}')
    assert runtime_env().keys() == {"py_modules", "excludes"}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", '{"runtime_env": {"working_dir": "a", "py_modules": ["b"]}}')
    assert runtime_env() == {}


def test_a_working_directory_that_is_gone_is_refused(project: Path) -> None:
    shutil.rmtree(project)
    with pytest.raises(InputError, match="the working directory is gone"):
        runtime_env()
