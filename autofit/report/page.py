"""A picture and its figures as one HTML file that needs nothing else: no script, no font, no network."""

from collections.abc import Iterable
from html import escape
from typing import TYPE_CHECKING

from autofit.report import words

if TYPE_CHECKING:
    from autofit.report.picture import Step

_STYLE = """
:root { color-scheme: light dark; --ground: #fff; --ink: #1f2328; --muted: #59636e; --line: #d1d9e0;
  --over: #cf222e; --within: #1a7f37; }
@media (prefers-color-scheme: dark) { :root { --ground: #0d1117; --ink: #e6edf3; --muted: #9198a1; --line: #3d444d;
  --over: #ff7b72; --within: #56d364; } }
body { background: var(--ground); color: var(--ink); font: 15px/1.45 system-ui, sans-serif; max-width: 1200px;
  margin: 1.5rem auto; padding: 0 1rem; }
svg { width: 100%; height: auto; }
.picture { overflow-x: auto; } .picture svg { min-width: 760px; }
.tables { display: flex; flex-wrap: wrap; gap: 1rem 3rem; align-items: flex-start; }
table { border-collapse: collapse; } caption { text-align: left; font-weight: 600; padding: .4rem 0; white-space: nowrap; }
h2 { font-size: 1rem; margin: 1.5rem 0 .3rem; }
th, td { text-align: left; padding: .25rem .8rem .25rem 0; border-bottom: 1px solid var(--line); font-weight: 400; }
td { text-align: right; font-variant-numeric: tabular-nums; } thead th { color: var(--muted); }
.swatch { display: inline-block; width: .8em; height: .8em; border-radius: 2px; margin-right: .5em; }
p, li { color: var(--muted); max-width: 75ch; }
"""


def page(step: "Step", svg: str) -> str:
    """The page of one step.

    Args:
        svg: of `picture.svg`.
    """
    title = escape(words.title(step.model))
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{_STYLE}</style>
</head>
<body>
<div class="picture">{svg}</div>
<div class="tables">
{_terms(step)}
{_phases(step)}
</div>
{_list("Assumed", step.prediction.assumptions)}
{_list("Not modelled", step.prediction.not_modelled)}
<p>Every figure here is predicted; nothing was run.</p>
</body>
</html>
"""


def _terms(step: "Step") -> str:
    rows = []
    for row in words.at_the_peak(step.prediction, step.timeline, step.budget_bytes):
        swatch = f'<span class="swatch" style="background:{row.colour}"></span>' if row.colour else ""
        name = f"<strong>{escape(row.name)}</strong>" if row.total else escape(row.name)
        rows.append((swatch + name, row.size))
    return _table("At the peak", "term", rows)


def _phases(step: "Step") -> str:
    rows = [(escape(words.phase_label(name)), size) for name, size in step.timeline.phases.items()]
    return _table("Highest allocated by phase", "phase", rows)


def _table(caption: str, first: str, rows: Iterable[tuple[str, int]]) -> str:
    """`rows`: a name as HTML and its bytes."""
    lines = "\n".join(
        f'<tr><th scope="row">{name}</th><td title="{size:,} bytes">{words.size(size)}</td></tr>' for name, size in rows
    )
    head = f'<thead><tr><th scope="col">{first}</th><th scope="col">memory</th></tr></thead>'
    return f"<table><caption>{caption}</caption>{head}<tbody>\n{lines}\n</tbody></table>"


def _list(title: str, lines: list[str]) -> str:
    if not lines:
        return ""
    return f"<h2>{title}</h2><ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>"
