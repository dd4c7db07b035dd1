"""What the routes share: settings, readers, feeds, predictors, metrics. One of each an app, made when it starts."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Request

from autofit.launch.environment import probe
from autofit.predict.devices import device_model
from autofit.predict.predictor import Predictor
from autofit.web.kept import Answers
from autofit.web.live import Feeds
from autofit.web.metrics import Metrics
from autofit.web.problems import Refused
from autofit.web.questions import Readers
from autofit.web.settings import Settings
from autofit.web.tokens import Caller


@dataclass
class Predictors:
    """One predictor an interpreter and card; each answers one question at a time, for it keeps traces as it goes."""

    most: int
    _all: dict[tuple[str, str | None], tuple[Predictor, threading.Lock]] = field(default_factory=dict, init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)
    _busy: int = field(default=0, init=False)

    @contextmanager
    def use(self, python: str, card: str | None) -> Iterator[Predictor]:
        """The predictor of an interpreter and a card, for one question.

        Raises:
            Refused: as many predictions as may run do so already, and as many wait.
            LaunchError: the interpreter cannot be asked.
        """
        with self._lock:
            if self._busy >= 8 * self.most:
                raise Refused(429, "too many predictions wait; ask again in a moment")
            self._busy += 1
        try:
            predictor, lock = self._predictor(python, card)
            with lock:
                yield predictor
        finally:
            with self._lock:
                self._busy -= 1

    def _predictor(self, python: str, card: str | None) -> tuple[Predictor, threading.Lock]:
        with self._lock:
            if (found := self._all.get((python, card))) is not None:
                return found
        environment = probe(python)
        predictor = Predictor(environment.python, environment.versions, device=device_model(card) if card else None)
        with self._lock:
            return self._all.setdefault((python, card), (predictor, threading.Lock()))


class Context:
    """Everything that a route may need beside its request."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.readers = Readers(settings.database)
        self.answers = Answers(self.readers)
        self.feeds = Feeds(self.answers, settings.max_streams)
        self.predictors = Predictors(settings.max_predictions)
        self.metrics = Metrics()

    def close(self) -> None:
        """Closes what is open."""
        self.answers.close()


def context_of(request: Request) -> Context:
    """The app's context."""
    found = request.app.state.context
    assert isinstance(found, Context)
    return found


def caller_of(request: Request) -> Caller:
    """Who asks; the gate has let them in."""
    found = request.state.caller
    assert isinstance(found, Caller)
    return found


Here = Annotated[Context, Depends(context_of)]
Asking = Annotated[Caller, Depends(caller_of)]
