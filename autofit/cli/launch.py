"""`autofit launch`: the real run."""

from pathlib import Path
from typing import Annotated

import typer

from autofit.cli.context import database_url


def launch(
    context: typer.Context,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder that `autofit export` wrote.")],
    recover: Annotated[
        bool, typer.Option("--recover", help="After an out-of-memory go on from the last checkpoint, with the next safer one.")
    ] = False,
    python: Annotated[str | None, typer.Option(help="Interpreter of your training environment; default: the trials'.")] = None,
) -> None:
    """Run the launcher on what was exported, its output passed through; exits as the launcher does."""
    from contextlib import nullcontext

    from autofit.cli.output import remark
    from autofit.store import Store
    from autofit.tuning.launching import launch

    with Store.open(database_url(context), create=False) if recover else nullcontext() as store:
        launched = launch(folder, python, store, remark)
    if launched.recoveries and launched.status == 0:
        remark(f"finished after {len(launched.recoveries)} recovery(s); the last run was that of {launched.folder}")
    if launched.status:
        raise typer.Exit(launched.status)
