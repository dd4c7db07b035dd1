"""`autofit export`: the files that a launcher runs."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from autofit.cli.context import database_url


def export(  # noqa: PLR0917 - one parameter a flag
    context: typer.Context,
    study: Annotated[str, typer.Option(help="Name of the study.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Folder to write to; made if missing.")],
    trial: Annotated[int | None, typer.Option(min=0, help="Number of the trial; default: the study's winner.")] = None,
    launcher: Annotated[
        Literal["llamafactory", "transformers", "trl", "axolotl", "deepspeed"], typer.Option(help="What is to run the files.")
    ] = "llamafactory",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Write the files that a launcher runs, with the trial's evidence in them."""
    from autofit.cli.output import print_json, remark
    from autofit.export.report import export_from
    from autofit.store import Store

    with Store.open(database_url(context), read_only=True) as store:
        done = export_from(store.study(study), store.trials(study), trial, launcher, out)
    if done.warning:
        remark(done.warning)
    if as_json:
        print_json({"trial_number": done.trial_number, "files": [str(path) for path in done.files], "command": done.command})
        return
    for path in done.files:
        typer.echo(path)
    typer.echo(f"run it: {done.command}")
