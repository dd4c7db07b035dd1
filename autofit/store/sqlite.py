"""The SQLite file under the store: where it is, how it is opened, and what its errors mean. Standard library only."""

import sqlite3
from pathlib import Path

from autofit.errors import StoreError, UsageError

DEFAULT_URL = "sqlite:///autofit.db"
BUSY_SECONDS = 15.0
"""How long a statement waits for another process's write. Writes take milliseconds; a migration may take seconds."""


def database_file(url: str) -> Path:
    """The file of `sqlite:///relative`, `sqlite:////absolute` or a plain path.

    Raises:
        UsageError: another database, or a database in memory, which no second process could read.
    """
    scheme, separator, rest = url.partition("://")
    if not separator:
        if not url or url == ":memory:":
            raise UsageError(f"--db {url!r}: the database must be a file; write sqlite:///autofit.db or a path")
        return Path(url).expanduser()
    if scheme != "sqlite":
        raise UsageError(f"--db {url}: only SQLite is supported; write sqlite:///autofit.db or a path")
    if not rest.startswith("/") or rest in {"/", "/:memory:"}:
        raise UsageError(f"--db {url}: the database must be a file; write sqlite:///relative.db or sqlite:////absolute.db")
    return Path(rest[1:])


def check_file(file: Path, *, create: bool) -> None:
    """Says in one line why `file` cannot be opened, before SQLite does so in fewer words.

    Raises:
        StoreError: it is a folder, its folder is missing, or it is missing and `create` is false.
    """
    if file.is_dir():
        raise StoreError(f"database {file} is a folder; give a file, for example --db {file / 'autofit.db'}")
    if not file.parent.is_dir():
        raise StoreError(f"database {file}: its folder {file.parent} does not exist; make it first")
    if not create and not file.exists():
        raise StoreError(f"there is no database at {file}; `autofit search` makes one, or name one with --db or $AUTOFIT_DB")


def connect(file: Path, *, read_only: bool) -> sqlite3.Connection:
    """A connection in autocommit mode: transactions are begun by whoever needs one.

    A writer uses a write-ahead log, so that readers never wait for it, and `synchronous=FULL`: a commit is on the disk before
    it returns. NORMAL would do against SIGKILL, but a power cut could take back the last finished trials; at two commits a
    trial the difference is not measurable.

    Raises:
        sqlite3.Error: as SQLite sees it; `explain` words it.
    """
    mode = "ro" if read_only else "rwc"
    connection = sqlite3.connect(
        f"{file.absolute().as_uri()}?mode={mode}", uri=True, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
    )
    try:
        if read_only:
            connection.execute("PRAGMA query_only = ON")
        else:
            if connection.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
                connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA foreign_keys = ON")
    except sqlite3.Error:
        connection.close()
        raise
    return connection


_MEANING = {
    sqlite3.SQLITE_BUSY: "is locked by another process; wait for it or stop it, then try again",
    sqlite3.SQLITE_LOCKED: "is locked by another process; wait for it or stop it, then try again",
    sqlite3.SQLITE_FULL: "cannot grow: the disk is full; free space and run again with --resume",
    sqlite3.SQLITE_NOTADB: "is not an autofit database (not a SQLite file); name another with --db",
    sqlite3.SQLITE_CORRUPT: "is damaged; restore a copy, or save what is readable with sqlite3's .recover",
    sqlite3.SQLITE_READONLY: "is read-only here; mend its permissions or copy it elsewhere",
    sqlite3.SQLITE_CANTOPEN: "cannot be opened; look at its permissions and those of its folder",
    sqlite3.SQLITE_PERM: "cannot be opened; look at its permissions and those of its folder",
    sqlite3.SQLITE_IOERR: "cannot be read or written: the disk reports an error",
}


def explain(error: BaseException | None, file: Path) -> StoreError:
    """The one-line StoreError for an error of SQLite on `file`."""
    code = getattr(error, "sqlite_errorcode", None)
    meaning = _MEANING.get(code & 0xFF) if isinstance(code, int) else None
    detail = " ".join(str(error).split())
    return StoreError(f"database {file} {meaning} ({detail})" if meaning else f"database {file}: {detail}")
