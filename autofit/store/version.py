"""Whether a database has changed since one looked last: for whoever keeps what was computed from it."""

import sqlite3
import threading
from contextlib import suppress
from pathlib import Path

from autofit.errors import StoreError
from autofit.store.sqlite import check_file, connect, explain


class Version:
    """A number that grows whenever another connection has committed, or the file has become another one. For several threads.

    SQLite counts commits for each connection (`PRAGMA data_version`), so that only what one connection says at two times can be
    compared: this keeps one open for nothing else. It costs microseconds, whatever the size of the database.
    """

    def __init__(self, file: Path) -> None:
        """Opens nothing yet."""
        self._file = file
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._seen: tuple[tuple[int, int], int] | None = None
        """Device and inode of the file that is open, and what SQLite counted in it."""
        self._number = 0

    def now(self) -> int:
        """The number now. What is read after this call is at least as new as it.

        Raises:
            StoreError: the database is gone, or cannot be read.
        """
        with self._lock:
            try:
                found = self._look()
            except (sqlite3.Error, OSError) as error:
                self._close()
                raise explain(error, self._file) from error
            except StoreError:
                self._close()
                raise
            if found != self._seen:
                self._seen = found
                self._number += 1
            return self._number

    def close(self) -> None:
        """Closes the connection; `now` would open another."""
        with self._lock:
            self._close()

    def _look(self) -> tuple[tuple[int, int], int]:
        check_file(self._file, create=False)
        told = self._file.stat()
        file = (told.st_dev, told.st_ino)
        if self._connection is None or self._seen is None or self._seen[0] != file:
            self._close()
            # looked at before it is opened: if it is replaced in between, the next look sees another file
            self._connection = connect(self._file, read_only=True)
        (count,) = self._connection.execute("PRAGMA data_version").fetchone()
        return file, int(count)

    def _close(self) -> None:
        """Forgets what was seen: counts of another connection could be equal by chance."""
        self._seen = None
        if self._connection is not None:
            with suppress(sqlite3.Error):
                self._connection.close()
            self._connection = None
