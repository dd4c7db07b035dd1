"""Live events: a snapshot, then every change once, for each of many listeners, also for one that comes back."""

import asyncio
import contextlib
import json
import threading
import time
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi.testclient import TestClient
from store_records import NOON, completed, trial_record

from autofit.store import Store
from autofit.web import live
from autofit.web.app import create_app
from autofit.web.kept import Answers
from autofit.web.live import Feeds
from autofit.web.questions import Readers
from autofit.web.settings import Settings

pytestmark = pytest.mark.timeout(120)

TRIALS = 60
LISTENERS = 50


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "POLL_SECONDS", 0.02)


def parsed(chunks: bytes) -> list[tuple[str, str | None, dict[str, Any]]]:
    """(event, id, data) of whole events."""
    found = []
    for block in chunks.decode().strip().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if "event" in fields:
            found.append((fields["event"], fields.get("id"), json.loads(fields["data"])))
    return found


async def follow(stream: AsyncIterator[bytes], most: int = 10**9) -> list[tuple[str, str | None, dict[str, Any]]]:
    events: list[tuple[str, str | None, dict[str, Any]]] = []
    async for chunk in stream:
        events += parsed(chunk)
        if len(events) >= most:
            break
    return events


def drive(database: Path) -> None:
    """What a driver writes: the running trial of `second` ends, others follow, the study is finished."""
    with Store.open(str(database)) as store:
        store.finish_trial("second", 0, NOON, completed(1.0))
        for number in range(1, TRIALS):
            store.start_trial(trial_record(number, study="second"))
            store.finish_trial("second", number, NOON + timedelta(seconds=number), completed(1.0 + number / 100))
        store.set_study_status("second", "FINISHED", TRIALS - 1)


def finished(events: list[tuple[str, str | None, dict[str, Any]]]) -> list[int]:
    return [data["trial_number"] for kind, _, data in events if kind == "trial" and data["state"] == "FINISHED"]


def test_no_listener_loses_or_repeats_an_event(database: Path) -> None:
    async def scene() -> list[list[tuple[str, str | None, dict[str, Any]]]]:
        feeds = Feeds(Answers(Readers(database)), 100)
        joined = [await feeds.join("second") for _ in range(LISTENERS)]
        assert len(set(map(id, joined))) == 1, "one look at the database serves all"
        tasks = [asyncio.create_task(follow(feed.listen(None))) for feed in joined]
        await asyncio.sleep(0.1)
        await asyncio.to_thread(drive, database)
        results = await asyncio.wait_for(asyncio.gather(*tasks), 60)
        for feed in joined:
            feeds.leave(feed)
        assert feeds.listeners == 0
        return results

    for events in asyncio.run(scene()):
        assert events[0][0] == "snapshot"
        assert finished(events) == list(range(TRIALS))
        assert events[-1][0] == "end"
        ids = [number for _, number, _ in events if number]
        assert len(set(ids)) == len(ids)
        assert [data for kind, _, data in events if kind == "study"][-1]["winner_trial_number"] == TRIALS - 1


def test_a_listener_that_comes_back_goes_on_where_it_was(database: Path) -> None:
    async def scene() -> tuple[list[Any], list[Any], list[Any]]:
        feeds = Feeds(Answers(Readers(database)), 100)
        stays = await feeds.join("second")
        whole = asyncio.create_task(follow(stays.listen(None)))
        leaves = await feeds.join("second")
        first = asyncio.create_task(follow(leaves.listen(None), most=7))
        await asyncio.sleep(0.1)
        await asyncio.to_thread(drive, database)
        before = await asyncio.wait_for(first, 30)
        last = next(number for _, number, _ in reversed(before) if number)
        after = await asyncio.wait_for(follow(leaves.listen(last)), 30)
        return before, after, await asyncio.wait_for(whole, 30)

    before, after, whole = asyncio.run(scene())
    assert after[0][0] != "snapshot"
    assert finished(before) + finished(after) == finished(whole) == list(range(TRIALS))


def test_one_that_fell_behind_the_log_gets_a_new_snapshot(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "LOG_EVENTS", 10)

    async def scene() -> list[Any]:
        feeds = Feeds(Answers(Readers(database)), 100)
        feed = await feeds.join("second")
        stream = feed.listen(None)
        events = parsed(await anext(stream))
        await asyncio.to_thread(drive, database)
        await asyncio.sleep(0.5)
        return events + await asyncio.wait_for(follow(stream), 30)

    events = asyncio.run(scene())
    snapshots = [data for kind, _, data in events if kind == "snapshot"]
    last = snapshots[-1]
    told = {row["trial_number"] for row in last["newest"] if row["state"] == "FINISHED"} | set(finished(events))
    assert told == set(range(TRIALS)), "what the log had dropped is in the snapshot"


def test_a_finished_study_ends_its_stream(client: TestClient) -> None:
    answer = client.get("/api/studies/first/events")
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert [kind for kind, _, _ in parsed(answer.content)] == ["snapshot", "end"]
    assert client.get("/api/studies/nothing/events").status_code == 404
    assert client.app.state.context.feeds.listeners == 0  # type: ignore[attr-defined]


def test_beyond_the_limit_listeners_are_refused_in_the_one_shape(database: Path, tmp_path: Path) -> None:
    """Of a real server, all at once; who leaves makes room."""
    settings = Settings(database=database, runs=tmp_path, max_streams=3)
    server = uvicorn.Server(uvicorn.Config(create_app(settings), port=0, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.05)
        port = server.servers[0].sockets[0].getsockname()[1]
        asyncio.run(_crowd(f"http://127.0.0.1:{port}"))
    finally:
        server.should_exit = True
        server.force_exit = True
        thread.join(60)


async def _crowd(url: str) -> None:
    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        open_streams = contextlib.AsyncExitStack()
        request = [client.build_request("GET", "/api/studies/second/events") for _ in range(8)]
        answers = await asyncio.gather(*(client.send(each, stream=True) for each in request))
        assert sorted(each.status_code for each in answers) == [200] * 3 + [429] * 5
        for each in answers:
            open_streams.push_async_callback(each.aclose)
            if each.status_code == 429:
                error = json.loads(await each.aread())["error"]
                assert (error["status"], error["code"]) == (429, "too_many") and "3 listeners" in error["message"]
        heard = next(each for each in answers if each.status_code == 200)
        assert b"snapshot" in await anext(heard.aiter_bytes())
        await open_streams.aclose()
        for _ in range(400):  # until the server has seen them go
            again = await client.send(client.build_request("GET", "/api/studies/second/events"), stream=True)
            await again.aclose()
            if again.status_code == 200:
                return
            await asyncio.sleep(0.05)
        raise AssertionError("nobody made room")


def test_a_client_that_goes_away_is_forgotten(database: Path) -> None:
    async def scene() -> int:
        feeds = Feeds(Answers(Readers(database)), 100)
        feed = await feeds.join("second")

        async def listen() -> None:
            try:
                await follow(feed.listen(None))
            finally:
                feeds.leave(feed)

        task = asyncio.create_task(listen())
        await asyncio.sleep(0.1)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return feeds.listeners

    assert asyncio.run(scene()) == 0


def test_what_has_not_changed_is_not_read_again_while_ticks_go_on(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    keys = live._keys
    monkeypatch.setattr(live, "_keys", lambda reader, study: read.append(study) or keys(reader, study))

    async def scene() -> list[Any]:
        feeds = Feeds(Answers(Readers(database)), 100)
        feed = await feeds.join("second")
        stream = feed.listen(None)
        await anext(stream)
        while feed._ticks < 4:  # what was written while it began is read once more
            await asyncio.sleep(0.02)
        before = len(read)
        while feed._ticks < 10:
            await asyncio.sleep(0.02)
        assert len(read) == before < 4
        await asyncio.to_thread(drive, database)
        return await asyncio.wait_for(follow(stream), 60)

    assert finished(asyncio.run(scene())) == list(range(TRIALS))
    assert len(read) > 3


def test_what_is_written_while_the_feed_looks_is_told_too(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fault that is planted by asking for the version after the look."""
    keys, pending = live._keys, []

    def written_behind_its_back(reader: Any, study: str) -> Any:
        found = keys(reader, study)
        if pending:
            pending.pop()()
        return found

    monkeypatch.setattr(live, "_keys", written_behind_its_back)

    async def scene() -> list[Any]:
        feeds = Feeds(Answers(Readers(database)), 100)
        feed = await feeds.join("second")
        pending.append(lambda: drive(database))
        with_all = await asyncio.wait_for(follow(feed.listen(None)), 60)
        feeds.leave(feed)
        return with_all

    events = asyncio.run(scene())
    told = {row["trial_number"] for row in events[0][2]["newest"] if row["state"] == "FINISHED"} | set(finished(events))
    assert told == set(range(TRIALS))
    assert events[-1][0] == "end"
