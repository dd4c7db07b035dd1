"""The winner's memory against the budget: by phase where it was measured, by term where it was only predicted."""

from typing import TYPE_CHECKING, NamedTuple

from autofit.config.record import TrialRecord
from autofit.report import words
from autofit.report.canvas import ACCENT, INK, MUTED, OVER
from autofit.report.charts import FAR, Chart, style, unit_of
from autofit.tuning.findings import Findings
from autofit.units import format_bytes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PHASES = ("load", "data", "forward", "backward", "optimizer_step", "eval", "save")
"""In the order in which a run meets them."""


class Bar(NamedTuple):
    """One line of the picture."""

    name: str
    size: int
    """Bytes."""
    colour: str
    faint: bool = False
    """It is not the highest."""


def phase_peaks(trial: TrialRecord) -> dict[str, int]:
    """Phase -> highest memory a device in it, worst rank; empty where none was measured."""
    ranks = trial.result.ranks if trial.result else []
    found: dict[str, int] = {}
    for rank in ranks:
        for phase, size in rank.phase_peak_bytes.items():
            found[phase] = max(size, found.get(phase, 0))
    return {phase: found[phase] for phase in sorted(found, key=lambda name: (name not in PHASES, _place(name)))}


def memory_chart(findings: Findings) -> Chart | None:
    """None without a winner or without figures of it."""
    winner = findings.winner
    if winner is None:
        return None
    run = findings.confirmed_by or winner
    if peaks := phase_peaks(run):
        bars = [Bar(words.phase_label(phase), size, ACCENT, size < max(peaks.values())) for phase, size in peaks.items()]
        which = "its confirmation, which also evaluates and saves," if run is not winner else "its trial"
        caption = f"Highest memory a device in each phase of {which} measured on the worst rank, against the budget."
        title = "The winner's memory by phase"
    elif winner.prediction is not None:
        bars = _terms(winner)
        caption = "What fills the device at the predicted peak, term by term, against the budget. Nothing here was measured."
        title = "The winner's memory by term"
    else:
        return None
    height = 0.9 + 0.34 * len(bars)
    budget = findings.study.memory_budget_bytes
    return Chart("memory", title, caption, lambda figure: _draw(bars, budget, figure), wide=(9.0, height), narrow=(4.2, height))


def _place(phase: str) -> int:
    return PHASES.index(phase) if phase in PHASES else len(PHASES)


def _terms(winner: TrialRecord) -> list[Bar]:
    """The predicted terms, largest first, then their sum and its upper end."""
    assert winner.prediction is not None
    told = winner.prediction
    bars = [
        Bar(words.TERMS.get(name, (words.BESIDE.get(name, name.replace("_", " ")), MUTED))[0], size, _colour(name))
        for name, size in sorted(told.terms.items(), key=lambda item: -item[1])
        if size
    ]
    return [*bars, Bar("device", told.peak_device_bytes, ACCENT), Bar("device at most", told.peak_device_bytes_high, ACCENT)]


def _colour(term: str) -> str:
    return words.TERMS[term][1] if term in words.TERMS else MUTED


def _label(bar: Bar) -> str:
    return f"{bar.name}  {format_bytes(bar.size)}"


def _draw(bars: list[Bar], budget: int, figure: "Figure") -> None:
    width, height = figure.get_size_inches()
    highest = max(bar.size for bar in bars)
    unit, name = unit_of(highest)
    shown_budget = budget <= FAR * highest
    top = max(highest, budget if shown_budget else 0) * 1.04
    left = 0.35 + 0.067 * max(len(_label(bar)) for bar in bars)
    axes = figure.add_axes((left / width, 0.5 / height, 1 - (left + 0.12) / width, 1 - 0.78 / height))
    style(axes)
    axes.grid(visible=False)
    for place, bar in enumerate(bars):
        axes.barh(place, bar.size / unit, height=0.58, color=bar.colour, alpha=0.55 if bar.faint else 1, zorder=2)
    axes.set_yticks(range(len(bars)), [_label(bar) for bar in bars])
    axes.tick_params(axis="y", colors=INK)
    axes.invert_yaxis()
    axes.set_xlim(0, top / unit)
    axes.set_xlabel(f"{name} a device")
    label = f"budget {format_bytes(budget)}"
    if shown_budget:
        axes.axvline(budget / unit, color=OVER, linewidth=1.4, zorder=3)
        above = axes.get_xaxis_transform()
        axes.text(budget / unit, 1.02, label, transform=above, ha="right", va="bottom", color=OVER, fontsize=8.5)
    else:
        axes.text(1, 1.02, f"{label}, far above", transform=axes.transAxes, ha="right", va="bottom", color=OVER, fontsize=8.5)
