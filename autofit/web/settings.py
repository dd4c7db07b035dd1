"""What whoever starts the service decides, and no request can change."""

import sys
from pathlib import Path

from pydantic import Field, PositiveInt

from autofit.config.base import Frozen


class Settings(Frozen):
    """The configuration of one web server."""

    database: Path
    runs: Path
    """Folder for the trials' files."""
    python: str = sys.executable
    """Interpreter of the training environment: predicts, and runs what names no other."""
    pythons: dict[str, str] = {}
    """Name -> interpreter: the others that a search may ask for, by name."""
    roots: tuple[Path, ...] = ()
    """Folders in which a request may name models, data and files; none: it may name no path at all."""
    tokens: Path | None = None
    """The file of hashed access tokens; None: whoever reaches the port may do everything, so it must be a loopback one."""
    hosts: tuple[str, ...] = ("localhost", "127.0.0.1", "::1")
    """Names under which the service answers; any other in a request's Host is refused (DNS rebinding)."""
    secure: bool = False
    """Served over TLS: cookies are marked so."""
    supervise: bool = False
    """Keep a supervisor of the queue running."""
    gpus: str | None = None
    """Its sets of GPUs."""
    max_body_bytes: PositiveInt = 1024**2
    query_seconds: float = Field(default=5.0, gt=0, le=60)
    """Longest that SQL of a request may take."""
    max_streams: PositiveInt = 2000
    """Live event streams at a time."""
    max_requests: PositiveInt = 4000
    """Requests at a time, streams included; each has an open file."""
    max_predictions: PositiveInt = 2
    """Predictions at a time; a new variant is traced in a process of the training environment."""
