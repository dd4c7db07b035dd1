"""What `spec.json` orders, read without pydantic: the driver has validated it, this only has to find it whole."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SCHEMA_VERSION = 1
RESUME = "AUTOFIT_RESUME"
"""Set by the supervisor for ranks that resume from the checkpoint of the ranks before them."""


class OrderError(ValueError):
    """The spec file is missing, torn, or not one that this worker knows."""


@dataclass(frozen=True)
class Order:
    """One trial to run. Field names and meanings are those of `autofit.config.trial.RunSpec`.

    The steps of a trial, in this order: warm-up (the first one with the worst batch), timed steps, a step with the worst batch
    again, [evaluation, checkpoint, one more step]. A run on synthetic samples, all of them the worst, has no step of its own
    for the worst batch.
    """

    spec_path: Path
    trial: dict[str, Any]
    model: dict[str, Any]
    engine: str
    arguments: dict[str, Any]
    worst_batch: list[int] | None
    timed_batches: list[list[int]] | None
    shapes: list[dict[str, int]]
    device: str
    warmup_steps: int
    steps: int
    evaluate: bool
    save: bool
    resume: bool
    memory_budget_bytes: int | None
    seed: int
    record_losses: bool

    @property
    def folder(self) -> Path:
        """The run folder: everything that this trial writes lies in it."""
        return self.spec_path.parent

    @property
    def output_dir(self) -> Path:
        """What the training itself writes: checkpoints, logs. The launcher removes it when the trial has ended."""
        return self.folder / "trainer"

    @property
    def num_ranks(self) -> int:
        """Ranks of the job, one a device."""
        return int(self.trial["num_gpus"])

    @property
    def worst_steps(self) -> frozenset[int]:
        """Optimizer steps (0 is the first) that get the worst batch; empty where every batch is the worst."""
        if self.engine == "transformers" and self.worst_batch is None:
            return frozenset()
        return frozenset({0, self.warmup_steps + self.steps})

    @property
    def checkpoint_step(self) -> int | None:
        """Optimizer steps after which evaluation and checkpoint come; None without either."""
        if not (self.evaluate or self.save):
            return None
        return self.warmup_steps + self.steps + (1 if self.worst_steps else 0)

    @property
    def total_steps(self) -> int:
        """Optimizer steps in all."""
        if self.checkpoint_step is not None:
            return self.checkpoint_step + 1
        return self.warmup_steps + self.steps + (1 if self.worst_steps else 0)

    @property
    def resumed_from(self) -> Path | None:
        """The checkpoint that this process resumes from; None: it starts afresh."""
        return self.output_dir / f"checkpoint-{self.checkpoint_step}" if os.environ.get(RESUME) else None

    @property
    def first_step(self) -> int:
        """The optimizer step that this process begins with."""
        return self.checkpoint_step or 0 if os.environ.get(RESUME) else 0

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
        measure = content["measure"]
        return Order(
            spec_path=path,
            trial=dict(content["trial"]),
            model=dict(content["model"]),
            engine=str(content.get("engine", "transformers")),
            arguments=dict(content.get("arguments") or {}),
            worst_batch=content.get("worst_batch"),
            timed_batches=content.get("timed_batches"),
            shapes=list(content.get("shapes") or []),
            device=str(content["device"]),
            warmup_steps=int(measure["warmup_steps"]),
            steps=int(measure["steps"]),
            evaluate=bool(measure.get("evaluate", False)),
            save=bool(measure.get("save", False)),
            resume=bool(measure.get("resume", False)),
            memory_budget_bytes=content.get("memory_budget_bytes"),
            seed=int(content.get("seed", 0)),
            record_losses=bool(content.get("record_losses", True)),
        )
    except OrderError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise OrderError(f"{path}: is not a whole spec ({type(error).__name__}: {error})") from error
