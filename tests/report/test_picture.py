"""Pictures of a step: their values are the prediction's, and what cannot be drawn is told in one line before work starts."""

import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest

from autofit.config.model import ModelRef
from autofit.config.prediction import Prediction
from autofit.config.trial import TrialSpec
from autofit.errors import UsageError
from autofit.predict.timeline import Segment, Timeline
from autofit.report import canvas, picture, words
from autofit.report.picture import Step, check_target, curve, write

GIB = 2**30
TERMS = ("weights", "optimizer_state", "gradients", "activations_language", "logits_loss")


def _step(budget: int = 24 * GIB) -> Step:
    """6000 events; the peak is one of them, in the backward of the second micro-batch."""
    use = np.full((6000, 5), 10**6, dtype=np.int64) * np.arange(1, 6)
    use[4321] = (8 * GIB, 4 * GIB, 2 * GIB, 3 * GIB, GIB)
    phases = [("batch", None, 3), ("forward", 1, 900), ("backward", 1, 1800), ("forward", 2, 900), ("backward", 2, 2300)]
    phases += [("clip", None, 40), ("optimizer_step", None, 50), ("zero_grad", None, 7)]
    segments, start = [], 0
    for name, micro_batch, count in phases:
        segments.append(Segment(name, micro_batch, start, start + count))
        start += count
    timeline = Timeline(TERMS, use, tuple(segments), False, 8, {"forward": 3 * GIB, "backward": 18 * GIB}, ("micro-batches",))
    terms = {**timeline.peak_terms, "fragmentation": GIB, "cuda_context": GIB // 2}
    prediction = Prediction(
        peak_allocated_bytes=18 * GIB,
        peak_allocated_bytes_low=17 * GIB,
        peak_allocated_bytes_high=19 * GIB,
        peak_reserved_bytes=19 * GIB,
        peak_reserved_bytes_low=18 * GIB,
        peak_reserved_bytes_high=20 * GIB,
        peak_device_bytes=sum(terms.values()),
        peak_device_bytes_low=18 * GIB,
        peak_device_bytes_high=21 * GIB,
        step_time_seconds=1.0,
        samples_per_second=16.0,
        tokens_per_second=1.0,
        fits=budget >= 21 * GIB,
        terms=terms,
        phase="backward",
        precision_mode="bf16",
        device_model="l4",
        assumptions=["assumed <this>"],
        not_modelled=["not that"],
        versions={},
    )
    spec = TrialSpec(model=ModelRef(preset="qwen2-7b"), micro_batch_size=2, gradient_accumulation_steps=8)
    return Step("qwen2-7b", spec, prediction, timeline, budget)


def test_what_is_drawn_holds_the_peak_and_its_terms() -> None:
    timeline = _step().timeline
    places, use = curve(timeline)
    assert len(places) == len(use) < 800
    assert (np.diff(places) > 0).all() and places[0] == 0 and places[-1] == 1
    assert use.sum(axis=1).max() == timeline.allocated.max() == 18 * GIB
    at = use[int(np.argmax(use.sum(axis=1)))].tolist()
    assert dict(zip(words.stacked(timeline), at, strict=True)) == timeline.peak_terms


def test_a_png_an_svg_and_a_page_are_written(tmp_path: Path) -> None:
    step = _step()
    for suffix in picture.SUFFIXES:
        write(step, tmp_path / f"step{suffix}")
    assert (tmp_path / "step.png").read_bytes().startswith(b"\x89PNG")
    ET.parse(tmp_path / "step.svg")
    drawn = (tmp_path / "step.svg").read_text(encoding="utf-8")
    for said in ("Predicted GPU memory", "qwen2-7b", "peak 18.00 GiB in backward of micro-batch 2", "budget 24.00 GiB"):
        assert said in drawn
    for phase in ("batch", "forward", "backward", "clip", "optimizer", "zero_grad", "micro-batch 1 of 8"):
        assert phase in drawn


def test_the_page_needs_nothing_else_and_shows_the_same_figures(tmp_path: Path) -> None:
    step = _step()
    write(step, tmp_path / "step.html")
    page = (tmp_path / "step.html").read_text(encoding="utf-8")
    assert "<script" not in page and "<link" not in page and not re.search(r'(?:src|href)="(?!#)[^"]*"', page)
    assert "prefers-color-scheme: dark" in page and "var(--ink)" in page and canvas.INK not in page.split("</style>", 1)[1]
    assert "assumed &lt;this&gt;" in page
    row = r'<tr><th scope="row">(?:<span[^>]*></span>)?(?:<strong>)?([^<]+)(?:</strong>)?</th><td title="([\d,]+) bytes"'
    cells = dict(re.findall(row, page))
    shown = {name: int(size.replace(",", "")) for name, size in cells.items()}
    assert {words.TERMS[name][0]: size for name, size in step.timeline.peak_terms.items()}.items() <= shown.items()
    assert shown["allocated"] == step.prediction.peak_allocated_bytes
    assert (shown["device"], shown["device at most"], shown["budget"]) == (
        step.prediction.peak_device_bytes,
        21 * GIB,
        24 * GIB,
    )
    assert (shown["forward"], shown["backward"]) == (3 * GIB, 18 * GIB)


@pytest.mark.parametrize(
    ("budget", "said"),
    [
        (24 * GIB, ["fits 24.00 GiB, 3.00 GiB to spare", "tensors may reach 21.00 GiB"]),
        (20 * GIB, ["does not fit 20.00 GiB: 1.00 GiB too much", "tensors may reach 17.00 GiB"]),
        (80 * GIB, ["fits 80.00 GiB", "above this picture"]),
        (2 * GIB, ["does not fit 2.00 GiB", "tensors may reach 0.0 MiB"]),
    ],
)
def test_the_budget_and_the_verdict(tmp_path: Path, budget: int, said: list[str]) -> None:
    write(_step(budget), tmp_path / "step.svg")
    drawn = (tmp_path / "step.svg").read_text(encoding="utf-8")
    assert all(line in drawn for line in said)


def test_every_term_of_a_timeline_has_a_name_and_a_colour_of_its_own() -> None:
    from autofit.worker.trace_tracer import CATEGORIES

    assert set(CATEGORIES) <= set(words.TERMS)
    drawn_together = [words.TERMS[name][1] for name in CATEGORIES]
    assert len(set(drawn_together)) == len(CATEGORIES)


@pytest.mark.parametrize("name", ["step.pdf", "step", "missing/step.png", "taken.png", "taken.png/step.png"])
def test_what_cannot_be_written_is_one_line(tmp_path: Path, name: str) -> None:
    (tmp_path / "taken.png").mkdir()
    if name == "taken.png/step.png":
        (tmp_path / "taken.png").rmdir()
        (tmp_path / "taken.png").write_text("a file")
    with pytest.raises(UsageError, match=re.escape(str(tmp_path))) as found:
        check_target(tmp_path / name)
    assert "\n" not in str(found.value)


def test_a_folder_without_permission_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    with pytest.raises(UsageError, match="cannot be written; choose a folder"):
        check_target(tmp_path / "step.png")


def test_explain_refuses_the_file_before_it_predicts(tmp_path: Path) -> None:
    (tmp_path / "spec.yaml").write_text("model: {preset: tiny-llama}\n")
    command = ["-m", "autofit.cli", "explain", "--spec", "spec.yaml", "--gpu-mem", "1GB", "--picture", "step.pdf"]
    done = subprocess.run([sys.executable, *command], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "step.pdf" in done.stderr and ".png, .svg or .html" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1 and not done.stdout


def test_matplotlib_is_loaded_only_when_something_is_drawn() -> None:
    code = (
        "import sys, autofit.cli.predict, autofit.report.picture, autofit.tuning.forecast; print('matplotlib' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
