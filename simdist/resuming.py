"""``simdist resume``: go on with a run that was interrupted, failed, or was killed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from simdist.assembly import build_job, build_pricer, build_task
from simdist.checkpointing import FREE
from simdist.errors import InputError
from simdist.loading import load_scenario
from simdist.results.folder import kind_of
from simdist.results.recorder import Recorder
from simdist.running import Publish, drive
from simdist.sweeping import read_summary


def resume(
    folder: Path,
    changes: list[str],
    progress: bool = True,
    ray_address: str | None = None,
    publish: Publish = lambda folder: None,
) -> bool:
    """Go on from a run's last good checkpoint, or from step 1 where it has none; the bits are the same either way.

    Args:
        folder: of the run.
        changes: ``engine.KEY=VALUE`` and ``checkpoint.KEY=VALUE``: how it goes on, not what it computes.
        progress, ray_address, publish: see :func:`simdist.running.run`.

    Returns:
        False when the run was finished already, so that there was nothing to do.

    Raises:
        InputError: for a folder that holds no run, other keys, data that have changed, or a run that is under way.
        RunError: when the run failed again.
    """
    if kind_of(folder) != "run":
        raise InputError(f"got {str(folder)!r}, which is no run folder; expected one that `simdist run` wrote")
    for change in changes:
        key = change.partition("=")[0]
        if key.partition(".")[0] not in FREE:
            sections = " or ".join(f"{section}.KEY=VALUE" for section in FREE)
            raise InputError(f"--set: got {key!r}, which would make it another run; expected {sections}")
    if read_summary(folder).get("status") == "done":
        return False
    scenario = load_scenario(str(folder / "scenario.yaml"), changes)
    if ray_address is not None and scenario.engine.name != "ray":
        raise InputError(f"--ray-address: got it with engine {scenario.engine.name!r}; expected --engine ray")
    task = build_task(scenario)
    recorded = _environment(folder).get("data_sha256")
    if recorded != task.data_hash:
        raise InputError(
            f"got {str(folder)!r}, whose data have changed since it began (sha256 {str(recorded)[:16]}, now "
            f"{task.data_hash[:16]}); expected the same files, or a new run"
        )
    job, pricer = build_job(scenario, task), build_pricer(scenario)
    drive(scenario, job, pricer, Recorder(folder), progress, ray_address, publish, fresh=False)
    return True


def _environment(folder: Path) -> dict[str, Any]:
    """Read ``environment.json``.

    Raises:
        InputError: when it is damaged.
    """
    try:
        found: dict[str, Any] = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{folder / 'environment.json'} is damaged ({error}); expected a run's own file") from error
    return found
