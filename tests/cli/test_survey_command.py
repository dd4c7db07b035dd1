"""`search` where there is no GPU: the whole command, with real traces of a small text model."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., "subprocess.CompletedProcess[str]"]

SPACE = """
name: small
model: {{config: {config}}}
planned_gpus: 4
global_batch_size: 16
fixed: {{precision: bf16, optimizer: adamw_torch_fused, method: full}}
knobs:
  cutoff_len: [512, 1024, 2048]
  zero_stage: [0]
  micro_batch_size: [1, 2, 4]
reference: {{cutoff_len: 1024, zero_stage: 0, micro_batch_size: 1}}
"""
MODEL = {
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 688,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64000,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made: Path = tmp_path_factory.mktemp("survey")
    (made / "space.yaml").write_text(SPACE.format(config=json.dumps(MODEL)))
    return made


@pytest.fixture
def autofit(folder: Path) -> Run:
    def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
        here = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "XDG_CACHE_HOME": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "autofit.cli", *arguments]
        return subprocess.run(command, cwd=folder, env=here, capture_output=True, text=True, timeout=300, check=False)

    return run


@pytest.fixture
def surveyed(autofit: Run, folder: Path) -> dict[str, Any]:
    """The answer of one survey, made once for all tests of this file."""
    kept = folder / "answer.json"
    if not kept.exists():
        done = autofit("search", "--gpu-mem", "4GB", "--space", "space.yaml", "--study", "s", "--json")
        assert done.returncode == 0, done.stderr
        assert "no CUDA GPU is visible" in done.stderr and "assumed: 4 devices" in done.stderr
        kept.write_text(done.stdout)
    answer: dict[str, Any] = json.loads(kept.read_text())
    return answer


def test_the_answer_is_ranked_and_marked_predicted(surveyed: dict[str, Any]) -> None:
    assert surveyed["evidence"] == "predicted"
    assert surveyed["configurations"] == 9 and 0 < surveyed["predicted_to_fit"] < 9
    winner = surveyed["winner"]
    assert winner["result"]["outcome"] == "PREDICTED" and winner["result"]["peak_device_bytes"] is None
    assert winner["spec"]["cutoff_len"] >= 1024
    assert {row["evidence"] for row in surveyed["settings"]} == {"predicted"}
    assert [row["cutoff_len"] for row in surveyed["settings"] if not row["changes"]]


def test_rows_are_in_the_database(surveyed: dict[str, Any], autofit: Run) -> None:
    done = autofit("trials", "--study", "s", "--json", "--limit", "20")
    rows = json.loads(done.stdout)
    assert len(rows) == 9
    assert {row["outcome"] for row in rows} == {"PREDICTED", "SKIPPED"}
    assert all(row["predicted_peak_bytes"] > 0 and row["peak_device_bytes"] is None for row in rows)
    over = [row for row in rows if row["outcome"] == "SKIPPED"]
    assert all(row["predicted_peak_high_bytes"] > row["memory_budget_bytes"] for row in over)


def test_a_finished_survey_is_read_again_without_tracing(surveyed: dict[str, Any], autofit: Run, folder: Path) -> None:
    (folder / "cache").rename(folder / "gone")
    try:
        done = autofit("search", "--gpu-mem", "4GB", "--study", "s", "--resume", "--json")
    finally:
        (folder / "gone").rename(folder / "cache")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == surveyed


def test_a_tighter_budget_fits_less_and_one_that_fits_nothing_says_so(surveyed: dict[str, Any], autofit: Run) -> None:
    done = autofit("search", "--gpu-mem", "3GB", "--space", "space.yaml", "--study", "tight", "--json")
    assert json.loads(done.stdout)["predicted_to_fit"] < surveyed["predicted_to_fit"]
    none = autofit("search", "--gpu-mem", "2GB", "--space", "space.yaml", "--study", "none")
    assert none.returncode == 1
    line = next(line for line in none.stderr.splitlines() if line.startswith("error: "))
    assert "nearest miss: trial" in line and "--num-gpus" in line


def test_an_export_says_that_nothing_was_run(surveyed: dict[str, Any], autofit: Run, folder: Path) -> None:
    bare = autofit("export", "--study", "s", "-o", "best")
    assert bare.returncode == 2 and "bare config" in bare.stderr  # no launcher can load it


def test_a_person_reads_a_table(surveyed: dict[str, Any], autofit: Run) -> None:
    done = autofit("search", "--gpu-mem", "4GB", "--study", "s", "--resume")
    assert done.returncode == 0, done.stderr
    assert "predicted winner: trial" in done.stdout and "not modelled" in done.stdout
    assert "measured" not in done.stdout.replace("not measured", "")


def test_a_trial_of_the_study_is_explained_with_what_would_make_it_fit(surveyed: dict[str, Any], autofit: Run) -> None:
    won = autofit("explain", "--study", "s", "--json")
    assert won.returncode == 0, won.stderr
    found = json.loads(won.stdout)
    assert found["fits"] and found["prediction"]["peak_device_bytes"] == surveyed["winner"]["prediction"]["peak_device_bytes"]
    over = autofit("explain", "--study", "s", "--trial", "8", "--json")
    assert over.returncode == 1 and not json.loads(over.stdout)["fits"] and json.loads(over.stdout)["remedies"]
    for arguments, said in (
        (["--study", "s", "--trial", "99"], "has no trial 99"),
        (["--study", "s", "--spec", "space.yaml"], "either --spec FILE or --study NAME"),
        (["--spec", "space.yaml"], "needs --gpu-mem"),
    ):
        wrong = autofit("explain", *arguments)
        assert wrong.returncode == 2 and said in wrong.stderr
