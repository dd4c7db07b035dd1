"""Peak memory of real fine-tuning runs, measured and published by others. See README.md in this folder."""

import json
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from autofit.config.base import Frozen
from autofit.config.trial import TrialSpec

_HERE = Path(__file__).parent


class Source(Frozen):
    """Where the figure stands."""

    repository: str
    path: str
    commit: str
    date: str | None = None
    """Of the commit, or of the run where its record says so."""


class Measured(Frozen):
    """Highest use of one device, by kind; bytes. None: not published."""

    allocated_bytes: int | None = None
    """Tensors (`max_memory_allocated`)."""
    reserved_bytes: int | None = None
    """The caching allocator's segments (`max_memory_reserved`)."""
    device_bytes: int | None = None
    """nvidia-smi."""
    unspecified_bytes: int | None = None
    """The source does not say which of the three it is."""
    end_allocated_bytes: int | None = None
    """Tensors at the end of training: weights, gradients, optimizer state."""
    reserved_mean_bytes: int | None = None
    """Mean over all steps of what was reserved at their end."""
    reserved_99th_bytes: int | None = None
    """99th percentile over all steps of the same."""
    end_allocated_mean_bytes: int | None = None
    """Mean over all steps of what was allocated at their end."""


class Row(Frozen):
    """One run on real hardware."""

    id: str
    source: Source
    device: str
    """Name in `autofit.predict.devices`, or what the source says."""
    versions: dict[str, str]
    """Libraries, as published; empty: not published."""
    model: str
    config: str | None
    """Key in models.json."""
    modality: Literal["text", "vision-language"]
    spec: dict[str, object] | None
    """Fields of a TrialSpec without its model."""
    loop: dict[str, object]
    """What the run did that a spec does not say (autocast, dropout of the adapters, padding): a score must honour all of it."""
    measured: Measured
    resolution_bytes: int = Field(gt=0)
    """Step of the published figure: 512 for bytes, a GiB for `36 GiB`."""
    not_expressible: str | None
    """Why no spec can stand for the run; None: `trial()` does."""
    note: str = ""

    @model_validator(mode="after")
    def _spec_or_reason(self) -> "Row":
        if (self.spec is None) == (self.not_expressible is None):
            raise ValueError(f"{self.id}: a row has either a spec or a reason why it has none")
        if not any(value for value in self.measured.model_dump().values()):
            raise ValueError(f"{self.id}: a row without a measurement")
        return self

    def trial(self) -> TrialSpec | None:
        """The run as a trial spec with its model inline, or None with `not_expressible` saying why."""
        if self.spec is None or self.config is None:
            return None
        return TrialSpec.model_validate({**self.spec, "model": {"config": models()[self.config]}})


def models() -> dict[str, dict[str, object]]:
    """Hugging Face configs of the models in expressible rows."""
    found: dict[str, dict[str, object]] = json.loads((_HERE / "models.json").read_text(encoding="utf-8"))
    return found


def load() -> list[Row]:
    """All rows, expressible or not, in the order of the file."""
    lines = (_HERE / "measurements.jsonl").read_text(encoding="utf-8").splitlines()
    return [Row.model_validate_json(line) for line in lines]
