"""What every script measures goes into a CSV in one way."""

import csv
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any


def write(path: Path | None, rows: Sequence[Any]) -> None:
    """Rows of one dataclass, under the names of its fields; nothing without a path."""
    if path is None:
        return
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(rows[0])])
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)
