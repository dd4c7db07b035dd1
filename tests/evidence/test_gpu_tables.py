"""The reader: figures that follow from the records, aims beside them, and no figure of a CPU among those of a GPU."""

import json
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from evidence_records import GIB, STAMP, configuration

sys.path.insert(0, str(Path(__file__).parents[2]))
from autofit.config.record import TrialRecord
from autofit.config.result import TrialResult
from autofit.config.trial import TrialSpec
from autofit.predict.devices import device_model
from benchmarks.gpu import scores, tables
from benchmarks.gpu.budgets import verdict
from benchmarks.gpu.bundle import closure, lacking
from benchmarks.gpu.search import gpu_seconds


def written(folder: Path, **parts: list[dict[str, Any]]) -> str:
    for part, records in parts.items():
        (folder / f"{part}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return tables.render(folder)


def test_scores_are_those_of_the_errors() -> None:
    found = scores.score([(101, 100), (99, 100), (96, 100), (100, 100)])
    assert found is not None
    assert (found.count, found.median, found.worst) == (4, pytest.approx(0.01), pytest.approx(-0.04))
    assert (found.under, found.under_far) == (0.5, 0.25)
    assert scores.score([]) is None


def test_what_did_not_complete_or_was_squeezed_by_the_card_is_not_scored() -> None:
    records = [
        configuration(0, 0.0),
        configuration(1, 0.0, outcome="OOM"),
        configuration(2, 0.0, retries=3),
        configuration(3, 0.0, outcome="NOT_RUN", allocated=None, reserved=None),
    ]
    assert [len(scores.pairs(records, name)) for name in ("allocated", "reserved")] == [2, 1]


def test_a_constant_bias_is_gone_when_one_half_corrects_the_other() -> None:
    records = [configuration(number, 0.05) for number in range(12)]
    train, test = scores.halves(records)
    assert len(train) == len(test) == 6 and not {r["key"] for r in train} & {r["key"] for r in test}
    raw, mended = scores.score(scores.pairs(test, "allocated")), scores.score(scores.corrected(train, test, "allocated"))
    assert raw is not None and mended is not None
    assert raw.median == pytest.approx(0.05) and mended.median < 1e-6


def test_step_times_are_refitted_on_other_records_than_they_are_scored_on() -> None:
    records = [configuration(number, 0.0) for number in range(12)]
    raw = scores.score(scores.pairs(records, "step_seconds"))
    fitted = scores.score(scores.refitted(*scores.halves(records), device_model("h100-80gb")))
    assert raw is not None and fitted is not None
    assert raw.median == pytest.approx(0.5) and fitted.median < 0.02


def test_the_table_shows_figures_beside_aims(tmp_path: Path) -> None:
    text = written(tmp_path, accuracy=[configuration(number, 0.02) for number in range(12)])
    line = next(line for line in text.splitlines() if line.startswith("| allocated |"))
    assert line == "| allocated | 12 | 2.00% | 2.00% | +2.00% | 0% | 0% | 1%, 3% |"
    assert "| allocated in backward | 12 | 2.00% |" in text
    assert "| outside of the allocator | 12 | 0.00% |" in text
    assert "torch 2.11.0" in text and "commit " + "a" * 12 in text


def test_only_the_newest_record_of_a_configuration_counts(tmp_path: Path) -> None:
    text = written(tmp_path, accuracy=[configuration(0, 0.5), configuration(0, 0.0), configuration(1, 0.0)])
    assert "| allocated | 2 | 0.00% |" in text


def test_a_cpus_records_are_a_rehearsal_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = [configuration(number, 0.02) | {"device": "cpu", "device_name": "A CPU"} for number in range(6)]
    text = written(tmp_path, accuracy=records)
    assert "A rehearsal on a CPU" in text
    assert "%" not in text and "aim (" not in text
    monkeypatch.setattr(tables, "HERE", tmp_path)
    with pytest.raises(ValueError, match="records of a CPU"):
        tables.render(tmp_path)


def test_without_records_no_figure_is_claimed(tmp_path: Path) -> None:
    assert "no figure is claimed" in tables.render(tmp_path)


@pytest.mark.parametrize(
    ("fits", "outcome", "device", "expected"),
    [
        (True, "COMPLETED", 9, "hit"),
        (True, "OOM", 9, "miss"),
        (True, "COMPLETED", 11, "miss"),
        (False, "OOM", 9, "refused"),
        (False, "COMPLETED", 9, "false refusal"),
        (True, "CRASHED", None, "no answer"),
        (None, "COMPLETED", 9, "no answer"),
    ],
)
def test_a_prediction_of_fitting_is_judged(fits: bool | None, outcome: str, device: int | None, expected: str) -> None:
    assert verdict(fits, {"outcome": outcome, "device": device}, 10) == expected


def test_budgets_growth_safety_and_search_have_their_tables(tmp_path: Path) -> None:
    common = STAMP | {"at": "2026-01-01T00:00:00+00:00"}
    rung = common | {"part": "budgets", "card": "24GB"}
    text = written(
        tmp_path,
        budgets=[rung | {"key": "a", "verdict": "hit"}, rung | {"key": "b", "verdict": "miss"}],
        safety=[
            common | {"part": "safety", "key": "OOM in load", "available": True, "ok": False, "message": "it hung"},
            common | {"part": "safety", "key": "device taken", "available": False, "reason": "a CPU"},
        ],
        growth=[
            common
            | {
                "part": "growth",
                "key": "qwen2.5-vl",
                "steps": 2,
                "predicted": {"peak_reserved": [GIB, 2 * GIB]},
                "measured": {"step_peaks": [GIB, 2 * GIB]},
                "verdict": {"outcome": "COMPLETED"},
                "step_errors": {"median": 0.01, "worst": 0.02},
            }
        ],
    )
    assert "| 24GB | 1 | 1 | 0 | 0 | 0 |" in text
    assert "**NOT as expected**" in text and "not tried here" in text
    assert "| qwen2.5-vl | 2 | COMPLETED | 2.00 GiB | 2.00 GiB | 1.0% / 2.0% |" in text


def test_the_gpus_seconds_add_up_to_the_wall_time() -> None:
    start = datetime(2026, 1, 1, tzinfo=UTC)
    trial = TrialRecord(
        study="s",
        trial_number=0,
        spec=TrialSpec(model={"preset": "tiny-llama"}),
        reason="r",
        run_dir="d",
        started_at=start,
        finished_at=start + timedelta(seconds=30),
        result=TrialResult(outcome="OOM", phase="load", timings={"import": 8.0, "load": 2.0, "train": 15.0}),
    )
    use = gpu_seconds([trial], 42.0)
    assert use == {"start-up": 10.0, "measuring": 15.0, "rest of the trials": 5.0, "between": 12.0}


def test_warm_and_fresh_are_compared_on_what_both_ran(tmp_path: Path) -> None:
    def side(name: str, seconds: float, steps: float, *more: dict[str, Any]) -> dict[str, Any]:
        rows = [
            {"config": config, "outcome": "COMPLETED", "device": GIB, "step_seconds": steps, "wall_seconds": seconds}
            for config in ("a", "b")
        ]
        kept = {"part": "warm", "key": name, "at": "2026-01-01T00:00:00+00:00", "wall_seconds": 99.0}
        return STAMP | kept | {"trials": [*rows, *more]}

    alone = {"config": "c", "outcome": "OOM", "device": None, "step_seconds": None, "wall_seconds": 500.0}
    sides = [side("warm", 3.0, 1.02), side("fresh", 30.0, 1.0, alone)]
    text = written(tmp_path, warm=sides)
    assert "2 configurations that both ran: 6 s forked from a warm worker, 60 s in new interpreters" in text
    assert "10.0 times less. Aims: 5 times" in text
    assert "| step time | 2.0% | 2.0% |" in text
    assert "Not finished" in written(tmp_path, warm=sides[:1])


def test_the_bundle_carries_what_is_pure_or_lacking() -> None:
    names = ["tqdm-4.0-py3-none-any.whl", "numpy-2.0-cp312-cp312-manylinux2014_x86_64.whl"]
    names += ["pydantic_core-2.0-cp312-cp312-manylinux2014_x86_64.whl"]
    chosen = lacking([Path(name) for name in names], there={"numpy", "tqdm"})
    assert [path.name.split("-")[0] for path in chosen] == ["tqdm", "pydantic_core"]


def test_the_bundles_packages_are_followed_to_their_needs() -> None:
    found = closure(["pydantic>=2"])
    assert {"pydantic", "pydantic-core", "typing-extensions"} <= found
    assert closure(["pydantic>=2"], without=frozenset({"pydantic-core"})).isdisjoint({"pydantic-core"})
    with pytest.raises(SystemExit, match="not installed here"):
        closure(["no-such-package-of-autofit"])


def test_the_results_page_holds_the_tables_of_the_committed_records() -> None:
    page = (tables.HERE.parent / "README.md").read_text()
    shown = page.partition("<!-- gpu:begin -->\n")[2].partition("<!-- gpu:end -->")[0]
    assert shown.strip() == tables.render(tables.HERE).strip()
