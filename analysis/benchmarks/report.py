"""The table of findings, for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table


def show(value: float, unit: str) -> str:
    """Write a number with its unit.

    >>> show(1.234, "x"), show(0.05, "%"), show(1.5e9, "B"), show(2.0, "s"), show(0.004, "s")
    ('1.23 x', '5.0 %', '1500 MB', '2.00 s', '4.0 ms')
    """
    if unit == "%":
        return f"{100 * value:.1f} %"
    if unit == "B":
        return f"{value / 1e6:.0f} MB"
    if unit == "s":
        return f"{value:.2f} s" if abs(value) >= 0.1 else f"{1000 * value:.1f} ms"
    return f"{value:.2f} x"


def verdict(finding: Mapping[str, Any]) -> str:
    """Say whether a target is met."""
    return {None: "", True: "yes", False: "NO"}[finding["met"]]


def case_table(name: str, entry: Mapping[str, Any]) -> Table:
    """Return one case's findings."""
    found = Table(title=f"{name}: {entry['says']}", box=box.SIMPLE_HEAD, title_justify="left", title_style="bold")
    found.add_column("measured (median over rounds)", ratio=1)
    for column in ("", "least to most", "target", "met?"):
        found.add_column(column, justify="right", no_wrap=True)
    for finding in entry["findings"]:
        low, high = min(finding["values"]), max(finding["values"])
        unit, limit = finding["unit"], finding["limit"]
        found.add_row(
            finding["what"] + (f" ({finding['note']})" if finding["note"] else ""),
            show(finding["median"], unit),
            f"{show(low, unit)} to {show(high, unit)}",
            "" if limit is None else f"<= {show(limit, unit)}",
            verdict(finding),
        )
    found.expand = True
    return found


def print_table(results: Mapping[str, Any], console: Console) -> None:
    """Print the findings, the machine, and what to know about the run."""
    for name, entry in results["cases"].items():
        if "findings" in entry:
            console.print(case_table(name, entry))
        else:
            why = f"skipped: {entry['skipped']}" if "skipped" in entry else f"FAILED: {entry['failed']}"
            console.print(f"{name}: {why}\n", markup=False)
    machine = results["machine"]
    memory = machine["memory_bytes"] / 2**30
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    console.print(f"{machine['processor']}, {machine['cpus']} CPUs, {memory:.0f} GiB; {versions}")
    if results["quick"]:
        console.print("A smoke run (--quick): these numbers say nothing about speed.", style="yellow")


def missed(results: Mapping[str, Any]) -> list[str]:
    """Return what is wrong: cases that failed, and targets that are missed (a smoke run misses none)."""
    wrong = []
    for name, entry in results["cases"].items():
        if "failed" in entry:
            wrong.append(f"{name}: {entry['failed']}")
        findings = () if results["quick"] else entry.get("findings", ())
        wrong += [f"{name}: {finding['what']}" for finding in findings if finding["met"] is False]
    return wrong
