"""A table of trials: every configuration of a space with what its trial came back with, as one JSON Lines file.

The first line is the header; every further line one configuration:

    {"knobs": {...}, "outcome": "COMPLETED", "peak_bytes": 1, "speed": 1.0, "wall_seconds": 1.0, "prediction": {...}}

`knobs` are the fields in which it differs from the header's `base`. `peak_bytes` and `speed` are missing where it did not
complete; `at_least_bytes` is then what the out-of-memory message gave as a lower bound. `prediction` (missing: none) has
`peak_bytes`, `speed`, `step_seconds`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from autofit.config.base import Frozen
from autofit.config.legality import training_changes
from autofit.config.model import Model
from autofit.config.prediction import Prediction
from autofit.config.space import KNOBS, LegalSpace, SearchSpace, enumerate_space
from autofit.config.trial import TrialSpec

FORMAT: Literal[1] = 1


class Header(Frozen):
    """What the rows have in common."""

    format: Literal[1] = FORMAT
    name: str
    evidence: Literal["measured", "simulated"]
    note: str
    space: SearchSpace
    model: Model
    num_gpus: int
    objective: str
    budget_bytes: int
    """At which strategies are replayed; a row that needs more runs out of memory."""
    total_parameters: int
    """Of the model, frozen ones included: DeepSpeed's memory formula counts them all."""
    machine: dict[str, Any]
    versions: dict[str, str]
    base: TrialSpec


class Row(Frozen):
    """One configuration's trial."""

    knobs: dict[str, Any]
    outcome: str
    peak_bytes: int | None = None
    at_least_bytes: int | None = None
    speed: float | None = None
    wall_seconds: float | None = None
    prediction: dict[str, float] | None = None
    step_terms: dict[str, float] = {}
    """Of the prediction: seconds of a step by what limits them."""


@dataclass(frozen=True)
class Table:
    """A space, its truth and its predictions."""

    header: Header
    legal: LegalSpace
    rows: Mapping[TrialSpec, Row]
    forecasts: Mapping[TrialSpec, Prediction]

    @property
    def budget_bytes(self) -> int:
        return self.header.budget_bytes

    def runs(self, spec: TrialSpec) -> bool:
        """Whether a configuration completes within the budget."""
        row = self.rows[spec]
        return row.outcome == "COMPLETED" and (row.peak_bytes or 0) <= self.budget_bytes

    def wanted(self, spec: TrialSpec) -> bool:
        """Whether it runs the reference's training."""
        return not training_changes(spec, self.legal.reference)

    @property
    def best(self) -> float:
        """The exhaustive best: the highest speed that runs the reference's training within the budget."""
        return max(row.speed or 0.0 for spec, row in self.rows.items() if self.runs(spec) and self.wanted(spec))

    def without_forecasts(self) -> "Table":
        """The same truth with nothing predicted."""
        return replace(self, forecasts={})


def load(path: Path, budget_bytes: int | None = None) -> Table:
    """A table from its file; the space is enumerated anew, and every legal point must have a row.

    Raises:
        ValueError: points without a row.
    """
    first, *rest = path.read_text(encoding="utf-8").splitlines()
    header = Header.model_validate_json(first)
    if budget_bytes is not None:
        header = header.model_copy(update={"budget_bytes": budget_bytes})
    legal = enumerate_space(header.space, header.model, header.num_gpus)
    rows: dict[TrialSpec, Row] = {}
    for line in rest:
        row = Row.model_validate_json(line)
        rows[header.base.model_copy(update=row.knobs)] = row
    lacking = [spec for spec in legal.points if spec not in rows]
    if lacking:
        first_knobs = differing(lacking[0], header.base)
        raise ValueError(f"{path}: {len(lacking)} of {len(legal.points)} configurations have no row, first {first_knobs}")
    forecasts = {spec: prediction(spec, row.prediction, row.step_terms) for spec, row in rows.items() if row.prediction}
    return Table(header, legal, rows, forecasts)


def save(path: Path, header: Header, rows: Sequence[Row]) -> None:
    """Writes a table."""
    lines = [header.model_dump_json(), *(row.model_dump_json(exclude_none=True) for row in rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def differing(spec: TrialSpec, base: TrialSpec) -> dict[str, Any]:
    """The knobs in which a spec differs from `base`."""
    return {name: getattr(spec, name) for name in KNOBS if getattr(spec, name) != getattr(base, name)}


def shrink(prediction: Prediction, objective: str) -> dict[str, float]:
    """What a table keeps of a prediction: before corrections, as a strategy uses it."""
    return {
        "peak_bytes": prediction.uncorrected_bytes.get("device", prediction.peak_device_bytes),
        "speed": getattr(prediction, objective),
        "step_seconds": prediction.step_time_seconds,
    }


def prediction(spec: TrialSpec, kept: Mapping[str, float], step_terms: Mapping[str, float]) -> Prediction:
    """A prediction that says what a table kept of it."""
    peak, seconds = int(kept["peak_bytes"]), kept["step_seconds"]
    peaks = {f"peak_{name}_bytes{end}": peak for name in ("allocated", "reserved", "device") for end in ("", "_low", "_high")}
    samples = spec.global_batch_size / seconds
    return Prediction.model_validate(
        {
            **peaks,
            "step_time_seconds": seconds,
            "step_terms": dict(step_terms),
            "samples_per_second": samples,
            "tokens_per_second": samples * spec.cutoff_len,
            "fits": None,
            "terms": {},
            "phase": "unknown",
            "precision_mode": "unknown",
            "device_model": "table",
            "assumptions": [],
            "not_modelled": [],
            "versions": {},
        }
    )
