"""Bodies of requests and answers, as the OpenAPI document describes them."""

from typing import Annotated, Any, Literal

from fastapi import Path, Query
from pydantic import BaseModel, ConfigDict, Field

from autofit.config.job import DEVICES, ENGINES, SAMPLERS, JobRequest, JobState, Wish
from autofit.config.prediction import Prediction
from autofit.config.trial import TrialSpec
from autofit.units import parse_bytes, parse_seconds

MAX_INT = 2**31 - 1
STUDY_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"
SIZE = r"^[0-9]{1,15}(\.[0-9]{1,6})?[ ]?[kmgtKMGT]?(i?[bB])?$"
"""A memory size, as `units.parse_bytes` reads it."""
Study = Annotated[str, Path(description="Name of the study.", min_length=1, max_length=200)]
TrialNumber = Annotated[int, Path(description="Its number in the study.", ge=0, le=MAX_INT)]
Text = Annotated[str, Field(min_length=1, max_length=400)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)


class Submission(_Body):
    """A search for the queue: the flags of `autofit search`."""

    study: str = Field(pattern=STUDY_NAME)
    """Name of the study that it makes."""
    gpu_mem: str = Field(pattern=SIZE, examples=["80GB"])
    """Memory of the card."""
    space: Text | None = None
    """Name of a space that ships, or a file in a folder that the service may use."""
    model: Text | None = None
    """Preset, hub id, or folder in a folder that the service may use."""
    dataset: Text | None = None
    num_gpus: int | None = Field(default=None, ge=1, le=1024)
    global_batch_size: int | None = Field(default=None, ge=1, le=2**20)
    device: DEVICES = "auto"
    card: Text | None = None
    engine: ENGINES = "auto"
    python: Text | None = None
    """Name of a configured interpreter."""
    trials: int = Field(default=24, ge=1, le=100_000)
    time_limit: str | None = Field(default=None, max_length=40)
    trial_timeout: str = Field(default="30m", max_length=40)
    sampler: SAMPLERS = "guided"
    seed: int = Field(default=0, ge=0, le=MAX_INT)
    from_file: Text | None = None
    """Your LLaMA-Factory YAML, in a folder that the service may use."""

    def request(self) -> JobRequest:
        """What the queue keeps.

        Raises:
            UsageError: no size or duration.
        """
        sizes = {"gpu_mem_bytes": parse_bytes(self.gpu_mem), "trial_timeout_seconds": parse_seconds(self.trial_timeout)}
        limit = parse_seconds(self.time_limit) if self.time_limit is not None else None
        same = self.model_dump(exclude={"study", "gpu_mem", "time_limit", "trial_timeout"})
        return JobRequest.model_validate({**same, **sizes, "time_limit_seconds": limit})


class JobView(BaseModel):
    """How far a submitted search is."""

    state: JobState
    wish: Wish
    message: str | None
    created_at: str
    submitted_by: str
    attempt: int
    device_set: str | None
    trials_wanted: int


class Best(BaseModel):
    """The winner; as long as there is none, the fastest trial that fits so far."""

    trial_number: int
    samples_per_second: float
    tokens_per_second: float
    step_time_seconds: float
    peak_device_bytes: int
    margin_bytes: int


class StudyView(BaseModel):
    """A study, or a search that waits to be one."""

    study: str
    status: Literal["WAITING", "RUNNING", "INTERRUPTED", "FINISHED"]
    model: str | None
    device: str | None
    engine: str | None
    sampler: str | None
    objective: str | None
    created_at: str
    gpu_mem_bytes: int | None
    memory_budget_bytes: int | None
    winner_trial_number: int | None
    device_name: str | None
    devices: int
    trials: int
    running: int
    completed: int
    out_of_memory: int
    skipped: int
    predicted: int
    job: JobView | None
    best: Best | None


class Studies(BaseModel):
    """Newest first."""

    studies: list[StudyView]


class Trials(BaseModel):
    """Rows of the view `trial_list`."""

    trials: list[dict[str, Any]]
    next_offset: int | None = Field(description="Where the next page begins; null: this is the last.")


class Trial(BaseModel):
    """A trial whole."""

    model_config = ConfigDict(extra="allow")
    study: str
    trial_number: int
    spec: dict[str, Any]
    result: dict[str, Any] | None
    prediction: dict[str, Any] | None
    logs: dict[str, list[str] | None]


class Front(BaseModel):
    """Speed, memory and quality against each other."""

    study: str
    evidence: Literal["measured", "predicted"]
    rate: str | None = Field(description="What the study maximises, and the front's speed is: `objective_value` of its rows.")
    memory_budget_bytes: int | None
    winner_trial_number: int | None
    front: list[dict[str, Any]] = Field(
        description="Fastest first: nothing known is at least as fast, as small and trains as much. `gives_up`: where a"
        " training falls short of what was asked for."
    )
    others: list[dict[str, Any]]
    shown_every: int = Field(description="Of the other trials every n-th is here.")


class Compromise(BaseModel):
    """One change, the fastest configuration known under it, and what it buys against the winner."""

    kind: Literal["training", "running"] = Field(description="Another training, or the same run in another way.")
    changes: list[str]
    along: list[str] = Field(description="What else its configuration does otherwise, the same training granted.")
    trial_number: int
    fits: bool
    outcome: str = Field(description="`fits`, or why it does not.")
    speedup: float | None = Field(description="Its speed over the winner's, both of its evidence; null: it does not fit.")
    samples_per_second: float | None
    peak_bytes: int | None
    more_bytes: int | None = Field(description="Its peak less the winner's; negative is saved.")
    truncated_share: float | None = Field(description="Samples that lose tokens; null: the data have no profile.")
    evidence: Literal["measured", "predicted"]


class Compromises(BaseModel):
    """Other trainings first, each part fastest first, then what does not fit."""

    study: str
    against_trial_number: int | None
    compromises: list[Compromise]


class Files(BaseModel):
    """What an export writes."""

    trial_number: int
    launcher: str
    files: dict[str, str]
    command: str
    warning: str | None


class Asked(_Body):
    """A configuration to be predicted."""

    spec: TrialSpec
    gpu_mem: str | None = Field(default=None, pattern=SIZE, examples=["24GB"])
    """Budget; decides `fits`."""
    card: Text | None = None
    """Device whose rates the time rests on, and whose memory is the most."""
    timeline: bool = False
    """Whether to add the step's memory by term."""


class Predicted(BaseModel):
    """A prediction. Nothing was run."""

    prediction: Prediction
    memory_budget_bytes: int | None
    timeline: dict[str, Any] | None
    terms: list[dict[str, Any]] = Field(description="The terms at the peak, for a picture: name, label, colour, bytes.")


class Explained(Predicted):
    """Why it fits or not, and what makes it fit."""

    fits: bool
    shortfall_bytes: int
    phases: dict[str, int]
    remedies: list[dict[str, Any]]


class Sql(_Body):
    """A question in SQL."""

    sql: str = Field(min_length=1, max_length=20_000)
    """One SELECT over the tables and views."""
    limit: int = Field(default=1000, ge=1, le=10_000)


class Table(BaseModel):
    """An answer in SQL's form."""

    columns: list[str]
    rows: list[list[Any]]
    truncated: bool


class Token(_Body):
    """Opens a session in a browser."""

    token: str = Field(min_length=1, max_length=200)


class Identity(BaseModel):
    """Who is asking."""

    name: str
    role: Literal["read", "write"]


class Health(BaseModel):
    """Whether the service can answer."""

    status: Literal["ok"]
    version: str
    schema_revision: str
    supervisor: bool = Field(description="Whether a supervisor runs the queue.")


class Choices(BaseModel):
    """What a request may name."""

    presets: list[str]
    spaces: list[str]
    cards: list[dict[str, Any]]
    pythons: list[str]
    launchers: list[str]
    trial_columns: list[str]


Limit = Annotated[int, Query(ge=1, le=1000, description="Rows at most.")]
Offset = Annotated[int, Query(ge=0, le=MAX_INT, description="Rows to leave out before the first.")]
Launcher = Annotated[
    Literal["llamafactory", "transformers", "trl", "axolotl", "deepspeed"], Query(description="What is to run the files.")
]
Chosen = Annotated[int | None, Query(ge=0, le=MAX_INT, description="The trial; none: the study's winner.")]
