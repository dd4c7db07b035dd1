"""JSON files that are either whole or absent."""

import json
import os
from pathlib import Path
from typing import Any


def write_json(path: Path, content: Any, *, durable: bool = True) -> None:
    """Writes to a temporary name in the same folder and renames it.

    `durable` also waits for the disk, so that the file survives a power cut; heartbeats do without.

    Raises:
        OSError: the disk is full or the folder is gone; nothing is left behind under `path` or the temporary name.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            json.dump(content, file)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    if durable:
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a file; None when there is no such file, or no whole JSON object in it."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None
