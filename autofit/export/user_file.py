"""The user's own LLaMA-Factory YAML with the lines changed that a trial changed, and the difference beside it."""

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autofit.config.launcher_keys import key_changes
from autofit.config.launcher_yaml import edited, launcher_values
from autofit.config.record import StudyRecord
from autofit.config.space import reference_spec
from autofit.config.trial import TrialSpec
from autofit.errors import AutofitError
from autofit.export.deepspeed import config_for, deepspeed_config
from autofit.export.source import Source

DIFF = "train.diff"
_PATHS = ("model_name_or_path", "adapter_name_or_path", "dataset_dir", "media_dir", "image_dir", "deepspeed", "tokenized_path")


def changed_file(source: Source, file: str, heading: list[str]) -> dict[str, str]:
    """`file` (the study's source with the trial's values, our comments on top) and `train.diff`, a unified diff to it.

    Raises:
        AutofitError: the study did not start from a file, or its lines cannot be changed apart.
    """
    study = source.study
    body = _body(study, source.spec, config_for(source))
    assert study.source_yaml is not None and study.source_path is not None
    eol = "\r\n" if "\r\n" in study.source_yaml else "\n"
    text = eol.join(f"# {line}".rstrip() for line in heading) + eol + body
    before, after = study.source_yaml.splitlines(keepends=True), text.splitlines(keepends=True)
    diff = "".join(
        line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n"
        for line in difflib.unified_diff(before, after, fromfile=study.source_path, tofile=file)
    )
    return {file: text, DIFF: diff}


def user_arguments(study: StudyRecord, spec: TrialSpec) -> dict[str, Any]:
    """What LLaMA-Factory reads in the user's file as `spec` changes it.

    A trial runs in a folder of its own: paths that exist, seen from here, are made absolute.

    Raises:
        AutofitError: as `changed_file`.
    """
    values = launcher_values(_body(study, spec, deepspeed_config(spec)), str(study.source_path))
    there = {name: values[name] for name in _PATHS if isinstance(values.get(name), str) and Path(values[name]).exists()}
    return values | {name: str(Path(value).resolve()) for name, value in there.items()}


def _body(study: StudyRecord, spec: TrialSpec, deepspeed: Mapping[str, Any] | None) -> str:
    if study.source_yaml is None or study.source_path is None:
        raise AutofitError(f"study {study.name} did not start from a file")
    reference = reference_spec(study.space, study.model, spec.num_gpus, study.floor)
    return edited(study.source_yaml, key_changes(reference, spec, deepspeed), study.source_path)


def starts_deepspeed(source: Source) -> bool:
    """Whether the user's file, which a trial without ZeRO leaves as it is, names a DeepSpeed configuration."""
    study = source.study
    if study.source_yaml is None:
        return False
    zero = reference_spec(study.space, study.model, source.spec.num_gpus, study.floor).zero_stage
    return zero == source.spec.zero_stage and bool(launcher_values(study.source_yaml, str(study.source_path)).get("deepspeed"))


def evaluation_note(source: Source) -> str | None:
    """What to know of the file's evaluation, where it leaves its batch size to LLaMA-Factory."""
    if source.study.source_yaml is None:
        return None
    values = launcher_values(source.study.source_yaml, Path(str(source.study.source_path)).name)
    evaluates = values.get("eval_dataset") or values.get("val_size") or values.get("do_eval")
    if not evaluates or values.get("per_device_eval_batch_size"):
        return None
    return (
        "per_device_eval_batch_size is not set: LLaMA-Factory evaluates with 8, which can run out of memory where training fits"
    )
