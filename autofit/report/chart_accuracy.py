"""What was predicted of each trial before it ran, against what it measured."""

from typing import TYPE_CHECKING

from autofit.config.record import TrialRecord
from autofit.report.canvas import ACCENT, LINE, MUTED, OVER, Link
from autofit.report.charts import Chart, Href, gid, is_narrow, style, unit_of
from autofit.tuning.findings import Findings
from autofit.units import format_bytes, format_seconds

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Point = tuple[TrialRecord, float, float, float, float]
"""A trial; measured; predicted; the prediction's lower and upper end."""


def accuracy_chart(findings: Findings, href: Href) -> Chart | None:
    """None where no trial that completed was predicted before."""
    trials = [trial for trial in findings.trials if trial.prediction is not None and trial.fits]
    if not trials:
        return None
    links = {gid(trial.trial_number): Link(href(trial.trial_number), _said(trial)) for trial in trials}
    caption = (
        f"{len(trials)} trials that completed: what was predicted before each ran, with its interval, against what it measured."
        " On the line both are equal. A red mark took more memory than the upper end of its interval."
    )
    return Chart(
        "predicted-against-measured", "Predicted against measured", caption, lambda figure: _draw(trials, figure), links,
        wide=(9.0, 4.0), narrow=(4.2, 7.4),
    )  # fmt: skip


def _said(trial: TrialRecord) -> str:
    told, result = trial.prediction, trial.result
    assert told is not None and result is not None
    return (
        f"trial {trial.trial_number}: peak {format_bytes(told.peak_device_bytes)} predicted,"
        f" {format_bytes(result.peak_device_bytes)} measured; step {format_seconds(told.step_time_seconds)} predicted,"
        f" {format_seconds(result.step_time_seconds)} measured"
    )


def _draw(trials: list[TrialRecord], figure: "Figure") -> None:
    width, height = figure.get_size_inches()
    peaks: list[Point] = []
    steps: list[Point] = []
    for trial in trials:
        told, result = trial.prediction, trial.result
        if told is None or result is None or result.peak_device_bytes is None or result.step_time_seconds is None:
            continue
        ends = float(told.peak_device_bytes_low), float(told.peak_device_bytes_high)
        peaks.append((trial, float(result.peak_device_bytes), float(told.peak_device_bytes), *ends))
        seconds = told.step_time_seconds
        steps.append((trial, result.step_time_seconds, seconds, seconds, seconds))
    unit, name = unit_of(int(max(point[1] for point in peaks)))
    left, bottom, gap = 0.62 / width, 0.5 / height, 0.2 / height
    if is_narrow(figure):
        each = (1 - 2 * bottom - 2 * gap) / 2
        places = [(left, bottom + each + gap + bottom, 0.96 - left, each), (left, bottom, 0.96 - left, each)]
    else:
        each = 0.5 - left - 0.02
        places = [(left, bottom, each, 1 - bottom - gap), (0.5 + left, bottom, each, 1 - bottom - gap)]
    _panel(figure.add_axes(places[0]), peaks, unit, f"peak memory, {name}")
    _panel(figure.add_axes(places[1]), steps, 1, "step time, s")


def _panel(axes: "Axes", points: list[Point], unit: float, what: str) -> None:
    style(axes)
    axes.grid(axis="x", color=LINE, linewidth=0.7)
    ends = [value / unit for point in points for value in point[1:]]
    low, high = min(ends), max(ends)
    pad = max(high - low, 0.1 * high) * 0.08
    axes.set_xlim(low - pad, high + pad)
    axes.set_ylim(low - pad, high + pad)
    axes.plot([low - pad, high + pad], [low - pad, high + pad], color=MUTED, linewidth=1.0, zorder=1)
    for trial, measured, predicted, lower, upper in points:
        x, y = measured / unit, predicted / unit
        if upper > lower:
            axes.plot([x, x], [lower / unit, upper / unit], color=ACCENT, linewidth=1.1, alpha=0.45, zorder=2)
        colour = OVER if measured > upper > lower else ACCENT
        axes.plot([x], [y], marker="o", markersize=6, color=colour, linestyle="none", gid=gid(trial.trial_number), zorder=3)
    axes.set_xlabel(f"{what}, measured")
    axes.set_ylabel(f"{what}, predicted")
