"""A study's pictures: each a drawing with what it says in words and where its marks lead. Page and PNG files share them."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from autofit.config.brief import describe
from autofit.report.canvas import GROUND, INK, LINE, MUTED, OVER, Draw, Link, Size, rendered, svg_element
from autofit.tuning.figures import Figures
from autofit.units import GIB, format_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MIB = 2**20
FAR = 2.5
"""A budget of more than this many times the highest peak is named, not drawn: it would push everything into a corner."""
WIDE, NARROW = (9.0, 4.3), (4.2, 4.0)
Href = Callable[[int], str]
"""A trial's number -> where its mark leads."""
UNITS = {
    "samples_per_second": "samples/s",
    "tokens_per_second": "tokens/s",
    "effective_tokens_per_second": "effective tokens/s",
}


@dataclass(frozen=True)
class Chart:
    """One picture."""

    name: str
    """Of its file and of its place in the page."""
    title: str
    caption: str
    """What it shows and how to read it."""
    draw: Draw
    """Fits itself to the figure's size."""
    links: dict[str, Link] = field(default_factory=dict)
    """A mark's `gid` -> where it leads."""
    wide: Size = WIDE
    narrow: Size = NARROW

    def png(self) -> bytes:
        """As a file that stands alone, on a light ground."""
        return rendered(self.draw, self.wide, "png", name=self.name)

    def svg(self, *, narrow: bool = False) -> str:
        """As an element of a page, for a wide screen or a phone."""
        size, name = (self.narrow, f"{self.name}-narrow") if narrow else (self.wide, self.name)
        return svg_element(self.draw, size, f"{self.title}. {self.caption}", name=name, links=self.links)


def gid(trial_number: int | None) -> str:
    """The mark of a trial."""
    return f"mark-{trial_number}"


def is_narrow(figure: "Figure") -> bool:
    """Whether a figure is for a phone."""
    return bool(figure.get_size_inches()[0] < 6)


def plot_axes(figure: "Figure", *, left: float = 0.62, right: float = 0.12, top: float = 0.42, bottom: float = 0.5) -> "Axes":
    """Axes with margins in inches, quiet lines and the picture's colours."""
    width, height = figure.get_size_inches()
    axes = figure.add_axes((left / width, bottom / height, 1 - (left + right) / width, 1 - (top + bottom) / height))
    style(axes)
    return axes


def style(axes: "Axes") -> None:
    """Only what is needed to read values: a baseline and faint lines."""
    axes.set_facecolor("none")
    axes.tick_params(colors=MUTED, length=0, pad=5, labelsize=8.5)
    axes.grid(axis="y", color=LINE, linewidth=0.7, zorder=0)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(MUTED)
    axes.xaxis.label.set_color(INK)
    axes.yaxis.label.set_color(INK)


def legend(axes: "Axes", handles: list[Any], figure: "Figure") -> None:
    """Above the axes, from the left."""
    axes.legend(
        handles=handles,
        loc="lower left",
        bbox_to_anchor=(-0.01, 1.0),
        frameon=False,
        ncols=2 if is_narrow(figure) else len(handles),
        fontsize=8.5,
        labelcolor=INK,
        handletextpad=0.4,
        columnspacing=1.4,
        borderaxespad=0.1,
    )


def unit_of(highest: int) -> tuple[int, str]:
    """Bytes of an axis' unit and its name."""
    return (GIB, "GiB") if highest >= GIB else (MIB, "MiB")


def draw_budget(axes: "Axes", budget: float, top: float, label: str) -> None:
    """A vertical line where memory ends, and what lies beyond it in a faint tint."""
    axes.axvspan(budget, top, color=OVER, alpha=0.07, linewidth=0, zorder=0)
    axes.axvline(budget, color=OVER, linewidth=1.3, zorder=2)
    axes.annotate(
        label, (budget, 1), xycoords=("data", "axes fraction"), xytext=(-5, -4), textcoords="offset points",
        ha="right", va="top", fontsize=8.5, color=OVER, bbox={"facecolor": GROUND, "edgecolor": "none", "alpha": 0.7, "pad": 1},
        zorder=6,
    )  # fmt: skip


def tooltip(one: Figures, rate: str) -> str:
    """A configuration and its figures, in a line."""
    number = "" if one.trial_number is None else f"trial {one.trial_number}: "
    speed = "" if one.rate is None else f"{one.rate:,.2f} {UNITS[rate]}, "
    return f"{number}{speed}{format_bytes(one.peak_device_bytes)} {one.evidence}, {one.outcome}; {describe(one.spec)}"
