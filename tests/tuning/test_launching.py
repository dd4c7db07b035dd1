"""`launch` and `--recover`: signals, last words, the next safer configuration - and a planted out-of-memory in a real run."""

import json
import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
from llamafactory_files import lay_out

from autofit.config.certificate import Certificate
from autofit.config.launcher_yaml import launcher_values
from autofit.config.record import TrialRecord
from autofit.config.result import TrialResult
from autofit.config.trial import TrialSpec
from autofit.export import export
from autofit.launch import memory_errors
from autofit.launch.environment import probe
from autofit.launch.memory_errors import memory_error
from autofit.store.store import Store
from autofit.tuning.plan import Plan, SearchRequest, plan_study
from autofit.tuning.recovery import next_safer

ROOT = Path(__file__).parents[2]
FAKE_LAUNCHER = """\
import json, os, sys, time
from pathlib import Path
from ruamel.yaml import YAML
values = YAML(typ="safe").load(Path(sys.argv[2]).read_text())
out = Path(values["output_dir"])
runs = Path("runs.jsonl")
with runs.open("a") as stream:
    stream.write(json.dumps(values) + "\\n")
print("training", flush=True)
fault = os.environ.get("FAULT", "")
if fault == "wait":
    Path("started").touch()
    try:
        time.sleep(60)
    except KeyboardInterrupt:
        print("saving before the end", flush=True)
        raise SystemExit(7)
if fault.startswith("oom") and len(runs.read_text().splitlines()) <= int(fault[3:]):
    out.mkdir(parents=True, exist_ok=True)
    (out / "trainer_log.jsonl").write_text(json.dumps({"current_steps": 59, "total_steps": 80}) + "\\n")
    if "checkpoint" in os.environ.get("LEAVES", "checkpoint"):
        for step in (25, 50):
            (out / f"checkpoint-{step}").mkdir(exist_ok=True)
            (out / f"checkpoint-{step}" / "trainer_state.json").write_text(
                json.dumps({"train_batch_size": values["per_device_train_batch_size"], "global_step": step})
            )
        (out / "checkpoint-75").mkdir(exist_ok=True)  # cut off: no state
    print("Traceback ...\\ntorch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB", file=sys.stderr)
    print("E1125 torch.distributed.elastic failed (exitcode: 1)", file=sys.stderr)
    raise SystemExit(1)
if fault == "crash":
    print("KeyError: 'messages'", file=sys.stderr)
    raise SystemExit(3)
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stub_python: str) -> Path:
    """The examples, a fake `llamafactory-cli` beside the stub interpreter."""
    folder = lay_out(tmp_path / "here")
    monkeypatch.chdir(folder)
    (folder / "data" / "t.json").write_text("[]")
    cli = Path(stub_python).with_name("llamafactory-cli")
    cli.write_text(f"#!{sys.executable}\n{FAKE_LAUNCHER}")
    cli.chmod(0o755)
    return folder


def trial_of(plan: Plan, number: int, spec: TrialSpec, peak: int | None) -> TrialRecord:
    now = datetime.now(UTC)
    versions = probe(plan.study.python).versions
    result = TrialResult(outcome="OOM", phase="forward", versions=versions)
    if peak is not None:
        measured = {"step_time_seconds": 1.0, "samples_per_second": 4.0, "tokens_per_second": 4.0, "peak_device_bytes": peak}
        result = TrialResult.model_validate({"outcome": "COMPLETED", "versions": versions, **measured})
    return TrialRecord(
        study=plan.study.name,
        trial_number=number,
        spec=spec,
        reason="t",
        run_dir="r",
        started_at=now,
        finished_at=now,
        result=result,
    )


def prepared(folder: Path, name: str, python: str, wanted: dict[str, object], num_gpus: int = 1) -> tuple[Plan, TrialSpec]:
    """A study from an example with one measured trial, exported to `best`."""
    request = SearchRequest(
        gpu_mem_bytes=2**29, device="cpu", num_gpus=num_gpus, python=python, from_file=f"{name}.yaml", study="s"
    )
    plan = plan_study(request)
    spec = next(point for point in plan.legal.points if all(getattr(point, key) == value for key, value in wanted.items()))
    trial = trial_of(plan, 0, spec, 2**28)
    with Store.open("autofit.db") as store:
        store.create_study(plan.study)
        store.start_trial(trial)
        assert trial.finished_at and trial.result
        store.finish_trial("s", 0, trial.finished_at, trial.result)
    export(plan.study, trial, None, "llamafactory", folder / "best")
    return plan, spec


def launch(folder: Path, *arguments: str, **env: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "autofit.cli", "launch", *arguments]
    here = {**os.environ, "PYTHONPATH": str(ROOT), **env}
    return subprocess.run(command, cwd=folder, env=here, capture_output=True, text=True, timeout=500, check=False)


def runs(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "runs.jsonl").read_text().splitlines()]


def test_a_run_that_ends_well(here: Path, stub_python: str) -> None:
    prepared(here, "text_lora", stub_python, {"micro_batch_size": 2, "gradient_checkpointing": True})
    done = launch(here, "best")
    assert (done.returncode, done.stdout, done.stderr) == (0, "training\n", "")
    assert runs(here) == [launcher_values((here / "best" / "train.yaml").read_text(), "t")]


def test_a_crash_is_no_oom_and_its_status_is_passed_on(here: Path, stub_python: str) -> None:
    prepared(here, "text_lora", stub_python, {"micro_batch_size": 2})
    done = launch(here, "best", "--recover", FAULT="crash")
    assert done.returncode == 3
    assert len(runs(here)) == 1


def test_what_does_not_hold_is_said_and_the_run_goes_on(here: Path, stub_python: str) -> None:
    prepared(here, "text_lora", stub_python, {"micro_batch_size": 2})
    (here / "data" / "t.json").write_text('[{"instruction": "new"}]')
    done = launch(here, "best")
    assert done.returncode == 0
    assert done.stderr == "warning: the certificate does not hold: data set: tiny_text in " + f"{here / 'data'} has changed\n"


def test_an_oom_without_recover_says_what_would_help(here: Path, stub_python: str) -> None:
    prepared(here, "text_lora", stub_python, {"micro_batch_size": 2})
    done = launch(here, "best", FAULT="oom9")
    assert done.returncode == 1
    assert "Tried to allocate 2.00 GiB; `autofit launch best --recover` goes on with a safer configuration" in done.stderr


def test_recovery_goes_on_from_the_last_whole_checkpoint(here: Path, stub_python: str) -> None:
    prepared(here, "text_lora", stub_python, {"micro_batch_size": 4, "gradient_checkpointing": False})
    done = launch(here, "best", "--recover", FAULT="oom3")
    assert done.returncode == 0, done.stderr
    tried = [(run["per_device_train_batch_size"], run["gradient_accumulation_steps"]) for run in runs(here)]
    assert tried == [(4, 2), (2, 4), (1, 8), (1, 8)]
    assert [run.get("disable_gradient_checkpointing", False) for run in runs(here)] == [True, True, True, False]
    assert [run.get("resume_from_checkpoint") for run in runs(here)] == [None, *["saves/tiny/sft/checkpoint-50"] * 3]
    assert {run["output_dir"] for run in runs(here)} == {"saves/tiny/sft"}
    assert "out of memory after step 59 of 80, last checkpoint checkpoint-50 (trial 1 of study s)" in done.stderr
    assert "goes on from checkpoint-50 with micro_batch_size 2, gradient_accumulation_steps 4" in done.stderr
    assert (
        json.loads((here / "saves/tiny/sft/checkpoint-50/trainer_state.json").read_text())["train_batch_size"]
        == runs(here)[3]["per_device_train_batch_size"]
    )
    with Store.open("autofit.db", read_only=True) as store:
        launches = store.trials("s", purpose="launch")
    assert [trial.trial_number for trial in launches] == [1, 2, 3]
    assert all(trial.result and trial.result.outcome == "OOM" for trial in launches)
    assert "CUDA out of memory" in (launches[0].result.message or "" if launches[0].result else "")
    certificate = Certificate.model_validate_json((here / "best" / "recovered-3" / "autofit.json").read_text())
    assert certificate.evidence == "predicted" and certificate.spec.gradient_checkpointing


def test_a_checkpoint_that_loses_weights_is_not_gone_on_from(here: Path, stub_python: str) -> None:
    """transformers 5.5 leaves weights of a full vision-language model as they were when it resumes; the confirmation saw it."""
    _, spec = prepared(here, "text_lora", stub_python, {"micro_batch_size": 4, "gradient_checkpointing": False})
    problem = "resuming left 74 weights as they were before training"
    with Store.open("autofit.db") as store:
        number = len(store.trials("s"))
        now = datetime.now(UTC)
        trial = TrialRecord(
            study="s", trial_number=number, purpose="confirm", spec=spec, reason="r", run_dir="d", started_at=now
        )
        store.start_trial(trial)
        found = TrialResult(outcome="OOM", resume_problem=problem)
        store.finish_trial("s", number, now, found)
    done = launch(here, "best", "--recover", FAULT="oom1")
    assert done.returncode == 0, done.stderr
    assert f"goes on from the start, because {problem}, with micro_batch_size 2" in done.stderr
    assert [run.get("resume_from_checkpoint") for run in runs(here)] == [None, None]


def test_nothing_safer_is_left(here: Path, stub_python: str) -> None:
    prepared(here, "text_lora_ds3", stub_python, {"micro_batch_size": 1, "gradient_checkpointing": True, "zero_stage": 2}, 2)
    done = launch(here, "best", "--recover", FAULT="oom9")
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert (
        "no safer configuration to go on with; only from the start, because a checkpoint keeps its ZeRO stage: zero_stage 3"
        in last
    )


def test_before_the_first_checkpoint_the_zero_stage_may_change(here: Path, stub_python: str) -> None:
    prepared(here, "text_lora_ds3", stub_python, {"micro_batch_size": 1, "gradient_checkpointing": True, "zero_stage": 0}, 2)
    done = launch(here, "best", "--recover", FAULT="oom1", LEAVES="nothing")
    assert done.returncode == 0, done.stderr
    assert "goes on from the start with zero_stage 2" in done.stderr
    second = runs(here)[1]
    assert second["deepspeed"]["zero_optimization"]["stage"] == 2  # type: ignore[index]
    assert second["resume_from_checkpoint"] is None


def test_ctrl_c_reaches_the_launcher(here: Path, stub_python: str) -> None:
    prepared(here, "text_lora", stub_python, {"micro_batch_size": 2})
    command = [sys.executable, "-m", "autofit.cli", "launch", "best", "--recover"]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "FAULT": "wait"}
    process = subprocess.Popen(command, cwd=here, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (here / "started").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 7
    assert out.endswith("saving before the end\n")


def test_a_program_that_only_the_user_has_cannot_be_launched(here: Path, stub_python: str) -> None:
    plan, spec = prepared(here, "text_lora", stub_python, {"micro_batch_size": 2})
    export(plan.study, trial_of(plan, 0, spec, 2**28), None, "transformers", here / "plain")
    done = launch(here, "plain")
    assert done.returncode == 2 and "runs a program of your own" in done.stderr
    assert launch(here, "nowhere").returncode == 2


def test_the_order_of_what_is_safer(here: Path, stub_python: str) -> None:
    request = SearchRequest(
        gpu_mem_bytes=2**29, device="cpu", num_gpus=2, python=stub_python, from_file="vl_full_ds2_offload.yaml"
    )
    plan = plan_study(request)
    at = next(p for p in plan.legal.points if (p.micro_batch_size, p.gradient_checkpointing, p.zero_stage) == (4, False, 0))
    order, trials = [], []
    while (after := next_safer(plan.legal.points, trials, at, same_sharding=False)) is not None:
        assert after not in [trial.spec for trial in trials], "one that ran out of memory is not proposed again"
        assert after.global_batch_size == at.global_batch_size
        order.append((after.micro_batch_size, after.gradient_checkpointing, after.zero_stage))
        trials.append(trial_of(plan, len(trials), after, None))
    assert order[:3] == [(2, False, 0), (1, False, 0), (4, True, 0)]
    assert [stage for *_, stage in order] == sorted(stage for *_, stage in order)
    higher = trial_of(
        plan,
        0,
        next(p for p in plan.legal.points if p.micro_batch_size == 2 and p.zero_stage == 0 and not p.gradient_checkpointing),
        300,
    )
    known = [trial_of(plan, 1, at, 200), higher]
    skipped = next_safer(plan.legal.points, known, at, same_sharding=True)
    assert skipped is not None and (skipped.micro_batch_size, skipped.zero_stage) == (1, 0), (
        "a measured peak that is higher is no help"
    )


def test_a_real_run_on_a_cpu_has_the_heap_of_the_trials() -> None:
    from autofit.launch.environment import CPU_MALLOC
    from autofit.worker import supervisor

    assert CPU_MALLOC == supervisor.CPU_MALLOC


def test_the_phrases_are_the_workers() -> None:
    from autofit.worker import outcomes

    assert memory_errors.DEVICE == outcomes._DEVICE_OOM
    assert memory_errors.HOST == outcomes._HOST_OOM


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("x\ntorch.OutOfMemoryError: CUDA out of memory. Tried\nE1125 elastic", False),
        ("[rank1]: torch.OutOfMemoryError: HIP allocation failed", False),
        ("RuntimeError: [enforce fail] DefaultCPUAllocator: can't allocate memory: you tried", True),
        ("MemoryError", True),
        ("numpy._core._exceptions._ArrayMemoryError: Unable to allocate", True),
        ("NoMemoryErrorHere\nKeyError: 'MemoryError'", None),
        ("", None),
    ],
)
def test_last_words(text: str, found: bool | None) -> None:
    said = memory_error(text)
    assert (said[0] if said else None) is found


PLANT = '''\
"""Step 60 of the first attempt asks for more memory than there is, on the last rank: a real failure of torch's allocator."""
import os, sys
from pathlib import Path

if Path(sys.argv[0]).name in {"llamafactory-cli", "launcher.py"}:  # the latter under torchrun
    import transformers

    flag, plain = Path(os.environ["PLANTED"]), transformers.Trainer.training_step

    def training_step(self, *args, **kwargs):
        last = int(os.environ.get("WORLD_SIZE", "1")) - 1
        if self.state.global_step == 59 and self.args.process_index == last and not flag.exists():
            import torch

            flag.touch()
            torch.empty(2**47)
        return plain(self, *args, **kwargs)

    transformers.Trainer.training_step = training_step
'''


@pytest.mark.llamafactory
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_planted_oom_at_step_60_of_a_real_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ranks: int) -> None:
    """LLaMA-Factory trains an epoch of 80 steps; an allocation at step 60 fails; it goes on from step 50 with micro-batch 1.

    On two ranks, under torchrun, the last one fails, and the other only loses its peer; with ZeRO-2, for transformers 5.5
    cannot load the optimizer of several ranks without DeepSpeed on a CPU (torch does not know the `cpu:0` that it asks for).
    """
    zero = 2 if ranks > 1 else 0
    python = Path(os.environ.get("AUTOFIT_LLAMAFACTORY_PYTHON") or ROOT / ".venv-llamafactory" / "bin" / "python")
    if not python.exists():
        pytest.skip(f"no LLaMA-Factory environment at {python}")
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    subprocess.run([python, ROOT / "examples" / "make_tiny.py", here], capture_output=True, check=True, timeout=300)
    rows = json.loads((here / "data" / "tiny_text.json").read_text())
    (here / "data" / "tiny_text.json").write_text(json.dumps(rows * 5 * ranks))
    (here / "mine.yaml").write_text(
        f"# mine\nmodel_name_or_path: {here / 'tiny-llama'}\nstage: sft\ndo_train: true\nfinetuning_type: lora\n"
        "dataset: tiny_text\ndataset_dir: data\ntemplate: qwen\ncutoff_len: 64\npreprocessing_num_workers: 1\n"
        "output_dir: saves/mine\nlogging_steps: 1\nsave_steps: 25\nreport_to: none\nplot_loss: false\n"
        "per_device_train_batch_size: 2\ngradient_accumulation_steps: 1\nlearning_rate: 1.0e-3\nnum_train_epochs: 1.0\n"
        "lr_scheduler_type: cosine\ndataloader_num_workers: 0\n"
    )
    prepared(here, "mine", str(python), {"micro_batch_size": 2, "gradient_checkpointing": True, "zero_stage": zero}, ranks)
    (here / "plant").mkdir()
    (here / "plant" / "sitecustomize.py").write_text(PLANT)
    command = [sys.executable, "-m", "autofit.cli", "launch", "best", "--recover"]
    env = {
        **os.environ,
        "PYTHONPATH": f"{here / 'plant'}{os.pathsep}{ROOT}",
        "PLANTED": str(here / "planted"),
        "HF_HOME": str(here / "hf"),
    }
    done = subprocess.run(command, cwd=here, env=env, capture_output=True, text=True, timeout=580, check=False)
    assert (here / "planted").exists(), done.stderr[-3000:]
    assert done.returncode == 0, done.stderr[-3000:]
    assert "out of memory after step 59 of 80, last checkpoint checkpoint-50 (trial 1 of study s)" in done.stderr
    assert "goes on from checkpoint-50 with micro_batch_size 1, gradient_accumulation_steps 2" in done.stderr
    state = json.loads((here / "saves" / "mine" / "checkpoint-80" / "trainer_state.json").read_text())
    losses = {entry["step"]: entry["loss"] for entry in state["log_history"] if "loss" in entry}
    assert sorted(losses) == list(range(1, 81))
    assert state["train_batch_size"] == 1
    # the log of the first attempt has steps 51 to 59 too: run again with another micro-batch they are the same steps
    first = [json.loads(line) for line in (here / "saves" / "mine" / "trainer_log.jsonl").read_text().splitlines()]
    twice = [(line["loss"], losses[line["current_steps"]]) for line in first if "loss" in line]
    assert len(twice) >= 80
    assert all(one == pytest.approx(other, abs=2e-3) for one, other in twice)
    shown = subprocess.run(
        [sys.executable, "-m", "autofit.cli", "trials", "--study", "s"], cwd=here, capture_output=True, text=True, check=True
    )
    assert "OOM launch" in shown.stdout
