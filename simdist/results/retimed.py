"""The tables of a re-timing: the run's own, read or booked once, with the times of each network put in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from simdist.communication.ledger import Ledger
from simdist.errors import InputError
from simdist.results.recorder import LEDGER, STEPS


class StepsTable:
    """``steps.parquet`` of a finished run; columns that an older run lacks are null.

    Attributes:
        numbers: of the recorded steps.

    Raises:
        InputError: when the file is missing or damaged.
    """

    def __init__(self, path: Path) -> None:
        try:
            with pq.ParquetFile(path) as file:
                table = file.read()
            none = pa.nulls(table.num_rows)
            columns = {name: table[name] if name in table.column_names else none for name in STEPS.names}
            self._table = pa.table(columns).cast(STEPS)
        except (OSError, pa.ArrowException) as error:
            raise InputError(f"{path} cannot be read ({error}); run the scenario again") from error
        self.numbers: list[int] = self._table["step"].to_pylist()

    def write(self, path: Path, columns: Mapping[str, Sequence[float]]) -> None:
        """Write the table with some columns replaced."""
        table = self._table
        for name, values in columns.items():
            place = STEPS.get_field_index(name)
            table = table.set_column(place, STEPS.field(place), pa.array(values, STEPS.field(place).type))
        pq.write_table(table, path)


class LedgerTable:
    """``ledger.parquet`` of some steps, all but its times."""

    def __init__(self, ledger: Ledger) -> None:
        columns: dict[str, Any] = ledger.columns()
        self._table = pa.table(columns, schema=LEDGER)

    def write(self, path: Path, start: NDArray[Any], end: NDArray[Any]) -> None:
        """Write the table with the times (seconds) of its rows; both of shape [rows]."""
        table = self._table
        for name, values in (("start_seconds", start), ("end_seconds", end)):
            place = LEDGER.get_field_index(name)
            table = table.set_column(place, LEDGER.field(place), pa.array(values))
        pq.write_table(table, path)
