"""``simdist plan MODEL``: from a model's name to tables and folders of what training it would send, take and need."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from simdist.errors import InputError, suggest
from simdist.loading import load, override, parse_over, parse_set
from simdist.plan_tables import tables
from simdist.planned import Planned, plan
from simdist.results.folder import claim_folder
from simdist.results.program_file import ProgramFile
from simdist.results.recorder import Recorder, mean_times, write_json
from simdist.scenario import OPTIMIZER, Scenario, Sweep
from simdist.sweeping import short_keys, value_label
from simdist.units import format_rate, format_time
from simdist.workloads.module_shapes import ModuleShapes
from simdist.workloads.presets import presets

#: what is assumed where a model comes without a scenario: FSDP2 in mixed precision, 8 workers, one 400 Gbit/s link each
BASE: dict[str, Any] = {
    "steps": 1,
    "mesh": {"replicas": 1, "shards": 8},
    "optimizer": {"name": "adamw", "lr": 1e-3},
    "wire": {"params": "bf16", "grads": "bf16", "factors": "bf16", "statistics": "fp32"},
    "network": {"topology": "star", "bandwidth": "400Gbit/s", "latency": "5us", "collectives": "nccl"},
    "compute": {"device": "h100"},
    "overlap": {"policy": "fsdp"},
}


def plan_command(model: str, changes: Sequence[str], over: Sequence[str], out: Path | None) -> None:
    """Plan every combination of ``--over``, print tables, and write a folder for each if ``out`` is given.

    Raises:
        InputError: for a model that is not known, a key or value that does not fit, or a method that needs values.
    """
    from rich.console import Console

    points = combinations(model, parse_set(changes), parse_over(over))
    if out is not None:
        claim_folder(out, "run" if len(points) == 1 else "sweep")
    plans = {}
    for name, scenario in points.items():
        plans[name] = plan(scenario)
        if out is not None:
            write(plans[name], out if len(points) == 1 else out / name)
    if out is not None and len(points) > 1:
        write_json(out / "plan.json", {"plans": {name: one.to_dict() for name, one in plans.items()}})
        # says whose folder this is; what was planned stands in the folders inside
        first = next(iter(points.values()))
        (out / "sweep.yaml").write_text(Sweep(name=f"{first.name}-plan", base=first).to_yaml(), encoding="utf-8")
    console = Console()
    console.print(headline(list(plans.values())), highlight=False)
    for table in tables(list(plans.items()), console.width):
        console.print(table)
    if out is not None:
        print(f"Plan folder: {out}")


def combinations(model: str, fixed: Mapping[str, Any], varied: Mapping[str, list[Any]]) -> dict[str, Scenario]:
    """Return the scenario of every combination of values, by a name for tables and folders.

    An optimizer that is chosen by its name gets what it cannot be without (:meth:`Rule.to_plan`). Steps are 1 where
    nothing else is asked for, also of a scenario file.

    Raises:
        InputError: when the model is not known, or a combination is no valid scenario.
    """
    base, over = _base(model)
    over = {**over, **varied}
    titles = short_keys(list(over))
    found: dict[str, Scenario] = {}
    for values in itertools.product(*over.values()):
        point = dict(zip(over, values, strict=True))
        shown = ",".join(
            value_label(value) if key in ("optimizer", "optimizer.name") else f"{titles[key]}={value_label(value)}"
            for key, value in point.items()
        )
        name = re.sub(r"[^\w.,=+-]+", "-", shown)[:100].strip("-.") or base.name
        if name in found:
            raise InputError(f"got the combination {shown} twice; expected different values for each key")
        found[name] = override(base, _completed({"steps": 1, **fixed, **point}, base))
    return found


def _base(model: str) -> tuple[Scenario, dict[str, list[Any]]]:
    """Return the scenario that a model stands for, and what it varies by itself."""
    if model in presets.names():
        return Scenario.from_dict({**BASE, "name": model, "workload": presets.get(model).model}), {}
    if ".py:" in model:
        name = model.rpartition(":")[2] or "module"
        return Scenario.from_dict({**BASE, "name": name, "workload": ModuleShapes(model=model)}), {}
    if not Path(model).exists() and Path(model).suffix not in (".py", ".yaml", ".yml"):
        raise InputError(
            f"got the model {model!r}; expected one of {', '.join(presets.names())}, a scenario file, or "
            f"path/to/file.py:function that returns an nn.Module.{suggest(model, presets.names())}"
        )
    loaded = load(model)
    return (loaded.base, dict(loaded.over)) if isinstance(loaded, Sweep) else (loaded, {})


def _completed(changes: Mapping[str, Any], base: Scenario) -> dict[str, Any]:
    """Return the changes with an optimizer that is chosen anew given as a whole section, complete."""
    chosen = changes.get("optimizer", changes.get("optimizer.name"))
    section = {"name": chosen} if isinstance(chosen, str) else chosen
    if not isinstance(section, Mapping) or "name" not in section:
        return dict(changes)
    if isinstance(chosen, str) and chosen == OPTIMIZER.name(base.optimizer):
        return dict(changes)
    own = {key.removeprefix("optimizer."): value for key, value in changes.items() if key.startswith("optimizer.")}
    section = {**own, **section}
    made: Any = OPTIMIZER.class_of(section["name"])
    rest = {key: value for key, value in changes.items() if key.partition(".")[0] != "optimizer"}
    return {**rest, "optimizer": {**section, **made.to_plan(section.keys())}}


def write(planned: Planned, folder: Path) -> None:
    """Write a plan as a run folder without values: ``retime`` prices it under other networks.

    ``plan.json`` has all that the tables show. Losses and hashes of parameters are null, ``engine`` is ``plan``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    recorder, program, sent = Recorder(folder), ProgramFile(), 0
    recorder.begin(planned.scenario.to_yaml(), {"seed": planned.scenario.seed, "data_sha256": "none (plan)"})
    workers = planned.scenario.workers
    for step, (ops, times) in enumerate(zip(planned.ops, planned.times, strict=True), 1):
        program.add(ops)
        bytes_now = planned.ledger.step_bytes(ops)
        sent += bytes_now
        recorder.step(
            {
                "step": step,
                "simulated_seconds": times.simulated_seconds,
                "compute_seconds": times.compute_seconds,
                "exposed_comm_seconds": times.exposed_comm_seconds,
                "hidden_comm_seconds": times.hidden_comm_seconds,
                "sent_bytes_total": sent,
                "sent_bytes_per_worker": bytes_now / workers,
            }
        )
    recorder.write_tables(planned.ledger)
    program.write(folder / "program.json")
    write_json(folder / "plan.json", planned.to_dict())
    columns = {name: [row[name] for row in recorder.steps] for name in planned.split}
    recorder.write_summary(
        {
            "status": "done",
            "name": planned.scenario.name,
            "engine": "plan",
            "workers": workers,
            "steps": planned.steps,
            "final_train_loss": None,
            "final_val_loss": None,
            "loss_unit": planned.scenario.workload.loss_unit,
            "simulated_seconds": planned.times[-1].simulated_seconds,
            **mean_times(columns),
            "wall_seconds": None,
            "sent_bytes_total": sent,
            "sent_bytes_per_worker_per_step": sent / workers / planned.steps,
            "params_sha256": None,
            "ledger_sha256": planned.ledger.sha256(),
            "peak_rss_bytes": None,
        }
    )


def headline(plans: Sequence[Planned]) -> str:
    """Return what all plans share, as far as they do, in a few lines above the tables."""
    facts = [
        ("model", {f"{p.scenario.name} ({p.scenario.workload.name}), {p.parameters:,} parameters" for p in plans}),
        ("batch per worker", {f"{p.samples:,} {_unit(p.scenario)}" for p in plans}),
        ("mesh", {f"{p.scenario.mesh.replicas} replicas x {p.scenario.mesh.shards} shards" for p in plans}),
        ("optimizer", {_settings(p.scenario) for p in plans}),
        ("wire", {_wire(p.scenario) for p in plans}),
        ("network", {_network(p.scenario) for p in plans}),
        ("device", {f"{p.scenario.compute.device}, mfu {p.scenario.compute.mfu:g}" for p in plans}),
        ("overlap", {p.scenario.overlap.policy for p in plans}),
        ("steps", {str(p.steps) for p in plans}),
    ]
    lines = [f"{title}: {next(iter(texts)) if len(texts) == 1 else 'see plans'}" for title, texts in facts]
    return "\n".join(lines)


def _unit(scenario: Scenario) -> str:
    return {"nats per token": "tokens", "nats per byte": "bytes"}.get(scenario.workload.loss_unit, "examples")


def _settings(scenario: Scenario) -> str:
    given = {key: getattr(scenario.optimizer, key) for key in scenario.optimizer.model_fields_set - {"name", "lr"}}
    return " ".join([scenario.optimizer.name, *(f"{key}={value_label(given[key])}" for key in sorted(given))])


def _wire(scenario: Scenario) -> str:
    given = scenario.wire.model_dump(exclude_none=True)
    compressed = {f"compression.{axis}": getattr(scenario.compression, axis) for axis in ("replicas", "shards")}
    given |= {key: method.name for key, method in compressed.items() if method is not None}
    return ", ".join(f"{key} {value}" for key, value in given.items())


def _network(scenario: Scenario) -> str:
    network = scenario.network
    rate, delay = format_rate(network.bandwidth), format_time(network.latency)
    return f"{network.topology}, {rate}, {delay}, {network.collectives}"
