"""Trials that really train, each in processes of its own. What every engine promises is in tests/contracts/test_engines.py."""

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from worker_orders import read_result, run_worker, write_spec

from autofit.config.result import TrialResult
from autofit.resources import worker_entry

pytest.importorskip("deepspeed")
pytestmark = pytest.mark.train
MIB = 2**20


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Runs a trial once for all tests that ask for the same one."""

    @cache
    def run(**knobs: Any) -> TrialResult:
        spec = write_spec(tmp_path_factory.mktemp("trial"), **knobs)
        done = run_worker(spec)
        result = read_result(spec)
        assert (done.returncode == 0) == (result.outcome == "COMPLETED"), done.stderr[-2000:]
        return result

    return run


def test_micro_batches_of_text_add_up_to_the_same_step(trial: Any) -> None:
    # without checkpointing the activations make the peak; with it both peak near what the optimizer holds
    knobs = {"preset": "tiny-llama", "num_gpus": 1, "gradient_checkpointing": False}
    whole = trial(**knobs, micro_batch_size=4)
    split = trial(**knobs, micro_batch_size=2, gradient_accumulation_steps=2)
    assert split.losses == pytest.approx(whole.losses, abs=1e-5)
    assert split.peak_device_bytes < whole.peak_device_bytes


def test_a_trial_fits_a_budget_just_above_its_peak(trial: Any) -> None:
    roomy = trial(preset="tiny-llama", num_gpus=1, micro_batch_size=4, gradient_checkpointing=False)
    budget = roomy.peak_device_bytes + 8 * MIB
    fits = trial(preset="tiny-llama", num_gpus=1, micro_batch_size=4, gradient_checkpointing=False, budget=budget)
    assert fits.outcome == "COMPLETED", fits.message
    assert fits.peak_device_bytes <= budget


def test_a_death_during_training_is_told(tmp_path: Path) -> None:
    spec = write_spec(tmp_path, preset="tiny-llama")
    assert run_worker(spec, fault="die:1:1").returncode == 1
    result = read_result(spec)
    assert (result.outcome, result.failed_rank, result.error_type) == ("CRASHED", 1, "SIGKILL")


def test_under_torchrun_the_last_rank_merges(tmp_path: Path) -> None:
    spec = write_spec(tmp_path, preset="tiny-llama", zero_stage=0)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
    command = [*torchrun, str(worker_entry()), "run", str(spec)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    subprocess.run(command, env=env, capture_output=True, timeout=600, check=True)
    result = read_result(spec)
    assert result.outcome == "COMPLETED"
    assert [rank.rank for rank in result.ranks] == [0, 1]


def test_a_training_on_one_device_is_no_member_of_a_process_group(tmp_path: Path) -> None:
    """On a GPU its communicator would be measured as the training's memory, and a launcher makes none."""
    spec = write_spec(tmp_path, preset="tiny-llama", num_gpus=1, steps=1)
    code = (
        "import sys, torch; from autofit.worker import rank; from autofit.worker.order import read_order;"
        "from pathlib import Path; kept = rank._leave;"
        "rank._leave = lambda *given: (print('group', torch.distributed.is_initialized()), kept(*given));"
        f"rank.run_rank(read_order(Path({str(spec)!r})))"
    )
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29999"}
    env = {**os.environ, **alone, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=600, check=False)
    assert done.stdout.splitlines()[-1] == "group False", done.stderr[-2000:]


def test_steps_take_the_shapes_that_are_ordered(tmp_path: Path) -> None:
    spec = write_spec(tmp_path, num_gpus=1, steps=3)
    content = json.loads(spec.read_text())
    content["shapes"] = [{"cutoff_len": 128, "image_max_pixels": 50_176}, {"cutoff_len": 96, "image_max_pixels": 12_544}]
    spec.write_text(json.dumps(content))
    run_worker(spec)
    rank = read_result(spec).ranks[0]
    assert rank.step_batch_tokens == [128, 96, 128, 96]
    assert rank.step_batch_patches == [256, 64, 256, 64]
