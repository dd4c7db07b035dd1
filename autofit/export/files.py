"""Writes text files so that a reader sees the old one or the new one, never a part."""

import os
import tempfile
from pathlib import Path

from autofit.errors import AutofitError


def write_all(folder: Path, texts: dict[str, str]) -> list[Path]:
    """Writes name -> text into `folder` (made if missing), each atomically, and returns the paths in order.

    Raises:
        AutofitError: the folder cannot be made or written, for example because the disk is full.
    """
    written = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            _write(folder / name, text)
            written.append(folder / name)
    except OSError as error:
        reason = error.strerror or str(error)
        raise AutofitError(f"cannot write to {folder}: {reason}; choose another folder with -o") from error
    return written


def _write(path: Path, text: str) -> None:
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        Path(temporary).chmod(0o666 & ~_umask())  # mkstemp gives 0600
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
