"""The images, videos and sounds that a dataset's rows name, and one digest over what is in them."""

import csv
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

COLUMNS = ("images", "videos", "audios")
_READERS = 8
_MISSING = b"missing"


def media_named(entry: dict[str, Any], file: Path) -> Iterator[str] | None:
    """The paths in the media columns of one data file, as they stand there; None where its form is not read here.

    Raises:
        OSError, ValueError: it cannot be read, or is not what its name says.
    """
    columns = [name for kind in COLUMNS if isinstance(name := (entry.get("columns") or {}).get(kind), str)]
    if not columns:
        return iter(())
    if file.suffix not in {".json", ".jsonl", ".csv"}:
        return None
    return (path for row in _rows(file) for name in columns for path in _strings(row.get(name)))


def media_digest(names: Iterable[str], folder: Path) -> tuple[str, int]:
    """SHA-256 over the names and contents of files in `folder` (a name that leads nowhere there is taken as it stands), and
    how many there are.

    Contents, because nothing less tells a changed image from a copied one: a copy on another machine has other times of
    change and must still hold, an image that was drawn anew may keep its size. Every byte is read, several files at a time;
    that takes as long as the disk does (20 GB in a minute or two), which is little beside the run that is vouched for.
    """
    ordered = sorted(set(names))
    digest = hashlib.sha256()
    with ThreadPoolExecutor(_READERS) as readers:  # hashing lets go of the interpreter's lock
        for name, content in zip(ordered, readers.map(lambda name: _content(name, folder), ordered), strict=True):
            digest.update(name.encode() + b"\0" + content + b"\n")
    return digest.hexdigest(), len(ordered)


def _content(name: str, folder: Path) -> bytes:
    for path in (folder / name, Path(name)):
        try:
            with path.open("rb") as file:
                return hashlib.file_digest(file, "sha256").digest()
        except OSError:
            continue
    return _MISSING


def _rows(file: Path) -> Iterator[dict[str, Any]]:
    with file.open(encoding="utf-8", newline="") as stream:
        if file.suffix == ".csv":
            rows: Iterable[Any] = csv.DictReader(stream)
        elif file.suffix == ".jsonl":
            rows = (json.loads(line) for line in stream if line.strip())
        else:
            text = stream.read()
            try:
                rows = json.loads(text)
            except ValueError:  # one object a line, as `datasets` reads it too
                rows = [json.loads(line) for line in text.splitlines() if line.strip()]
        yield from (row for row in rows if isinstance(row, dict))


def _strings(value: Any) -> Sequence[str]:
    """The paths in a cell: one, a list of them (a video's frames: of lists), or such a list written as JSON in a CSV file."""
    if isinstance(value, list):
        return [path for item in value for path in _strings(item)]
    if not isinstance(value, str) or not value:
        return ()
    if value.startswith("["):
        try:
            return _strings(json.loads(value))
        except ValueError:
            return (value,)
    return (value,)
