"""Writes a study's report: the page, and the same pictures as PNG files."""

from collections.abc import Sequence
from pathlib import Path

from autofit.errors import UsageError
from autofit.report.chart_accuracy import accuracy_chart
from autofit.report.chart_front import front_chart
from autofit.report.chart_memory import memory_chart
from autofit.report.chart_progress import progress_chart
from autofit.report.charts import Chart, Href
from autofit.report.study_page import Row, study_page
from autofit.tuning.findings import Findings


def in_page(trial_number: int) -> str:
    """Where a trial's mark leads inside the report: its row."""
    return f"#trial-{trial_number}"


def charts(findings: Findings, href: Href = in_page) -> list[Chart]:
    """The study's pictures, those for which there is something to draw."""
    drawn = [
        front_chart(findings, href),
        progress_chart(findings, href),
        memory_chart(findings),
        accuracy_chart(findings, href),
    ]
    return [chart for chart in drawn if chart is not None]


def check_page(path: Path) -> None:
    """Whether the page can be written to `path`.

    Raises:
        UsageError: another suffix than .html, no such folder, or it is a folder.
    """
    if path.suffix.lower() not in {".html", ".htm"}:
        raise UsageError(f"{path}: the report is a page; name a file that ends in .html")
    if path.is_dir():
        raise UsageError(f"{path}: is a folder; name a file in it")
    if not path.parent.is_dir():
        raise UsageError(f"{path}: the folder {path.parent} does not exist; make it first")


def write_report(findings: Findings, rows: Sequence[Row], page: Path, pictures: Path | None = None) -> list[Path]:
    """Writes the page and, into `pictures`, the PNG files; returns what was written.

    Args:
        rows: the study's trials as `autofit trials --json` prints them.

    Raises:
        UsageError: as `check_page`, or a file cannot be written.
    """
    check_page(page)
    drawn = charts(findings)
    files = {page: study_page(findings, rows, drawn).encode()}
    if pictures is not None:
        files |= {pictures / f"{chart.name}.png": chart.png() for chart in drawn}
    try:
        if pictures is not None:
            pictures.mkdir(parents=True, exist_ok=True)
        for path, content in files.items():
            path.write_bytes(content)
    except OSError as error:
        raise UsageError(f"{error.filename}: cannot be written ({error.strerror or error})") from error
    return list(files)
