"""Records of one part: JSON lines that are only ever appended, so that a part that was killed goes on where it was."""

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

Record = dict[str, Any]


@dataclass(frozen=True)
class Stamp:
    """What a record holds for."""

    device: str
    """`cuda` or `cpu`."""
    device_name: str
    memory_bytes: int
    driver: str | None
    versions: dict[str, str]
    """Of the training environment."""
    commit: str

    def matches(self, record: Record) -> bool:
        """Whether a record was made by this code on such a device under these versions."""
        return all(record.get(name) == getattr(self, name) for name in ("device", "device_name", "versions", "commit"))


class Ledger:
    """The records of one part in one file."""

    def __init__(self, file: Path, part: str, stamp: Stamp) -> None:
        self._file, self._part, self._stamp = file, part, stamp

    def mine(self) -> dict[str, Record]:
        """Key -> the newest record with this stamp."""
        return {record["key"]: record for record in read(self._file) if self._stamp.matches(record)}

    def add(self, key: str, **body: Any) -> Record:
        """Appends a record, whole or not at all, and returns it."""
        record = {"part": self._part, "key": key, "at": datetime.now(UTC).isoformat(timespec="seconds"), **asdict(self._stamp)}
        record |= body
        self._file.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._file, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            _drop_torn_end(descriptor)
            os.write(descriptor, (json.dumps(record) + "\n").encode())
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        return record


def read(file: Path) -> Iterator[Record]:
    """The records of a file, oldest first; none for one that is missing. A last line that was cut off is left out.

    Raises:
        ValueError: another line is no record.
    """
    if not file.exists():
        return
    lines = file.read_bytes().split(b"\n")
    for number, line in enumerate(lines[:-1], start=1):  # behind the last newline is nothing, or what was being written
        try:
            record = json.loads(line)
            record["part"], record["key"], record["device"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{file}:{number}: is no record ({error}); remove the line") from error
        yield record


def _drop_torn_end(descriptor: int) -> None:
    """Cuts what a killed writer has left after the last newline."""
    content = os.pread(descriptor, os.fstat(descriptor).st_size, 0)
    if content and not content.endswith(b"\n"):
        os.ftruncate(descriptor, content.rfind(b"\n") + 1)
