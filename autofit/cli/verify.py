"""`autofit verify`: does an export's certificate still hold here."""

from pathlib import Path
from typing import Annotated

import typer

from autofit.cli import output


def verify(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder that `autofit export` wrote.")],
    python: Annotated[str | None, typer.Option(help="Interpreter of your training environment; default: the trials'.")] = None,
    gpu_mem: Annotated[str | None, typer.Option(help="Memory that the run may have here, if it is another.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Say whether an export's certificate still holds here: files, versions, data, hardware, budget; exit 1 if not."""
    from autofit.tuning.verification import read_certificate, verify
    from autofit.units import parse_bytes

    verdict = verify(folder, read_certificate(folder), python, parse_bytes(gpu_mem) if gpu_mem else None)
    if as_json:
        output.print_json({"holds": verdict.holds, "broken": list(verdict.broken), "unchecked": list(verdict.unchecked)})
    else:
        for line in verdict.broken:
            typer.echo(f"does not hold: {line}")
        for line in verdict.unchecked:
            typer.echo(f"not checked: {line}")
        if verdict.holds:
            typer.echo("holds")
    if not verdict.holds:
        raise typer.Exit(1)
