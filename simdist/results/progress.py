"""What a person sees while a run goes on, and at its end."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar
from rich.table import Table

from simdist.units import format_size, format_time


class Progress:
    """A progress bar with step, loss, simulated time and bytes; silent when switched off."""

    def __init__(self, title: str, steps: int, visible: bool) -> None:
        self._bar = Bar(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            console=Console(stderr=True),
            disable=not visible,
        )
        self._task = self._bar.add_task(title, total=steps, note="")

    def show(self, row: Mapping[str, Any]) -> None:
        """Show the latest row of ``steps.parquet``."""
        loss = row.get("train_loss")
        note = "  ".join(
            [
                f"loss {loss:.3f}" if loss is not None else "",
                f"simulated {format_time(row['simulated_seconds'])}",
                f"sent {format_size(row['sent_bytes_total'])}",
            ]
        )
        self._bar.update(self._task, completed=row["step"], note=note)

    def tell(self, news: str) -> None:
        """Show a line above the bar, or on stderr where there is none."""
        self._bar.console.print(f"simdist: {news}", markup=False, highlight=False, soft_wrap=True)

    def __enter__(self) -> Progress:
        self._bar.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()


def print_summary(folder: Path, summary: Mapping[str, Any]) -> None:
    """Print the closing table of a run."""
    table = Table(title=folder.name, show_header=False, title_justify="left")
    table.add_column(style="bold")
    table.add_column()

    def loss(key: str) -> str:
        value = summary.get(key)
        return "not measured" if value is None else f"{value:.4f} {summary['loss_unit']}"

    table.add_row("workers, engine", f"{summary['workers']}, {summary['engine']}")
    table.add_row("steps", str(summary["steps"]))
    table.add_row("train loss", loss("final_train_loss"))
    table.add_row("validation loss", loss("final_val_loss"))
    table.add_row("simulated time", format_time(summary["simulated_seconds"]))
    table.add_row("per step", _split(summary))
    table.add_row("wall time", format_time(summary["wall_seconds"]))
    table.add_row("sent, all workers", format_size(summary["sent_bytes_total"]))
    table.add_row("sent, per worker and step", format_size(summary["sent_bytes_per_worker_per_step"]))
    table.add_row("parameters sha256", str(summary["params_sha256"])[:16])
    table.add_row("ledger sha256", str(summary["ledger_sha256"])[:16])
    Console().print(table)


def _split(summary: Mapping[str, Any]) -> str:
    """Return how an average step's simulated seconds are spent."""
    busy, exposed, hidden = (summary[f"{kind}_seconds_per_step"] for kind in ("compute", "exposed_comm", "hidden_comm"))
    if busy is None or exposed is None:
        return "not measured"
    beneath = "" if hidden is None else f" ({format_time(hidden)} with traffic hidden beneath)"
    return f"computing {format_time(busy)}{beneath}, exposed traffic {format_time(exposed)}"
