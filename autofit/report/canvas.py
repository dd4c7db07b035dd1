"""How pictures are drawn: matplotlib into PNG, or into SVG for a page, where it takes the page's colours and its marks link.

A picture is a function that draws on an empty figure with the colours named here. In a page each of them becomes a CSS
variable, so that light and dark are the page's affair, and a mark with a `gid` in `links` becomes a link with a tooltip.
"""

import io
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, MUTED, GROUND, LINE = "#1f2328", "#6e7781", "#fffffe", "#d0d7dd"
OVER, WITHIN = "#cf222e", "#1a7f37"
ACCENT, TRADE = "#0a69da", "#bc4c01"
"""What was asked for, and what gives something up."""
_ROLES = {
    INK: "ink",
    MUTED: "muted",
    GROUND: "ground",
    LINE: "line",
    OVER: "over",
    WITHIN: "within",
    ACCENT: "accent",
    TRADE: "trade",
}
"""Colour -> its CSS variable in a page."""
_SVG = "http://www.w3.org/2000/svg"
_XLINK = "http://www.w3.org/1999/xlink"

TABBED = 60
"""Links of a picture that the tab key stops at; of more, none: whoever uses the keyboard would never get past them."""

Draw = Callable[["Figure"], None]
Size = tuple[float, float]
"""Inches, width before height."""


@dataclass(frozen=True)
class Link:
    """What a mark leads to, and what its tooltip says."""

    href: str
    title: str


def rendered(draw: Draw, size: Size, kind: str, *, name: str = "", transparent: bool = False) -> bytes:
    """A picture as a file's content; the same every time for the same picture.

    Args:
        kind: png or svg.
        name: tells the identifiers inside an SVG from those of others on the same page.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    settings = {
        "font.family": "sans-serif",
        "font.size": 9.0,
        "svg.fonttype": "none",
        "svg.hashsalt": f"autofit{name}",
        "hatch.linewidth": 0.6,
    }
    with mpl.rc_context(settings):
        figure = Figure(figsize=size, dpi=130)
        (FigureCanvasSVG if kind == "svg" else FigureCanvasAgg)(figure)
        draw(figure)
        target = io.BytesIO()
        figure.savefig(target, format=kind, transparent=transparent, metadata={"Date": None} if kind == "svg" else None)
    return target.getvalue()


def svg_element(draw: Draw, size: Size, label: str, *, name: str = "", links: Mapping[str, Link] | None = None) -> str:
    """A picture as an `<svg>` element of a page: no ground, the page's colours, marks that link.

    Args:
        label: what the picture shows, for those who do not see it.
        links: a mark's `gid` -> what it leads to.
    """
    text = rendered(draw, size, "svg", name=name, transparent=True).decode()
    for colour, role in _ROLES.items():
        text = text.replace(colour, f"var(--{role})")
    ET.register_namespace("", _SVG)
    ET.register_namespace("xlink", _XLINK)
    root = ET.fromstring(text[text.index("<svg") :])  # noqa: S314 - matplotlib's own
    for metadata in root.findall(f"{{{_SVG}}}metadata"):
        root.remove(metadata)
    del root.attrib["width"], root.attrib["height"]
    if links:
        _link(root, links)
    _drop_names(root, text)
    root.set("role", "group" if links else "img")
    root.set("aria-label", label)
    return ET.tostring(root, encoding="unicode")


def _link(parent: ET.Element, links: Mapping[str, Link]) -> None:
    for place, child in enumerate(list(parent)):
        link = links.get(child.get("id", ""))
        if link is None:
            _link(child, links)
            continue
        anchor = ET.Element(f"{{{_SVG}}}a", {"href": link.href, "aria-label": link.title})
        if len(links) > TABBED:
            anchor.set("tabindex", "-1")
        ET.SubElement(anchor, f"{{{_SVG}}}title").text = link.title
        anchor.append(child)
        parent[place] = anchor


def _drop_names(root: ET.Element, text: str) -> None:
    """Takes away identifiers that nothing refers to: matplotlib names every group, and alike in each picture of a page."""
    used = set(re.findall(r'(?:url\(|href=")#([^)"]+)', text))
    for element in root.iter():
        if element.get("id") not in used:
            element.attrib.pop("id", None)
