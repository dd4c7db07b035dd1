"""An export of a study that started from the user's file is that file, with the lines changed that the trial changed."""

import difflib
from datetime import UTC, datetime
from pathlib import Path

import pytest
from export_cases import completed
from llamafactory_files import NAMES, lay_out

from autofit.config.launcher_yaml import launcher_values
from autofit.config.record import TrialRecord
from autofit.config.trial import TrialSpec
from autofit.export import export
from autofit.tuning.plan import Plan, SearchRequest, plan_study


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(lay_out(tmp_path / "here"))
    return tmp_path / "here"


def planned(name: str, python: str, **request: object) -> Plan:
    fields = {"gpu_mem_bytes": 2**29, "device": "cpu", "num_gpus": 2, "python": python, "from_file": f"{name}.yaml", **request}
    return plan_study(SearchRequest(**fields))  # type: ignore[arg-type]


def exported(plan: Plan, spec: TrialSpec, out: Path) -> str:
    now = datetime.now(UTC)
    trial = TrialRecord(
        study=plan.study.name,
        trial_number=3,
        spec=spec,
        reason="t",
        run_dir="r",
        started_at=now,
        finished_at=now,
        result=completed(),
    )
    first = trial.model_copy(update={"trial_number": 0, "spec": plan.legal.reference, "result": completed(2.0)})
    export(plan.study, trial, first, "llamafactory", out)
    return (out / "train.yaml").read_text()


def body(text: str) -> str:
    """Without our heading."""
    lines = text.splitlines(keepends=True)
    last = next(place for place, line in enumerate(lines) if "run it where you run your own file" in line)
    return "".join(lines[last + 1 :])


@pytest.mark.parametrize("name", NAMES)
def test_with_no_knob_freed_only_our_comments_are_new(here: Path, stub_python: str, name: str) -> None:
    plan = planned(name, stub_python, keep=("micro_batch_size", "gradient_checkpointing", "zero_stage"))
    text = exported(plan, plan.legal.reference, here / "out")
    original = (here / f"{name}.yaml").read_text()
    assert len(plan.legal.points) == 1
    assert body(text) == original
    assert launcher_values(text, name) == launcher_values(original, name)
    added = [line for line in difflib.ndiff(original.splitlines(), text.splitlines()) if line[0] in "+-"]
    assert added and all(line.startswith("+ #") for line in added)


@pytest.mark.parametrize("name", NAMES)
def test_every_point_of_every_example_is_the_file_with_its_lines_changed(here: Path, stub_python: str, name: str) -> None:
    plan = planned(name, stub_python)
    original = (here / f"{name}.yaml").read_text()
    before = launcher_values(original, name)
    ours = {"per_device_train_batch_size", "gradient_accumulation_steps", "disable_gradient_checkpointing", "deepspeed"}
    for place, spec in enumerate(plan.legal.points[:40]):
        text = exported(plan, spec, here / f"out{place}")
        values = launcher_values(text, name)
        assert {key: value for key, value in values.items() if key not in ours} == {
            key: value for key, value in before.items() if key not in ours
        }
        assert values.get("per_device_train_batch_size", 8) == spec.micro_batch_size
        assert values.get("gradient_accumulation_steps", 1) == spec.gradient_accumulation_steps
        assert values.get("disable_gradient_checkpointing", False) is not spec.gradient_checkpointing
        if spec.zero_stage != plan.legal.reference.zero_stage:
            assert ((values.get("deepspeed") or {}).get("zero_optimization") or {}).get("stage", 0) == spec.zero_stage
        kept = [line for line in original.splitlines() if line in text.splitlines()]
        assert len(kept) >= len(original.splitlines()) - 12, "only the lines of changed keys go"


def test_the_difference_lies_beside_it(here: Path, stub_python: str) -> None:
    plan = planned("vl_full_ds3", stub_python)
    point = next(point for point in plan.legal.points if point.micro_batch_size == 2 and point.zero_stage == 3)
    text = exported(plan, point, here / "out")
    diff = (here / "out" / "train.diff").read_text()
    assert "-per_device_train_batch_size: 1\n-gradient_accumulation_steps: 2\n" in diff
    assert "+per_device_train_batch_size: 2  # autofit: was 1\n+gradient_accumulation_steps: 1  # autofit: was 2\n" in diff
    assert diff.startswith(f"--- {here / 'vl_full_ds3.yaml'}\n+++ train.yaml\n")
    import subprocess

    (here / "again").mkdir()
    done = subprocess.run(
        ["patch", "-s", "-o", "again/train.yaml", "vl_full_ds3.yaml", "out/train.diff"],
        cwd=here,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (here / "again" / "train.yaml").read_text() == text


def test_the_file_is_compared_with_the_users(here: Path, stub_python: str) -> None:
    plan = planned("text_lora_plus", stub_python)
    text = exported(plan, plan.legal.points[-1], here / "out")
    assert "2.00 x your file (trial 0, 2 samples/s), 0.0 MiB less at the peak" in text
    assert "per_device_eval_batch_size is not set" in text


def test_deepspeed_of_the_file_is_started_with_torchrun_though_no_zero_stage_is(here: Path, stub_python: str) -> None:
    from autofit.export import launch_command

    text = (here / "beyond" / "zero_0.yaml").read_text()
    plan = planned("text_lora", stub_python, num_gpus=1)
    study = plan.study.model_copy(update={"source_yaml": text})
    now = datetime.now(UTC)
    trial = TrialRecord(
        study="s",
        trial_number=0,
        spec=plan.legal.reference,
        reason="t",
        run_dir="r",
        started_at=now,
        finished_at=now,
        result=completed(),
    )
    assert launch_command(study, trial, "llamafactory", Path()).startswith("FORCE_TORCHRUN=1 NPROC_PER_NODE=1 ")
