"""The ends of a trial's logs. Standard library only."""

from pathlib import Path

_READ_BYTES = 65_536


def last_lines(run_dir: str, name: str, lines: int) -> list[str] | None:
    """The last lines of a log in a run folder; None when it is gone, or nothing was run."""
    try:
        with (Path(run_dir) / name).open("rb") as stream:
            stream.seek(0, 2)
            stream.seek(max(0, stream.tell() - _READ_BYTES))
            return stream.read().decode(errors="replace").splitlines()[-lines:]
    except OSError:
        return None
