"""`autofit doctor`: what is installed, which GPUs, what is missing and the command that mends it."""

from pathlib import Path
from typing import Annotated

import typer

from autofit.cli import output


def doctor(
    python: Annotated[str | None, typer.Option(help="Interpreter of your training environment; default: this one.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Say what is installed, which GPUs there are, and what is missing; exit 1 if a search could not run."""
    from autofit.tuning.health import examine

    findings = examine(python, Path.cwd())
    if as_json:
        output.print_json([finding.model_dump() for finding in findings])
    else:
        rows = [[finding.status, finding.what, finding.detail, finding.mend or ""] for finding in findings]
        output.print_table(["status", "what", "found", "mend with"], rows)
    if any(finding.status == "missing" for finding in findings):
        raise typer.Exit(1)
