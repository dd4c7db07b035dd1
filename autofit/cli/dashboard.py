"""`autofit dashboard`: a study in optuna-dashboard."""

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from autofit.cli.context import database_url
from autofit.cli.serve import LOOPBACK

if TYPE_CHECKING:
    from collections.abc import Iterable
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment


def dashboard(
    context: typer.Context,
    study: Annotated[str | None, typer.Option(help="Name of the study; default: the newest.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen on, of this machine only.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535)] = 8081,
) -> None:
    """Show a copy of a study, as it is now, in optuna-dashboard."""
    from autofit.config.space import enumerate_space
    from autofit.errors import UsageError
    from autofit.search.dashboard import application, rebuilt
    from autofit.store import Store

    if host not in LOOPBACK:
        raise UsageError(
            f"--host {host}: optuna-dashboard asks for no token, so it listens on 127.0.0.1 only; see autofit serve"
        )
    with Store.open(database_url(context), read_only=True) as store:
        name = study or next((one.name for one in reversed(store.studies())), None)
        if name is None:
            raise UsageError("there is no study yet; `autofit search` makes one")
        record, trials = store.study(name), store.trials(name)
    legal = enumerate_space(record.space, record.model, len(record.hardware.devices), record.floor)
    made = rebuilt(record, legal, trials)
    _serve(local_only(application(made)), host, port, f"study {name}, {len(made.trials)} trials")


def local_only(app: "WSGIApplication") -> "WSGIApplication":
    """`app` for those who asked for this machine by name: another site's name that leads here (DNS rebinding) is refused."""

    def guarded(environ: "WSGIEnvironment", start_response: "StartResponse") -> "Iterable[bytes]":
        name = str(environ.get("HTTP_HOST", "")).rsplit(":", 1)[0].strip("[]")
        if name not in LOOPBACK:
            start_response("421 Misdirected Request", [("Content-Type", "text/plain")])
            return [b"this dashboard does not answer under that Host\n"]
        return app(environ, start_response)

    return guarded


def _serve(app: "WSGIApplication", host: str, port: int, what: str) -> None:
    import socket
    from socketserver import ThreadingMixIn
    from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

    from autofit.errors import UsageError

    class Threaded(ThreadingMixIn, WSGIServer):
        daemon_threads = True
        address_family = socket.AF_INET6 if ":" in host else socket.AF_INET

    class Silent(WSGIRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            """Requests are nobody's business."""

    try:
        server = make_server(host, port, app, server_class=Threaded, handler_class=Silent)
    except OSError as error:
        raise UsageError(f"--port {port}: {error.strerror}; choose another") from error
    with server:
        address = f"[{host}]" if ":" in host else host
        sys.stderr.write(f"{what}: http://{address}:{server.server_port} (Ctrl-C stops it)\n")
        server.serve_forever()
