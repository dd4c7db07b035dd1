"""How commands print: tables for people, JSON and CSV for programs. Answers go to stdout, remarks to stderr."""

import csv
import json
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

from autofit.units import format_bytes, format_seconds

Format = Literal["table", "json", "csv"]
NOTHING = "-"
_BAR = 40
_LINE_SECONDS = 10.0


def print_json(document: Any) -> None:
    """One JSON document on stdout."""
    sys.stdout.write(json.dumps(document, indent=1, ensure_ascii=False, default=_as_text) + "\n")


def print_csv(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """A header and one line a row on stdout; an empty value is an empty cell."""
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([_as_text(value) if isinstance(value, bytes) else value for value in row] for row in rows)


def print_table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Aligned columns on stdout: figures to the right, words to the left. Nothing is cut, also in a pipe.

    Written out here because loading and running rich takes as long as the query over 100,000 trials.
    """
    lines = [list(headers), *map(list, rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    right = [bool(rows) and _is_figures(row[place] for row in rows) for place in range(len(headers))]
    for cells in lines:
        aligned = (text.rjust(width) if r else text.ljust(width) for text, width, r in zip(cells, widths, right, strict=True))
        sys.stdout.write("  ".join(aligned).rstrip() + "\n")


def print_fields(fields: Mapping[str, str]) -> None:
    """One `name  value` a line on stdout."""
    width = max((len(name) for name in fields), default=0)
    for name, value in fields.items():
        sys.stdout.write(f"{name:<{width}}  {value}\n")


def remark(text: str) -> None:
    """One line on stderr, beside the answer."""
    sys.stderr.write(text + "\n")


def rows_profiled() -> Callable[[int, int], None]:
    """Shows on stderr how far profiling the data has come: a bar on a terminal, elsewhere a line every ten seconds."""
    last = time.monotonic()

    def show(done: int, rows: int) -> None:
        nonlocal last
        if sys.stderr.isatty():
            filled = _BAR * done // max(rows, 1)
            bar = f"[{'#' * filled}{' ' * (_BAR - filled)}]"
            sys.stderr.write(f"\rprofiling the data {bar} {done}/{rows} rows" + ("\n" if done == rows else ""))
            sys.stderr.flush()
        elif time.monotonic() - last >= _LINE_SECONDS:
            last = time.monotonic()
            remark(f"profiling the data: {done} of {rows} rows")

    return show


def print_rows(columns: Sequence[str], rows: Sequence[Sequence[Any]], form: Format) -> None:
    """Rows of a query as they are, in the form that the user chose."""
    if form == "json":
        print_json(as_dicts(columns, rows))
    elif form == "csv":
        print_csv(columns, rows)
    else:
        print_table(columns, [[cell(name, value) for name, value in zip(columns, row, strict=True)] for row in rows])


def as_dicts(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[dict[str, Any]]:
    """Rows by column name; a name that comes again gets a number."""
    names = [name if name not in columns[:place] else f"{name}_{place + 1}" for place, name in enumerate(columns)]
    return [dict(zip(names, row, strict=True)) for row in rows]


def cell(name: str, value: Any) -> str:
    """A value as a person reads it; the column's name tells its unit."""
    if value is None:
        return NOTHING
    if isinstance(value, int) and name.endswith("_bytes"):
        return format_bytes(value)
    if isinstance(value, float):
        return _figure(name, value)
    if name.endswith("_at"):
        return str(value)[:19].replace("T", " ")
    return " ".join(_as_text(value).split()) or "''"


def _figure(name: str, value: float) -> str:
    if name.endswith("_gib"):
        return f"{value:.2f}"
    if name.endswith("_seconds"):
        return format_seconds(value)
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.2f}" if abs(value) >= 1 else f"{value:.3g}"


def _is_figures(cells: Iterable[str]) -> bool:
    return all(text[:1].isdigit() or text[:1] in {"-", "."} for text in cells)


def _as_text(value: Any) -> str:
    return value.hex() if isinstance(value, bytes) else str(value)


def print_section(title: str, content: Any) -> None:
    """A title and, indented under it, what belongs to it: nested mappings by key, lists of lines as they are."""
    sys.stdout.write(f"\n{title}\n")
    if content is None:
        sys.stdout.write("  (none)\n")
    elif isinstance(content, list):
        sys.stdout.writelines(f"  {line}\n" for line in content)
    else:
        _print_nested(content, "  ")


def _print_nested(mapping: Mapping[str, Any], indent: str) -> None:
    for name, value in mapping.items():
        if isinstance(value, dict) and value:
            sys.stdout.write(f"{indent}{name}:\n")
            _print_nested(value, indent + "  ")
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            for place, item in enumerate(value):
                sys.stdout.write(f"{indent}{name}[{place}]:\n")
                _print_nested(item, indent + "  ")
        else:
            sys.stdout.write(f"{indent}{name}: {json.dumps(value, ensure_ascii=False)}\n")
