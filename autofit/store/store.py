"""The store: every study and trial, written by the driver alone, read by all."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from sqlalchemy import Connection, Engine, Select, create_engine, event, insert, select, update
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from autofit.config.record import Purpose, StudyRecord, StudyStatus, TrialRecord
from autofit.config.result import TrialResult
from autofit.errors import NotFound, StoreError
from autofit.store import schema
from autofit.store.reader import Reader, Rows, no_such_study
from autofit.store.rows import asked_for, result_row, study_record, study_row, to_json, to_text, trial_record, trial_row
from autofit.store.sqlite import check_file, connect, database_file, explain
from autofit.store.tables import studies, trial_documents, trials


class Store:
    """An open database. A context manager; usable from several threads.

    Every method raises StoreError, in one line, when the database cannot be read or written: locked, full, damaged, gone.
    A method that writes has committed to the disk when it returns, and has changed nothing when it raises.
    """

    def __init__(self, file: Path, *, read_only: bool) -> None:
        """Use `Store.open`."""
        self._file = file
        self._read_only = read_only
        self._engine = _engine(file, read_only=read_only)

    @classmethod
    def open(cls, url: str, *, create: bool = True, read_only: bool = False) -> Self:
        """Opens the database at `url` (`sqlite:///autofit.db`, or a path).

        Args:
            create: make the file and its tables when there are none. A database of an older autofit is not changed.
            read_only: nothing can be written through this store; implies `create=False`.

        Raises:
            UsageError: `url` names no SQLite file.
            StoreError: it cannot be opened, has an older or newer schema, or is another program's.
        """
        file = database_file(url)
        create = create and not read_only
        check_file(file, create=create)
        if create and (not file.exists() or schema.current(file).revision is None):
            schema.upgrade(file)
        schema.require_current(schema.current(file), file)
        return cls(file, read_only=read_only)

    def close(self) -> None:
        """Closes the file. The store cannot be used afterwards."""
        self._engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    # studies

    def create_study(self, record: StudyRecord) -> None:
        """Stores a new study.

        Raises:
            StoreError: its name is taken.
        """
        with self._transaction(write=True) as connection:
            if connection.execute(select(studies.c.id).where(studies.c.name == record.name)).first():
                raise StoreError(f"study '{record.name}' exists already; go on with --resume or choose another --study")
            connection.execute(insert(studies).values(study_row(record)))

    def study(self, name: str) -> StudyRecord:
        """The study called `name`.

        Raises:
            StoreError: there is none; names the nearest.
        """
        with self._transaction() as connection:
            return study_record(self._study_row(connection, name))

    def studies(self) -> list[StudyRecord]:
        """All studies, oldest first."""
        with self._transaction() as connection:
            return [study_record(dict(row)) for row in connection.execute(select(studies).order_by(studies.c.id)).mappings()]

    def set_study_status(
        self, name: str, status: StudyStatus, winner_trial_number: int | None = None, stop_reason: str | None = None
    ) -> None:
        """Changes a study's status and, unless they are None, its winner and why its search ended.

        Raises:
            StoreError: no such study, or the winner is no trial of it.
        """
        with self._transaction(write=True) as connection:
            study = self._study_row(connection, name)
            values: dict[str, Any] = {"status": status}
            if winner_trial_number is not None:
                self._trial_row(connection, study, winner_trial_number)
                values["winner_trial_number"] = winner_trial_number
            if stop_reason is not None:
                record = study_record(study).model_copy(update={"stop_reason": stop_reason})
                values["record"] = study_row(record)["record"]
            connection.execute(update(studies).where(studies.c.id == study["id"]).values(values))

    # trials

    def start_trial(self, record: TrialRecord) -> None:
        """Stores a trial that is about to run. `record.result` is not stored: see `finish_trial`.

        Raises:
            StoreError: no such study, the number is taken, or the configuration has been searched or confirmed already.
        """
        with self._transaction(write=True) as connection:
            study = self._study_row(connection, record.study)
            row = {"study_id": study["id"], **trial_row(record, study["memory_budget_bytes"], asked_for(study)(record.spec))}
            same = (trials.c.config_key == row["config_key"]) & (trials.c.purpose == record.purpose)
            same &= trials.c.purpose != "launch"  # the user may launch one configuration as often as he likes
            clash = connection.execute(
                select(trials.c.trial_number)
                .where(trials.c.study_id == study["id"], (trials.c.trial_number == record.trial_number) | same)
                .order_by(trials.c.trial_number != record.trial_number)
            ).scalar()
            if clash == record.trial_number:
                raise StoreError(f"study '{record.study}' has a trial {clash} already")
            if clash is not None:
                raise StoreError(
                    f"study '{record.study}' has tried this configuration already, as {record.purpose} trial {clash}"
                )
            trial_id = connection.execute(insert(trials).values(row)).lastrowid
            connection.execute(insert(trial_documents).values(trial_id=trial_id, **_documents(record)))

    def add_trials(self, study: str, records: Sequence[TrialRecord]) -> None:
        """Stores finished trials that this study did not run, all of them or none: predicted, or taken over from another.

        Raises:
            StoreError: no such study, a number or a configuration that it has already, or a trial without a result.
        """
        with self._transaction(write=True) as connection:
            found = self._study_row(connection, study)
            judge = asked_for(found)
            rows = [{"study_id": found["id"], **_finished_row(record, found, judge(record.spec))} for record in records]
            connection.execute(insert(trials), rows)
            numbered = select(trials.c.trial_number, trials.c.id).where(trials.c.study_id == found["id"])
            ids = {row.trial_number: row.id for row in connection.execute(numbered)}
            documents = [{"trial_id": ids[record.trial_number], **_documents(record)} for record in records]
            connection.execute(insert(trial_documents), documents)

    def restart_trial(self, study: str, trial_number: int, started_at: datetime) -> TrialRecord:
        """Counts another attempt of a trial that was running when its driver died.

        Raises:
            StoreError: no such trial, or it is finished.
        """
        with self._transaction(write=True) as connection:
            row = self._running_row(connection, study, trial_number)
            changes = {"attempt": row["attempt"] + 1, "started_at": to_text(started_at)}
            connection.execute(update(trials).where(trials.c.id == row["id"]).values(changes))
            return trial_record({**row, **changes}, study)

    def finish_trial(self, study: str, trial_number: int, finished_at: datetime, result: TrialResult) -> None:
        """Stores the result of a running trial, once.

        Raises:
            StoreError: no such trial, it is finished, or the result breaks a rule of the table (see `db/README.md`).
        """
        with self._transaction(write=True) as connection:
            row = self._running_row(connection, study, trial_number)
            objective = connection.execute(select(studies.c.objective).where(studies.c.id == row["study_id"])).scalar_one()
            values = result_row(
                result,
                started_at=row["started_at"],
                finished_at=finished_at,
                memory_budget_bytes=row["memory_budget_bytes"],
                objective=objective,
            )
            connection.execute(update(trials).where(trials.c.id == row["id"]).values(values))
            documents = update(trial_documents).where(trial_documents.c.trial_id == row["id"])
            connection.execute(documents.values(result=to_json(result)))

    def trial(self, study: str, trial_number: int) -> TrialRecord:
        """One trial.

        Raises:
            StoreError: no such study or trial.
        """
        with self._transaction() as connection:
            return trial_record(self._trial_row(connection, self._study_row(connection, study), trial_number), study)

    def trials(
        self, study: str | None = None, *, purpose: Purpose | None = None, running: bool | None = None
    ) -> list[TrialRecord]:
        """The trials of one study, or of all, by study and number.

        Args:
            purpose: only those of this purpose.
            running: only those that run (True) or are finished (False).

        Raises:
            StoreError: no such study.
        """
        query = _whole_trials().order_by(trials.c.study_id, trials.c.trial_number)
        with self._transaction() as connection:
            if study is not None:
                query = query.where(trials.c.study_id == self._study_row(connection, study)["id"])
            if purpose is not None:
                query = query.where(trials.c.purpose == purpose)
            if running is not None:
                query = query.where(trials.c.state == ("RUNNING" if running else "FINISHED"))
            return [trial_record(dict(row), row["study"]) for row in connection.execute(query).mappings()]

    def running_trials(self, study: str) -> list[TrialRecord]:
        """The trials that run, or ran when their driver died.

        Raises:
            StoreError: no such study.
        """
        return self.trials(study, running=True)

    # questions

    def reader(self) -> Reader:
        """A read-only connection of its own for questions in SQL; close it after use."""
        return Reader(self._file)

    def trial_rows(
        self,
        study: str | None = None,
        where: str | None = None,
        sort: str | None = None,
        descending: bool = False,
        limit: int | None = None,
    ) -> Rows:
        """See `Reader.trial_rows`."""
        with self.reader() as reader:
            return reader.trial_rows(study, where, sort, descending=descending, limit=limit)

    def query(self, sql: str, *, limit: int | None = None, timeout: float | None = None) -> Rows:
        """See `Reader.query`."""
        with self.reader() as reader:
            return reader.query(sql, limit=limit, timeout=timeout)

    # inside

    @contextmanager
    def _transaction(self, *, write: bool = False) -> Iterator[Connection]:
        """A transaction; a writing one takes the write lock at its start, so that what it reads still holds when it writes."""
        try:
            with self._engine.connect() as plain:
                connection = plain.execution_options(begin="IMMEDIATE" if write else "DEFERRED")
                with connection.begin():
                    yield connection
        except IntegrityError as error:
            raise StoreError(
                f"database {self._file} refuses the record: {error.orig}; see db/README.md for its rules"
            ) from error
        except SQLAlchemyError as error:
            raise explain(getattr(error, "orig", None) or error, self._file) from error

    def _study_row(self, connection: Connection, name: str) -> dict[str, Any]:
        row = connection.execute(select(studies).where(studies.c.name == name)).mappings().first()
        if row is None:
            raise no_such_study(name, list(connection.execute(select(studies.c.name).order_by(studies.c.id)).scalars()))
        return dict(row)

    def _trial_row(self, connection: Connection, study: dict[str, Any], trial_number: int) -> dict[str, Any]:
        wanted = (trials.c.study_id == study["id"]) & (trials.c.trial_number == trial_number)
        row = connection.execute(_whole_trials().where(wanted)).mappings().first()
        if row is None:
            raise NotFound(f"study '{study['name']}' has no trial {trial_number}; see autofit trials --study {study['name']}")
        return dict(row)

    def _running_row(self, connection: Connection, study: str, trial_number: int) -> dict[str, Any]:
        row = self._trial_row(connection, self._study_row(connection, study), trial_number)
        if row["state"] != "RUNNING":
            raise StoreError(f"trial {trial_number} of study '{study}' is finished already ({row['outcome']})")
        return row


def _finished_row(record: TrialRecord, study: Mapping[str, Any], as_asked: int | None) -> dict[str, Any]:
    """All columns of a trial that was not run; those that nothing fills are None, so that all rows have the same."""
    if record.result is None or record.finished_at is None:
        raise StoreError(f"trial {record.trial_number} of study '{record.study}' has no result; start it instead")
    started = trial_row(record, study["memory_budget_bytes"], as_asked)
    result = result_row(
        record.result,
        started_at=started["started_at"],
        finished_at=record.finished_at,
        memory_budget_bytes=study["memory_budget_bytes"],
        objective=study["objective"],
    )
    return dict.fromkeys(column.name for column in trials.c if column.name not in {"id", "study_id"}) | started | result


def _documents(record: TrialRecord) -> dict[str, str | None]:
    """The columns of `trial_documents`."""
    parts = {"spec": record.spec, "prediction": record.prediction, "result": record.result}
    return {name: None if part is None else to_json(part) for name, part in parts.items()}


def _whole_trials() -> Select[Any]:
    """Rows from which trial records are rebuilt."""
    documents = (trial_documents.c.spec, trial_documents.c.prediction, trial_documents.c.result)
    return select(trials, *documents, studies.c.name.label("study")).join(trial_documents).join(studies)


def _engine(file: Path, *, read_only: bool) -> Engine:
    engine = create_engine("sqlite:///" + str(file), creator=lambda: connect(file, read_only=read_only))

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        # the driver is in autocommit mode: Python's own would begin too late for a write lock and not at all for DDL
        connection.exec_driver_sql(f"BEGIN {connection.get_execution_options().get('begin', 'DEFERRED')}")

    return engine
