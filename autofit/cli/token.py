"""`autofit token add`, `list` and `revoke`: who may use the service."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from autofit.cli import output

File = Annotated[Path, typer.Option("--tokens", help="File of tokens, as `autofit serve` is given.")]
DEFAULT = Path("autofit-tokens.json")
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
Name = Annotated[str, typer.Argument(help="Whose it is: small letters, digits and -.")]


def app() -> typer.Typer:
    """The group `token`."""
    group = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
    group.command()(add)
    group.command("list")(listing)
    group.command()(revoke)
    return group


def add(
    name: Name,
    role: Annotated[Literal["read", "write"], typer.Option(help="read looks; write also starts and stops searches.")] = "read",
    tokens: File = DEFAULT,
    as_json: AsJson = False,
) -> None:
    """Make a token and print it, this once: only its hash is kept."""
    from autofit.web import tokens as kept

    made = kept.add(tokens, name, role)
    if as_json:
        output.print_json({"name": name, "role": role, "token": made})
    else:
        typer.echo(made)


def listing(tokens: File = DEFAULT, as_json: AsJson = False) -> None:
    """List names and roles."""
    from autofit.web import tokens as kept

    found = kept.listed(tokens)
    if as_json:
        output.print_json([{"name": name, "role": role} for name, role in found.items()])
    else:
        output.print_table(["token", "role"], [[name, role] for name, role in found.items()])


def revoke(name: Name, tokens: File = DEFAULT) -> None:
    """Take a token back; a running service notices at once."""
    from autofit.web import tokens as kept

    kept.revoke(tokens, name)
    typer.echo(f"revoked {name}")
