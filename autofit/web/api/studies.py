"""Studies: submit, list, pause, resume, cancel, watch."""

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Header, Response
from fastapi.responses import StreamingResponse

from autofit.config.job import Wish
from autofit.store.queue import Queue
from autofit.web import questions
from autofit.web.confine import confined
from autofit.web.context import Asking, Context, Here
from autofit.web.live import Feed
from autofit.web.problems import RESPONSES, Refused
from autofit.web.questions import answer
from autofit.web.schemas import Studies, Study, StudyView, Submission

router = APIRouter(prefix="/api/studies", tags=["studies"], responses=RESPONSES)
MAX_WAITING = 1000
"""Searches that may wait; more is no queue but a mistake."""


@router.get("", response_model=Studies)
def list_studies(here: Here) -> Response:
    """Every study and every search that waits, newest first."""
    return answer(b'{"studies":%b}' % here.answers.json(questions.studies))


@router.post("", status_code=201, response_model=StudyView)
def submit(body: Submission, here: Here, caller: Asking) -> Response:
    """Puts a search into the queue."""
    request = confined(here.settings, body.request())
    with Queue(here.settings.database) as queue:
        if len(queue.jobs("QUEUED")) >= MAX_WAITING:
            raise Refused(429, f"{MAX_WAITING} searches wait already")
        queue.submit(body.study, request, caller.name)
    return _view(here, body.study, 201)


@router.get("/{study}", response_model=StudyView)
def one_study(study: Study, here: Here) -> Response:
    """One study, or the search that waits to be one."""
    return _view(here, study)


@router.post("/{study}/pause", response_model=StudyView)
def pause(study: Study, here: Here) -> Response:
    """Stops a search after what is finished; `resume` goes on with it."""
    return _wish(here, study, "PAUSE")


@router.post("/{study}/resume", response_model=StudyView)
def resume(study: Study, here: Here) -> Response:
    """Puts a search that was paused, or that failed, into the queue again."""
    return _wish(here, study, "RUN")


@router.post("/{study}/cancel", response_model=StudyView)
def cancel(study: Study, here: Here) -> Response:
    """Stops a search for good; its trials stay."""
    return _wish(here, study, "CANCEL")


@router.get(
    "/{study}/events",
    response_class=StreamingResponse,
    responses={200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}, "description": "events"}},
)
async def events(
    study: Study, here: Here, last_event_id: Annotated[str | None, Header(max_length=100)] = None
) -> StreamingResponse:
    """Live events: a `snapshot`, then each `trial`, `study`, `tick`, and `end` when nothing more can come."""
    feed = await here.feeds.join(study)
    return StreamingResponse(_stream(here, feed, last_event_id), media_type="text/event-stream")


async def _stream(here: Context, feed: Feed, last_event_id: str | None) -> AsyncIterator[bytes]:
    try:
        async for chunk in feed.listen(last_event_id):
            yield chunk
    finally:
        here.feeds.leave(feed)


def _wish(here: Context, study: str, wish: Wish) -> Response:
    with Queue(here.settings.database) as queue:
        queue.wish(study, wish)
    return _view(here, study)


def _view(here: Context, study: str, status: int = 200) -> Response:
    return answer(here.answers.json(questions.study, study), status)
