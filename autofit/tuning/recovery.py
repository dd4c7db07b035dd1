"""After an out-of-memory in the real run: the next safer configuration of the study, and the files that go on with it.

Safer means: the same training and the same global batch, with a smaller micro-batch (more accumulation), with checkpointing, or
with a higher ZeRO stage, in this order, and nowhere less; a configuration whose measured peak is not lower, or that ran out of
memory itself, is passed over.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autofit.config.certificate import CERTIFICATE_FILE, Certificate, FileDigest
from autofit.config.launcher_keys import key_changes
from autofit.config.launcher_yaml import edited, launcher_values
from autofit.config.record import TrialRecord
from autofit.config.trial import TrialSpec
from autofit.export.deepspeed import deepspeed_config
from autofit.export.digest import text_digest
from autofit.export.files import write_all
from autofit.export.llamafactory import FILE

_SAVING = ("zero_stage", "offload_optimizer", "offload_param", "gradient_checkpointing")
"""Fields of which more needs less memory."""
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")
STATE_FILE = "trainer_state.json"


@dataclass(frozen=True)
class Progress:
    """How far a run had come."""

    checkpoint: Path | None
    """The last that is whole."""
    step: int | None
    """The last optimizer step that was logged."""
    total_steps: int | None

    @property
    def words(self) -> str:
        """For a message."""
        at = (
            f"after step {self.step}" + (f" of {self.total_steps}" if self.total_steps else "")
            if self.step
            else "before a step was logged"
        )
        return f"{at}, {f'last checkpoint {self.checkpoint.name}' if self.checkpoint else 'no checkpoint yet'}"


def next_safer(
    points: Sequence[TrialSpec], trials: Sequence[TrialRecord], current: TrialSpec, *, same_sharding: bool
) -> TrialSpec | None:
    """The first of `points` that needs less memory than `current` and trains alike; None when there is none.

    `same_sharding`: a checkpoint is to be resumed, which holds the optimizer's state as the ZeRO stage laid it out.
    """
    failed = {trial.spec for trial in trials if trial.out_of_memory}
    peaks = _peaks(trials)
    ceiling = peaks.get(current)
    candidates = [
        point
        for point in points
        if _is_safer(point, current)
        and point not in failed
        and not (ceiling is not None and point in peaks and peaks[point] >= ceiling)
        and not (same_sharding and any(getattr(point, name) != getattr(current, name) for name in _SAVING[:3]))
    ]
    return min(
        candidates, key=lambda point: (*(getattr(point, name) for name in _SAVING), -point.micro_batch_size), default=None
    )


def progress_of(text: str, source: str) -> Progress:
    """How far the run of a LLaMA-Factory file has come, by what lies in its output folder."""
    folder = Path(str(launcher_values(text, source).get("output_dir", "")))
    last = _last_log_line(folder / "trainer_log.jsonl")
    whole = [path for path in folder.glob("checkpoint-*") if _CHECKPOINT.fullmatch(path.name) and (path / STATE_FILE).is_file()]
    return Progress(
        checkpoint=max(whole, key=lambda path: int(path.name.split("-")[1]), default=None),
        step=last.get("current_steps"),
        total_steps=last.get("total_steps"),
    )


def write_recovery(
    folder: Path, certificate: Certificate, safer: TrialSpec, trials: Sequence[TrialRecord], checkpoint: Path | None
) -> tuple[Path, Certificate]:
    """Writes the YAML in `folder` anew for `safer` into a folder `recovered-N` in it, which resumes from `checkpoint`.

    Raises:
        AutofitError: the YAML's lines cannot be changed apart, or the folder cannot be written.
    """
    text = (folder / FILE).read_bytes().decode("utf-8")
    changes = key_changes(certificate.spec, safer, deepspeed_config(safer))
    if checkpoint is not None:
        changes["resume_from_checkpoint"] = str(checkpoint)
        _tell_micro_batch(checkpoint, safer.micro_batch_size)
    text = edited(text, changes, str(folder / FILE))
    ran = next((trial for trial in trials if trial.spec == safer and trial.fits), None)
    after = certificate.model_copy(
        update={
            "spec": safer,
            "trial_number": ran.trial_number if ran else certificate.trial_number,
            "evidence": "measured" if ran else "predicted",
            "files": (FileDigest(name=FILE, sha256=text_digest(text)),),
            "start": certificate.start.model_copy(update={"environment": _environment(certificate, safer)}),
            "search": None,
            "confirm": None,
        }
    )
    number = 1 + len(
        list(folder.parent.glob("recovered-*") if folder.name.startswith("recovered-") else folder.glob("recovered-*"))
    )
    base = folder.parent if folder.name.startswith("recovered-") else folder
    target = base / f"recovered-{number}"
    write_all(target, {FILE: text, CERTIFICATE_FILE: after.model_dump_json(indent=1) + "\n"})
    return target, after


def _is_safer(point: TrialSpec, current: TrialSpec) -> bool:
    savings = {name: getattr(point, name) for name in _SAVING}
    same = current.model_copy(
        update={
            **savings,
            "micro_batch_size": point.micro_batch_size,
            "gradient_accumulation_steps": point.gradient_accumulation_steps,
        }
    )
    return (
        point == same
        and point != current
        and point.global_batch_size == current.global_batch_size
        and point.micro_batch_size <= current.micro_batch_size
        and all(value >= getattr(current, name) for name, value in savings.items())
    )


def _peaks(trials: Sequence[TrialRecord]) -> dict[TrialSpec, int]:
    """The highest measured peak of each configuration that ran to its end."""
    found: dict[TrialSpec, int] = {}
    for trial in trials:
        peak = trial.result.peak_device_bytes if trial.result and trial.fits else None
        if peak is not None:
            found[trial.spec] = max(peak, found.get(trial.spec, 0))
    return found


def _environment(certificate: Certificate, safer: TrialSpec) -> dict[str, str]:
    """A ZeRO stage needs torchrun."""
    if safer.zero_stage == 0 or "FORCE_TORCHRUN" in certificate.start.environment:
        return certificate.start.environment
    return {"FORCE_TORCHRUN": "1", "NPROC_PER_NODE": str(safer.num_gpus)}


def _tell_micro_batch(checkpoint: Path, micro_batch_size: int) -> None:
    """transformers before 5 takes the micro-batch of a resumed run from the checkpoint, whatever its arguments say."""
    state = json.loads((checkpoint / STATE_FILE).read_text(encoding="utf-8"))
    if state.get("train_batch_size") not in {None, micro_batch_size}:
        write_all(checkpoint, {STATE_FILE: json.dumps({**state, "train_batch_size": micro_batch_size}, indent=2) + "\n"})


def _last_log_line(file: Path) -> dict[str, Any]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
        value = json.loads(lines[-1]) if lines else {}
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
