"""What `spec.json` orders, read without pydantic: the driver has validated it, this only has to find it whole."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SCHEMA_VERSION = 1


class OrderError(ValueError):
    """The spec file is missing, torn, or not one that this worker knows."""


@dataclass(frozen=True)
class Order:
    """One trial to run. Field names and meanings are those of `autofit.config.trial.RunSpec`."""

    spec_path: Path
    trial: dict[str, Any]
    model: dict[str, Any]
    engine: str
    device: str
    warmup_steps: int
    steps: int
    memory_budget_bytes: int | None
    seed: int
    record_losses: bool

    @property
    def folder(self) -> Path:
        """The run folder: everything that this trial writes lies in it."""
        return self.spec_path.parent

    @property
    def num_ranks(self) -> int:
        """Ranks of the job, one a device."""
        return int(self.trial["num_gpus"])

    @property
    def total_steps(self) -> int:
        """Optimizer steps, warm-up included."""
        return self.warmup_steps + self.steps

    @property
    def global_batch_size(self) -> int:
        """Samples per optimizer step over all ranks."""
        return int(self.trial["micro_batch_size"]) * int(self.trial["gradient_accumulation_steps"]) * self.num_ranks


def read_order(path: Path) -> Order:
    """Reads a spec file.

    Raises:
        OrderError: it cannot be read, is not JSON, lacks a field, or has another schema version.
    """
    path = path.resolve()
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise OrderError(f"{path}: is not a readable spec ({error})") from error
    try:
        version = content.get("schema_version", SCHEMA_VERSION)
        if version != SCHEMA_VERSION:
            raise OrderError(f"{path}: schema_version {version}, this worker reads {SCHEMA_VERSION}; update the training side")
        return Order(
            spec_path=path,
            trial=dict(content["trial"]),
            model=dict(content["model"]),
            engine=str(content.get("engine", "transformers")),
            device=str(content["device"]),
            warmup_steps=int(content["measure"]["warmup_steps"]),
            steps=int(content["measure"]["steps"]),
            memory_budget_bytes=content.get("memory_budget_bytes"),
            seed=int(content.get("seed", 0)),
            record_losses=bool(content.get("record_losses", True)),
        )
    except OrderError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise OrderError(f"{path}: is not a whole spec ({type(error).__name__}: {error})") from error
