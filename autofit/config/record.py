"""What the store keeps: one record a study, one a trial. The rooms above exchange these and nothing else."""

from datetime import datetime
from typing import Literal, Self

from pydantic import Field, PositiveInt, model_validator

from autofit.config.base import Frozen
from autofit.config.floor import DataFloor
from autofit.config.hardware import Hardware
from autofit.config.model import Model
from autofit.config.prediction import Prediction
from autofit.config.result import OUTCOMES_OUT_OF_MEMORY, TrialResult
from autofit.config.space import SearchSpace
from autofit.config.trial import Engine, TrialSpec

StudyStatus = Literal["RUNNING", "INTERRUPTED", "FINISHED"]
Purpose = Literal["search", "confirm", "launch"]


class StudyRecord(Frozen):
    """One search: model x hardware x space x budget. Everything that `--resume` needs."""

    name: str = Field(min_length=1, max_length=200)
    created_at: datetime
    status: StudyStatus = "RUNNING"
    space: SearchSpace
    model: Model
    hardware: Hardware
    engine: Engine = "transformers"
    """The training loop that runs the trials."""
    python: str
    """Interpreter of the training environment."""
    executor: Literal["local"] = "local"
    sampler: str
    seed: int
    gpu_mem_bytes: PositiveInt
    """What `--gpu-mem` says."""
    memory_budget_bytes: PositiveInt
    """What a rank may use: `gpu_mem_bytes` (or the device's own memory, if that is less) less headroom."""
    winner_trial_number: int | None = None
    stop_reason: str | None = None
    """Why the sampler ended the search; None: a limit or the user did, or it goes on."""
    autofit_version: str
    floor: DataFloor | None = None
    """What the dataset's profile forbids; None: there is none, and samples are taken to be as large as the spec allows."""
    source_path: str | None = None
    """The launcher's YAML that the study started from (`--from`); its reference is what that file says."""
    source_yaml: str | None = None
    """That file's text: an export is this with the changed lines replaced."""

    @model_validator(mode="after")
    def _source_has_both(self) -> Self:
        if (self.source_path is None) != (self.source_yaml is None):
            raise ValueError("a study that started from a file has both its path and its text")
        return self


class TrialRecord(Frozen):
    """One configuration executed once."""

    study: str
    trial_number: int = Field(ge=0)
    purpose: Purpose = "search"
    """A `confirm` trial runs the winner of the search again, longer, in a fresh process; a `launch` is the user's own run."""
    spec: TrialSpec
    reason: str
    """Why it was proposed."""
    prediction: Prediction | None = None
    """What was said of it before it ran; None: nothing was."""
    attempt: int = Field(default=1, ge=1)
    """Times it was started; more than 1 after a kill."""
    run_dir: str
    """Folder of spec.json, result.json, stdout.log and stderr.log."""
    started_at: datetime
    finished_at: datetime | None = None
    result: TrialResult | None = None
    """None while it runs."""

    @model_validator(mode="after")
    def _finished_means_result(self) -> Self:
        if (self.finished_at is None) != (self.result is None):
            raise ValueError("a trial has a finish time exactly when it has a result")
        return self

    @property
    def fits(self) -> bool:
        """Whether it ran to the end. Compare `peak_device_bytes` with the budget for the verdict on memory."""
        return self.result is not None and self.result.outcome == "COMPLETED"

    @property
    def out_of_memory(self) -> bool:
        """Whether memory ended it."""
        return self.result is not None and self.result.outcome in OUTCOMES_OUT_OF_MEMORY
