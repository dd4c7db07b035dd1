"""`autofit serve`: the service."""

import resource
import sys
from pathlib import Path
from typing import Annotated

import typer

from autofit.cli.context import database_url

LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
OPEN_FILES = 65_536
"""What the service asks the system for: every request and every live page has one open."""
_OTHER_FILES = 256
"""Those of the database's readers, logs, libraries, and connections that wait for their next request."""
STOP_SECONDS = 5
"""For open event streams to end when the server is told to stop."""


def serve(  # noqa: PLR0917 - one parameter a flag
    context: typer.Context,
    host: Annotated[str, typer.Option(help="Address to listen on; beyond this machine --tokens is needed.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535)] = 8080,
    tokens: Annotated[Path | None, typer.Option(help="File of access tokens; see autofit token.")] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="Certificate chain (PEM).")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its private key (PEM).")] = None,
    allow_host: Annotated[list[str] | None, typer.Option(help="Name under which it answers, too; may be repeated.")] = None,
    root: Annotated[
        list[Path] | None, typer.Option(help="Folder in which requests may name models and data; may be repeated.")
    ] = None,
    python: Annotated[
        list[str] | None, typer.Option(metavar="[NAME=]PATH", help="Training environment; those with a NAME may be asked for.")
    ] = None,
    runs: Annotated[Path, typer.Option(help="Folder for the trials' files and logs.")] = Path("autofit-runs"),
    gpus: Annotated[str | None, typer.Option(help="Sets of GPUs, one search each: 0,1;2,3. Default: all in one set.")] = None,
    max_listeners: Annotated[int, typer.Option(min=1, help="Live pages at a time; further ones are refused.")] = 2000,
    no_supervisor: Annotated[bool, typer.Option("--no-supervisor", help="Do not run the queue from here.")] = False,
) -> None:
    """Serve the database: pages for people, REST for programs, a queue for searches."""
    from autofit.errors import UsageError
    from autofit.store.sqlite import database_file

    if host not in LOOPBACK and tokens is None:
        raise UsageError(
            f"--host {host}: whoever reaches it could start searches; make tokens (autofit token add NAME --role read --tokens"
            " FILE) and give --tokens FILE"
        )
    if (tls_cert is None) != (tls_key is None):
        raise UsageError("--tls-cert and --tls-key belong together")
    for file in (tls_cert, tls_key, tokens):
        if file is not None and not file.is_file():
            raise UsageError(f"{file}: no such file")
    try:
        import uvicorn

        from autofit.web.app import create_app
        from autofit.web.settings import Settings
    except ImportError as error:
        raise UsageError(f"the service needs {error.name}: pip install 'autofit-llm[web]'") from None
    requests = max(64, open_files() - _OTHER_FILES)
    listeners = min(max_listeners, requests * 3 // 4)
    if listeners < max_listeners:
        sys.stderr.write(f"{listeners} live pages at a time: this process may open no more files (see ulimit -Hn)\n")
    named, default = _interpreters(python or [])
    settings = Settings(
        database=database_file(database_url(context)).absolute(),
        runs=runs.resolve(),
        python=default,
        pythons=named,
        roots=tuple(_folder(folder) for folder in root or []),
        tokens=tokens.absolute() if tokens else None,
        hosts=(*sorted(LOOPBACK), *([host] if host not in {"0.0.0.0", "::"} else []), *(allow_host or [])),  # noqa: S104
        secure=tls_cert is not None,
        supervise=not no_supervisor,
        gpus=gpus,
        max_streams=listeners,
        max_requests=requests,
    )
    config = uvicorn.Config(
        create_app(settings),
        host=host,
        port=port,
        ssl_certfile=str(tls_cert) if tls_cert else None,
        ssl_keyfile=str(tls_key) if tls_key else None,
        log_level="warning",
        server_header=False,
        timeout_graceful_shutdown=STOP_SECONDS,
    )
    scheme = "https" if tls_cert else "http"
    sys.stderr.write(f"{scheme}://{f'[{host}]' if ':' in host else host}:{port} (Ctrl-C stops it; searches go on)\n")
    uvicorn.Server(config).run()


def open_files() -> int:
    """Raises this process's limit of open files as far as the system lets it, and returns it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, OPEN_FILES)
    if soft == resource.RLIM_INFINITY or soft >= most:
        return OPEN_FILES if soft == resource.RLIM_INFINITY else soft
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    return most


def _interpreters(given: list[str]) -> tuple[dict[str, str], str]:
    """Those with a name, and the one without, which is the default."""
    from autofit.errors import UsageError

    named: dict[str, str] = {}
    default = sys.executable
    for text in given:
        name, separator, path = text.rpartition("=")
        if not Path(path).is_file():
            raise UsageError(f"--python {text}: no such interpreter")
        if separator:
            named[name] = str(Path(path).absolute())
        else:
            default = str(Path(path).absolute())
    return named, default


def _folder(folder: Path) -> Path:
    from autofit.errors import UsageError

    if not folder.is_dir():
        raise UsageError(f"--root {folder}: no such folder")
    return folder.resolve()
