"""A study as one HTML file for a colleague without the tool: no script, no font, no network; light, dark, print and phone.

Every figure of a trial stands in a `<data>` element with the trial's number, the column's name and the exact value as
`autofit trials --json` prints it, beside the rounded text that people read.
"""

import shlex
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from autofit.config.brief import describe
from autofit.report import study_words
from autofit.report.charts import Chart
from autofit.report.study_style import STYLE
from autofit.tuning.compromise import Compromise
from autofit.tuning.findings import Findings
from autofit.units import format_bytes

Row = Mapping[str, Any]
"""A trial as `autofit trials --json` prints it."""
NOTHING = "–"
_LEADING = {"samples/s": "samples_per_second", "peak": "peak_device_bytes"}
_LEADING_PREDICTED = {"predicted samples/s": "predicted_samples_per_second", "predicted peak": "predicted_peak_bytes"}
_FURTHER = {
    "to budget": "margin_bytes",
    "step": "step_time_seconds",
    "tokens/s": "tokens_per_second",
    "predicted peak": "predicted_peak_bytes",
}
"""Heading -> column of the table of all trials: before the configuration, and after it where any trial has a value."""


def study_page(findings: Findings, rows: Sequence[Row], charts: Sequence[Chart]) -> str:
    """The page of one study.

    Args:
        rows: the study's trials as `autofit trials --json` prints them.
    """
    by_number = {row["trial_number"]: row for row in rows}
    study = findings.study
    figures = {chart.name: _figure(chart) for chart in charts}
    sections = [
        ("pareto-front", "Speed against memory", figures.get("pareto-front") or _none("No trial has both figures yet.")),
        ("compromises", "What each compromise buys", _compromises(findings, by_number)),
        ("progress", "How the search went", figures.get("progress") or _none("Nothing was run: this study only predicts.")),
        (
            "memory",
            "The winner's memory",
            figures.get("memory") or _none("There is no winner, or its memory was not recorded."),
        ),
        (
            "predicted-against-measured",
            "Predicted against measured",
            figures.get("predicted-against-measured") or _none("No trial was both predicted and measured."),
        ),
        ("trials", "All trials", _trials(findings, rows)),
        ("take-it", "Take it along", _commands(findings)),
        ("study", "The study", _facts(study_words.facts(findings))),
    ]
    title = escape(f"{study.name}: {study.model.label} in {format_bytes(study.memory_budget_bytes)} a device")
    links = "".join(f'<a href="#{name}">{escape(heading)}</a>' for name, heading, _ in sections)
    body = "".join(
        f'<section id="{name}" aria-labelledby="{name}-title"><h2 id="{name}-title">{escape(heading)}</h2>{content}</section>\n'
        for name, heading, content in sections
    )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>{STYLE}</style>
</head>
<body>
<header>
<p class="eyebrow">autofit report · study {escape(study.name)} · {study.created_at:%d %B %Y}</p>
{_headline(findings, by_number)}
</header>
<nav aria-label="Sections">{links}</nav>
<main>
{body}</main>
<footer><p>{escape(study_words.evidence(findings))}</p></footer>
</body>
</html>
"""


def _headline(findings: Findings, by_number: Mapping[int, Row]) -> str:
    study, winner = findings.study, findings.winner
    if winner is None:
        why = "".join(f"<li>{escape(line)}</li>" for line in study_words.why_none(findings))
        return f'<h1>No winner within {format_bytes(study.memory_budget_bytes)}</h1><ul class="why">{why}</ul>'
    row = by_number[winner.trial_number]
    predicted = findings.evidence == "predicted"
    tiles = [
        ("speed", _data(row, "predicted_samples_per_second" if predicted else "samples_per_second"), "samples/s"),
        (
            f"peak, of {format_bytes(study.memory_budget_bytes)} granted",
            _data(row, "predicted_peak_bytes" if predicted else "peak_device_bytes"),
            "",
        ),
        ("optimizer step", _data(row, "predicted_step_time_seconds" if predicted else "step_time_seconds"), ""),
        *((name, escape(value), unit) for name, value, unit in study_words.derived_tiles(findings)),
    ]
    cells = "".join(
        f'<div class="tile"><dt>{escape(name)}</dt><dd>{value} <span class="unit">{unit}</span></dd></div>'
        for name, value, unit in tiles
    )
    why = "".join(f"<li>{escape(line)}</li>" for line in study_words.why(findings))
    return (
        f"<h1>{escape(study_words.headline(findings))}</h1>"
        f'<p class="configuration">{escape(study_words.configuration(findings, winner.spec))}'
        f' <a href="#trial-{winner.trial_number}">Trial {winner.trial_number}</a>, {findings.evidence}.</p>'
        f'<dl class="tiles">{cells}</dl><ul class="why">{why}</ul>'
    )


def _figure(chart: Chart) -> str:
    return (
        f'<figure><div class="wide">{chart.svg()}</div><div class="narrow">{chart.svg(narrow=True)}</div>'
        f"<figcaption>{escape(chart.caption)}</figcaption></figure>"
    )


def _none(text: str) -> str:
    return f'<p class="none">{escape(text)}</p>'


def _data(row: Row, column: str, text: str | None = None) -> str:
    """One figure of a trial: exact in the element's value, rounded in its text."""
    value = row[column]
    if value is None:
        return NOTHING
    shown = study_words.figure(column, value) if text is None else text
    return f'<data value="{value!r}" data-trial="{row["trial_number"]}" data-column="{column}">{escape(shown)}</data>'


def _compromises(findings: Findings, by_number: Mapping[int, Row]) -> str:
    if findings.winner is None:
        return _none("Compromises are counted against a winner, and there is none.")
    titles = {"training": "Another training", "running": "The same training, run in another way"}
    with_share = any(row.truncated_share is not None for row in findings.compromises)
    heads = ["change", "speed", "memory", "peak", "samples/s", *["truncated"] * with_share, "evidence", "trial"]
    parts = []
    for kind, title in titles.items():
        mine = [row for row in findings.compromises if row.kind == kind]
        if mine:
            lines = "".join(_compromise(row, by_number, with_share=with_share) for row in mine)
            parts.append(f'<tr class="group"><th colspan="{len(heads)}" scope="rowgroup">{title}</th></tr>{lines}')
    if not parts:
        return _none("Nothing else than the winner's way is known of.")
    intro = (
        "Against the winner. A row is the fastest configuration known under its change; speeds and peaks are compared with the"
        " winner's own of the same evidence."
    )
    return f"<p>{intro}</p>{_table('compromise-table', heads, parts)}"


def _compromise(row: Compromise, by_number: Mapping[int, Row], *, with_share: bool) -> str:
    number = row.best.trial_number
    trial = by_number.get(number) if number is not None else None
    prefix = "predicted_" if row.evidence == "predicted" else ""
    peak_column = "predicted_peak_bytes" if prefix else "peak_device_bytes"
    if trial is not None:
        peak, speed = _data(trial, peak_column), _data(trial, f"{prefix}samples_per_second")
    else:
        peak = escape(format_bytes(row.best.peak_device_bytes))
        speed = NOTHING if row.best.samples_per_second is None else f"{row.best.samples_per_second:,.2f}"
    along = f' <span class="along">with {escape(", ".join(row.along))}</span>' if row.along else ""
    verdict = "" if row.best.fits else f' <strong class="over">{escape(row.best.outcome)}</strong>'
    share = [NOTHING if row.truncated_share is None else f"{row.truncated_share:.1%}"] if with_share else []
    cells = [
        NOTHING if row.speedup is None else f"{row.speedup:.2f}×",
        escape(study_words.signed_bytes(row.more_bytes)),
        peak,
        speed,
        *share,
        f'<span class="evidence {row.evidence}">{row.evidence}</span>',
        NOTHING if number is None else f'<a href="#trial-{number}">{number}</a>',
    ]
    return f'<tr><th scope="row">{escape("; ".join(row.changes))}{along}{verdict}</th>{_cells(cells)}</tr>'


def _trials(findings: Findings, rows: Sequence[Row]) -> str:
    leading = _LEADING_PREDICTED if findings.evidence == "predicted" else _LEADING
    known = {name: column for name, column in _FURTHER.items() if any(row[column] is not None for row in rows)}
    further = {name: column for name, column in known.items() if name not in leading}
    specs = {trial.trial_number: trial.spec for trial in findings.trials}
    winner = findings.winner.trial_number if findings.winner else None
    ordered = sorted(rows, key=lambda row: (_speed(row) is None, -(_speed(row) or 0.0), row["trial_number"]))
    front = {one.trial_number for one in findings.front}
    with_reason = len({row["reason"] for row in rows}) > 1
    lines = []
    for row in ordered:
        number = row["trial_number"]
        marks = ["winner"] * (number == winner) + ["front"] * (number in front)
        notes = "".join(f' <span class="mark {mark}">{mark}</span>' for mark in marks)
        reason = f'<span class="reason">{escape(row["reason"])}</span>' if with_reason else ""
        told = f"{escape(describe(specs[number]))}{notes}{reason}"
        outcome = study_words.outcome(row)
        state = "over" if row["outcome"] in {"OOM", "HOST_OOM", "GROWTH", "THRASH"} else "ended"
        before, after = (_cells(_data(row, column) for column in columns.values()) for columns in (leading, further))
        lines.append(
            f'<tr id="trial-{number}"><th scope="row">{number}</th><td class="{state}">{escape(outcome)}</td>'
            f'{before}<td class="told">{told}</td>{after}</tr>'
        )
    return _table("trial-table", ["trial", "outcome", *leading, "configuration", *further], lines)


def _speed(row: Row) -> float | None:
    column = "predicted_samples_per_second" if row["outcome"] == "PREDICTED" else "samples_per_second"
    value = row[column]
    return None if value is None else float(value)


def _table(name: str, heads: Iterable[str], lines: Iterable[str]) -> str:
    head = "".join(f'<th scope="col">{escape(text)}</th>' for text in heads)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-labelledby="{name}-caption"><table id="{name}">'
        f'<caption id="{name}-caption">{name.replace("-", " ")}</caption><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _cells(texts: Iterable[str]) -> str:
    return "".join(f'<td class="figure">{text}</td>' for text in texts)


def _commands(findings: Findings) -> str:
    if findings.winner is None:
        return _none("Nothing to export: there is no winner.")
    name = shlex.quote(findings.study.name)
    steps = [
        ("Write what LLaMA-Factory runs, with the evidence in its comments and a certificate beside it:",
         f"autofit export --study {name} --launcher llamafactory -o best"),
        ("Run it; after an out-of-memory go on from its last checkpoint with the next safer configuration:",
         "autofit launch best --recover"),
        ("Say whether the certificate still holds on another machine:", "autofit verify best"),
    ]  # fmt: skip
    lines = "".join(f"<li>{escape(text)}<pre><code>{escape(command)}</code></pre></li>" for text, command in steps)
    return f"<ol>{lines}</ol><p>Other launchers: <code>transformers</code>, <code>trl</code>, <code>axolotl</code>.</p>"


def _facts(facts: Mapping[str, str]) -> str:
    lines = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in facts.items())
    return f'<dl class="facts">{lines}</dl>'
