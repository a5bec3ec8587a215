"""How the sides that train the decoder are started, the same numbers for all of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from analysis.benchmarks.case import HERE, Side, Size, side_command

SCENARIO = HERE / "sides" / "decoder.py"


def low_rank(size: Size) -> int:
    """Return the rank of low-rank rules: a quarter of the width."""
    return size.width // 4


def heads(size: Size) -> int:
    """Return the decoder's attention heads."""
    return 4 if size.width >= 64 else 2


def model(size: Size) -> str:
    """Return the decoder's shape as the plain sides take it."""
    return f"{size.width},{size.depth},{size.context},{heads(size)}"


def plain(
    size: Size,
    name: str,
    workers: int,
    batch: int,
    steps: int,
    optimizer: str = "adamw",
    micro: int | None = None,
) -> Side:
    """Return the lower bound: one process, the whole batch.

    Args:
        micro: sequences of a micro-batch; default: the number that is quickest here.
    """
    shape = ("--model", model(size), "--workers", workers, "--batch", batch)
    command = side_command("plain_loop", *shape, "--steps", steps, "--optimizer", optimizer, "--rank", low_rank(size))
    if micro is not None:
        says = f"one process, {size.threads} threads, {workers * batch} sequences a step in micro-batches of {micro}"
        return Side(name, (*command, "--micro", str(micro)), says)
    return Side(
        name,
        command,
        f"one process, {size.threads} threads, {workers * batch} sequences a step in micro-batches of the best size",
        # one choice for all cases: it depends on the model alone
        tuned=side_command("plain_loop", "--model", model(size), "--workers", 1, "--batch", 256, "--choose-micro"),
    )


def emulated(
    size: Size,
    name: str,
    engine: str,
    workers: int,
    batch: int,
    steps: int,
    changes: Mapping[str, Any] | None = None,
    threads: int | None = None,
) -> Side:
    """Return simdist's side: a whole run, FSDP unless ``changes`` say otherwise.

    Args:
        threads: torch's threads of each process; default all of the size's.
    """
    settings = {
        "workload.width": size.width,
        "workload.depth": size.depth,
        "workload.heads": heads(size),
        "workload.context": size.context,
        "workload.batch": batch,
        "mesh.replicas": 1,
        "mesh.shards": workers,
        "engine.name": engine,
        "engine.threads": threads or size.threads,
        # the last step also validates, and is left out
        "steps": steps + 1,
        **(changes or {}),
    }
    sets = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    return Side(
        name,
        side_command("emulated", SCENARIO, "{scratch}", *sets),
        f"simdist run, engine {engine}, {threads or size.threads} threads a process; pricing, ledger, tables included",
        threads=threads,
    )
