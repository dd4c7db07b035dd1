"""What pages and programs ask of the database, over readers that are kept open; and answers as JSON for every reader."""

import json
import math
import queue
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fastapi import Response

from autofit.errors import AutofitError
from autofit.store.reader import Reader, Rows
from autofit.web.best import best_of

KEPT = 16

_SUMMARY = """
    SELECT s.name AS study, s.status, s.model, s.device, s.engine, s.sampler, s.objective, s.created_at, s.gpu_mem_bytes,
        s.memory_budget_bytes, s.winner_trial_number, s.hardware, count(t.id) AS trials,
        coalesce(sum(t.state = 'RUNNING'), 0) AS running,
        coalesce(sum(t.outcome = 'COMPLETED'), 0) AS completed,
        coalesce(sum(t.outcome IN ('OOM', 'HOST_OOM')), 0) AS out_of_memory,
        coalesce(sum(t.outcome = 'SKIPPED'), 0) AS skipped,
        coalesce(sum(t.outcome = 'PREDICTED'), 0) AS predicted
    FROM studies s LEFT JOIN trials t ON t.study_id = s.id {where} GROUP BY s.id ORDER BY s.id
"""
_JOB = """SELECT study, state, wish, message, created_at, submitted_by, attempt, device_set,
    json_extract(request, '$.trials') AS trials_wanted FROM queue"""


class Readers:
    """Read-only connections, each used by one thread at a time and looked at before it is used again."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._free: queue.SimpleQueue[Reader] = queue.SimpleQueue()

    @contextmanager
    def open(self) -> Iterator[Reader]:
        """A reader for the length of the block.

        Raises:
            StoreError: the database is gone, locked, older or newer.
        """
        reader = self._take()
        try:
            yield reader
        except BaseException:
            reader.close()
            raise
        if self._free.qsize() < KEPT:
            self._free.put(reader)
        else:
            reader.close()

    def _take(self) -> Reader:
        while True:
            try:
                reader = self._free.get_nowait()
            except queue.Empty:
                return Reader(self.file)
            try:
                reader.check()
            except AutofitError:
                reader.close()
                continue
            return reader

    def close(self) -> None:
        """Closes those that nobody uses."""
        while not self._free.empty():
            self._free.get_nowait().close()


def answer(document: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """`document` as JSON, or the JSON that it is already."""
    text = document if isinstance(document, bytes) else encoded(document)
    return Response(text, status, headers, media_type="application/json")


def encoded(document: Any) -> bytes:
    """`document` as JSON; what JSON has no word for (bytes, infinity) becomes text."""
    try:
        text = json.dumps(document, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except (ValueError, TypeError):
        text = json.dumps(plain(document), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.encode("utf-8", "replace")


def plain(value: Any) -> Any:
    """`value` in JSON's own kinds."""
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value


def studies(reader: Reader) -> list[dict[str, Any]]:
    """Every study and every search that waits for one, newest first, with its best and its job."""
    found = {row["study"]: _shaped(row) for row in _ask(reader, _SUMMARY.format(where="")).as_dicts()}
    for job in _ask(reader, _JOB + " ORDER BY id").as_dicts():
        name = job.pop("study")
        found.setdefault(name, _waiting(name, job))["job"] = job
    for name, figures in best_of(reader).items():
        found[name]["best"] = figures
    newest = list(found.values())[::-1]  # the last of those that were made at once
    return sorted(newest, key=lambda study: str(study["created_at"]), reverse=True)


def study(reader: Reader, name: str) -> dict[str, Any]:
    """One study, or the search that waits to be one.

    Raises:
        NotFound: neither.
    """
    rows = _ask(reader, _SUMMARY.format(where="WHERE s.name = ?"), name).as_dicts()
    jobs = _ask(reader, _JOB + " WHERE study = ?", name).as_dicts()
    job = {key: value for key, value in jobs[0].items() if key != "study"} if jobs else None
    if not rows:
        if job is None:
            reader.trial_rows(name, limit=1)  # raises what names the nearest
        return {**_waiting(name, job or {}), "job": job}
    return {**_shaped(rows[0]), "job": job, "best": best_of(reader, name).get(name)}


def trial_number_of(reader: Reader, name: str) -> int | None:
    """The winner of a study, or else its best so far; None: nothing that trains what was asked for is known to fit."""
    found = study(reader, name)
    if found["winner_trial_number"] is not None:
        return int(found["winner_trial_number"])
    return int(found["best"]["trial_number"]) if found.get("best") else None


def _ask(reader: Reader, sql: str, *values: object) -> Rows:
    return reader.ask(sql, values)


def _shaped(row: dict[str, Any]) -> dict[str, Any]:
    devices = json.loads(row.pop("hardware"))["devices"]
    return {**row, "devices": len(devices), "device_name": devices[0]["name"], "job": None, "best": None}


def _waiting(name: str, job: dict[str, Any]) -> dict[str, Any]:
    """A study that is not there yet."""
    absent = dict.fromkeys(
        (
            "model", "device", "engine", "sampler", "objective", "gpu_mem_bytes", "memory_budget_bytes",
            "winner_trial_number", "device_name", "best",
        )
    )  # fmt: skip
    counts = dict.fromkeys(("trials", "running", "completed", "out_of_memory", "skipped", "predicted", "devices"), 0)
    return {"study": name, "status": "WAITING", "created_at": job.get("created_at"), **absent, **counts, "job": None}
