"""Rows of a data file with the standard library alone, and what is wrong with a file that cannot be read."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from autofit.worker.profile_samples import ProfileError, one_line


def read_rows(file: Path) -> list[dict[str, Any]]:
    """All rows of a json, jsonl, csv or parquet file. A key that only some rows have is None in the others, as in a table.

    Raises:
        ProfileError: it cannot be read, is not what its name says, or its rows are no objects.
    """
    kind = file.suffix[1:].lower()
    try:
        if kind in {"json", "jsonl"}:
            rows = _json_rows(file)
        elif kind == "csv":
            with file.open(encoding="utf-8", newline="") as stream:
                rows = [{key: value or None for key, value in row.items()} for row in csv.DictReader(stream)]
        elif kind == "parquet":
            rows = _parquet_rows(file)
        else:
            raise ProfileError(f"{file}: without LLaMA-Factory only json, jsonl, csv and parquet files can be profiled")
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ProfileError(f"{file}: cannot be read ({one_line(error)})") from error
    for place, row in enumerate(rows):
        if not isinstance(row, dict):
            raise ProfileError(f"{file}: row {place} is a {type(row).__name__}, not an object with columns")
    columns = dict.fromkeys(key for row in rows for key in row)
    return [{key: row.get(key) for key in columns} for row in rows]


def diagnose(files: Sequence[str], what: str, error: Exception) -> str:
    """One line on why a library could not read `files`: what we find wrong ourselves, or else its own reason."""
    for file in files:
        if Path(file).suffix[1:].lower() not in {"json", "jsonl", "csv"}:
            continue
        try:
            read_rows(Path(file))
        except ProfileError as found:
            return str(found)
    root: BaseException = error
    while root.__cause__ is not None or root.__context__ is not None:
        root = root.__cause__ or root.__context__ or root
    return f"{what}: {', '.join(files)} cannot be read as one table ({one_line(root)})"


def _json_rows(file: Path) -> list[Any]:
    """A list of objects, or one object a line; both occur under either name."""
    text = file.read_text(encoding="utf-8")
    try:
        value = json.loads(text)
        return value if isinstance(value, list) else [value]
    except json.JSONDecodeError as whole:
        lines = [(place, line) for place, line in enumerate(text.splitlines(), 1) if line.strip()]
        rows = []
        for place, line in lines:
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError as error:
                found = whole if not rows else error
                where = f"line {whole.lineno}" if not rows else f"line {place}"
                raise ProfileError(f"{file}: is not JSON ({where}: {found.msg})") from error
        return rows


def _parquet_rows(file: Path) -> list[Any]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise ProfileError(f"{file}: reading parquet needs pyarrow in the training environment") from None
    try:
        rows: list[Any] = parquet.read_table(file).to_pylist()
    except ArrowException as error:
        raise ProfileError(f"{file}: is no parquet file ({one_line(error)})") from error
    return rows
