"""`autofit doctor`: what is installed, which GPUs, what is missing and the command that mends it."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer


def doctor(
    python: Annotated[str | None, typer.Option(help="Interpreter of your training environment; default: this one.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Say what is installed, which GPUs there are, and what is missing; exit 1 if a search could not run."""
    from autofit.tuning.health import examine

    findings = examine(python, Path.cwd())
    if as_json:
        sys.stdout.write(json.dumps([finding.model_dump() for finding in findings], indent=1) + "\n")
    else:
        for finding in findings:
            mend = f"  ->  {finding.mend}" if finding.mend else ""
            sys.stdout.write(f"{finding.status:<8}{finding.what:<22}{finding.detail}{mend}\n")
    if any(finding.status == "missing" for finding in findings):
        raise typer.Exit(1)
