"""What a study's page says in words: headline, reasons, facts. Text only; measured, emulated and predicted are never mixed."""

from collections.abc import Mapping
from typing import Any

from autofit.config.legality import training_changes
from autofit.config.quality import Quality
from autofit.config.record import TrialRecord
from autofit.config.trial import TrialSpec
from autofit.report import words
from autofit.report.charts import UNITS
from autofit.tuning.findings import Findings
from autofit.tuning.survey import fits as predicted_to_fit
from autofit.units import format_bytes, format_seconds


def headline(findings: Findings) -> str:
    """The answer in a line; there is a winner."""
    budget = format_bytes(findings.study.memory_budget_bytes)
    ratio = _over_reference(findings)
    if findings.evidence == "predicted":
        return f"Predicted fastest within {budget} a device"
    if ratio is None or ratio < 1.005:
        return f"Fastest measured within {budget} a device"
    return f"{ratio:.2f}× the reference within {budget} a device"


def configuration(findings: Findings, spec: TrialSpec) -> str:
    """The winner's knobs as a sentence."""
    text = knobs(findings, spec)
    return f"{text[0].upper()}{text[1:]}."


def knobs(findings: Findings, spec: TrialSpec) -> str:
    """The knobs in a line; on a CPU the ranks are processes."""
    text = words.knobs(spec)
    return (
        text.replace(f"{spec.num_gpus} GPUs", f"{spec.num_gpus} processes") if findings.study.hardware.device == "cpu" else text
    )


def derived_tiles(findings: Findings) -> list[tuple[str, str, str]]:
    """(name, value, unit) of what follows from the winner's figures: the reference, an epoch."""
    tiles = []
    if (ratio := _over_reference(findings)) is not None:
        tiles.append(("against the reference", f"{ratio:.2f}×", ""))
    told = findings.figures_of(findings.winner)
    speed, epoch = told.samples_per_second if told else None, findings.legal.epoch
    if (seconds := epoch.seconds(speed)) is not None:
        tiles.append((f"epoch of {epoch.samples:,} samples", format_seconds(seconds), ""))
    if (cost := epoch.cost(speed)) is not None:
        tiles.append((f"cost of an epoch at {epoch.gpu_hour_price:g} a device and hour", f"{cost:,.2f}", ""))
    return tiles


def why(findings: Findings) -> list[str]:
    """Why the winner won, one fact a line."""
    study, winner, legal = findings.study, findings.winner, findings.legal
    assert winner is not None
    fitting = [one for one in findings.known if one.fits and not legal.breaches(one.spec)]
    meets = "run the reference's training" if study.space.quality == Quality() else "are what was asked for"
    lines = [f"The fastest of {len(fitting)} configurations that are {findings.evidence} to fit and {meets}."]
    if findings.evidence == "measured":
        lines[0] = (
            f"The fastest of {len(fitting)} measured configurations that fit and {meets}; {len(findings.known)} were tried."
        )
    if study.space.quality != Quality():
        given_up = "; ".join(training_changes(winner.spec, legal.reference)) or "nothing"
        lines.append(f"Asked for: {study.space.quality.words}. Given up against the reference: {given_up}.")
    lines.append(f"Every optimizer step sees {winner.spec.global_batch_size} samples, as the reference's does.")
    share = legal.truncated_share(winner.spec)
    if share is not None:
        lines.append(f"{share:.1%} of the samples are truncated at {winner.spec.cutoff_len} tokens.")
    lines.extend(_margin(findings, winner))
    return lines


def _margin(findings: Findings, winner: TrialRecord) -> list[str]:
    budget, confirmed = findings.study.memory_budget_bytes, findings.confirmed_by
    if findings.evidence == "predicted":
        if winner.prediction is None:
            return []
        left = budget - winner.prediction.peak_device_bytes_high
        return [f"Even the upper end of its predicted peak leaves {format_bytes(left)} of the budget."]
    if confirmed is None or confirmed.result is None or winner.result is None:
        return ["It was not confirmed in a longer run."]
    steps = len(confirmed.result.losses) or confirmed.result.timed_steps
    peak = confirmed.result.peak_device_bytes or 0
    return [
        f"Confirmed over {steps} steps in a fresh process (trial {confirmed.trial_number}): peak {format_bytes(peak)},"
        f" {format_bytes(budget - peak)} below the budget."
    ]


def why_none(findings: Findings) -> list[str]:
    """What is known where nobody won."""
    tried = [trial for trial in findings.trials if trial.purpose == "search" and trial.result is not None]
    failed = sum(trial.out_of_memory for trial in tried)
    lines = [f"{len(tried)} configurations were looked at; {failed} ran out of memory."]
    if findings.study.status == "RUNNING":
        lines.append("The study is still running.")
    if findings.front:
        lines.append("Some that train something else than was asked for fit: see the Pareto front.")
    over = [one for one in findings.known if not one.fits and one.peak_device_bytes and not findings.legal.breaches(one.spec)]
    if over:
        nearest = min(over, key=lambda one: one.peak_device_bytes or 0)
        lines.append(f"Nearest miss: trial {nearest.trial_number}, peak {format_bytes(nearest.peak_device_bytes)}.")
    return lines


def facts(findings: Findings) -> dict[str, str]:
    """What was searched, where and with what."""
    study, space = findings.study, findings.study.space
    devices = study.hardware.devices
    searched = [trial for trial in findings.trials if trial.purpose == "search"]
    failed, others = sum(trial.out_of_memory for trial in searched), len(findings.trials) - len(searched)
    versions = next((t.result.versions for t in findings.trials if t.result and t.result.versions), {})
    planned = "planned for " if findings.evidence == "predicted" else ""
    said = {
        "model": study.model.label,
        "devices": f"{planned}{len(devices)} × {devices[0].name}",
        "budget": f"{study.memory_budget_bytes:,} bytes a device ({format_bytes(study.gpu_mem_bytes)} asked for)"
        + (", emulated on a larger card" if findings.emulated else ""),
        "objective": space.objective,
        "constraints": space.quality.words or "none beyond the reference's training",
        "data": space.dataset.name if space.dataset else "synthetic samples",
        "reference": knobs(findings, findings.legal.reference),
        "legal configurations": f"{len(findings.legal.points):,}",
        "trials": f"{len(searched)} searched, {failed} out of memory, {others} confirmed or launched",
        "sampler": f"{study.sampler}, seed {study.seed}",
        "engine": study.engine,
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
        "autofit": study.autofit_version,
        "started": f"{study.created_at:%Y-%m-%d %H:%M} UTC, {study.status.lower()}",
    }
    if findings.evidence == "predicted":
        fit = sum(map(predicted_to_fit, searched))
        said["trials"] = f"{len(searched):,} predicted, {fit:,} of them to fit; none was run"
    return {name: value for name, value in said.items() if value}


def evidence(findings: Findings) -> str:
    """What the words mean on this page."""
    text = "Measured: it ran here for a few optimizer steps, on every rank. Predicted: computed without running it."
    if findings.emulated:
        text += " Emulated: measured on a larger card, whose allocator was held to the budget."
    if findings.evidence == "predicted":
        return f"{text} In this study nothing was run."
    return text


def outcome(row: Mapping[str, Any]) -> str:
    """How a trial ended, for the table."""
    ended = row["outcome"] or "running"
    if ended == "COMPLETED" and row["margin_bytes"] is not None and row["margin_bytes"] < 0:
        ended = "OVER BUDGET"
    where = f" in {row['phase']}" if row["phase"] and ended not in {"COMPLETED", "OVER BUDGET"} else ""
    return f"{ended}{where}" + (f" ({row['purpose']})" if row["purpose"] != "search" else "")


def figure(column: str, value: float) -> str:
    """A column's value as people read it; its name tells its unit."""
    if column.endswith("_bytes"):
        return format_bytes(value)
    if column.endswith("_seconds"):
        return format_seconds(value)
    return f"{value:,.2f}" if value < 100 else f"{value:,.0f}"


def signed_bytes(value: int | None) -> str:
    """`+1.20 GiB`, `−20.6 MiB`, or a dash for no value."""
    if value is None:
        return "–"
    return f"{'+' if value > 0 else '−' if value < 0 else '±'}{format_bytes(abs(value))}"


def rate_unit(findings: Findings) -> str:
    """Of the objective's rate."""
    return UNITS[findings.study.space.rate]


def _over_reference(findings: Findings) -> float | None:
    """The winner's rate over the reference's, both of the same evidence; None where the reference has none or won itself."""
    mine, theirs = findings.figures_of(findings.winner), findings.figures_of(findings.reference)
    if mine is None or theirs is None or not mine.rate or not theirs.rate or mine.trial_number == theirs.trial_number:
        return None
    return mine.rate / theirs.rate
