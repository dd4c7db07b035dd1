"""Answers that are kept until the database changes: a hundred people who look at one study cost one look at the database."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from autofit.store.reader import Reader
from autofit.store.version import Version
from autofit.web.questions import Readers, encoded

MOST = 128
"""Answers that are kept; of more, those that were asked for longest ago go. The largest, a front, has about half a MiB."""


@dataclass(frozen=True)
class _Kept:
    version: int
    value: bytes


@dataclass(frozen=True)
class _Flight:
    """A computation under way, for all who ask meanwhile."""

    version: int
    result: Future[bytes] = field(default_factory=Future)


class Kept:
    """Values by key, each good until `version` grows. For several threads."""

    def __init__(self, version: Callable[[], int], most: int = MOST) -> None:
        """
        Args:
            version: grows whenever what values are computed from may have changed.
        """
        self._version, self._most = version, most
        self._kept: OrderedDict[Hashable, _Kept] = OrderedDict()
        self._flights: dict[Hashable, _Flight] = {}
        self._lock = threading.Lock()

    def get(self, key: Hashable, compute: Callable[[], bytes]) -> bytes:
        """The value of `key`, at least as new as this call; `compute` makes it, one thread at a time for each key.

        Whoever asks while it is made waits for it; what `compute` raises, all of them are told, and nothing is kept.
        """
        asked = self._version()  # before anything is read: a change that comes later makes the value old, never wrong
        while True:
            with self._lock:
                known = self._kept.get(key)
                if known is not None and known.version >= asked:
                    self._kept.move_to_end(key)
                    return known.value
                flight = self._flights.get(key)
                if flight is None:
                    mine = self._flights[key] = _Flight(asked)
                    break
            if flight.version >= asked:
                return flight.result.result()
            flight.result.exception()  # too old for this one: waits for its end, then looks again
        return self._fly(key, mine, compute)

    def _fly(self, key: Hashable, flight: _Flight, compute: Callable[[], bytes]) -> bytes:
        try:
            value = compute()
        except BaseException as error:
            with self._lock:
                del self._flights[key]
            flight.result.set_exception(error)
            raise
        with self._lock:
            del self._flights[key]
            self._kept[key] = _Kept(flight.version, value)
            self._kept.move_to_end(key)
            while len(self._kept) > self._most:
                self._kept.popitem(last=False)
        flight.result.set_result(value)
        return value


class Answers:
    """What is asked of the database again and again, as JSON."""

    def __init__(self, readers: Readers) -> None:
        self.readers = readers
        self._version = Version(readers.file)
        self._kept = Kept(self._version.now)

    def version(self) -> int:
        """A number that grows with every change of the database.

        Raises:
            StoreError: it is gone.
        """
        return self._version.now()

    def json(self, question: Callable[..., Any], *names: str) -> bytes:
        """The JSON of `question(reader, *names)`, a function of the database alone.

        Raises:
            AutofitError: what the question raises.
        """

        def compute() -> bytes:
            with self.readers.open() as reader:
                return _asked(question, reader, names)

        return self._kept.get((question.__qualname__, *names), compute)

    def close(self) -> None:
        """Closes what is open."""
        self._version.close()
        self.readers.close()


def _asked(question: Callable[..., Any], reader: Reader, names: tuple[str, ...]) -> bytes:
    return encoded(question(reader, *names))
