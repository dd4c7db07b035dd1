"""`autofit report`: a study as one page, and as pictures."""

from pathlib import Path
from typing import Annotated

import typer

from autofit.cli.context import database_url


def report(
    context: typer.Context,
    study: Annotated[str, typer.Option(help="Name of the study.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="The page to write; ends in .html.")] = Path(
        "report.html"
    ),
    pictures: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Also write the pictures as PNG files here.", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document: the files written.")] = False,
) -> None:
    """Write a study's findings as one HTML file that needs nothing else, for a colleague without autofit."""
    from autofit.cli.output import print_json
    from autofit.report.study_report import check_page, write_report
    from autofit.store import Store
    from autofit.store.reader import Reader
    from autofit.tuning.findings import find

    check_page(out)
    url = database_url(context)
    with Store.open(url, read_only=True) as store, Reader.open(url) as reader:
        findings = find(store.study(study), store.trials(study))
        files = write_report(findings, reader.trial_rows(study).as_dicts(), out, pictures)
    if as_json:
        print_json({"study": study, "files": [str(path) for path in files]})
        return
    for path in files:
        typer.echo(path)
