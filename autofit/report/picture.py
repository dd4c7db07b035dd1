"""The picture of a predicted step: allocated memory stacked by term, phases, the peak, and where the budget ends.

PNG and SVG stand alone on a light ground; the SVG inside a page takes the page's colours.
"""

import os
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from autofit.config.prediction import Prediction
from autofit.config.trial import TrialSpec
from autofit.errors import UsageError
from autofit.predict.timeline import Segment, Timeline
from autofit.report import words
from autofit.report.canvas import GROUND, INK, MUTED, OVER, WITHIN, rendered, svg_element
from autofit.units import GIB, format_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".svg", ".html")
MIB = 2**20
_BINS = 500
"""Each two pixels wide, so that a spike of one event keeps its colours."""
_FAR = 3.0
"""A budget of more than this many times the peak is named, not drawn: the stack would be a line at the bottom."""
_PLATE = {"facecolor": GROUND, "edgecolor": "none", "alpha": 0.78, "pad": 1.2}
"""Under words that stand over the stack."""
_SIZE = (12.5, 6.4)


@dataclass(frozen=True)
class Step:
    """What a picture of a step is drawn from. Its figures are predicted."""

    model: str
    """Short name."""
    spec: TrialSpec
    prediction: Prediction
    timeline: Timeline
    budget_bytes: int


def check_target(path: Path) -> None:
    """Whether a picture can be written to `path`, before anything is computed for it.

    Raises:
        UsageError: a suffix other than `SUFFIXES`, no such folder, or not writable.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(f"{path}: a picture ends in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}, not {path.suffix!r}")
    if path.is_dir():
        raise UsageError(f"{path}: is a folder; name a file in it")
    if not path.parent.is_dir():
        raise UsageError(f"{path}: the folder {path.parent} does not exist; make it first")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise UsageError(f"{path}: cannot be written; choose a folder that you may write to")


def write(step: Step, path: Path) -> None:
    """Draws a step into a PNG, SVG or HTML file, by suffix.

    Raises:
        UsageError: as `check_target`, or the file cannot be written.
    """
    check_target(path)
    suffix = path.suffix.lower()
    if suffix == ".html":
        from autofit.report.page import page

        data = page(step, svg(step)).encode()
    else:
        data = rendered(lambda figure: draw(step, figure), _SIZE, suffix[1:])
    try:
        path.write_bytes(data)
    except OSError as error:
        raise UsageError(f"{path}: cannot be written ({error.strerror or error})") from error


def svg(step: Step) -> str:
    """The picture as an `<svg>` element without a ground, whose text and lines take the colours of the page around it."""
    label = f"{words.title(step.model)}. {words.peak_label(step.timeline)}."
    return svg_element(lambda figure: draw(step, figure), _SIZE, label)


def draw(step: Step, figure: "Figure") -> None:
    """Draws a step on an empty figure, with matplotlib's settings as they are."""
    axes = figure.add_axes((0.062, 0.135, 0.662, 0.655))
    borders = _borders(step.timeline.segments)
    unit, top = _scale(step)
    _draw_stack(step.timeline, axes, unit)
    _draw_phases(step.timeline, axes, borders)
    _draw_budget(step, axes, unit, top)
    _draw_peak(step.timeline, axes, unit)
    _draw_frame(axes, unit, top)
    _draw_table(step, figure)
    _draw_words(step, figure)


def _borders(segments: Sequence[Segment]) -> npt.NDArray[np.float64]:
    """[segments + 1] left and right ends in 0..1: by events, but each wide enough for its name."""
    events = np.array([segment.stop - segment.start for segment in segments], dtype=np.float64)
    least = np.array([0.016 + 0.0068 * len(words.phase_label(segment.phase)) for segment in segments])
    if least.sum() >= 1:
        return np.concatenate([[0.0], np.cumsum(least / least.sum())])
    width = events / events.sum()
    narrow = width < least
    for _ in segments:  # what the narrow ones take from the wide ones may make others narrow
        room = 1 - least[narrow].sum()
        width = np.where(narrow, least, events / events[~narrow].sum() * room)
        if not (width < least - 1e-12).any():
            break
        narrow |= width < least
    return np.concatenate([[0.0], np.cumsum(width)])


def curve(timeline: Timeline) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """What is drawn, each point up to the next: ([points] positions in 0..1, [points, terms] bytes as `words.stacked`)."""
    borders = _borders(timeline.segments)
    places, rows = [], []
    for number, segment in enumerate(timeline.segments):
        left, right = borders[number], borders[number + 1]
        use = timeline.highest(segment, max(24, round(_BINS * (right - left))))
        places.append(np.linspace(left, right, len(use), endpoint=False))
        rows.append(use)
    order = [timeline.terms.index(name) for name in words.stacked(timeline)]
    return np.append(np.concatenate(places), 1.0), np.concatenate([*rows, rows[-1][-1:]])[:, order]


def _scale(step: Step) -> tuple[int, float]:
    """Bytes of the axis' unit, and the axis' top in it."""
    peak = int(step.timeline.allocated[step.timeline.peak])
    shown = peak if step.budget_bytes > _FAR * peak else max(peak, step.budget_bytes)
    unit = GIB if shown >= GIB else MIB
    return unit, shown / unit * 1.17


def _draw_stack(timeline: Timeline, axes: "Axes", unit: int) -> None:
    places, use = curve(timeline)
    colours = [words.TERMS[name][1] for name in words.stacked(timeline)]
    axes.stackplot(places, use.T / unit, colors=colours, step="post", linewidth=0, zorder=2)
    axes.step(places, use.sum(axis=1) / unit, where="post", color=INK, linewidth=0.6, zorder=3)


def _draw_phases(timeline: Timeline, axes: "Axes", borders: npt.NDArray[np.float64]) -> None:
    above = axes.get_xaxis_transform()
    for number, segment in enumerate(timeline.segments):
        left, right = borders[number], borders[number + 1]
        if number % 2:
            axes.axvspan(left, right, color=MUTED, alpha=0.10, linewidth=0, zorder=0)
        axes.axvline(left, color=MUTED, linewidth=0.5, alpha=0.6, zorder=1)
        label = words.phase_label(segment.phase)
        axes.text((left + right) / 2, 1.012, label, transform=above, ha="center", va="bottom", fontsize=8, color=INK)
    numbers = sorted({segment.micro_batch for segment in timeline.segments if segment.micro_batch})
    for number in numbers:
        mine = [place for place, segment in enumerate(timeline.segments) if segment.micro_batch == number]
        left, right = borders[mine[0]] + 0.003, borders[mine[-1] + 1] - 0.003
        axes.plot([left, right], [1.062, 1.062], transform=above, color=INK, linewidth=1.4, clip_on=False)
        more = "" if number + 1 in {*numbers, timeline.micro_batches + 1} else " ..."
        label = f"micro-batch {number} of {timeline.micro_batches}{more}"
        axes.text((left + right) / 2, 1.07, label, transform=above, ha="center", va="bottom", fontsize=8.5, color=INK)


def _draw_budget(step: Step, axes: "Axes", unit: int, top: float) -> None:
    """The budget, and hatched below it what is no tensor: where the stack meets the hatching, it does not fit."""
    budget, room = step.budget_bytes / unit, max(0, step.budget_bytes - words.beside_bytes(step.prediction))
    label = f"budget {format_bytes(step.budget_bytes)}"
    if budget > top:
        text = f"{label} (tensors may reach {format_bytes(room)}): above this picture"
        axes.text(0.008, top * 0.985, text, color=OVER, va="top", weight="bold", bbox=_PLATE, zorder=6)
        return
    axes.axhline(budget, color=OVER, linewidth=1.8, zorder=5)
    axes.axhspan(room / unit, budget, facecolor="none", edgecolor=OVER, hatch="////", alpha=0.6, linewidth=0, zorder=4)
    axes.axhline(room / unit, color=OVER, linewidth=0.9, linestyle=(0, (5, 3)), zorder=5)
    axes.text(0.008, budget + top * 0.01, label, color=OVER, va="bottom", weight="bold", bbox=_PLATE, zorder=6)
    text = f"tensors may reach {format_bytes(room)}"
    axes.text(0.008, room / unit - top * 0.012, text, color=OVER, va="top", bbox=_PLATE, zorder=6)


def _draw_peak(timeline: Timeline, axes: "Axes", unit: int) -> None:
    places, use = curve(timeline)
    at = int(np.argmax(use.sum(axis=1)))
    x, y = places[at], use[at].sum() / unit
    axes.plot([x], [y], marker="v", markersize=8, color=INK, markeredgecolor=GROUND, zorder=7, clip_on=False)
    right = x < 0.6
    axes.annotate(
        words.peak_label(timeline),
        (x, y),
        xytext=(9 if right else -9, 8),
        textcoords="offset points",
        ha="left" if right else "right",
        va="bottom",
        fontsize=10,
        weight="bold",
        color=INK,
        bbox=_PLATE,
        zorder=8,
    )


def _draw_frame(axes: "Axes", unit: int, top: float) -> None:
    axes.set_xlim(0, 1)
    axes.set_ylim(0, top)
    axes.set_xticks([])
    axes.set_ylabel(f"allocated, {'GiB' if unit == GIB else 'MiB'} (predicted)", color=INK)
    axes.tick_params(colors=INK)
    axes.grid(axis="y", color=MUTED, alpha=0.25, linewidth=0.6, zorder=0)
    axes.set_facecolor("none")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(INK)


def _draw_table(step: Step, figure: "Figure") -> None:
    """The stack from its top to its bottom with its bytes at the peak, which is the legend too; then what is no tensor."""
    from matplotlib.patches import Rectangle

    left, right, line, y = 0.742, 0.988, 0.0345, 0.765
    figure.text(left, y + line, "at the peak", fontsize=10, weight="bold", color=INK, va="center")
    for row in words.at_the_peak(step.prediction, step.timeline, step.budget_bytes):
        if row.colour:
            figure.add_artist(Rectangle((left, y - 0.011), 0.014, 0.022, facecolor=row.colour, edgecolor="none"))
        ink = OVER if row.name == "budget" else INK
        weight = "bold" if row.total else "normal"
        figure.text(left + 0.021, y, row.name, color=ink, va="center", weight=weight)
        figure.text(right, y, words.size(row.size), color=ink, va="center", ha="right", weight=weight)
        y -= line


def _draw_words(step: Step, figure: "Figure") -> None:
    fits = step.prediction.peak_device_bytes_high <= step.budget_bytes
    figure.text(0.012, 0.972, words.title(step.model), fontsize=13.5, weight="bold", color=INK, va="top")
    figure.text(0.012, 0.922, words.knobs(step.spec), fontsize=9.5, color=MUTED, va="top")
    verdict = words.verdict(step.prediction, step.budget_bytes)
    figure.text(0.988, 0.972, verdict, fontsize=11.5, weight="bold", color=WITHIN if fits else OVER, va="top", ha="right")
    lines = [line for note in words.notes(step.prediction, step.timeline) for line in textwrap.wrap(note, 200)]
    figure.text(0.012, 0.012, "\n".join(lines), fontsize=8, color=MUTED, va="bottom", linespacing=1.4)
