"""The queue of searches: rows that whoever submits writes and the supervisor takes, by the standard library's SQLite alone.

Two write here, each its own columns: who asks adds rows and changes `wish`; the supervisor, of which there is one a database,
changes all others. Every change is one short transaction.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from autofit.config.job import ENDED, Job, JobRequest, JobState, Wish
from autofit.errors import Conflict, NotFound
from autofit.store import schema
from autofit.store.sqlite import check_file, database_file, explain

_COLUMNS = (
    "id", "study", "created_at", "submitted_by", "request", "wish", "state", "device_set", "attempt", "started_at",
    "finished_at", "message",
)  # fmt: skip
_MAY: dict[Wish, tuple[JobState, ...]] = {
    "RUN": ("PAUSED", "FAILED", "QUEUED", "RUNNING"),
    "PAUSE": ("QUEUED", "RUNNING", "PAUSED"),
    "CANCEL": ("QUEUED", "RUNNING", "PAUSED", "CANCELLED"),
}
"""The states in which a wish can be granted."""


class Queue:
    """An open queue. A context manager; for one thread at a time.

    Every method raises StoreError, in one line, when the database cannot be read or written.
    """

    def __init__(self, file: Path) -> None:
        """
        Raises:
            StoreError: no database of the newest schema.
        """
        check_file(file, create=False)
        self.file = file
        self._connection = schema.connect_current(file, read_only=False)
        self._connection.row_factory = sqlite3.Row

    @classmethod
    def open(cls, url: str) -> Self:
        """The queue in the database at `url`."""
        return cls(database_file(url))

    def close(self) -> None:
        """Closes the connection."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def submit(self, study: str, request: JobRequest, submitted_by: str) -> Job:
        """Adds a search to the end of the queue.

        Raises:
            Conflict: a study or a job has that name.
        """
        with self._transaction() as connection:
            for table, column in (("queue", "study"), ("studies", "name")):
                if connection.execute(f"SELECT 1 FROM {table} WHERE {column} = ?", (study,)).fetchone():  # noqa: S608
                    raise Conflict(f"study '{study}' exists already; choose another name")
            cursor = connection.execute(
                "INSERT INTO queue (study, created_at, submitted_by, request, wish, state, attempt)"
                " VALUES (?, ?, ?, ?, 'RUN', 'QUEUED', 0)",
                (study, _now(), submitted_by, request.model_dump_json()),
            )
            return self._row(connection, "id", cursor.lastrowid)

    def wish(self, study: str, wish: Wish) -> Job:
        """Notes what the user wants of a search; the supervisor does it within a second or so.

        A search that waits is paused or cancelled at once, one that was paused or failed goes to the queue again.

        Raises:
            NotFound: no such job.
            Conflict: it has ended.
        """
        with self._transaction() as connection:
            job = self._row(connection, "study", study)
            if job.state not in _MAY[wish]:
                raise Conflict(f"search '{study}' is {job.state}: it cannot be told to {wish}")
            connection.execute("UPDATE queue SET wish = ? WHERE id = ?", (wish, job.id))
            if job.state in {"QUEUED", "PAUSED", "FAILED"}:
                state: JobState = {"RUN": "QUEUED", "PAUSE": "PAUSED", "CANCEL": "CANCELLED"}[wish]  # type: ignore[assignment]
                ended = _now() if state in ENDED else None
                connection.execute("UPDATE queue SET state = ?, finished_at = ? WHERE id = ?", (state, ended, job.id))
            return self._row(connection, "id", job.id)

    def job(self, study: str) -> Job:
        """The job of that study.

        Raises:
            NotFound: there is none.
        """
        with self._errors():
            return self._row(self._connection, "study", study)

    def jobs(self, *states: JobState) -> list[Job]:
        """Jobs in these states, or all, in the order of the queue."""
        marks = ", ".join("?" * len(states))
        where = f"WHERE state IN ({marks})" if states else ""
        with self._errors():
            rows = self._connection.execute(f"SELECT * FROM queue {where} ORDER BY id", states).fetchall()  # noqa: S608
        return [_job(row) for row in rows]

    # the supervisor's

    def started(self, job: Job, device_set: str) -> None:
        """The search is about to be started on these devices."""
        self._set(job, state="RUNNING", device_set=device_set, attempt=job.attempt + 1, started_at=_now(), message=None)

    def ended(self, job: Job, state: JobState, message: str | None = None) -> None:
        """The search has stopped; QUEUED: it is to go on."""
        self._set(job, state=state, finished_at=_now() if state in ENDED else None, message=message)

    def study_status(self, study: str) -> str | None:
        """`status` of the study; None: its search was never as far as to make it."""
        with self._errors():
            row = self._connection.execute("SELECT status FROM studies WHERE name = ?", (study,)).fetchone()
        return row[0] if row else None

    def finished_trials(self, study: str) -> int:
        """Trials of the study that are finished."""
        sql = "SELECT count(*) FROM trials t JOIN studies s ON s.id = t.study_id WHERE s.name = ? AND t.state = 'FINISHED'"
        with self._errors():
            return int(self._connection.execute(sql, (study,)).fetchone()[0])

    def _set(self, job: Job, **values: Any) -> None:
        names = ", ".join(f"{name} = ?" for name in values)
        with self._transaction() as connection:
            connection.execute(f"UPDATE queue SET {names} WHERE id = ?", (*values.values(), job.id))  # noqa: S608

    def _row(self, connection: sqlite3.Connection, column: str, value: object) -> Job:
        row = connection.execute(f"SELECT * FROM queue WHERE {column} = ?", (value,)).fetchone()  # noqa: S608
        if row is None:
            raise NotFound(f"no search '{value}' was submitted; see the list of studies")
        return _job(row)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise explain(error, self.file) from error

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._errors():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")


def _job(row: sqlite3.Row) -> Job:
    fields = {name: row[name] for name in _COLUMNS}
    return Job.model_validate({**fields, "request": JobRequest.model_validate_json(row["request"])})


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")
