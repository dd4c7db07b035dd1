"""What Prometheus is told: requests by route and status, their time, listeners, and the queue and studies as they are."""

import time
from collections import Counter as Counted
from collections.abc import Iterable
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


class Metrics:
    """One registry an app, so that two apps in a process do not mix."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        labels = ["method", "route", "status"]
        self._requests = Counter("autofit_http_requests", "Requests answered", labels, registry=self.registry)
        self._seconds = Histogram(
            "autofit_http_request_seconds", "Time to answer", ["method", "route"], registry=self.registry, buckets=_SECONDS
        )

    def count(self, method: str, route: str, status: int, seconds: float) -> None:
        """One answered request."""
        self._requests.labels(method, route, str(status)).inc()
        self._seconds.labels(method, route).observe(seconds)

    def text(self, studies: Iterable[dict[str, Any]], listeners: int, supervised: bool) -> bytes:
        """The exposition format.

        Args:
            studies: as `questions.studies` gives them.
        """
        registry = CollectorRegistry()
        registry.register(_Now(list(studies), listeners, supervised))
        return generate_latest(self.registry) + generate_latest(registry)


class _Now:
    """Gauges of what the database says now."""

    def __init__(self, studies: list[dict[str, Any]], listeners: int, supervised: bool) -> None:
        self._studies, self._listeners, self._supervised = studies, listeners, supervised

    def collect(self) -> Iterable[GaugeMetricFamily]:
        by_status = GaugeMetricFamily("autofit_studies", "Studies by status", labels=["status"])
        for status, number in Counted(str(study["status"]) for study in self._studies).items():
            by_status.add_metric([status], number)
        yield by_status
        queued = GaugeMetricFamily("autofit_queue_jobs", "Submitted searches by state", labels=["state"])
        for state, number in Counted(str(study["job"]["state"]) for study in self._studies if study["job"]).items():
            queued.add_metric([state], number)
        yield queued
        trials = GaugeMetricFamily("autofit_trials", "Trials by outcome", labels=["outcome"])
        for outcome in ("completed", "out_of_memory", "skipped", "predicted", "running"):
            trials.add_metric([outcome], sum(int(study[outcome]) for study in self._studies))
        yield trials
        yield GaugeMetricFamily("autofit_event_listeners", "Open event streams", value=self._listeners)
        yield GaugeMetricFamily("autofit_supervisor_up", "Whether a supervisor runs the queue", value=int(self._supervised))


class Measured:
    """ASGI middleware that counts; the route's template is the label, so that names in paths make no new series."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on and counts its answer."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun, status = time.perf_counter(), 500

        async def reply(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = int(message["status"])
            await send(message)

        try:
            await self._app(scope, receive, reply)
        finally:
            route = getattr(scope.get("route"), "path", "none")
            self._metrics.count(str(scope["method"]), str(route), status, time.perf_counter() - begun)
