"""The command line's frame: the list of commands, the global options, and how an error becomes one line and an exit status.

A command's module is imported only when its name is on the command line, so that `autofit --help` and `autofit trials` start
as fast as Python and the option parser do.
"""

import os
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from autofit.cli.context import DEFAULT_URL, Globals
from autofit.errors import AutofitError

Implementation = Callable[..., None] | typer.Typer
"""The function of a command, or the Typer app of a group of them."""


@dataclass(frozen=True)
class Command:
    """A command before its module is imported."""

    summary: str
    """Its line in `autofit --help`; short enough for 80 columns."""
    load: Callable[[], Implementation]
    """Imports it."""


def _search() -> Implementation:
    from autofit.cli.search import search

    return search


def _predict() -> Implementation:
    from autofit.cli.predict import predict

    return predict


def _explain() -> Implementation:
    from autofit.cli.predict import explain

    return explain


def _profile() -> Implementation:
    from autofit.cli.profile import profile

    return profile


def _trials() -> Implementation:
    from autofit.cli.query import trials

    return trials


def _show() -> Implementation:
    from autofit.cli.query import show

    return show


def _studies() -> Implementation:
    from autofit.cli.query import studies

    return studies


def _query() -> Implementation:
    from autofit.cli.query import query

    return query


def _export() -> Implementation:
    from autofit.cli.export import export

    return export


def _report() -> Implementation:
    from autofit.cli.report import report

    return report


def _launch() -> Implementation:
    from autofit.cli.launch import launch

    return launch


def _verify() -> Implementation:
    from autofit.cli.verify import verify

    return verify


def _serve() -> Implementation:
    from autofit.cli.serve import serve

    return serve


def _dashboard() -> Implementation:
    from autofit.cli.dashboard import dashboard

    return dashboard


def _supervise() -> Implementation:
    from autofit.cli.supervise import supervise

    return supervise


def _token() -> Implementation:
    from autofit.cli.token import app

    return app()


def _db() -> Implementation:
    from autofit.cli.database import app

    return app()


def _doctor() -> Implementation:
    from autofit.cli.doctor import doctor

    return doctor


COMMANDS: dict[str, Command] = {
    "search": Command("Find the fastest configuration that fits, by running trials.", _search),
    "predict": Command("Predict memory and time without running anything.", _predict),
    "explain": Command("Explain a configuration's memory, and what makes it fit.", _explain),
    "profile": Command("Profile training data: lengths, truncation, cutoff floor.", _profile),
    "trials": Command("List trials; filter and sort them.", _trials),
    "show": Command("Show one trial whole: spec, result, end of its log.", _show),
    "studies": Command("List the studies, with their best.", _studies),
    "query": Command("Ask the database in SQL, read-only.", _query),
    "export": Command("Write the files that a launcher runs.", _export),
    "report": Command("Write a study's findings as one HTML page.", _report),
    "launch": Command("Run the launcher on what was exported.", _launch),
    "verify": Command("Say whether an export's certificate still holds here.", _verify),
    "serve": Command("Serve the database: web pages and REST.", _serve),
    "dashboard": Command("Show a copy of a study in optuna-dashboard.", _dashboard),
    "supervise": Command("Run the searches that were submitted to the service.", _supervise),
    "token": Command("Add, list and revoke the service's access tokens.", _token),
    "db": Command("The database's schema: its revision, and its upgrade.", _db),
    "doctor": Command("Say what is installed and what is missing.", _doctor),
}
"""Every command, in the order of the help. A new one is registered here."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command line; `sys.argv` unless given. Returns the exit status and never raises for an AutofitError."""
    given = _globals_first(sys.argv[1:] if arguments is None else arguments)
    try:
        status = _run(given)
        sys.stdout.flush()
    except BrokenPipeError:
        # whoever read our output has had enough; what is left must not be flushed into the pipe at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130
    return status


def _run(given: Sequence[str]) -> int:
    try:
        typer.main.get_command(build(given))(args=list(given), prog_name="autofit")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0
    except AutofitError as error:
        if "--debug" in given:
            traceback.print_exc()
        sys.stderr.write(f"error: {' '.join(str(error).splitlines())}\n")
        return error.exit_code
    return 0


def build(given: Sequence[str]) -> typer.Typer:
    """The whole command line, with the commands that `given` names imported; the others have only their summary."""
    app = typer.Typer(
        add_completion=False, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False, callback=_globals
    )
    for name, command in COMMANDS.items():
        implementation = command.load() if name in given else _not_loaded
        if isinstance(implementation, typer.Typer):
            app.add_typer(implementation, name=name, help=command.summary)
        else:
            app.command(name, help=command.summary if implementation is _not_loaded else None)(implementation)
    return app


def _not_loaded() -> None:
    raise AssertionError("a command ran that was not imported")


def _globals_first(arguments: Sequence[str]) -> list[str]:
    """`arguments` with the global options moved to the front: people write `autofit trials --db other.db` too."""
    front: list[str] = []
    rest: list[str] = []
    words = iter(arguments)
    for word in words:
        if word == "--":
            return [*front, *rest, word, *words]
        if word == "--debug" or word.startswith("--db="):
            front.append(word)
        elif word == "--db":
            front += [word, *(value for value in [next(words, None)] if value is not None)]
        else:
            rest.append(word)
    return front + rest


def _version(wanted: bool) -> None:
    if wanted:
        from autofit import __version__

        sys.stdout.write(f"autofit {__version__}\n")
        raise typer.Exit


def _globals(
    context: typer.Context,
    db: Annotated[
        str, typer.Option(metavar="URL", envvar="AUTOFIT_DB", help="Database: a path or sqlite:///FILE.")
    ] = DEFAULT_URL,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> Any:
    """Find the fastest fine-tuning configuration that stays inside a GPU memory budget, by running it."""
    context.obj = Globals(db)
