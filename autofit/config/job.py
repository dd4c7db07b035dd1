"""A search that waits in the queue: what was asked for, what its user wants now, and how far it has come."""

from datetime import datetime
from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt

from autofit.config.base import Frozen

JobState = Literal["QUEUED", "RUNNING", "PAUSED", "CANCELLED", "DONE", "FAILED"]
Wish = Literal["RUN", "PAUSE", "CANCEL"]
ENDED: frozenset[JobState] = frozenset({"CANCELLED", "DONE", "FAILED"})

DEVICES = Literal["auto", "cuda", "cpu", "none"]
SAMPLERS = Literal["guided", "tpe", "gp", "random", "grid"]
ENGINES = Literal["auto", "llamafactory", "transformers"]


class JobRequest(Frozen):
    """The flags of `autofit search`, as a queue keeps them. None: not said."""

    gpu_mem_bytes: PositiveInt
    space: str | None = None
    model: str | None = None
    dataset: str | None = None
    num_gpus: PositiveInt | None = None
    global_batch_size: PositiveInt | None = None
    device: DEVICES = "auto"
    card: str | None = None
    engine: ENGINES = "auto"
    python: str | None = None
    """Interpreter of the training environment; None: the supervisor's own."""
    trials: PositiveInt = 24
    time_limit_seconds: PositiveFloat | None = None
    trial_timeout_seconds: PositiveFloat = 1800.0
    sampler: SAMPLERS = "guided"
    seed: int = Field(default=0, ge=0)
    from_file: str | None = None


class Job(Frozen):
    """A row of the table `queue`."""

    id: int
    study: str
    """Name of the study that it makes, or goes on with."""
    created_at: datetime
    submitted_by: str
    request: JobRequest
    wish: Wish = "RUN"
    """What its user wants; written by who asks, obeyed by the supervisor."""
    state: JobState = "QUEUED"
    """How far it is; written by the supervisor alone."""
    device_set: str | None = None
    """The devices that it has or had last."""
    attempt: int = Field(default=0, ge=0)
    """Times that its search was started."""
    started_at: datetime | None = None
    finished_at: datetime | None = None
    message: str | None = None
    """Why it ended as it did, in a line."""
