"""`autofit supervise`: runs the searches that were submitted."""

from pathlib import Path
from typing import Annotated

import typer

from autofit.cli.context import database_url


def supervise(
    context: typer.Context,
    runs: Annotated[Path, typer.Option(help="Folder for the trials' files and logs.")] = Path("autofit-runs"),
    gpus: Annotated[str | None, typer.Option(help="Sets of GPUs, one search each: 0,1;2,3. Default: all in one set.")] = None,
    with_process: Annotated[
        int | None, typer.Option(metavar="PID", help="End when nothing is left to do and this process is gone.")
    ] = None,
) -> None:
    """Run the searches of the queue, one on each set of devices; goes on with what an earlier supervisor left."""
    import psutil

    from autofit.cli.output import remark
    from autofit.store import schema
    from autofit.store.sqlite import database_file
    from autofit.tuning.supervisor import ALL_GPUS, Supervisor, gpu_sets

    file = database_file(database_url(context))
    if not file.exists():
        schema.upgrade(file)
    supervisor = Supervisor(str(file.absolute()), runs.resolve(), gpu_sets(gpus) if gpus else (ALL_GPUS,), remark)
    supervisor.run(lambda: with_process is None or psutil.pid_exists(with_process))
