"""The user's own LLaMA-Factory YAML with the lines changed that a trial changed, and the difference beside it."""

import difflib
from pathlib import Path

from autofit.config.launcher_keys import key_changes
from autofit.config.launcher_yaml import edited, launcher_values
from autofit.config.space import reference_spec
from autofit.errors import AutofitError
from autofit.export.deepspeed import config_for
from autofit.export.source import Source

DIFF = "train.diff"


def changed_file(source: Source, file: str, heading: list[str]) -> dict[str, str]:
    """`file` (the study's source with the trial's values, our comments on top) and `train.diff`, a unified diff to it.

    Raises:
        AutofitError: the study did not start from a file, or its lines cannot be changed apart.
    """
    study = source.study
    if study.source_yaml is None or study.source_path is None:
        raise AutofitError(f"study {study.name} did not start from a file")
    reference = reference_spec(study.space, study.model, source.spec.num_gpus)
    changes = key_changes(reference, source.spec, config_for(source))
    body = edited(study.source_yaml, changes, study.source_path)
    eol = "\r\n" if "\r\n" in study.source_yaml else "\n"
    text = eol.join(f"# {line}".rstrip() for line in heading) + eol + body
    before, after = study.source_yaml.splitlines(keepends=True), text.splitlines(keepends=True)
    diff = "".join(
        line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n"
        for line in difflib.unified_diff(before, after, fromfile=study.source_path, tofile=file)
    )
    return {file: text, DIFF: diff}


def starts_deepspeed(source: Source) -> bool:
    """Whether the user's file, which a trial without ZeRO leaves as it is, names a DeepSpeed configuration."""
    study = source.study
    if study.source_yaml is None:
        return False
    zero = reference_spec(study.space, study.model, source.spec.num_gpus).zero_stage
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
