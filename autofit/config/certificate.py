"""`autofit.json`: what lies beside an export and says under which conditions it was proved, to be looked at again later."""

from datetime import datetime
from typing import Literal

from pydantic import Field, PositiveInt

from autofit.config.base import Frozen
from autofit.config.hardware import Hardware
from autofit.config.result import EpochEstimate, Outcome, Phase
from autofit.config.trial import TrialSpec

CERTIFICATE_FILE = "autofit.json"


class Start(Frozen):
    """How a launcher is started on exported files, without a shell."""

    arguments: tuple[str, ...] = Field(min_length=1)
    """Program and arguments; an exported file is named without its folder."""
    environment: dict[str, str] = {}
    """Variables it needs beside the user's own."""


class FileDigest(Frozen):
    """One exported file."""

    name: str
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class DatasetDigest(Frozen):
    """The training data in one digest: entries of `dataset_info.json`, the files they name, the images that rows name."""

    name: str
    dir: str
    """Folder of `dataset_info.json`, as the export names it."""
    media_dir: str | None = None
    """Folder that paths of images are relative to (LLaMA-Factory `media_dir`); None: `dir`."""
    media_files: int = 0
    """Images, videos and sounds in the digest."""
    unread: tuple[str, ...] = ()
    """Data files whose rows were not looked through for images: only their own bytes count."""
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    reason: str | None = None
    """Why there is no digest."""


class Figures(Frozen):
    """What one run measured; None: it did not."""

    trial_number: int = Field(ge=0)
    outcome: Outcome
    phase: Phase | None = None
    peak_device_bytes: PositiveInt | None = None
    """Worst rank."""
    margin_bytes: int | None = None
    """Budget less peak."""
    step_time_seconds: float | None = None
    samples_per_second: float | None = None
    tokens_per_second: float | None = None
    effective_tokens_per_second: float | None = None
    """Without padding."""
    timed_steps: int | None = None
    epoch: EpochEstimate | None = None
    """On the data set, with intervals; None: the speed is that of the timed steps."""
    memory_limit: str | None = None
    """How the budget was enforced; None: it was not."""
    finished_at: datetime | None = None


class Certificate(Frozen):
    """Configuration, conditions and figures of an export."""

    schema_version: Literal[1] = 1
    autofit_version: str
    study: str
    trial_number: int = Field(ge=0)
    evidence: Literal["measured", "predicted", "failed"]
    """`predicted`: the configuration was never run, and there are no figures. `failed`: it did not run to its end."""
    engine: str
    """Training loop of the trials."""
    python: str
    """Interpreter of the training environment in which they ran."""
    launcher: str
    start: Start
    spec: TrialSpec
    files: tuple[FileDigest, ...]
    dataset: DatasetDigest
    versions: dict[str, str]
    """Package of the training environment -> version, as the trials ran with it; empty: not recorded."""
    hardware: Hardware
    gpu_mem_bytes: PositiveInt
    """What `--gpu-mem` said."""
    memory_budget_bytes: PositiveInt
    """What a rank may use."""
    search: Figures | None = None
    confirm: Figures | None = None
    """The longer run in a fresh process; None: there was none."""

    @property
    def peak_device_bytes(self) -> int | None:
        """The highest peak that was measured."""
        peaks = [run.peak_device_bytes for run in (self.search, self.confirm) if run and run.peak_device_bytes]
        return max(peaks, default=None)
