"""What a trial proved, in lines of prose for the comments of an exported file. What is only predicted is called so."""

from collections.abc import Sequence
from datetime import datetime

from autofit.config.certificate import Start
from autofit.config.legality import canonical
from autofit.config.record import StudyRecord, TrialRecord
from autofit.config.result import TrialResult
from autofit.export.source import Source
from autofit.units import format_bytes, format_seconds

NEVER_RUN = frozenset({"PREDICTED", "SKIPPED"})


def evidence(source: Source) -> list[str]:
    """One fact a line: origin, outcome, memory against the budget, speed against the reference, data, device, software."""
    study, trial, result = source.study, source.trial, source.result
    planned = "planned for " if study.hardware.device == "none" else ""
    return [
        f"autofit {study.autofit_version}: study {_one_line(study.name)}, trial {trial.trial_number} ({trial.purpose})",
        f"outcome: {_outcome(result)}{_when(trial.finished_at)}",
        f"memory: {_memory(study, trial, result)}",
        f"speed: {_speed(source)}",
        _data(source),
        f"device: {planned}{source.spec.num_gpus} rank(s) on {_device(study)}",
        f"engine: {study.engine}; {_versions(result)}",
    ]


def heading(source: Source, start: Start) -> list[str]:
    """The comments that stand before an exported file: why not to trust it, if so; the evidence; how it is run."""
    lines = evidence(source)
    if (failed := warning(source.result)) is not None:
        lines.insert(0, failed)
    command = " ".join([*(f"{name}={value}" for name, value in start.environment.items()), *start.arguments])
    # the paths in the user's own file are relative to where he starts it
    where = "in this folder" if source.study.source_path is None else "where you run your own file, by this one's path,"
    return [*lines, "", f"run it {where} with: {command}"]


def warning(result: TrialResult) -> str | None:
    """Why the files should not be trusted to run, if the trial did not run to its end."""
    if result.outcome == "COMPLETED":
        return None
    if result.outcome == "PREDICTED":
        return "PREDICTED: this configuration was never run; search where the GPUs are to measure it"
    if result.outcome in NEVER_RUN:
        return f"NOT A FIT: this configuration was never run ({result.message}); exported because its number was asked for"
    return f"NOT A FIT: this configuration ended {_outcome(result)}; exported because its number was asked for"


def speed_ratio(source: Source) -> float | None:
    """Samples per second over the reference's; None if either was not measured, or the trial is the reference."""
    reference = source.reference
    if reference is None or reference.result is None or reference.trial_number == source.trial.trial_number:
        return None
    mine, theirs = source.result.samples_per_second, reference.result.samples_per_second
    return mine / theirs if mine and theirs else None


def _outcome(result: TrialResult) -> str:
    return f"{result.outcome} in {result.phase}" if result.outcome != "COMPLETED" and result.phase else result.outcome


def _when(moment: datetime | None) -> str:
    return f" on {moment:%Y-%m-%d %H:%M %Z}".rstrip() if moment else ""


def _memory(study: StudyRecord, trial: TrialRecord, result: TrialResult) -> str:
    if result.outcome in NEVER_RUN:
        budget = f"budget {format_bytes(study.memory_budget_bytes)} a rank ({format_bytes(study.gpu_mem_bytes)} asked for)"
        if trial.prediction is None:
            return f"not predicted, {budget}"
        peak, high = trial.prediction.peak_device_bytes, trial.prediction.peak_device_bytes_high
        return f"predicted peak {format_bytes(peak)}, at most {format_bytes(high)}, {budget}"
    limit = f"; enforced by {result.memory_limit}" if result.memory_limit else "; not enforced"
    budget = f"budget {format_bytes(study.memory_budget_bytes)} a rank ({format_bytes(study.gpu_mem_bytes)} asked for){limit}"
    if result.peak_device_bytes is None:
        return f"peak not measured, {budget}"
    share = result.peak_device_bytes / study.memory_budget_bytes
    return f"measured peak {format_bytes(result.peak_device_bytes)}, worst rank ({share:.0%} of the budget), {budget}"


def _speed(source: Source) -> str:
    result = source.result
    if result.outcome in NEVER_RUN:
        return _predicted_speed(source)
    if result.samples_per_second is None or result.tokens_per_second is None:
        return "not measured"
    text = (
        f"measured {result.samples_per_second:.4g} samples/s, {result.tokens_per_second:.4g} tokens/s,"
        f" {format_seconds(result.step_time_seconds)} an optimizer step"
    )
    if result.timed_steps:
        text += f" (over {result.timed_steps} steps)"
    reference, ratio = source.reference, speed_ratio(source)
    if reference is not None and reference.trial_number == source.trial.trial_number:
        return f"{text}; this is {'the reference itself' if source.study.source_path is None else 'your file as it stands'}"
    if ratio is None or reference is None or reference.result is None:
        ended = f": trial {reference.trial_number} ended {reference.result.outcome}" if reference and reference.result else ""
        return f"{text}; no speed of the reference to compare with{ended}"
    theirs = f"(trial {reference.trial_number}, {reference.result.samples_per_second:.4g} samples/s)"
    if source.study.source_path is None:
        return f"{text}; {ratio:.2f} x the reference {theirs}"
    less = (reference.result.peak_device_bytes or 0) - (result.peak_device_bytes or 0)
    return f"{text}; {ratio:.2f} x your file {theirs}, {format_bytes(abs(less))} {'less' if less >= 0 else 'more'} at the peak"


def _predicted_speed(source: Source) -> str:
    told = source.trial.prediction
    if told is None:
        return "not predicted"
    text = f"predicted {told.samples_per_second:.4g} samples/s, {format_seconds(told.step_time_seconds)} an optimizer step"
    text += f" on a {told.device_model}"
    theirs = source.reference.prediction if source.reference else None
    if theirs is None or source.reference is None or source.reference.trial_number == source.trial.trial_number:
        return text
    ratio = told.samples_per_second / theirs.samples_per_second
    return f"{text}; {ratio:.2f} x the reference (trial {source.reference.trial_number}), predicted as well"


def _data(source: Source) -> str:
    if source.result.outcome in NEVER_RUN:
        return "data: none, for this configuration was never run"
    spec = source.spec
    if source.study.engine == "llamafactory":
        name = _one_line(source.dataset.name)
        if source.result.epoch is not None:
            return (
                f"data: measured on {name} as LLaMA-Factory prepares it, first and last the batch of the highest predicted peak"
                f" that its {source.result.epoch.samples} samples can make; {_epoch(source)}"
            )
        return (
            f"data: measured on {name} as LLaMA-Factory prepares it, first and last its longest sample, filled up to"
            f" {spec.cutoff_len} tokens"
        )
    images = f", {spec.images.per_sample} image(s) of {spec.images.max_pixels} pixels" if source.uses_images else ""
    return f"data: measured on a synthetic worst batch, every sample {spec.cutoff_len} tokens{images}; not on your dataset"


def _epoch(source: Source) -> str:
    """How long an epoch of the data takes, from the longer of the two runs."""
    runs = [trial.result.epoch for trial in (source.confirm, source.trial) if trial and trial.result and trial.result.epoch]
    epoch = runs[0]
    span = ""
    if epoch.seconds_low is not None and epoch.seconds_high is not None:
        span = f" ({format_seconds(epoch.seconds_low)} to {format_seconds(epoch.seconds_high)}, {epoch.confidence:.0%})"
    return f"an epoch of {epoch.steps} steps takes {format_seconds(epoch.seconds)}{span}"


def _device(study: StudyRecord) -> str:
    hardware = study.hardware
    names = ", ".join(dict.fromkeys(_one_line(device.name) for device in hardware.devices)) or hardware.device
    driver = f", driver {_one_line(hardware.driver_version)}" if hardware.driver_version else ""
    return f"{names}{driver}"


def _versions(result: TrialResult) -> str:
    return (
        ", ".join(f"{_one_line(name)} {_one_line(version)}" for name, version in result.versions.items())
        or "versions not recorded"
    )


def _one_line(text: str) -> str:
    """Names come from people and drivers; a line break in one would end the comment and start YAML."""
    return " ".join(text.split())


def reference_trial(study: StudyRecord, trials: Sequence[TrialRecord]) -> TrialRecord | None:
    """The first trial that ran the space's reference, or None: setting the reference's knobs in it changes nothing."""
    for trial in sorted(trials, key=lambda each: each.trial_number):
        if canonical(trial.spec.model_copy(update=study.space.reference), study.model) == trial.spec:
            return trial
    return None
