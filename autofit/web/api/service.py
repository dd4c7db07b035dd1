"""The service itself: health, metrics, sessions, what may be named, and questions in SQL."""

import json

from fastapi import APIRouter, Request, Response
from starlette.concurrency import run_in_threadpool

import autofit
from autofit.config.model import preset_names
from autofit.export import EXPORTERS
from autofit.predict.devices import DEVICES
from autofit.store.schema import head_revision
from autofit.tuning.supervisor import is_supervised
from autofit.web import questions
from autofit.web.confine import shipped_spaces
from autofit.web.context import Asking, Here
from autofit.web.gate import COOKIE, LOCAL
from autofit.web.problems import RESPONSES, Refused
from autofit.web.questions import answer
from autofit.web.schemas import Choices, Health, Identity, Sql, Table, Token
from autofit.web.tokens import Keeper

router = APIRouter(prefix="/api", tags=["service"], responses=RESPONSES)
_SESSION_SECONDS = 30 * 86_400


@router.get("/health", response_model=Health)
def health(here: Here) -> Response:
    """Whether the database can be read; 503 if not."""
    with here.readers.open() as reader:
        reader.ask("SELECT 1 FROM studies LIMIT 1")
    supervised = is_supervised(here.settings.database)
    return answer(
        {"status": "ok", "version": autofit.__version__, "schema_revision": head_revision(), "supervisor": supervised}
    )


@router.get(
    "/metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}, "description": "Prometheus' text format"}},
)
def metrics(here: Here) -> Response:
    """For Prometheus."""
    found = json.loads(here.answers.json(questions.studies))
    text = here.metrics.text(found, here.feeds.listeners, is_supervised(here.settings.database))
    return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")


@router.get("/me", response_model=Identity)
def me(caller: Asking) -> Response:
    """Whose token this is, and what it may do."""
    return answer({"name": caller.name, "role": caller.role})


@router.post("/session", response_model=Identity)
async def open_session(body: Token, here: Here) -> Response:
    """Keeps a token in a cookie that no script can read and no other site can use."""
    if here.settings.tokens is None:
        return answer({"name": LOCAL.name, "role": LOCAL.role})
    caller = await run_in_threadpool(Keeper(here.settings.tokens).recognise, body.token)
    if caller is None:
        raise Refused(401, "this token is not known", "token")
    done = answer({"name": caller.name, "role": caller.role})
    done.set_cookie(
        COOKIE, body.token, max_age=_SESSION_SECONDS, httponly=True, samesite="strict", secure=here.settings.secure, path="/"
    )
    return done


@router.delete("/session", status_code=204, response_class=Response)
def close_session(request: Request) -> Response:
    """Forgets the cookie."""
    done = Response(status_code=204)
    done.delete_cookie(COOKIE, path="/", httponly=True, samesite="strict")
    return done


@router.get("/choices", response_model=Choices)
def choices(here: Here) -> Response:
    """What a request may name."""
    cards = [{"name": card.name, "memory_bytes": card.memory_bytes} for card in DEVICES.values()]
    with here.readers.open() as reader:
        columns = reader.trial_columns()
    return answer(
        {
            "presets": preset_names(),
            "spaces": shipped_spaces(),
            "cards": cards,
            "pythons": list(here.settings.pythons),
            "launchers": list(EXPORTERS),
            "trial_columns": list(columns),
        }
    )


@router.post("/query", response_model=Table)
def query(body: Sql, here: Here) -> Response:
    """One SELECT, read-only, stopped when it takes too long."""
    with here.readers.open() as reader:
        found = reader.query(body.sql, limit=body.limit, timeout=here.settings.query_seconds)
    rows = [list(row) for row in found.rows]
    return answer({"columns": list(found.columns), "rows": rows, "truncated": found.truncated})
