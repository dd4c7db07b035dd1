"""`create_app`: the routes, behind the gate, with one shape of error."""

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from fastapi import FastAPI
from fastapi.staticfiles import StaticFiles
from starlette.concurrency import run_in_threadpool

import autofit
from autofit.store import schema
from autofit.tuning.supervisor import is_supervised
from autofit.web import pages, problems
from autofit.web.api import exports, predictions, service, studies, trials
from autofit.web.context import Context
from autofit.web.gate import Gate
from autofit.web.metrics import Measured
from autofit.web.settings import Settings

LOOK_SECONDS = 5.0
"""Between looks whether the supervisor lives."""


def create_app(settings: Settings) -> FastAPI:
    """The service as an ASGI app. A database that is missing is made; an older one is not changed.

    Raises:
        StoreError: the database cannot be opened, or has another schema.
        UsageError: the tokens cannot be read.
    """
    if not settings.database.exists():
        schema.upgrade(settings.database)
    schema.require_current(schema.current(settings.database), settings.database)
    context = Context(settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        keeper = asyncio.create_task(_keep_supervisor(settings)) if settings.supervise else None
        yield
        if keeper is not None:
            keeper.cancel()
            with suppress(asyncio.CancelledError):
                await keeper
        context.close()

    app = FastAPI(
        title="autofit",
        version=autofit.__version__,
        description="Searches, trials, predictions and exports over one trial database.",
        openapi_url="/api/openapi.json",
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
    )
    app.state.context = context
    problems.install(app)
    for part in (service, studies, trials, predictions, exports):
        app.include_router(part.router)
    app.include_router(pages.router)
    app.mount("/static", StaticFiles(directory=pages.STATIC), name="static")
    app.add_middleware(Gate, settings=settings)
    app.add_middleware(Measured, metrics=context.metrics)
    return app


async def _keep_supervisor(settings: Settings) -> None:
    """Starts a supervisor where there is none, also when it was killed. It is a process of its own and outlives this one."""
    children: list[subprocess.Popen[bytes]] = []
    while True:
        children = [child for child in children if child.poll() is None]  # reaps those that have ended
        if not await run_in_threadpool(is_supervised, settings.database):
            children.append(await run_in_threadpool(_start_supervisor, settings))
        await asyncio.sleep(LOOK_SECONDS)


def _start_supervisor(settings: Settings) -> "subprocess.Popen[bytes]":
    argv = [sys.executable, "-m", "autofit.cli", f"--db={settings.database}", "supervise", f"--runs={settings.runs}"]
    argv += [f"--with-process={os.getpid()}", *([f"--gpus={settings.gpus}"] if settings.gpus else [])]
    return subprocess.Popen(argv, stdin=subprocess.DEVNULL, start_new_session=True)
