"""`autofit search --from FILE` to its end: with the stub, and twice with real training."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from llamafactory_files import lay_out

from autofit.config.launcher_yaml import launcher_values

ROOT = Path(__file__).parents[2]


def autofit(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "autofit.cli", *arguments]
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=600, check=False)


def search(folder: Path, file: str, *more: str) -> "subprocess.CompletedProcess[str]":
    return autofit(folder, "search", "--from", file, "--device", "cpu", "--study", "s", *more)


def test_a_search_from_a_file(tmp_path: Path, stub_python: str) -> None:
    here = lay_out(tmp_path / "here")
    done = search(here, "text_lora_ds3.yaml", "--python", stub_python, "--num-gpus", "2", "--gpu-mem", "1GB", "--trials", "8")
    assert done.returncode == 0, done.stderr
    assert "x faster than your file text_lora_ds3.yaml (trial 0), " in done.stdout
    out = autofit(here, "export", "--study", "s", "-o", "best")
    assert out.returncode == 0, out.stderr
    assert (here / "best" / "train.diff").exists()
    assert "val_size: 0.1\nper_device_eval_batch_size: 1\neval_strategy: steps\n" in (here / "best" / "train.yaml").read_text()
    more = ("--resume", "--gpu-mem", "1GB", "--trials", "9")
    (here / "other.yaml").write_text("a: 1\n")
    other = search(here, "other.yaml", *more)
    assert other.returncode == 2 and "was started with --from" in other.stderr
    assert search(here, "text_lora_ds3.yaml", *more).returncode == 0


def test_the_first_trial_is_the_file(tmp_path: Path, stub_python: str) -> None:
    here = lay_out(tmp_path / "here")
    done = search(here, "vl_lora.yaml", "--python", stub_python, "--gpu-mem", "1GB", "--trials", "2", "--json")
    answer = json.loads(done.stdout)
    assert answer["reference"]["trial_number"] == 0
    spec = answer["reference"]["spec"]
    assert (spec["micro_batch_size"], spec["gradient_accumulation_steps"], spec["method"]) == (1, 8, "lora")


def test_a_file_beyond_the_engine_is_refused_in_one_line(tmp_path: Path, stub_python: str) -> None:
    done = search(lay_out(tmp_path / "here"), "beyond/qlora.yaml", "--python", stub_python, "--gpu-mem", "1GB")
    assert done.returncode == 2 and "quantization_bit 4 changes memory" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.train
@pytest.mark.parametrize("name", ["text_lora", "vl_projector_only"])
def test_two_real_trials_of_the_users_file(tmp_path: Path, name: str) -> None:
    here = lay_out(tmp_path / "here")
    made = [sys.executable, str(ROOT / "examples" / "make_tiny.py"), "made"]
    subprocess.run(made, cwd=here, capture_output=True, check=True, timeout=120)
    text = (
        (here / f"{name}.yaml").read_text().replace("models/", "made/").replace("dataset_dir: data", "dataset_dir: made/data")
    )
    for long, short in (
        ("cutoff_len: 192", "cutoff_len: 32"),
        ("cutoff_len: 256", "cutoff_len: 96"),
        ("_steps: 8", "_steps: 2"),
    ):
        text = text.replace(long, short)  # seconds, not minutes
    (here / "mine.yaml").write_text(text)
    done = search(here, "mine.yaml", "--gpu-mem", "2GB", "--trials", "2", "--runs", "runs")
    assert done.returncode == 0, done.stderr
    assert "fits, " in done.stderr
    out = autofit(here, "export", "--study", "s", "--trial", "1", "-o", "best")
    assert out.returncode == 0, out.stderr
    written, before = launcher_values((here / "best" / "train.yaml").read_text(), "t"), launcher_values(text, "t")
    assert {key for key in written if written[key] != before.get(key)} <= {
        "per_device_train_batch_size",
        "gradient_accumulation_steps",
        "disable_gradient_checkpointing",
    }
    assert written != before


@pytest.mark.train
@pytest.mark.llamafactory
@pytest.mark.parametrize(("name", "ranks"), [("text_lora", 1), ("vl_full_ds3", 2)])
def test_llamafactory_itself_runs_the_users_file(tmp_path: Path, name: str, ranks: int) -> None:
    """Text with LoRA on one rank; images and text, full, under DeepSpeed on two: searched, confirmed, exported."""
    python = Path(os.environ.get("AUTOFIT_LLAMAFACTORY_PYTHON") or ROOT / ".venv-llamafactory" / "bin" / "python")
    if not python.exists():
        reason = f"no LLaMA-Factory environment at {python}"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    here = lay_out(tmp_path / "here")
    made = [str(python), str(ROOT / "examples" / "make_tiny.py"), "made"]
    subprocess.run(made, cwd=here, capture_output=True, check=True, timeout=200)
    text = (here / f"{name}.yaml").read_text()
    for long, short in (
        ("models/", "made/"),
        ("dataset_dir: data", "dataset_dir: made/data"),
        ("bf16: true", "bf16: false"),
        ("_steps: 8", "_steps: 2"),
    ):
        text = text.replace(long, short)
    (here / "mine.yaml").write_text(text)
    options = ["--python", str(python), "--num-gpus", str(ranks), "--gpu-mem", "2GB", "--trials", "1", "--runs", "runs"]
    done = search(here, "mine.yaml", *options, "--keep", "zero_stage")
    assert done.returncode == 0, done.stderr
    assert "engine llamafactory: as asked" not in done.stderr and "has it" in done.stderr
    assert f"data: {64 if ranks > 1 else 32} samples of" in done.stderr
    assert "it is your file as it stands" in done.stdout and "on your data: " in done.stdout
    shown = json.loads(autofit(here, "show", "1", "--study", "s", "--json").stdout)
    result = shown["result"]
    assert result["outcome"] == "COMPLETED" and len(result["ranks"]) == ranks
    assert result["epoch"]["samples"] == (64 if ranks > 1 else 32)
    assert not [line for line in result["not_measured"] if "worst batch" in line or "speed on an epoch" in line]
    out = autofit(here, "export", "--study", "s", "-o", "best")
    assert out.returncode == 0, out.stderr
    body = (here / "best" / "train.yaml").read_text()
    assert launcher_values(body, "t") == launcher_values(text, "t")
    assert body.endswith(text) and "the batch of the highest predicted peak" in body
