"""Speed x memory x quality: every configuration that has both figures, and the front that nothing beats."""

from typing import TYPE_CHECKING, Any

from autofit.report.canvas import ACCENT, GROUND, INK, MUTED, OVER, TRADE, Link
from autofit.report.charts import FAR, UNITS, Chart, Href, draw_budget, gid, legend, plot_axes, tooltip, unit_of
from autofit.tuning.figures import Figures
from autofit.tuning.findings import Findings
from autofit.units import format_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LABELLED = 14
"""Marks of the front that have their number beside them."""
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
    caption = (
        f"{UNITS[rate].capitalize()} against peak memory a device, {findings.evidence}. Filled marks are the Pareto front of"
        " speed, memory and quality: nothing known is at least as fast, as small and trains as much. Diamonds train something"
        " else than was asked for: less of the data, or other parts."
    )
    return Chart("pareto-front", "Speed against memory", caption, lambda figure: _draw(findings, shown, figure), links)


def _draw(findings: Findings, shown: list[Figures], figure: "Figure") -> None:
    axes = plot_axes(figure, top=0.62 if figure.get_size_inches()[0] < 6 else 0.42)
    budget, highest = findings.study.memory_budget_bytes, max(one.peak_device_bytes or 0 for one in shown)
    unit, name = unit_of(highest)
    front = {one.trial_number for one in findings.front}
    _draw_line(axes, [one for one in findings.front if not findings.legal.breaches(one.spec)], unit)
    for one in sorted(shown, key=lambda each: each.trial_number in front):
        _draw_mark(axes, one, unit, asked=not findings.legal.breaches(one.spec), on_front=one.trial_number in front)
    lowest = min(one.peak_device_bytes or 0 for one in shown)
    top = max(highest, budget if budget <= FAR * highest else 0)
    pad = max(top - lowest, 0.05 * top) * 0.06
    axes.set_xlim((lowest - pad) / unit, (top + pad) / unit)
    axes.set_ylim(0, max(one.rate or 0.0 for one in shown) * 1.12)
    if budget <= FAR * highest:
        draw_budget(axes, budget / unit, (top + pad) / unit, f"budget {format_bytes(budget)}")
    _draw_labels(axes, findings, unit)
    axes.set_xlabel(f"peak memory a device, {name} ({findings.evidence})")
    axes.set_ylabel(UNITS[findings.study.space.rate])
    legend(axes, _handles(), figure)


def _draw_line(axes: "Axes", asked: list[Figures], unit: int) -> None:
    """Joins the front of what was asked for."""
    points = sorted(((one.peak_device_bytes or 0) / unit, one.rate or 0.0) for one in asked)
    if len(points) > 1:
        axes.step(*zip(*points, strict=True), where="post", color=ACCENT, linewidth=1.0, alpha=0.55, zorder=1)


def _draw_mark(axes: "Axes", one: Figures, unit: int, *, asked: bool, on_front: bool) -> None:
    colour = OVER if not one.fits else ACCENT if asked else TRADE
    axes.plot(
        [(one.peak_device_bytes or 0) / unit], [one.rate or 0.0], gid=gid(one.trial_number), clip_on=False,
        marker="o" if asked else "D", markersize=(8 if asked else 6.8) if on_front else 5.2, linestyle="none",
        markerfacecolor=colour if on_front else GROUND, markeredgecolor=colour, markeredgewidth=1.1,
        alpha=1.0 if on_front else 0.75, zorder=5 if on_front else 3,
    )  # fmt: skip


def _draw_labels(axes: "Axes", findings: Findings, unit: int) -> None:
    winner = findings.figures_of(findings.winner)
    if winner is not None and winner.peak_device_bytes and winner.rate:
        place = (winner.peak_device_bytes / unit, winner.rate)
        axes.plot(
            *([value] for value in place), marker="o", markersize=14, markerfacecolor="none", markeredgecolor=INK, zorder=4
        )
        _label(axes, place, f"{winner.trial_number} winner", (11, 5), weight="bold")
    others = [one for one in findings.front if winner is None or one.trial_number != winner.trial_number][:LABELLED]
    places = [((one.peak_device_bytes or 0) / unit, one.rate or 0.0) for one in others]
    seen = [axes.transData.transform(place) for place in places]
    for number, (one, place) in enumerate(zip(others, places, strict=True)):
        # where another mark stands close to the right, the number goes to the left
        crowded = any(_is_right_of(seen[number], other) for other in seen if other is not seen[number])
        _label(axes, place, str(one.trial_number), (-7, 5) if crowded else (7, 5), ha="right" if crowded else "left")


def _is_right_of(mark: Any, other: Any) -> bool:
    """Whether another mark lies where this one's number would be written; both in pixels of the picture."""
    return bool(0 <= other[0] - mark[0] < 45 and abs(other[1] - mark[1]) < 32)


def _label(
    axes: "Axes", place: tuple[float, float], text: str, offset: tuple[int, int], *, weight: str = "normal", ha: str = "left"
) -> None:
    axes.annotate(
        text, place, xytext=offset, textcoords="offset points", fontsize=8.5, weight=weight, color=INK, zorder=7, ha=ha,
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
