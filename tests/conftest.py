"""Fixtures that several rooms' tests share."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from autofit.config.hardware import Device, Hardware
from autofit.config.model import Model, ModelRef, resolve_model
from autofit.config.space import SearchSpace
from autofit.config.trial import Measure, RunSpec, TrialSpec

STUB = Path(__file__).parent / "stub_worker.py"


@pytest.fixture(autouse=True)
def own_leases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test holds its own devices, so that tests may run side by side."""
    monkeypatch.setenv("AUTOFIT_LEASE_DIR", str(tmp_path / "leases"))


@pytest.fixture
def stub_python(tmp_path: Path) -> str:
    """An executable that plays the training environment's interpreter and never loads torch."""
    file = tmp_path / "stub" / "python"
    file.parent.mkdir()
    file.write_text(f"#!{sys.executable} -S\n{STUB.read_text()}")
    file.chmod(0o755)
    return str(file)


@pytest.fixture
def cpu() -> Hardware:
    device = Device(index=0, uuid="cpu", name="test cpu", memory_bytes=16 * 1024**3)
    return Hardware(device="cpu", devices=(device, device), cpu_count=2, host_memory_bytes=16 * 1024**3)


@pytest.fixture
def tiny_space() -> SearchSpace:
    return SearchSpace.load("tiny_qwen2_5_vl")


@pytest.fixture
def tiny_model(tiny_space: SearchSpace) -> Model:
    return resolve_model(tiny_space.model)


@pytest.fixture
def run_spec(tiny_model: Model) -> Callable[..., RunSpec]:
    """Builds a run of the tiny model; keywords are fields of the trial spec."""

    def build(budget: int | None = None, **fields: object) -> RunSpec:
        trial = TrialSpec.model_validate(
            {"model": ModelRef(preset="tiny-qwen2.5-vl"), "precision": "fp32", "cutoff_len": 256, "num_gpus": 2, **fields}
        )
        return RunSpec(
            trial=trial, model=tiny_model, device="cpu", measure=Measure(warmup_steps=1, steps=3), memory_budget_bytes=budget
        )

    return build
