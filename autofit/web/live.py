"""Live events of a study: one look at the database for all its listeners, each of which reads the same log at its own pace.

A listener begins with a `snapshot` (or, when it comes back with the id of the last event it saw, right after that one) and then
gets every change: `trial` when one starts or ends, `study` when the study's or its job's state changes, `end` when nothing
more can come. These have ids and none is left out. `tick` tells where the running trial is; only the newest one counts.
"""

import asyncio
import json
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi.sse import format_sse_event
from starlette.concurrency import run_in_threadpool

from autofit.config.hardware import Device
from autofit.config.job import ENDED
from autofit.errors import AutofitError
from autofit.launch.watching import look
from autofit.store.reader import Reader
from autofit.web import questions
from autofit.web.kept import Answers
from autofit.web.problems import Refused

POLL_SECONDS = 0.5
PING_SECONDS = 15.0
LOG_EVENTS = 20_000
"""Events that are kept for listeners that come back; one that is further behind gets a new snapshot."""

_TRIALS = """SELECT t.trial_number, t.state, t.attempt, t.purpose, t.outcome, t.phase, t.objective_value, t.samples_per_second,
    t.tokens_per_second, t.peak_device_bytes, t.margin_bytes, t.predicted_peak_bytes, t.predicted_samples_per_second,
    t.method, t.lora_rank, t.micro_batch_size, t.gradient_accumulation_steps, t.cutoff_len, t.zero_stage,
    t.gradient_checkpointing, t.freeze_vision_tower, t.freeze_multi_modal_projector, t.freeze_language_model,
    t.started_at, t.finished_at, t.message FROM trials t JOIN studies s ON s.id = t.study_id WHERE s.name = ?"""
_KEYS = "SELECT t.trial_number, t.state, t.attempt FROM trials t JOIN studies s ON s.id = t.study_id WHERE s.name = ?"
_RUNNING = """SELECT t.trial_number, t.run_dir, s.hardware, s.device FROM trials t JOIN studies s ON s.id = t.study_id
    WHERE s.name = ? AND t.state = 'RUNNING' ORDER BY t.trial_number"""
_STUDY_KEYS = ("status", "winner_trial_number", "trials", "completed", "out_of_memory", "skipped", "best", "job", "running")

Keys = dict[int, tuple[str, int]]
"""Trial number -> state and attempt."""


@dataclass(frozen=True)
class Running:
    """The trial that runs, as far as a tick needs it."""

    trial_number: int
    run_dir: Path
    devices: tuple[Device, ...]
    cuda: bool


class Feed:
    """The events of one study, as long as somebody listens."""

    def __init__(self, answers: Answers, study: str) -> None:
        self.study = study
        self.listeners = 0
        self._answers = answers
        self._epoch = ""
        self._log: list[bytes] = []
        self._dropped = 0
        """Events that were taken out of the log's front."""
        self._tick: bytes | None = None
        self._ticks = 0
        self._ended = False
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._known: Keys = {}
        self._summary: dict[str, Any] = {}
        self._version = 0
        """Of the database, before what is known was read."""
        self._running: Running | None = None

    async def start(self) -> None:
        """Takes the first look.

        Raises:
            NotFound: no such study or job.
        """
        self._summary, self._known = await run_in_threadpool(self._first)
        self._epoch = secrets.token_hex(4)
        self._ended = _is_over(self._summary)
        self._task = asyncio.create_task(self._follow())

    def stop(self) -> None:
        """Nobody listens any more."""
        if self._task is not None:
            self._task.cancel()

    async def listen(self, last_id: str | None) -> AsyncIterator[bytes]:
        """The events for one listener, as they go over the wire."""
        at = self._place_after(last_id)
        if at is None:
            at = self._dropped + len(self._log)
            yield await self._snapshot(at)
        ticks = -1
        while True:
            changed = self._changed
            if at < self._dropped:  # too slow for the log: begin anew rather than leave anything out
                at = self._dropped + len(self._log)
                yield await self._snapshot(at)
            fresh = self._log[at - self._dropped :]
            if fresh:
                at += len(fresh)
                yield b"".join(fresh)
            if self._ticks != ticks and self._tick is not None:
                ticks = self._ticks
                yield self._tick
            if self._ended and at == self._dropped + len(self._log):
                yield _event("end", {"study": self.study}, None)
                return
            try:
                # not `wait_for`: Python 3.11's forgets a cancellation that comes together with the event
                async with asyncio.timeout(PING_SECONDS):
                    await changed.wait()
            except TimeoutError:
                yield b": still here\n\n"

    async def _snapshot(self, at: int) -> bytes:
        """The event of a snapshot that is at least as new as the first `at` events."""
        text = await run_in_threadpool(self._answers.json, _newest, self.study)
        return format_sse_event(data_str=text.decode(), event="snapshot", id=f"{self._epoch}-{at}")

    def _place_after(self, last_id: str | None) -> int | None:
        epoch, _, number = (last_id or "").partition("-")
        if epoch != self._epoch or not number.isdigit() or not self._dropped <= int(number) <= self._dropped + len(self._log):
            return None
        return int(number)

    async def _follow(self) -> None:
        while not self._ended:
            await asyncio.sleep(POLL_SECONDS)
            try:
                events, tick, over = await run_in_threadpool(self._look)
            except AutofitError:
                continue  # locked, or gone for a moment: listeners wait
            for kind, document in events:
                self._log.append(_event(kind, document, f"{self._epoch}-{self._dropped + len(self._log) + 1}"))
            if len(self._log) > LOG_EVENTS:
                cut = len(self._log) - LOG_EVENTS
                del self._log[:cut]
                self._dropped += cut
            if tick is not None:
                self._tick, self._ticks = _event("tick", tick, None), self._ticks + 1
            self._ended = over
            if events or tick is not None or over:
                self._changed.set()
                self._changed = asyncio.Event()

    # in threads

    def _first(self) -> tuple[dict[str, Any], Keys]:
        # no version yet: the first look reads everything, whatever was written meanwhile
        with self._answers.readers.open() as reader:
            return questions.study(reader, self.study), _keys(reader, self.study)

    def _look(self) -> tuple[list[tuple[str, dict[str, Any]]], dict[str, Any] | None, bool]:
        version = self._answers.version()  # before anything is read: what is committed later is looked at next time
        if version == self._version:
            return [], _tick(self._running), _is_over(self._summary)
        events: list[tuple[str, dict[str, Any]]] = []
        with self._answers.readers.open() as reader:
            # The study first: what is over by then has all its trials in what is read next.
            summary = questions.study(reader, self.study)
            keys = _keys(reader, self.study)
            news = [number for number, key in keys.items() if self._known.get(number) != key]
            for start in range(0, len(news), 500):
                part = news[start : start + 500]
                marks = ", ".join(map(str, part))
                rows = reader.ask(f"{_TRIALS} AND t.trial_number IN ({marks}) ORDER BY t.trial_number", (self.study,))
                events += [("trial", row) for row in rows.as_dicts()]
            # what the rows say now is what listeners know, even if they changed since the keys were read
            for _, row in events:
                keys[row["trial_number"]] = (row["state"], row["attempt"])
            if {key: summary[key] for key in _STUDY_KEYS} != {key: self._summary[key] for key in _STUDY_KEYS}:
                events.append(("study", summary))
            self._running = _running(reader, self.study)
        self._summary, self._known, self._version = summary, keys, version
        return events, _tick(self._running), _is_over(summary)


class Feeds:
    """The feeds of all studies that somebody listens to."""

    def __init__(self, answers: Answers, most: int) -> None:
        """
        Args:
            most: listeners at a time, of all studies together.
        """
        self._answers, self._most = answers, most
        self._feeds: dict[str, Feed] = {}
        self._lock = asyncio.Lock()
        self.listeners = 0

    async def join(self, study: str) -> Feed:
        """The feed of a study; `leave` it afterwards.

        Raises:
            NotFound: no such study.
            Refused: as many listeners as may be are here already.
        """
        async with self._lock:  # those who come together are counted one after the other
            if self.listeners >= self._most:
                raise Refused(429, f"{self._most} listeners are here already; the study's page can be reloaded instead")
            feed = self._feeds.get(study)
            if feed is None:
                feed = Feed(self._answers, study)
                await feed.start()
                self._feeds[study] = feed
            feed.listeners += 1
            self.listeners += 1
            return feed

    def leave(self, feed: Feed) -> None:
        """One listener less."""
        feed.listeners -= 1
        self.listeners -= 1
        if feed.listeners == 0:
            feed.stop()
            if self._feeds.get(feed.study) is feed:
                del self._feeds[feed.study]


def _newest(reader: Reader, study: str) -> dict[str, Any]:
    """The study, and its newest trials; older ones are asked for by `/trials`."""
    rows = reader.ask(_TRIALS + " ORDER BY t.trial_number DESC LIMIT 500", (study,)).as_dicts()
    return {**questions.study(reader, study), "newest": rows[::-1]}


def _keys(reader: Reader, study: str) -> Keys:
    return {number: (state, attempt) for number, state, attempt in reader.ask(_KEYS, (study,)).rows}


def _is_over(summary: dict[str, Any]) -> bool:
    """Whether nothing more will happen by itself."""
    job = summary["job"]
    if job is not None:
        return bool(job["state"] in ENDED)
    return bool(summary["status"] != "RUNNING")


def _running(reader: Reader, study: str) -> Running | None:
    rows = reader.ask(_RUNNING, (study,)).as_dicts()
    if not rows:
        return None
    row = rows[-1]
    devices = tuple(Device.model_validate(device) for device in json.loads(row["hardware"])["devices"])
    return Running(row["trial_number"], Path(row["run_dir"]), devices, cuda=row["device"] == "cuda")


def _tick(running: Running | None) -> dict[str, Any] | None:
    """Where the running trial is: its worker says so, whether or not the database changes."""
    if running is None:
        return None
    sample = look(running.run_dir, running.devices, cuda=running.cuda)
    where = {"phase": "start", "step": 0, "memory_bytes": None}
    if sample is not None:
        where = {"phase": sample.phase, "step": sample.step, "memory_bytes": sample.memory_bytes}
    return {"trial_number": running.trial_number, **where}


def _event(kind: str, document: dict[str, Any], event_id: str | None) -> bytes:
    text = json.dumps(questions.plain(document), ensure_ascii=False, separators=(",", ":"))
    return format_sse_event(data_str=text, event=kind, id=event_id)
