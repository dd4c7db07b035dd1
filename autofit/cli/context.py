"""What every command is told by the global options."""

from dataclasses import dataclass

import typer

DEFAULT_URL = "sqlite:///autofit.db"


@dataclass(frozen=True)
class Globals:
    """The global options, as `context.obj`."""

    db: str


def database_url(context: typer.Context) -> str:
    """What `--db` or $AUTOFIT_DB says, or the default."""
    found = context.find_object(Globals)
    return found.db if found else DEFAULT_URL
