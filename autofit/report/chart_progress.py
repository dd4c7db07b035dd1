"""How a search came to its winner: every trial in order, the best so far, and where memory ended one."""

from typing import TYPE_CHECKING, Any

from autofit.config.brief import describe
from autofit.config.record import TrialRecord
from autofit.report.canvas import ACCENT, GROUND, MUTED, OVER, TRADE, Link
from autofit.report.charts import UNITS, Chart, Href, gid, is_narrow, legend, plot_axes, tooltip
from autofit.tuning.figures import Figures, of_trial
from autofit.tuning.findings import Findings

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def progress_chart(findings: Findings, href: Href) -> Chart | None:
    """None for a study that runs nothing, or has not yet."""
    trials = [trial for trial in findings.trials if trial.purpose == "search" and trial.result is not None]
    if findings.evidence == "predicted" or not trials:
        return None
    links = {gid(trial.trial_number): Link(href(trial.trial_number), _said(findings, trial)) for trial in trials}
    failed = sum(trial.out_of_memory for trial in trials)
    caption = (
        f"Trials in the order in which they ran, measured; {failed} of {len(trials)} ran out of memory. The line is the best so"
        " far of those that fit and are what was asked for."
    )
    return Chart("progress", "Best so far", caption, lambda figure: _draw(findings, trials, figure), links, wide=(9.0, 3.4))


def _said(findings: Findings, trial: TrialRecord) -> str:
    known = of_trial(findings.study, trial)
    if known is not None:
        return tooltip(known, findings.study.space.rate)
    assert trial.result is not None
    return f"trial {trial.trial_number}: {trial.result.outcome}; {describe(trial.spec)}"


def best_so_far(findings: Findings) -> list[tuple[int, float]]:
    """(trial number, rate) of each trial that was better than all before it."""
    steps: list[tuple[int, float]] = []
    for one in findings.known:
        wanted = one.fits and one.rate is not None and one.trial_number is not None and not findings.legal.breaches(one.spec)
        if wanted and (not steps or (one.rate or 0.0) > steps[-1][1]):
            steps.append((one.trial_number or 0, one.rate or 0.0))
    return steps


def _draw(findings: Findings, trials: list[TrialRecord], figure: "Figure") -> None:
    from matplotlib.ticker import MaxNLocator

    axes = plot_axes(figure, top=0.62 if is_narrow(figure) else 0.42)
    last = trials[-1].trial_number
    known = {trial.trial_number: of_trial(findings.study, trial) for trial in trials}
    highest = max((one.rate or 0.0 for one in known.values() if one), default=0.0) or 1.0
    if steps := best_so_far(findings):
        xs, ys = zip(*steps, (last, steps[-1][1]), strict=True)
        axes.step(xs, ys, where="post", color=ACCENT, linewidth=1.8, zorder=2)
    for trial in trials:
        _draw_trial(axes, findings, trial, known[trial.trial_number], highest)
    axes.set_ylim(-0.09 * highest, 1.1 * highest)
    axes.set_xlim(-0.6, last + 0.6)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_yticks([tick for tick in axes.get_yticks() if 0 <= tick <= 1.1 * highest])
    axes.set_xlabel("trial")
    axes.set_ylabel(f"{UNITS[findings.study.space.rate]} (measured)")
    legend(axes, _handles(), figure)


def _draw_trial(axes: "Axes", findings: Findings, trial: TrialRecord, one: Figures | None, highest: float) -> None:
    """What has no speed stands below the line of zero."""
    asked = not findings.legal.breaches(trial.spec)
    mark: dict[str, Any] = {"marker": "o" if asked else "D", "color": ACCENT if asked else TRADE, "markersize": 6.5}
    y = one.rate if one is not None and one.rate is not None else -0.045 * highest
    if trial.out_of_memory:
        mark = {"marker": "x", "color": OVER, "markersize": 7, "markeredgewidth": 1.8}
    elif one is None or one.rate is None:
        mark = {"marker": "s", "color": MUTED, "markersize": 5.5}
    elif not one.fits:
        mark |= {"markerfacecolor": GROUND, "color": OVER}
    axes.plot([trial.trial_number], [y], linestyle="none", gid=gid(trial.trial_number), clip_on=False, zorder=4, **mark)


def _handles() -> list[Any]:
    from matplotlib.lines import Line2D

    return [
        Line2D([], [], marker="o", color=ACCENT, linestyle="none", markersize=6.5, label="what was asked for"),
        Line2D([], [], marker="D", color=TRADE, linestyle="none", markersize=6, label="another training"),
        Line2D([], [], marker="x", color=OVER, linestyle="none", markersize=6.5, markeredgewidth=1.8, label="out of memory"),
        Line2D([], [], color=ACCENT, linewidth=1.8, label="best so far"),
    ]
