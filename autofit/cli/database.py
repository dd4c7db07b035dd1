"""`autofit db upgrade` and `autofit db current`: the database's schema."""

from typing import Annotated

import typer

from autofit.cli import output
from autofit.cli.context import database_url
from autofit.store import schema
from autofit.store.sqlite import database_file

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


def app() -> typer.Typer:
    """The group `db`."""
    group = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
    group.command()(upgrade)
    group.command()(current)
    return group


def upgrade(context: typer.Context, as_json: AsJson = False) -> None:
    """Bring the database to the newest revision, in one transaction; creates it if there is none. Copy the file first."""
    file = database_file(database_url(context))
    before = schema.upgrade(file)
    if as_json:
        output.print_json({"database": str(file), "from": before.revision, "revision": before.head})
    elif before.is_current:
        output.print_fields({str(file): f"revision {before.head}, the newest already"})
    else:
        output.print_fields({str(file): f"revision {before.head} (was {before.revision or 'empty'})"})


def current(context: typer.Context, as_json: AsJson = False) -> None:
    """Say which revision the database has, and which is the newest."""
    file = database_file(database_url(context))
    found = schema.current(file)
    if as_json:
        output.print_json(
            {"database": str(file), "revision": found.revision, "newest": found.head, "current": found.is_current}
        )
    else:
        todo = "the newest" if found.is_current else f"the newest is {found.head}; run: autofit --db {file} db upgrade"
        output.print_fields({str(file): f"revision {found.revision or 'none (empty)'}, {todo}"})
