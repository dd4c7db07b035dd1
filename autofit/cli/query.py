"""`autofit trials`, `show`, `studies` and `query`: what the database knows."""

from collections import deque
from pathlib import Path
from typing import Annotated, Any

import typer

from autofit.cli import output
from autofit.cli.context import database_url
from autofit.store.reader import Reader, Rows

SHOWN_ROWS = 50
"""Rows of a table unless --limit says so; JSON and CSV are complete."""
SHOWN_LOG_LINES = 20

# Column -> its heading in the table of trials. All columns are in the JSON and the CSV.
_TRIAL_TABLE = {
    "trial_number": "trial",
    "outcome": "outcome",
    "method": "method",
    "micro_batch_size": "micro",
    "gradient_accumulation_steps": "accum",
    "cutoff_len": "cutoff",
    "zero_stage": "zero",
    "gradient_checkpointing": "ckpt",
    "frozen": "frozen",
    "peak_device_gib": "peak GiB",
    "step_time_seconds": "step",
    "samples_per_second": "samples/s",
}
_STUDY_TABLE = {
    "study": "study",
    "status": "status",
    "model": "model",
    "memory_budget_bytes": "budget",
    "trials": "trials",
    "completed": "done",
    "out_of_memory": "OOM",
    "winner_trial_number": "winner",
    "best_trial_number": "best",
    "best_samples_per_second": "samples/s",
    "created_at": "created",
}

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document; the same as --format json.")]
Form = Annotated[
    output.Format, typer.Option("--format", help="JSON and CSV have every column and, without --limit, every row.")
]
Limit = Annotated[int | None, typer.Option(min=1, help=f"Rows at most; a table shows {SHOWN_ROWS} unless you say so.")]


def trials(  # noqa: PLR0917 - one parameter a flag
    context: typer.Context,
    study: Annotated[str | None, typer.Option(help="Only this study; default: all.")] = None,
    where: Annotated[str | None, typer.Option(help="Condition, such as: peak_reserved_gib < 70 and zero_stage = 3.")] = None,
    sort: Annotated[str | None, typer.Option(help="Column to sort by; empty values come last.")] = None,
    descending: Annotated[bool, typer.Option("--descending", help="Sort the largest first.")] = False,
    limit: Limit = None,
    form: Form = "table",
    as_json: AsJson = False,
) -> None:
    """List trials: those that a condition names, sorted and cut as asked."""
    form = "json" if as_json else form
    limit = _limit(limit, form)
    with Reader.open(database_url(context)) as reader:
        found = reader.trial_rows(study, where, sort, descending=descending, limit=limit)
    if form == "table":
        _print_trials(found, sort)
    else:
        output.print_rows(found.columns, found.rows, form)
    _say_if_cut(found, limit)


def show(
    context: typer.Context,
    trial: Annotated[int, typer.Argument(min=0, metavar="TRIAL", help="The trial's number.")],
    study: Annotated[str | None, typer.Option(help="Its study; needed when several have this number.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show one trial whole: its configuration, its result and the end of its log."""
    with Reader.open(database_url(context)) as reader:
        document = reader.trial_document(trial, study)
    logs = {name: _tail(Path(document["run_dir"]) / name) for name in ("stdout.log", "stderr.log")}
    if as_json:
        output.print_json({**document, "logs": logs})
        return
    output.print_fields({name: output.cell(name, value) for name, value in document.items() if not isinstance(value, dict)})
    for name in ("spec", "result"):
        output.print_section(name, document[name])
    for name, lines in logs.items():
        output.print_section(f"{name} (last {SHOWN_LOG_LINES} lines)", lines)


def studies(context: typer.Context, form: Form = "table", as_json: AsJson = False) -> None:
    """List the studies with their trials and their best."""
    form = "json" if as_json else form
    with Reader.open(database_url(context)) as reader:
        found = reader.studies()
    if form == "table":
        output.print_table(list(_STUDY_TABLE.values()), [_cells(row, _STUDY_TABLE) for row in found.as_dicts()])
    else:
        output.print_rows(found.columns, found.rows, form)


def query(  # noqa: PLR0917 - one parameter a flag
    context: typer.Context,
    sql: Annotated[str, typer.Argument(metavar="SQL", help="One SELECT over studies, trials, trial_list, best_trials, ...")],
    limit: Limit = None,
    timeout: Annotated[float | None, typer.Option(min=0.001, help="Seconds after which the question is stopped.")] = None,
    form: Form = "table",
    as_json: AsJson = False,
) -> None:
    """Ask the database in SQL, read-only. The dictionary of tables and views is db/README.md."""
    form = "json" if as_json else form
    limit = _limit(limit, form)
    with Reader.open(database_url(context)) as reader:
        found = reader.query(sql, limit=limit, timeout=timeout)
    output.print_rows(found.columns, found.rows, form)
    _say_if_cut(found, limit)


def _limit(limit: int | None, form: output.Format) -> int | None:
    return SHOWN_ROWS if limit is None and form == "table" else limit


def _say_if_cut(found: Rows, limit: int | None) -> None:
    if found.truncated:
        output.remark(f"the first {limit} rows; there are more: --limit, --where or --format csv")


def _print_trials(found: Rows, sort: str | None) -> None:
    rows = found.as_dicts()
    table = dict(_TRIAL_TABLE)
    if len({row["study"] for row in rows}) > 1:
        table = {"study": "study", **table}
    if sort and sort not in table:
        table[sort] = sort
    output.print_table(list(table.values()), [_cells(_told(row), table) for row in rows])


def _told(row: dict[str, Any]) -> dict[str, Any]:
    """The row with what the table says in fewer words: V vision tower, P projector, L language model."""
    parts = {"V": "freeze_vision_tower", "P": "freeze_multi_modal_projector", "L": "freeze_language_model"}
    outcome = row["outcome"] or "running"
    return {
        **row,
        "outcome": f"{outcome} {row['purpose']}" if row["purpose"] != "search" else outcome,
        "gradient_checkpointing": "yes" if row["gradient_checkpointing"] else "no",
        "method": row["method"] if row["lora_rank"] is None else f"lora {row['lora_rank']}",
        "zero_stage": f"{row['zero_stage']}{'+' if row['offload_optimizer'] or row['offload_param'] else ''}",
        "frozen": "".join(letter for letter, name in parts.items() if row[name]) or None,
    }


def _cells(row: dict[str, Any], table: dict[str, str]) -> list[str]:
    return [output.cell(name, row[name]) for name in table]


def _tail(file: Path) -> list[str] | None:
    """The last lines of a log; None when it is gone."""
    try:
        with file.open(encoding="utf-8", errors="replace") as lines:
            return [line.rstrip("\n") for line in deque(lines, SHOWN_LOG_LINES)]
    except OSError:
        return None
