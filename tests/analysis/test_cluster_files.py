"""The files under analysis/cluster: what Ray's launcher and KubeRay accept, and commands that simdist understands."""

from __future__ import annotations

import os
import re
import shlex
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from simdist.loading import load, load_scenario, parse_over

HERE = Path(__file__).parents[2] / "analysis" / "cluster"
SCENARIOS = HERE.parents[1] / "scenarios"
LAUNCHER = ("on_premise.yaml", "aws.yaml")
#: a file with KubeRay's CustomResourceDefinition of a RayJob (see analysis/cluster/README.md)
CRD = "SIMDIST_RAYJOB_CRD"


def read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((HERE / name).read_text("utf-8"))
    return found


@pytest.mark.parametrize("name", LAUNCHER)
def test_rays_launcher_accepts_its_files(name: str) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(read(name))
    validate_config(prepared)
    assert prepared["head_node_type"] in prepared["available_node_types"]
    assert prepared["max_workers"] == {"on_premise.yaml": 2, "aws.yaml": 8}[name]
    with pytest.raises(jsonschema.ValidationError, match="max_worker"):
        validate_config({**prepared, "max_worker": 2})


def nothing_else(schema: Any) -> Any:
    """Refuse what a schema does not name, as the API server's strict field validation does."""
    if isinstance(schema, list):
        return [nothing_else(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    strict = {key: nothing_else(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and not schema.get("x-kubernetes-preserve-unknown-fields"):
        strict.setdefault("additionalProperties", False)
    return strict


@pytest.mark.skipif(CRD not in os.environ, reason=f"{CRD} names no file with KubeRay's CRD")
def test_kuberay_accepts_the_job() -> None:
    versions = yaml.safe_load(Path(os.environ[CRD]).read_text("utf-8"))["spec"]["versions"]
    (schema,) = (one["schema"]["openAPIV3Schema"] for one in versions if one["name"] == "v1")
    del schema["properties"]["metadata"]  # the API server's own, which the CRD does not spell out
    validator = jsonschema.Draft202012Validator(nothing_else(schema))
    job = {key: value for key, value in read("rayjob.yaml").items() if key != "metadata"}
    validator.validate(job)
    job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["minReplica"] = 2
    with pytest.raises(jsonschema.ValidationError, match="minReplica"):
        validator.validate(job)


def test_the_job_is_one_cluster_with_room_for_its_actors() -> None:
    job = read("rayjob.yaml")
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    cluster = job["spec"]["rayClusterSpec"]
    (group,) = cluster["workerGroupSpecs"]
    (head,), (worker,) = (part["template"]["spec"]["containers"] for part in (cluster["headGroupSpec"], group))
    assert head["image"] == worker["image"]
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    scenario = load_scenario(str(SCENARIOS / "quickstart.py"), ["engine.name=ray", "engine.actors=4"])
    assert "engine.actors=4" in job["spec"]["entrypoint"]
    assert scenario.engine.actors == group["replicas"] * int(worker["resources"]["requests"]["cpu"])


def test_all_nodes_have_the_ray_that_is_tested() -> None:
    tested = version("ray")
    pinned = re.search(r"^ray==(.*)$", (HERE.parents[1] / "constraints.txt").read_text("utf-8"), re.MULTILINE)
    assert pinned is not None
    assert pinned[1] == tested
    assert read("rayjob.yaml")["spec"]["rayClusterSpec"]["rayVersion"] == tested
    assert f"FROM rayproject/ray:{tested}-py311" in (HERE / "Dockerfile").read_text("utf-8")
    for name in LAUNCHER:
        assert any(f"ray[default]=={tested}" in command for command in read(name)["setup_commands"])


def commands(name: str) -> list[list[str]]:
    """The simdist commands in a file: in its comments or its entrypoint."""
    text = (HERE / name).read_text("utf-8")
    joined = re.sub(r"\\\n#\s*", "", text) if name in LAUNCHER else read(name)["spec"]["entrypoint"]
    return [shlex.split(found) for found in re.findall(r"(simdist (?:run|sweep) .*)", joined)]


@pytest.mark.parametrize("name", [*LAUNCHER, "rayjob.yaml"])
def test_the_commands_shown_are_ones_that_simdist_understands(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from simdist.cli import app

    (command,) = commands(name)
    monkeypatch.chdir(SCENARIOS)
    given = [(option, value) for option, value in pairwise(command) if option.startswith("--")]
    keys = {"--set": "", "--engine": "engine.name="}
    load(command[2], [f"{keys[option]}{value}" for option, value in given if option in keys])
    parse_over([value for option, value in given if option == "--over"])
    # the last that is looked at before anything is run
    address, out = (command.index(option) + 1 for option in ("--ray-address", "--out"))
    assert re.match(r"(s3|file)://", command[out])
    command[address], command[out] = "127.0.0.1:1", "nonsense://x"
    with pytest.raises(SystemExit) as ended:
        app(command[1:], prog_name="simdist")
    message = capsys.readouterr().err
    assert ended.value.code == 2
    assert "Protocol not known: nonsense" in message, message
