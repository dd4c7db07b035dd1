"""Speed x memory x quality: every configuration that has both figures, and the front that nothing beats."""

from typing import TYPE_CHECKING, Any

from autofit.report.canvas import ACCENT, GROUND, INK, MUTED, OVER, TRADE, Link
from autofit.report.charts import FAR, UNITS, Chart, Href, draw_budget, gid, is_narrow, legend, plot_axes, tooltip, unit_of
from autofit.tuning.figures import Figures
from autofit.tuning.findings import Findings
from autofit.units import format_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LABELLED = 18
"""Places for numbers beside marks; the winner's name takes four."""
MANY = 60
"""Marks from which on they are drawn smaller."""
BEYOND = 1.35
"""Times the budget up to which memory is drawn."""
_WIDE, _HIGH = 26, 18
"""Room of a number, in pixels of the picture."""
LINKED = 400
"""Marks that link; beyond this only those of the front do."""


def front_chart(findings: Findings, href: Href) -> Chart | None:
    """None where no configuration has both figures."""
    rate = findings.study.space.rate
    shown = [one for one in findings.known if one.rate is not None and one.peak_device_bytes is not None]
    if not shown:
        return None
    front = {one.trial_number for one in findings.front}
    linked = [one for one in shown if len(shown) <= LINKED or one.trial_number in front]
    links = {gid(n): Link(href(n), tooltip(one, rate)) for one in linked if (n := one.trial_number) is not None}
    beyond = sum((one.peak_device_bytes or 0) > BEYOND * findings.study.memory_budget_bytes for one in shown)
    caption = (
        f"{UNITS[rate].capitalize()} against peak memory a device, {findings.evidence}. Filled marks are the Pareto front of"
        " speed, memory and quality: nothing known is at least as fast, as small and trains as much. Diamonds train something"
        " else than was asked for: less of the data, or other parts."
        + (f" {beyond} that need more than {BEYOND:g} times the budget are not drawn." if beyond else "")
    )
    return Chart("pareto-front", "Speed against memory", caption, lambda figure: _draw(findings, shown, figure), links)


def _draw(findings: Findings, shown: list[Figures], figure: "Figure") -> None:
    axes = plot_axes(figure, top=0.62 if is_narrow(figure) else 0.42)
    budget, highest, lowest = _range(findings, shown)
    unit, name = unit_of(highest)
    front = {one.trial_number for one in findings.front}
    asked = {id(one) for one in shown if not findings.legal.breaches(one.spec)}
    _draw_line(axes, [one for one in shown if id(one) in asked and one.fits], unit)
    scale = 1.0 if len(shown) <= MANY else 0.6
    for one in shown:
        if (one.peak_device_bytes or 0) <= highest:
            _draw_mark(axes, one, unit, scale, asked=id(one) in asked, on_front=one.trial_number in front)
    pad = max(highest - lowest, 0.05 * highest) * 0.06
    axes.set_xlim((lowest - pad) / unit, (highest + pad) / unit)
    axes.set_ylim(0, max(one.rate or 0.0 for one in shown) * 1.12)
    if budget <= highest:
        draw_budget(axes, budget / unit, (highest + pad) / unit, f"budget {format_bytes(budget)}")
    _draw_labels(axes, findings, unit)
    axes.set_xlabel(f"peak memory a device, {name} ({findings.evidence})")
    axes.set_ylabel(UNITS[findings.study.space.rate])
    legend(axes, _handles(), figure)


def _range(findings: Findings, shown: list[Figures]) -> tuple[int, int, int]:
    """Budget, and the highest and lowest memory drawn, bytes: neither far beyond the budget nor far below it."""
    budget = findings.study.memory_budget_bytes
    peaks = [one.peak_device_bytes or 0 for one in shown]
    highest = min(max(peaks), round(BEYOND * budget))
    return budget, max(highest, budget) if budget <= FAR * highest else highest, min(peaks)


def _draw_line(axes: "Axes", asked: list[Figures], unit: int) -> None:
    """Joins what nothing that was asked for beats in speed and memory."""
    points: list[tuple[float, float]] = []
    for one in sorted(asked, key=lambda each: (each.peak_device_bytes or 0, -(each.rate or 0.0))):
        if not points or (one.rate or 0.0) > points[-1][1]:
            points.append(((one.peak_device_bytes or 0) / unit, one.rate or 0.0))
    if len(points) > 1:
        axes.step(*zip(*points, strict=True), where="post", color=ACCENT, linewidth=1.0, alpha=0.55, zorder=2)


def _draw_mark(axes: "Axes", one: Figures, unit: int, scale: float, *, asked: bool, on_front: bool) -> None:
    colour = OVER if not one.fits else ACCENT if asked else TRADE
    size = (8 if asked else 6.8) if on_front else 5.2
    axes.plot(
        [(one.peak_device_bytes or 0) / unit], [one.rate or 0.0], gid=gid(one.trial_number), clip_on=False,
        marker="o" if asked else "D", markersize=size * scale, linestyle="none",
        markerfacecolor=colour if on_front else GROUND, markeredgecolor=colour, markeredgewidth=1.1,
        alpha=1.0 if on_front else 0.75, zorder=3 + 2 * asked + on_front,
    )  # fmt: skip


def _draw_labels(axes: "Axes", findings: Findings, unit: int) -> None:
    """The winner, then numbers of the front, what was asked for first; one that would stand on another's is left out."""
    winner = findings.figures_of(findings.winner)
    taken: list[tuple[float, float]] = []
    if winner is not None and winner.peak_device_bytes and winner.rate:
        place = (winner.peak_device_bytes / unit, winner.rate)
        x, y = place
        axes.plot([x], [y], marker="o", markersize=14, markerfacecolor="none", markeredgecolor=INK, zorder=8)
        x, y = axes.transData.transform(place)
        left = axes.transAxes.inverted().transform((x, y))[0] > 0.6
        where = (-11, 5) if left else (11, 5)
        _label(axes, place, f"{winner.trial_number} winner", where, weight="bold", ha="right" if left else "left")
        taken += [(x + (-1 if left else 1) * _WIDE * step, y) for step in range(4)]
    others = [one for one in findings.front if one.trial_number not in {None, findings.study.winner_trial_number}]
    others.sort(key=lambda one: bool(findings.legal.breaches(one.spec)))
    marks = [(one, ((one.peak_device_bytes or 0) / unit, one.rate or 0.0)) for one in others]
    seen = [axes.transData.transform(place) for _, place in marks]
    for number, (one, place) in enumerate(marks):
        x, y = seen[number]
        # where another mark stands close to the right, the number goes to the left
        left = any(0 <= other[0] - x < 45 and abs(other[1] - y) < 32 for other in seen if other is not seen[number])
        at = (x - _WIDE if left else x + _WIDE, y)
        if len(taken) < LABELLED and all(abs(at[0] - i) > _WIDE or abs(at[1] - j) > _HIGH for i, j in taken):
            _label(axes, place, str(one.trial_number), (-7, 5) if left else (7, 5), ha="right" if left else "left")
            taken.append(at)


def _label(
    axes: "Axes", place: tuple[float, float], text: str, offset: tuple[int, int], *, weight: str = "normal", ha: str = "left"
) -> None:
    axes.annotate(
        text, place, xytext=offset, textcoords="offset points", fontsize=8.5, weight=weight, color=INK, zorder=9, ha=ha,
        annotation_clip=False,
    )  # fmt: skip


def _handles() -> list[Any]:
    from matplotlib.lines import Line2D

    return [
        Line2D([], [], marker="o", color=ACCENT, linestyle="none", markersize=7, label="what was asked for"),
        Line2D([], [], marker="D", color=TRADE, linestyle="none", markersize=6, label="another training"),
        Line2D(
            [], [], marker="o", color=MUTED, markerfacecolor=GROUND, linestyle="none", markersize=5, label="not on the front"
        ),
    ]
