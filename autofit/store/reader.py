"""Questions about studies and trials, read-only, by the standard library's SQLite alone: a command that asks starts fast.

Whatever SQL a user writes, three things keep it from changing anything: the file is opened read-only, an authorizer denies
every action but reading, and a time limit ends what would not end.
"""

import difflib
import json
import sqlite3
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from autofit.errors import NotFound, StoreError, UsageError
from autofit.store import schema
from autofit.store.sqlite import check_file, database_file, explain
from autofit.store.where import nearest, parse_where

QUERY_SECONDS = 30.0
_READING = frozenset({sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE})
_HIDDEN = frozenset({"id", "study_id"})
"""Columns of `trial_list` that join and sort, but tell people nothing."""
_LONGEST_VALUE = 64 * 1024**2
"""Bytes of one value or statement: `zeroblob(1e9)` must not take the machine's memory."""


@dataclass(frozen=True)
class Rows:
    """The answer to a question."""

    columns: tuple[str, ...]
    rows: list[tuple[Any, ...]]
    """Each as long as `columns`: None, int, float, str or bytes."""
    truncated: bool = False
    """Whether there were more rows than the limit."""

    def as_dicts(self) -> list[dict[str, Any]]:
        """Rows by column name."""
        return [dict(zip(self.columns, row, strict=True)) for row in self.rows]


class Reader:
    """A read-only connection to a database of the newest schema. A context manager; for one thread at a time."""

    def __init__(self, file: Path) -> None:
        """
        Raises:
            StoreError: as `Store.open` with `read_only`.
        """
        check_file(file, create=False)
        self._file = file
        self._deadline = float("inf")
        self._inode = file.stat().st_ino
        self._connection = schema.connect_current(file, read_only=True)
        self._guard()

    @classmethod
    def open(cls, url: str) -> Self:
        """The database at `url` (`sqlite:///autofit.db`, or a path).

        Raises:
            UsageError: `url` names no SQLite file.
            StoreError: as `Store.open` with `read_only`.
        """
        return cls(database_file(url))

    def close(self) -> None:
        """Closes the connection."""
        self._connection.close()

    def check(self) -> None:
        """Says whether this still is the database that was opened, for whoever keeps a reader.

        Raises:
            StoreError: the file is gone, is another one, or has been upgraded.
        """
        check_file(self._file, create=False)
        if self._file.stat().st_ino != self._inode:
            raise StoreError(f"database {self._file} was replaced by another file")
        schema.require_current(schema.read_schema(self._connection, self._file), self._file)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def studies(self) -> Rows:
        """One row a study, oldest first: its columns, how many trials it has of each kind, and its best.

        That is its winner; without one that was measured, the fastest that fits and trains what was asked for.
        """
        sql = """
            SELECT s.name AS study, s.status, s.model, s.device, s.engine, s.sampler, s.seed, s.gpu_mem_bytes,
                s.memory_budget_bytes, s.created_at,
                count(t.id) AS trials, coalesce(sum(t.outcome = 'COMPLETED'), 0) AS completed,
                coalesce(sum(t.outcome IN ('OOM', 'HOST_OOM')), 0) AS out_of_memory,
                coalesce(sum(t.state = 'RUNNING'), 0) AS running, s.winner_trial_number,
                coalesce(w.trial_number, b.trial_number) AS best_trial_number,
                coalesce(w.samples_per_second, b.samples_per_second) AS best_samples_per_second, s.objective,
                s.python, s.executor, s.autofit_version
            FROM studies AS s LEFT JOIN trials AS t ON t.study_id = s.id LEFT JOIN best_trials AS b ON b.study_id = s.id
                LEFT JOIN trials AS w
                    ON w.study_id = s.id AND w.trial_number = s.winner_trial_number AND w.samples_per_second IS NOT NULL
            GROUP BY s.id ORDER BY s.id
        """
        return self._rows(sql, ())

    def trial_rows(
        self,
        study: str | None = None,
        where: str | None = None,
        sort: str | None = None,
        *,
        descending: bool = False,
        limit: int | None = None,
        offset: int = 0,
    ) -> Rows:
        """Trials as rows of the view `trial_list`, by study and number unless `sort` names a column; empty values come last.

        Args:
            where: a condition over the view's columns in SQL's words, for example
                `peak_reserved_gib < 70 and zero_stage = 3`.
            limit: None for all.
            offset: rows to leave out before the first.

        Raises:
            UsageError: an unknown column (names the nearest), or a condition that is none.
            StoreError: no such study, or the condition takes longer than QUERY_SECONDS.
        """
        columns = self.trial_columns()
        conditions: list[str] = []
        values: list[Any] = []
        if study is not None:
            conditions.append("study_id = ?")
            values.append(self._study_id(study))
        if where is not None:
            conditions.append(f"({parse_where(where, columns)})")
        if sort is not None and sort not in columns:
            raise UsageError(f"--sort: unknown column '{sort}'; {nearest(sort, columns)}")
        direction = " DESC" if descending else ""
        order = f"{sort} IS NULL, {sort}{direction}, study_id, trial_number" if sort else "study_id, trial_number"
        # Which rows is asked first, of few columns; only those are then read whole. All parts were checked above.
        chosen = f"SELECT id FROM trial_list WHERE {' AND '.join(conditions) or 'true'} ORDER BY {order}"  # noqa: S608
        if limit is not None:
            chosen += f" LIMIT {limit + 1} OFFSET {offset}"
        sql = f"SELECT {', '.join(columns)} FROM trial_list WHERE id IN ({chosen}) ORDER BY {order}"  # noqa: S608
        try:
            return self._rows(sql, tuple(values), limit=limit)
        except _SqlError as error:
            raise UsageError(f'--where: {error}; write for example "peak_reserved_gib < 70 and zero_stage = 3"') from error

    def trial_columns(self) -> tuple[str, ...]:
        """The columns of `trial_list`: what `where` and `sort` understand."""
        columns = self._rows("SELECT * FROM trial_list", (), limit=0).columns
        return tuple(name for name in columns if name not in _HIDDEN)

    def query(self, sql: str, *, limit: int | None = None, timeout: float | None = None) -> Rows:
        """One SELECT over the tables and views of `db/README.md`.

        Args:
            limit: rows at most; None for all.
            timeout: seconds, QUERY_SECONDS unless given.

        Raises:
            UsageError: it is not one statement, not valid, or does anything but read.
            StoreError: it takes longer than `timeout`.
        """
        try:
            return self._rows(sql, (), limit=limit, timeout=timeout)
        except _SqlError as error:
            raise UsageError(f"query: {error}") from error

    def ask(self, sql: str, values: tuple[object, ...] = ()) -> Rows:
        """A question that this program wrote itself; what a user wrote goes to `query`.

        Raises:
            StoreError: the database cannot be read, or the answer takes longer than QUERY_SECONDS.
        """
        return self._rows(sql, values)

    def trial_document(self, trial_number: int, study: str | None = None) -> dict[str, Any]:
        """One trial whole: its columns by name, the JSON ones (`spec`, `prediction`, `result`, `versions`, ...) as objects.

        Raises:
            StoreError: no such trial, or `study` is None and several studies have one of this number.
        """
        if study is not None:
            self._study_id(study)
        sql = """
            SELECT s.name AS study, t.*, d.spec, d.prediction, d.result
            FROM trials AS t JOIN studies AS s ON s.id = t.study_id JOIN trial_documents AS d ON d.trial_id = t.id
            WHERE t.trial_number = ?
        """
        sql, values = (sql + " AND s.name = ?", (trial_number, study)) if study is not None else (sql, (trial_number,))
        found = self._rows(sql, values).as_dicts()
        if not found:
            where = f"study '{study}'" if study is not None else "this database"
            raise NotFound(f"{where} has no trial {trial_number}; see autofit trials")
        if len(found) > 1:
            names = ", ".join(row["study"] for row in found[-5:])
            raise StoreError(f"{len(found)} studies have a trial {trial_number}; say which with --study (among them {names})")
        document = {name: value for name, value in found[0].items() if name not in {"id", "study_id"}}
        for name in ("spec", "prediction", "result", "versions", "hardware", "timings"):
            document[name] = json.loads(document[name]) if document[name] else None
        return document

    def _study_id(self, name: str) -> int:
        ids = dict(self._rows("SELECT name, id FROM studies ORDER BY id", ()).rows)
        if name not in ids:
            raise no_such_study(name, list(ids))
        return int(ids[name])

    def _guard(self) -> None:
        self._connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _LONGEST_VALUE)
        self._connection.set_authorizer(_authorize)
        self._connection.set_progress_handler(lambda: time.monotonic() > self._deadline, 10_000)

    def _rows(self, sql: str, values: tuple[Any, ...], *, limit: int | None = None, timeout: float | None = None) -> Rows:
        seconds = QUERY_SECONDS if timeout is None else timeout
        self._deadline = time.monotonic() + seconds
        try:
            cursor = self._connection.execute(sql, values)
            if cursor.description is None:
                raise _SqlError("only SELECT is allowed: the database is opened for reading")
            rows = cursor.fetchall() if limit is None else cursor.fetchmany(limit + 1)
            cursor.close()
        except (sqlite3.Error, sqlite3.Warning) as error:
            raise self._worded(error, seconds) from error
        columns = tuple(item[0] for item in cursor.description or ())
        return Rows(columns, rows[:limit], truncated=limit is not None and len(rows) > limit)

    def _worded(self, error: Exception, seconds: float) -> Exception:
        code = getattr(error, "sqlite_errorcode", None)
        base = code & 0xFF if isinstance(code, int) else None
        if base == sqlite3.SQLITE_INTERRUPT:
            return StoreError(f"the question took longer than {seconds:g} s and was stopped; ask for less, or add a condition")
        if base in {sqlite3.SQLITE_AUTH, sqlite3.SQLITE_READONLY}:
            return _SqlError("only SELECT is allowed: the database is opened for reading")
        if base == sqlite3.SQLITE_TOOBIG:
            return _SqlError(f"a value or the statement is larger than {_LONGEST_VALUE // 1024**2} MiB")
        if (
            base == sqlite3.SQLITE_ERROR
            or not isinstance(error, sqlite3.DatabaseError)
            or isinstance(error, sqlite3.ProgrammingError)
        ):
            return _SqlError(" ".join(str(error).split()))
        return explain(error, self._file)


class _SqlError(Exception):
    """The user's SQL is at fault."""


def _authorize(action: int, first: str | None, second: str | None, database: str | None, source: str | None) -> int:
    if action in _READING and not (action == sqlite3.SQLITE_FUNCTION and second == "load_extension"):
        return sqlite3.SQLITE_OK
    return sqlite3.SQLITE_DENY


def no_such_study(name: str, names: list[str]) -> NotFound:
    """Names the studies nearest to `name`."""
    if not names:
        return NotFound(f"there is no study '{name}': the database has none yet; `autofit search` makes one")
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(repr(one) for one in near)}?" if near else f"studies: {', '.join(names[-5:])}"
    return NotFound(f"there is no study '{name}'; {hint}")
