"""Which revision a database has, and how it gets the newest. Alembic is imported only to upgrade."""

import re
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from autofit.errors import StoreError
from autofit.resources import resource_dir
from autofit.store.sqlite import check_file, connect, explain

_REVISION = re.compile(r"\d{4}")


@dataclass(frozen=True)
class Schema:
    """The revision of a database beside the newest that this autofit knows."""

    revision: str | None
    """None: an empty file."""
    head: str

    @property
    def is_current(self) -> bool:
        """Whether nothing is to be done."""
        return self.revision == self.head


def head_revision() -> str:
    """The newest revision in `db/versions/`, whose files begin with it (0001, 0002, ...)."""
    return max(file.name[:4] for file in (resource_dir("db") / "versions").glob("[0-9]*.py"))


def connect_current(file: Path, *, read_only: bool) -> sqlite3.Connection:
    """A connection to a database of the newest revision.

    Raises:
        StoreError: it is not; or SQLite says what is wrong.
    """
    try:
        connection = connect(file, read_only=read_only)
        try:
            require_current(read_schema(connection, file), file)
        except BaseException:
            connection.close()
            raise
    except sqlite3.Error as error:
        raise explain(error, file) from error
    return connection


def read_schema(connection: sqlite3.Connection, file: Path) -> Schema:
    """The revision of an open database.

    Raises:
        StoreError: another program's database, or one that a newer autofit has upgraded.
    """
    try:
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        found = (
            [name for (name,) in connection.execute("SELECT version_num FROM alembic_version")]
            if "alembic_version" in tables
            else []
        )
    except sqlite3.Error as error:
        raise explain(error, file) from error
    head = head_revision()
    if not tables:
        return Schema(None, head)
    if len(found) != 1 or not _REVISION.fullmatch(found[0]):
        seen = f"revision {found[0]}" if found else f"tables {', '.join(sorted(tables)[:3])}"
        raise StoreError(f"database {file} belongs to another program ({seen}); name another with --db")
    if found[0] > head:
        raise StoreError(
            f"database {file} has schema revision {found[0]}, this autofit knows up to {head};"
            " upgrade autofit (pip install -U autofit-llm) or name another database with --db"
        )
    return Schema(found[0], head)


def require_current(schema: Schema, file: Path) -> None:
    """
    Raises:
        StoreError: the database is empty or older than this autofit.
    """
    if schema.revision is None:
        raise StoreError(f"database {file} is empty; `autofit search` fills it, or name another with --db")
    if not schema.is_current:
        raise StoreError(
            f"database {file} has schema revision {schema.revision}, this autofit needs {schema.head};"
            f" copy the file, then run: autofit --db {file} db upgrade"
        )


def current(file: Path) -> Schema:
    """The revision of the database in `file`, which is not changed.

    Raises:
        StoreError: no database that can be read, another program's, or a newer one.
    """
    check_file(file, create=False)
    try:
        with closing(connect(file, read_only=True)) as connection:
            return read_schema(connection, file)
    except sqlite3.Error as error:
        raise explain(error, file) from error


def upgrade(file: Path) -> Schema:
    """Brings `file` to the newest revision, creating it if need be; returns what it was before.

    All migrations run in one transaction: after any failure the database is as it was. Two processes may upgrade at once; the
    second waits and finds nothing to do.

    Raises:
        StoreError: as `current`, or a migration that fails.
    """
    from alembic import command
    from alembic.config import Config
    from alembic.util import CommandError
    from sqlalchemy import create_engine
    from sqlalchemy.exc import SQLAlchemyError
    from sqlalchemy.pool import NullPool

    check_file(file, create=True)
    config = Config()
    config.set_main_option("script_location", str(resource_dir("db")).replace("%", "%%"))
    try:
        with closing(connect(file, read_only=False)) as raw:
            # A table is changed by copying, dropping and renaming it. Foreign keys and views would follow the names or
            # refuse; neither can be switched inside a transaction.
            raw.execute("PRAGMA foreign_keys = OFF")
            raw.execute("PRAGMA legacy_alter_table = ON")
            engine = create_engine("sqlite://", creator=lambda: raw, poolclass=NullPool)
            with engine.connect() as connection:
                connection.exec_driver_sql("BEGIN IMMEDIATE")
                before = read_schema(raw, file)
                config.attributes["connection"] = connection
                command.upgrade(config, "head")
                _judge_trials(raw)
                if broken := raw.execute("PRAGMA foreign_key_check").fetchone():
                    raise StoreError(
                        f"database {file}: the upgrade would break a reference in table {broken[0]}; nothing was changed"
                    )
                connection.commit()
    except sqlite3.Error as error:
        raise explain(error, file) from error
    except SQLAlchemyError as error:
        raise explain(getattr(error, "orig", None) or error, file) from error
    except CommandError as error:
        raise StoreError(f"database {file}: cannot be upgraded: {error}") from error
    return before


def _judge_trials(connection: sqlite3.Connection) -> None:
    """Fills `trials.as_asked` where it is missing, from the records: an older autofit did not write it.

    It stays NULL where a record is of another autofit and cannot be read.
    """
    from pydantic import ValidationError

    from autofit.config.trial import TrialSpec
    from autofit.store.rows import asked_for

    unknown = connection.execute("SELECT * FROM studies WHERE id IN (SELECT study_id FROM trials WHERE as_asked IS NULL)")
    names = [column[0] for column in unknown.description]
    for study in [dict(zip(names, row, strict=True)) for row in unknown]:
        judge, found = asked_for(study), []
        specs = connection.execute(
            "SELECT id, spec FROM trials JOIN trial_documents ON trial_id = id WHERE study_id = ? AND as_asked IS NULL",
            (study["id"],),
        )
        for number, spec in specs.fetchall():
            try:
                found.append((judge(TrialSpec.model_validate_json(spec)), number))
            except ValidationError:
                continue
        connection.executemany("UPDATE trials SET as_asked = ? WHERE id = ?", found)
