"""`autofit export` on a real database."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from autofit.cli.app import main
from autofit.config.hardware import Hardware
from autofit.config.model import ModelRef, resolve_model
from autofit.config.record import StudyRecord, TrialRecord
from autofit.config.result import TrialResult
from autofit.config.space import SearchSpace
from autofit.config.trial import TrialSpec
from autofit.export import EXPORTERS
from autofit.store import Store

NOW = datetime(2026, 11, 20, tzinfo=UTC)
MODEL = ModelRef(preset="qwen2.5-vl-7b")


@pytest.fixture
def database(tmp_path: Path, cpu: Hardware) -> Path:
    """Study `done` with trials 0 (the reference), 1 (the winner) and 2 (out of memory); study `empty` without a trial."""
    file = tmp_path / "autofit.db"
    space = SearchSpace(name="s", model=MODEL, knobs={"micro_batch_size": [1, 2, 4]}, reference={"micro_batch_size": 1})
    with Store.open(str(file)) as store:
        for name in ("done", "empty"):
            store.create_study(
                StudyRecord(
                    name=name,
                    created_at=NOW,
                    space=space,
                    model=resolve_model(MODEL),
                    hardware=cpu.model_copy(update={"device": "cuda"}),
                    python="python",
                    sampler="tpe",
                    seed=0,
                    gpu_mem_bytes=2**36,
                    memory_budget_bytes=2**36,
                    autofit_version="0.1.0",
                )
            )
        speed = {"peak_device_bytes": 2**35, "step_time_seconds": 1.0, "tokens_per_second": 10.0}
        results = (
            TrialResult(outcome="COMPLETED", samples_per_second=2.0, **speed),
            TrialResult(outcome="COMPLETED", samples_per_second=3.0, **speed),
            TrialResult(outcome="OOM", phase="forward"),
        )
        for number, result in enumerate(results):
            spec = TrialSpec(model=MODEL, micro_batch_size=2**number, num_gpus=2, zero_stage=3)
            record = TrialRecord(study="done", trial_number=number, spec=spec, reason="test", run_dir="r", started_at=NOW)
            store.start_trial(record)
            store.finish_trial("done", number, NOW, result)
        store.set_study_status("done", "FINISHED", 1)
    return file


def test_winner_by_default(database: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "best"
    assert main(["export", "--db", str(database), "--study", "done", "-o", str(out)]) == 0
    printed = capsys.readouterr()
    command = f"FORCE_TORCHRUN=1 NPROC_PER_NODE=2 llamafactory-cli train {out / 'train.yaml'}"
    assert printed.out.splitlines() == [str(out / "train.yaml"), str(out / "autofit.json"), f"run it: {command}"]
    assert printed.err == ""
    text = (out / "train.yaml").read_text()
    assert "per_device_train_batch_size: 2" in text
    assert "1.50 x the reference (trial 0, 2 samples/s)" in text


def test_json_and_warning(database: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["export", "--db", str(database), "--study", "done", "--trial", "2", "-o", str(tmp_path / "o"), "--json"]
    assert main([*arguments, "--launcher", "deepspeed"]) == 0
    printed = capsys.readouterr()
    document = json.loads(printed.out)
    assert document["trial_number"] == 2
    assert document["files"] == [str(tmp_path / "o" / name) for name in ("ds_config.json", "autofit.json")]
    assert printed.err.startswith("NOT A FIT: this configuration ended OOM in forward")


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--study", "empty"], 1, "study empty has no winner yet: it is RUNNING with 0 trial(s) done"),
        (["--study", "none"], 1, "none"),
        (["--study", "done", "--trial", "9"], 2, "study done has no trial 9; it has 0 to 2"),
        (["--study", "done", "--launcher", "verl"], 2, "is not one of"),
    ],
)
def test_failures_in_one_line(
    database: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], status: int, message: str
) -> None:
    assert main(["export", "--db", str(database), *arguments, "-o", str(tmp_path / "o")]) == status
    printed = capsys.readouterr()
    assert message in printed.err
    assert "Traceback" not in printed.err
    assert printed.out == ""
    assert not (tmp_path / "o").exists()


def test_help_names_every_launcher(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "--help"]) == 0
    assert "<" + "|".join(EXPORTERS) + ">" in capsys.readouterr().out
