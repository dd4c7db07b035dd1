"""What every engine promises, by trials that really train; few and shared, for each starts processes that import for seconds.

The one module-wide rule: a run is made once, whichever tests look at it.
"""

import json
import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from engine_runs import LLAMAFACTORY, PYTHON, ROOT, Run, execute, hardware, run_spec

from autofit.config.model import ModelRef, resolve_model
from autofit.config.result import TrialResult
from autofit.config.space import DatasetRef, SearchSpace
from autofit.config.trial import Images, TrialSpec
from autofit.launch.environment import probe
from autofit.launch.local import Limits, LocalExecutor
from autofit.predict.predictor import Predictor
from autofit.tuning.batches import Batches
from autofit.tuning.data import read_data
from autofit.tuning.growth import judge

pytest.importorskip("deepspeed")
pytestmark = [pytest.mark.train, pytest.mark.llamafactory]
MIB = 2**20
ENGINES = ("transformers", "llamafactory")
WHOLE_LIFE = {"evaluate": True, "save": True, "resume": True}
LEAK_MIB, LONG_RUN, SEEN = 4, 40, 24


@pytest.fixture(scope="module", autouse=True)
def environment(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Caches of their own; OMP threads as the driver sets them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HOME", str(tmp_path_factory.mktemp("hf")))
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny models and their data."""
    folder = tmp_path_factory.mktemp("tiny")
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"DS_ACCELERATOR": "cpu"}
    command = [LLAMAFACTORY if LLAMAFACTORY.exists() else sys.executable, ROOT / "examples" / "make_tiny.py", folder]
    subprocess.run(command, env=env, capture_output=True, check=True, timeout=300)
    return folder


@pytest.fixture(scope="module")
def trial(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Runs an order once for all tests that ask for the same one. `fault` is planted in its ranks.

    CI must have the LLaMA-Factory environment; elsewhere its absence skips.
    """

    @cache
    def run(engine: str, fault: str | None, limits: Limits | None, wanted: str) -> TrialResult:
        if not PYTHON[engine].exists():
            reason = f"no LLaMA-Factory environment at {LLAMAFACTORY}; `make llamafactory-env` builds it"
            pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
        folder = tmp_path_factory.mktemp("run")
        with pytest.MonkeyPatch.context() as patch:
            if fault:
                patch.setenv("AUTOFIT_FAULT", fault)
            result = execute(run_spec(engine, tiny, **json.loads(wanted)), folder, limits)
        assert not (folder / "trainer").exists()  # checkpoints are large
        return result

    def ask(engine: str, *, fault: str | None = None, limits: Limits | None = None, **wanted: Any) -> TrialResult:
        return run(engine, fault, limits, json.dumps(wanted, sort_keys=True))

    return ask


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def whole(trial: Run, engine: str, **wanted: Any) -> TrialResult:
    return trial(engine, measure=WHOLE_LIFE, micro_batch_size=2, gradient_accumulation_steps=2, **wanted)


def test_a_trial_completes_with_measurements_of_its_whole_life(trial: Run, engine: str) -> None:
    result = whole(trial, engine)
    assert result.outcome == "COMPLETED", result.message
    (rank,) = result.ranks
    steps = 4 if engine == "transformers" else 5  # with the worst batch again
    assert set(rank.phase_peak_bytes) == {"load", "forward", "backward", "optimizer_step", "eval", "save"}
    assert {len(rank.step_peak_bytes), len(rank.step_seconds), len(rank.step_tokens), len(result.losses)} == {steps}
    assert result.timed_steps == 2
    assert result.tokens_per_second >= result.effective_tokens_per_second > 0
    assert result.samples_per_second == pytest.approx(4 / result.step_time_seconds)
    assert max(rank.phase_peak_bytes.values()) == result.peak_device_bytes > 4 * 4 * result.trainable_parameters
    assert result.total_parameters == result.trainable_parameters > 4_000_000
    assert {"torch", "transformers", "python"} <= set(result.versions)
    assert {"import", "load", "train", "total", "resume"} <= set(result.timings)
    assert result.losses[0] != result.losses[-1]


def test_a_resumed_process_goes_on_where_the_other_was(trial: Run, engine: str) -> None:
    result = whole(trial, engine)
    assert result.resume_problem is None
    assert result.resumed_loss == pytest.approx(result.losses[-1], rel=1e-6)
    assert result.resumed_loss != pytest.approx(result.losses[0], rel=1e-6)


def test_the_worst_batch_runs_first_and_again(trial: Run) -> None:
    result = whole(trial, "llamafactory")
    batches = result.ranks[0].step_batch_tokens
    assert batches[0] == batches[3] == 2 * 128
    assert max(batches[1:3]) < 2 * 128


def test_one_long_sample_among_a_thousand_is_found(trial: Run, tiny: Path, tmp_path: Path) -> None:
    """The sampler would draw it some day; a trial of a few steps that leaves it to chance passes."""
    data = tmp_path / "data"
    shutil.copytree(tiny / "data", data)
    rows = [{"instruction": "what", "input": "", "output": "the image shows a small circle " * 4} for _ in range(1000)]
    rows[900]["output"] *= 10
    (data / "tiny_text.json").write_text(json.dumps(rows))
    knobs = {"data": str(data), "micro_batch_size": 4, "cutoff_len": 1024, "gradient_checkpointing": False}
    by_chance = trial("llamafactory", worst_batch=(0, 1, 2, 3), **knobs)
    assert by_chance.outcome == "COMPLETED", by_chance.message
    budget = by_chance.peak_device_bytes + 16 * MIB
    result = trial("llamafactory", budget=budget, **knobs)
    assert (result.outcome, result.losses) == ("OOM", [])
    found = worst_of(tiny / "tiny-llama", data, **{name: value for name, value in knobs.items() if name != "data"})
    assert 900 in found
    result = trial("llamafactory", budget=budget, worst_batch=found, **knobs)
    assert (result.outcome, result.losses) == ("OOM", [])


def worst_of(model: Path, data: Path, **knobs: Any) -> tuple[int, ...]:
    """The batch that a search over these data would order, from the profile that LLaMA-Factory's own code makes."""
    ref = ModelRef(path=str(model))
    space = SearchSpace(
        name="t",
        model=ref,
        dataset=DatasetRef(name="tiny_text", dir=str(data), template="qwen"),
        knobs={"micro_batch_size": [1]},
        reference={"micro_batch_size": 1},
    )
    environment = probe(str(LLAMAFACTORY))
    study, why = read_data(space, resolve_model(ref), environment, cache=data / "profiles")
    assert study is not None, why
    batches = Batches(study, resolve_model(ref), Predictor(environment.python, environment.versions), seed=0)
    places = batches.choose(TrialSpec(model=ref, images=Images(per_sample=0), **knobs), 2).worst_places
    assert places is not None
    return places


def test_a_save_out_of_memory_is_told_and_the_seed_gives_the_same_losses(trial: Run, engine: str) -> None:
    roomy = whole(trial, engine)
    result = whole(trial, engine, budget=2 * roomy.peak_device_bytes, fault="hog:save:2048")
    assert (result.outcome, result.phase, result.memory_limit) == ("OOM", "save", "RLIMIT_DATA")
    assert result.losses == roomy.losses[:-1]
    assert result.samples_per_second is None


def test_an_evaluation_out_of_memory_is_told_and_adapters_are_few(trial: Run, engine: str) -> None:
    result = whole(trial, engine, method="lora", budget=512 * MIB, fault="hog:eval:2048")
    assert (result.outcome, result.phase) == ("OOM", "eval")
    assert result.trainable_parameters < 0.1 * result.total_parameters
    assert result.losses[-1] != result.losses[0]


def test_a_budget_is_a_real_limit(trial: Run, engine: str) -> None:
    roomy = whole(trial, engine)
    peaks = roomy.ranks[0].phase_peak_bytes
    budget = (peaks["load"] + roomy.peak_device_bytes) // 2
    result = whole(trial, engine, budget=budget)
    assert (result.outcome, result.memory_limit, result.failed_rank) == ("OOM", "RLIMIT_DATA", 0)
    assert result.phase in {"forward", "backward", "optimizer_step"}
    assert result.requested_bytes > 0
    assert result.peak_device_bytes < roomy.peak_device_bytes


def test_forked_trials_are_what_fresh_ones_are(trial: Run, engine: str, tiny: Path, tmp_path: Path) -> None:
    """Also after an OOM: nothing of a trial is left in the server."""
    fresh = whole(trial, engine)
    wanted = {"measure": WHOLE_LIFE, "micro_batch_size": 2, "gradient_accumulation_steps": 2}
    peaks = fresh.ranks[0].phase_peak_bytes
    too_little = (peaks["load"] + fresh.peak_device_bytes) // 2
    orders = [run_spec(engine, tiny, **wanted, budget=budget) for budget in (None, too_little, None)]
    said: list[str] = []
    with LocalExecutor(str(PYTHON[engine]), hardware(1), Limits(hang=300.0), warm=True, say=said.append) as executor:
        first, starved, last = (executor.run(tmp_path / f"{at}", order, lambda _: None) for at, order in enumerate(orders))
    assert said == []
    assert (starved.outcome, starved.memory_limit) == ("OOM", "RLIMIT_DATA")
    for result in (first, last):
        assert result.outcome == "COMPLETED", result.message
        assert (result.losses, result.resumed_loss) == (fresh.losses, fresh.resumed_loss)
        assert (result.precision_mode, result.versions) == (fresh.precision_mode, fresh.versions)
        assert result.trainable_parameters == fresh.trainable_parameters
        assert set(result.ranks[0].phase_peak_bytes) == set(peaks)
        assert result.ranks[0].baseline_bytes == pytest.approx(fresh.ranks[0].baseline_bytes, rel=0.03)
        assert result.peak_device_bytes == pytest.approx(fresh.peak_device_bytes, rel=0.15)  # two fresh runs: up to 0.12


@pytest.mark.parametrize("zero_stage", [2, 3])
def test_ranks_agree_whatever_holds_the_states(trial: Run, engine: str, zero_stage: int) -> None:
    def on_two(stage: int) -> TrialResult:
        return trial(engine, model="tiny-qwen2.5-vl", num_gpus=2, zero_stage=stage, measure={"steps": 1})

    reference, result = on_two(0), on_two(zero_stage)
    assert result.outcome == "COMPLETED", result.message
    assert result.losses == pytest.approx(reference.losses, abs=1e-5)
    assert [rank.outcome for rank in result.ranks] == ["COMPLETED"] * 2
    assert result.total_parameters == reference.total_parameters == 6_455_168


def test_projector_only_with_a_worst_batch_of_ones_own(trial: Run, engine: str) -> None:
    knobs = {"freeze_multi_modal_projector": False, "freeze_language_model": True, "worst_batch": (1,), "cutoff_len": 256}
    result = trial(engine, model="tiny-qwen2.5-vl", **knobs)
    assert result.outcome == "COMPLETED", result.message
    assert result.trainable_parameters < 0.1 * result.total_parameters
    batches = result.ranks[0].step_batch_tokens
    assert batches[0] == batches[-1]
    assert len(batches) == 4
    assert result.ranks[0].step_batch_patches[0] > 0


def test_a_broken_sample_is_an_error_of_the_data(trial: Run, tiny: Path, tmp_path: Path) -> None:
    short = trial("transformers", model="tiny-qwen2.5-vl", cutoff_len=32)
    assert (short.outcome, short.phase) == ("DATA_ERROR", "data")
    assert "do not fit into cutoff_len 32" in str(short.message)
    broken = tmp_path / "data"
    shutil.copytree(tiny / "data", broken)
    (broken / "images" / "07.png").write_bytes(b"no image at all")
    corrupt = trial("llamafactory", model="tiny-qwen2.5-vl", data=str(broken))
    assert (corrupt.outcome, corrupt.phase) == ("DATA_ERROR", "data")
    assert "07.png" in str(corrupt.message)


def test_a_hang_on_one_rank_is_told(trial: Run) -> None:
    result = trial("llamafactory", num_gpus=2, fault="hang:1:1", limits=Limits(hang=20.0))
    assert (result.outcome, result.failed_rank) == ("HANG", 1)
    assert "step 1" in str(result.message)


def test_a_leak_completes_and_the_growth_check_dates_it(trial: Run, engine: str) -> None:
    measure = {"steps": LONG_RUN, "warmup_steps": 2}
    leaking = trial(engine, measure=measure, fault=f"leak:0:{LEAK_MIB}")
    assert leaking.outcome == "COMPLETED", leaking.message  # nothing but the check would tell
    (rank,) = leaking.ranks
    budget = rank.step_peak_bytes[SEEN] + 10 * LEAK_MIB * MIB
    crossed = next(step for step, peak in enumerate(rank.step_peak_bytes) if peak > budget)
    lists = {name: value[:SEEN] for name, value in rank if isinstance(value, list)}
    result = judge(leaking.model_copy(update={"ranks": [rank.model_copy(update=lists)]}), budget, 2, "cpu")
    assert result.outcome == "GROWTH"
    assert result.growth_bytes_per_step == pytest.approx(LEAK_MIB * MIB, rel=0.1)
    assert result.crossing_step == pytest.approx(crossed, rel=0.1)
    clean = trial(engine, measure=measure)
    assert judge(clean, clean.peak_device_bytes + 10 * LEAK_MIB * MIB, 2, "cpu").outcome == "COMPLETED"
