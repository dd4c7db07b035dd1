"""The page of a study: its figures are those of `autofit trials --json`, and it needs nothing but itself."""

import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from store_records import NOON, completed, out_of_memory, prediction, study_record, trial_record

from autofit.config.result import TrialResult
from autofit.config.trial import TrialSpec
from autofit.errors import AutofitError
from autofit.report import study_words
from autofit.report.chart_memory import phase_peaks
from autofit.report.chart_progress import best_so_far
from autofit.report.study_report import charts, check_page, write_report
from autofit.report.study_style import STYLE
from autofit.store import Store
from autofit.tuning.findings import Findings, find
from autofit.units import GIB

Run = Callable[..., "subprocess.CompletedProcess[str]"]


class Page(HTMLParser):
    """What a page shows: figures with their exact values, identifiers, links, text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.figures: list[dict[str, Any]] = []
        self.ids: Counter[str] = Counter()
        self.targets: set[str] = set()
        self.tags: Counter[str] = Counter()
        self.titles: list[str] = []
        self.sections: dict[str, str] = {}
        self._open: list[str] = []
        self._section = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags[tag] += 1
        self._open.append(tag)
        if found.get("id"):
            self.ids[str(found["id"])] += 1
        if tag == "section":
            self._section = str(found["id"])
        if tag == "a" and found.get("href"):
            self.targets.add(str(found["href"]))
        if tag == "data":
            self.figures.append({**found, "text": "", "section": self._section})

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] == "data":
            self.figures[-1]["text"] += data
        if self._open and self._open[-1] == "title":
            self.titles.append(data)
        self.sections[self._section] = self.sections.get(self._section, "") + data


@pytest.fixture
def autofit(tmp_path: Path) -> Run:
    def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "autofit.cli", *arguments]
        here = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
        return subprocess.run(command, cwd=tmp_path, env=here, capture_output=True, text=True, timeout=240, check=False)

    return run


def check_figures(page: Page, rows: list[dict[str, Any]]) -> None:
    """Every figure is the row's, exactly; every row is there."""
    held = {row["trial_number"]: row for row in rows}
    for figure in page.figures:
        row = held[int(figure["data-trial"])]
        value = row[figure["data-column"]]
        assert json.loads(figure["value"]) == value
        assert figure["text"] == study_words.figure(figure["data-column"], value)
    assert {f"trial-{number}" for number in held} <= set(page.ids)
    columns = ["predicted_samples_per_second", "predicted_peak_bytes"]
    if any(row["samples_per_second"] is not None for row in rows):
        columns = ["samples_per_second", "peak_device_bytes", "margin_bytes", "step_time_seconds", "predicted_peak_bytes"]
    for column in columns:
        expected = {number for number, row in held.items() if row[column] is not None}
        shown = [f for f in page.figures if f["section"] == "trials" and f["data-column"] == column]
        assert {int(figure["data-trial"]) for figure in shown} == expected


def test_the_page_of_a_search_shows_what_trials_holds(autofit: Run, stub_python: str, tmp_path: Path) -> None:
    arguments = ["--space", "tiny_qwen2_5_vl", "--device", "cpu", "--python", stub_python, "--study", "s", "--gpu-mem", "204MB"]
    answer = json.loads(autofit("search", *arguments, "--trials", "20", "--json").stdout)
    done = autofit("report", "--study", "s", "-o", "r.html", "--pictures", "pictures", "--json")
    assert done.returncode == 0, done.stderr
    rows = json.loads(autofit("trials", "--study", "s", "--json").stdout)
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    page = Page(text)
    check_figures(page, rows)
    held = {row["trial_number"]: row for row in rows}

    winner = held[answer["winner"]["trial_number"]]
    head = {figure["data-column"]: json.loads(figure["value"]) for figure in page.figures if figure["section"] == ""}
    assert head == {name: winner[name] for name in ("samples_per_second", "peak_device_bytes", "step_time_seconds")}
    marks = re.findall(r'<tr id="trial-(\d+)">(?:(?!</tr>).)*mark front', text)
    assert {int(number) for number in marks} == {one["trial_number"] for one in answer["pareto_front"]}
    for row in answer["compromises"]:
        assert "; ".join(row["changes"]) in page.sections["compromises"]
    in_table = [(int(f["data-trial"]), f["data-column"]) for f in page.figures if f["section"] == "compromises"]
    expected = [row["trial_number"] for row in answer["compromises"] if row["samples_per_second"] is not None]
    assert [number for number, column in in_table if column == "samples_per_second"] == expected

    tooltips = {title for title in page.titles if title.startswith("trial ")}
    for number in {row["trial_number"] for row in rows if row["outcome"] == "COMPLETED" and row["purpose"] == "search"}:
        told = f"trial {number}: {held[number]['samples_per_second']:,.2f} samples/s"
        assert any(title.startswith(told) for title in tooltips)

    files = json.loads(done.stdout)["files"]
    assert files[0] == "r.html" and {Path(file).name for file in files[1:]} >= {"pareto-front.png", "progress.png"}
    assert all((tmp_path / file).read_bytes().startswith(b"\x89PNG") for file in files[1:])
    check_alone(text, page)


def check_alone(text: str, page: Page) -> None:
    """One file that asks for nothing else; every link inside it leads somewhere; no identifier stands twice."""
    assert not page.tags["script"] and not page.tags["link"] and not page.tags["img"] and not page.tags["iframe"]
    assert not re.search(r'\b(?:src|data|poster|action)="', text) and "@import" not in text
    assert not re.search(r"url\((?!#)", text)
    without_names = re.sub(r'xmlns(?::\w+)?="[^"]+"', "", text)
    assert not re.search(r"https?://", without_names)
    assert all(target.startswith("#") and target[1:] in page.ids for target in page.targets)
    assert [name for name, count in page.ids.items() if count > 1] == []


# studies of made-up records


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(f"sqlite:///{tmp_path}/autofit.db")


def fill(store: Store, name: str = "first", **study: Any) -> None:
    """Reference, winner, one that runs out of memory, one that crashed, one over the budget, the confirmation; predicted."""
    record = study_record(name, **study)
    store.create_study(record)
    base = {"model": record.space.model, "num_gpus": 1}
    specs = [
        TrialSpec(**base, micro_batch_size=1, zero_stage=3),
        TrialSpec(**base, micro_batch_size=1, zero_stage=0),
        TrialSpec(**base, micro_batch_size=1, zero_stage=0, cutoff_len=1024),
        TrialSpec(**base, micro_batch_size=1, zero_stage=0, freeze_language_model=True),
        TrialSpec(**base, micro_batch_size=1, zero_stage=2),
    ]
    results = [
        completed(2.0, 50.0),
        completed(3.0, 60.0),
        completed(5.0, 40.0, memory_limit="allocator cap (emulated)"),
        out_of_memory(),
        completed(2.5, 75.0),
    ]
    for number, (spec, result) in enumerate(zip(specs, results, strict=True)):
        told = prediction(48.0 + number, 51.0 + number)
        store.start_trial(trial_record(number, name, spec=spec, prediction=told))
        store.finish_trial(name, number, NOON + timedelta(minutes=number + 1), result)
    store.start_trial(trial_record(5, name, spec=specs[1], purpose="confirm"))
    ranks = [
        {"rank": 0, "outcome": "COMPLETED", "phase_peak_bytes": {"backward": 61 * GIB, "load": 20 * GIB, "eval": 30 * GIB}},
        {"rank": 1, "outcome": "COMPLETED", "phase_peak_bytes": {"backward": 58 * GIB, "load": 21 * GIB}},
    ]
    longer = completed(2.9, 61.0, losses=[2.0] * 50).model_dump() | {"ranks": ranks}
    store.finish_trial(name, 5, NOON + timedelta(minutes=9), type(completed()).model_validate(longer))
    store.set_study_status(name, "FINISHED", 1)


def findings_of(store: Store, name: str = "first") -> Findings:
    return find(store.study(name), store.trials(name))


def page_of(store: Store, folder: Path, name: str = "first") -> str:
    with store.reader() as reader:
        write_report(findings_of(store, name), reader.trial_rows(name).as_dicts(), folder / "r.html")
    return (folder / "r.html").read_text(encoding="utf-8")


def test_measured_predicted_and_emulated_are_told_apart(store: Store, tmp_path: Path) -> None:
    fill(store)
    text = page_of(store, tmp_path)
    page = Page(text)
    check_alone(text, page)
    with store.reader() as reader:
        check_figures(page, reader.trial_rows("first").as_dicts())
    assert "emulated on a larger card" in text and "Emulated: measured on a larger card" in text
    assert 'class="evidence measured"' in text and 'class="evidence predicted"' not in text
    assert "trial 4: peak 52.00 GiB predicted, 75.00 GiB measured" in text
    assert "OVER BUDGET" in text and "OOM in backward" in text


def test_a_study_that_only_predicts_says_so_everywhere(store: Store, tmp_path: Path) -> None:
    record = study_record()
    store.create_study(record.model_copy(update={"hardware": record.hardware.model_copy(update={"device": "none"})}))
    spec = TrialSpec(model=record.space.model, zero_stage=3)
    said = [
        (spec.model_copy(update={"zero_stage": 0}), prediction(50.0, 52.0, samples_per_second=3.0), "PREDICTED"),
        (spec, prediction(40.0, 42.0, samples_per_second=2.0), "PREDICTED"),
        (spec.model_copy(update={"zero_stage": 0, "micro_batch_size": 8}), prediction(70.0, 80.0, fits=False), "SKIPPED"),
    ]
    trials = [
        trial_record(n, spec=each, prediction=told, finished_at=NOON + timedelta(hours=1), result=TrialResult(outcome=outcome))
        for n, (each, told, outcome) in enumerate(said)
    ]
    store.add_trials("first", trials)
    store.set_study_status("first", "FINISHED", 0)
    text = page_of(store, tmp_path)
    page = Page(text)
    check_alone(text, page)
    with store.reader() as reader:
        check_figures(page, reader.trial_rows("first").as_dicts())
    assert {figure["data-column"].split("_")[0] for figure in page.figures} == {"predicted"}
    assert "Predicted fastest within 72.00 GiB" in text and "In this study nothing was run" in text
    assert 'class="evidence predicted"' in text and 'class="evidence measured"' not in text
    assert "Confirmed" not in text and "The winner&#x27;s memory" in text and "weights  40.00 GiB" in text


def test_pictures_are_drawn_from_the_findings(store: Store) -> None:
    fill(store)
    findings = findings_of(store)
    assert best_so_far(findings) == [(0, 2.0), (1, 3.0)]  # trial 2 is faster, but on less of the data
    assert findings.confirmed_by is not None
    assert phase_peaks(findings.confirmed_by) == {"load": 21 * GIB, "backward": 61 * GIB, "eval": 30 * GIB}
    drawn = {chart.name: chart for chart in charts(findings)}
    assert set(drawn) == {"pareto-front", "progress", "memory", "predicted-against-measured"}
    assert set(drawn["progress"].links) == {f"mark-{number}" for number in range(5)}
    svg = drawn["progress"].svg()
    assert all(f'href="#trial-{number}"' in svg for number in range(5))
    memory = drawn["memory"].svg(narrow=True)
    assert all(said in memory for said in ("load  21.00 GiB", "backward  61.00 GiB", "budget 72.00 GiB"))
    elsewhere = {chart.name: chart for chart in charts(findings, lambda number: f"/trials/{number}")}
    assert 'href="/trials/1"' in elsewhere["pareto-front"].svg()
    assert {one.trial_number for one in findings.front} == {0, 1, 2}


def test_what_people_wrote_is_text_and_never_markup(store: Store, tmp_path: Path) -> None:
    name = '<script>alert(1)</script>"&'
    store.create_study(study_record(name, space={"name": "<b>"}))
    store.start_trial(trial_record(0, name, reason='<img src=x onerror="alert(1)">'))
    store.finish_trial(name, 0, NOON + timedelta(minutes=1), completed())
    store.start_trial(trial_record(1, name, reason="another"))
    store.finish_trial(name, 1, NOON + timedelta(minutes=2), completed())
    store.set_study_status(name, "FINISHED", 0)
    text = page_of(store, tmp_path, name)
    page = Page(text)
    assert not page.tags["script"] and not page.tags["img"] and not page.tags["b"]
    assert "&lt;script&gt;alert(1)" in text


@pytest.mark.parametrize("finished", [0, 1])
def test_a_study_without_a_winner_says_what_is_known(store: Store, tmp_path: Path, finished: int) -> None:
    store.create_study(study_record())
    store.start_trial(trial_record(0, spec=study_spec()))
    if finished:
        store.finish_trial("first", 0, NOON + timedelta(minutes=1), completed(2.0, 75.0))
    text = page_of(store, tmp_path)
    check_alone(text, Page(text))
    assert "No winner within 72.00 GiB" in text and "still running" in text
    assert ("Nearest miss: trial 0, peak 75.00 GiB" in text) is bool(finished)
    assert ("autofit export" in text) is False


def study_spec() -> TrialSpec:
    record = study_record()
    return TrialSpec(model=record.space.model, micro_batch_size=1, zero_stage=3, num_gpus=1)


@pytest.mark.parametrize("name", ["r.pdf", "missing/r.html", "folder.html", "r"])
def test_what_cannot_be_written_is_one_line_before_anything_is_drawn(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder.html").mkdir()
    with pytest.raises(AutofitError, match=re.escape(str(tmp_path))) as found:
        check_page(tmp_path / name)
    assert "\n" not in str(found.value)


def test_bad_input_of_the_command_is_one_line(autofit: Run, store: Store) -> None:
    fill(store)
    for arguments, status, said in (
        (["--study", "frist"], 1, "did you mean 'first'?"),
        (["--study", "first", "-o", "r.txt"], 2, "ends in .html"),
        (["--study", "first", "--pictures", "autofit.db"], 2, "cannot be written"),
        (["--study", "first", "--db", "none.db"], 1, "there is no database"),
    ):
        done = autofit("report", *arguments)
        assert done.returncode == status and said in done.stderr, done.stderr
        assert len(done.stderr.strip().splitlines()) == 1 and "Traceback" not in done.stderr


def test_matplotlib_is_loaded_only_when_something_is_drawn() -> None:
    code = "import sys, autofit.cli.report, autofit.report.study_report; print('matplotlib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def luminance(colour: str) -> float:
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("theme", [0, 1])
def test_every_colour_of_text_has_enough_contrast(theme: int) -> None:
    """WCAG 2.2, 1.4.3: 4.5 to 1, on the ground and on raised parts, light and dark."""
    palette = dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", re.findall(r":root \{[^}]*--ground[^}]*\}", STYLE)[theme]))
    for ground in ("ground", "raised"):
        for ink in ("ink", "muted", "accent", "trade", "over", "within"):
            high, low = sorted((luminance(palette[ink]), luminance(palette[ground])), reverse=True)
            assert (high + 0.05) / (low + 0.05) >= 4.5, (ink, ground)
