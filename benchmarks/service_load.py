"""The service under load: 200 readers of a study of 100,000 trials beside a bare FastAPI route, 1,000 listeners of a live one.

    python benchmarks/service_load.py [--trials 100000] [--readers 200] [--listeners 1000] [--seconds 12]
        [--record benchmarks/results/service_load.json]

Both apps run in a server process of their own on this machine, one after the other; figures are of this run. Exit 1 when a
request failed or a listener lost an event.
"""

import argparse
import asyncio
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "tests")]

from sqlalchemy import insert
from store_records import NOON, completed, out_of_memory, study_record, trial_record

from autofit.cli.serve import open_files
from autofit.store import Store
from autofit.store.rows import result_row, to_json, trial_row
from autofit.store.tables import trial_documents, trials

EVENTS = 40
SERVER = """
import sys, uvicorn
from pathlib import Path
from fastapi import FastAPI, Response
from autofit.cli.serve import open_files
from autofit.web.app import create_app
from autofit.web.settings import Settings
open_files()
bare = FastAPI()
@bare.get("/bare")
def answer() -> Response:
    return Response(b'{"status":"ok"}', media_type="application/json")
app = bare if sys.argv[1] == "bare" else create_app(Settings(database=Path(sys.argv[1]), runs=Path("runs")))
uvicorn.run(app, port=int(sys.argv[2]), log_level="error", backlog=4096)
"""
PATHS = {
    "health": "/api/health",
    "one trial": "/api/studies/first/trials/77",
    "first page": "/api/studies/first/trials?limit=50",
    "filtered": "/api/studies/first/trials?limit=50&where=outcome%20%3D%20'OOM'%20and%20micro_batch_size%20%3C%2030",
    "front": "/api/studies/first/pareto",
    "compromises": "/api/studies/first/compromises",
}


def fill(file: Path, count: int) -> None:
    """A finished study of `count` trials, a third of them out of memory, and a study that runs."""
    with Store.open(str(file)) as store:
        store.create_study(study_record())
        rows, documents = [], []
        names = [column.name for column in trials.c if column.name not in {"id"}]
        for number in range(count):
            record = trial_record(number)
            result = out_of_memory() if number % 3 == 0 else completed(1 + number % 997 / 100, 10 + number * 7919 % 6100 / 100)
            ended = result_row(
                result,
                started_at=NOON.isoformat(),
                finished_at=NOON,
                memory_budget_bytes=72 * 1024**3,
                objective="samples_per_second",
            )
            rows.append(dict.fromkeys(names) | {"study_id": 1} | trial_row(record, 72 * 1024**3, as_asked=1) | ended)
            documents.append(
                {"trial_id": number + 1, "spec": to_json(record.spec), "result": to_json(result), "prediction": None}
            )
        with store._engine.begin() as connection:
            connection.execute(insert(trials), rows)
            connection.execute(insert(trial_documents), documents)
        store.set_study_status("first", "FINISHED", 1)
        store.create_study(study_record(name="live"))


def serve(what: str) -> tuple["subprocess.Popen[bytes]", str]:
    """A server process and its address, once it answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen([sys.executable, "-c", SERVER, what, str(port)])
    url = f"http://127.0.0.1:{port}"
    for _ in range(600):
        try:
            httpx.get(f"{url}/bare")
            return process, url
        except httpx.HTTPError:
            time.sleep(0.1)
    raise SystemExit("the server does not start")


async def read(url: str, path: str, readers: int, seconds: float) -> tuple[list[float], int]:
    """Seconds of each answer while `readers` ask one after the other for `seconds`; and how many failed."""
    taken: list[float] = []
    failed = 0
    limits = httpx.Limits(max_connections=readers, max_keepalive_connections=readers)
    async with httpx.AsyncClient(base_url=url, timeout=60, limits=limits) as client:
        end = time.monotonic() + seconds

        async def reader() -> None:
            nonlocal failed
            while time.monotonic() < end:
                begun = time.perf_counter()
                try:
                    failed += (await client.get(path)).status_code != 200
                except httpx.HTTPError:
                    failed += 1
                taken.append(time.perf_counter() - begun)

        await asyncio.gather(*(reader() for _ in range(readers)))
    return taken, failed


async def listen(url: str, listeners: int, database: Path) -> tuple[int, float]:
    """Events that listeners lost, of EVENTS trials each; and the longest from a trial's end to its last listener, seconds."""
    written: dict[int, float] = {}
    late: list[float] = []
    lost = 0
    ready = 0
    async with httpx.AsyncClient(base_url=url, timeout=120, limits=httpx.Limits(max_connections=listeners)) as client:

        async def listener() -> None:
            nonlocal lost, ready
            seen: set[int] = set()
            async with client.stream("GET", "/api/studies/live/events") as answer:
                kind = ""
                async for line in answer.aiter_lines():
                    if line.startswith("event: "):
                        kind = line[7:]
                        ready += kind == "snapshot"
                        if kind == "end":
                            break
                    elif line.startswith("data: ") and kind == "trial":
                        row = json.loads(line[6:])
                        if row["state"] == "FINISHED":
                            seen.add(row["trial_number"])
                            late.append(time.monotonic() - written[row["trial_number"]])
            lost += len(set(range(EVENTS)) - seen)

        async def driver() -> None:
            while ready < listeners:
                await asyncio.sleep(0.1)
            with Store.open(str(database)) as store:
                for number in range(EVENTS):
                    store.start_trial(trial_record(number, study="live"))
                    store.finish_trial("live", number, datetime.now(UTC) + timedelta(seconds=1), completed(1 + number / 10))
                    written[number] = time.monotonic()
                    await asyncio.sleep(0.1)
                store.set_study_status("live", "FINISHED", 1)

        await asyncio.gather(driver(), *(listener() for _ in range(listeners)))
    return lost, max(late)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=100_000)
    parser.add_argument("--readers", type=int, default=200)
    parser.add_argument("--listeners", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=12.0, help="how long each route is asked")
    parser.add_argument("--record", type=Path, help="write the figures to this JSON file")
    asked = parser.parse_args()
    open_files()
    bad = 0
    routes: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        database = Path(folder) / "autofit.db"
        fill(database, asked.trials)
        print(f"{platform.machine()}, Python {platform.python_version()}, {asked.trials:,} trials, {asked.readers} readers")
        print(f"{'route':<12} {'answers':>8} {'a second':>9} {'p50 ms':>8} {'p95 ms':>8} {'failed':>7}")
        for what, paths in (("bare", {"bare": "/bare"}), (str(database), PATHS), ("bare", {"bare again": "/bare"})):
            process, url = serve(what)
            try:
                for name, path in paths.items():
                    taken, failed = asyncio.run(read(url, path, asked.readers, asked.seconds))
                    bad += failed
                    cuts = statistics.quantiles(taken, n=20)
                    middle, high = 1000 * cuts[9], 1000 * cuts[18]
                    routes[name] = {"answers": len(taken), "p50_ms": middle, "p95_ms": high, "failed": failed}
                    print(
                        f"{name:<12} {len(taken):>8} {len(taken) / asked.seconds:>9.0f} {middle:>8.1f} {high:>8.1f} {failed:>7}"
                    )
                if what != "bare":
                    lost, longest = asyncio.run(listen(url, asked.listeners, database))
                    bad += lost
            finally:
                process.terminate()
                process.wait()
        print(f"{asked.listeners} listeners of {EVENTS} finished trials: {lost} events lost, the latest {longest:.2f} s behind")
    if asked.record:
        machine = {"machine": platform.machine(), "cpu_count": os.cpu_count(), "python": platform.python_version()}
        live = {"listeners": asked.listeners, "events": EVENTS, "lost": lost, "latest_seconds": longest}
        document = {"at": datetime.now(UTC).date().isoformat(), **machine, "trials": asked.trials, "readers": asked.readers}
        asked.record.write_text(json.dumps({**document, "routes": routes, "live": live}, indent=1) + "\n")
    return 1 if bad else 0


if __name__ == "__main__":
    raise SystemExit(main())
