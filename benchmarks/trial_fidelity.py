"""Does a trial measure what the training really does? The winner of a study, against a plain Trainer without our meter.

    python benchmarks/trial_fidelity.py [SPEC.json] [--rounds 3] [--steps 20]

Runs in turn, in fresh processes, (A) the worker on the spec, and (B) a plain Hugging Face Trainer under torchrun on the same
model, data and arguments, without our hooks, meter, or memory limit; it only notes the time at the end of each optimizer step.
Both have the environment of a CPU rank (malloc's thresholds, OpenMP's waiting), worth up to a tenth by itself; `--bare` runs B
without it. Prints the ratio A/B of samples per second, round by round; the machine may be noisy, so look at its
spread. Also runs the spec ten times as long as a trial and compares the peak with the budget.

SPEC.json is a run folder's spec; default: the winner of `make demo`.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ENTRY = HERE.parent / "autofit" / "worker" / "__main__.py"


def demo_winner() -> Path:
    """The run folder's spec of the demo's winner."""
    command = [str(Path(sys.executable).parent / "autofit"), "--db", "sqlite:///.demo/autofit.db", "studies", "--json"]
    studies = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return Path(f".demo/runs/demo/{studies[-1]['winner_trial_number']:04d}/spec.json")


def run_worker(spec: dict[str, Any], steps: int, folder: Path) -> dict[str, Any]:
    """One metered run of `steps` timed optimizer steps, as the launcher would start it."""
    file = folder / "spec.json"
    file.write_text(json.dumps({**spec, "measure": {"warmup_steps": 2, "steps": steps}}))
    env = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    with (folder / "log").open("w") as log:
        subprocess.run([sys.executable, str(ENTRY), "run", str(file)], check=False, env=env, stdout=log, stderr=log)
    result: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return result


def run_plain(spec_file: Path, steps: int, folder: Path, *, bare: bool) -> float:
    """Samples per second of a plain Trainer run; median step after two of warm-up."""
    from autofit.worker.supervisor import CPU_MALLOC

    trial = json.loads(spec_file.read_text())["trial"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "PYTHONPATH": str(HERE.parent)}
    if not bare:
        env |= {**CPU_MALLOC, "OMP_WAIT_POLICY": "passive", "GLOO_SOCKET_IFNAME": "lo", "TORCHDYNAMO_DISABLE": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(trial["num_gpus"])]
    command += [str(HERE / "trial_fidelity.py"), str(spec_file), "--plain-rank", str(folder), "--steps", str(steps)]
    with (folder / "log").open("w") as log:
        subprocess.run(command, check=True, env=env, stdout=log, stderr=log)
    seconds = json.loads((folder / "steps.json").read_text())
    batch = trial["micro_batch_size"] * trial["gradient_accumulation_steps"] * trial["num_gpus"]
    return float(batch / statistics.median(seconds[2:]))


def plain_rank(spec_file: Path, steps: int, folder: Path) -> None:
    """A rank of the plain run."""
    from transformers import Trainer, TrainerCallback

    from autofit.worker.batches import WorstBatch, collate
    from autofit.worker.engines.transformers import training_arguments
    from autofit.worker.models import build, load_config
    from autofit.worker.order import read_order
    from autofit.worker.startup import prepare_deepspeed

    class Clock(TrainerCallback):
        """Notes when an optimizer step ends."""

        def __init__(self) -> None:
            self.seconds: list[float] = []
            self._last = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            now = time.perf_counter()
            self.seconds.append(now - self._last)
            self._last = now

    content = json.loads(spec_file.read_text()) | {"measure": {"warmup_steps": 2, "steps": steps}}
    own = folder / f"spec.rank{os.environ['RANK']}.json"
    own.write_text(json.dumps(content))
    order = read_order(own)
    config = load_config(order.model)
    if order.trial["zero_stage"]:
        prepare_deepspeed(order)
    arguments = training_arguments(order, config)
    data = WorstBatch(config, order.trial, seed=order.seed, length=order.total_steps * order.global_batch_size)
    clock = Clock()
    model = build(order.model, order.trial, order.seed, arguments.device)
    Trainer(model=model, args=arguments, train_dataset=data, data_collator=collate, callbacks=[clock]).train()
    if os.environ["RANK"] == "0":
        (folder / "steps.json").write_text(json.dumps(clock.seconds))


def compare(spec_file: Path, rounds: int, steps: int, *, bare: bool) -> dict[str, Any]:
    """The figures of every round."""
    spec = json.loads(spec_file.read_text())
    ratios, metered, plain = [], [], []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for number in range(rounds):
            result = run_worker(spec, steps, folder)
            if result["outcome"] != "COMPLETED":
                raise SystemExit(f"the metered run ended {result['outcome']}: {result['message']}")
            metered.append(result["samples_per_second"])
            plain.append(run_plain(spec_file, steps, folder, bare=bare))
            ratios.append(metered[-1] / plain[-1])
            print(f"round {number + 1}: metered {metered[-1]:.3f}, plain {plain[-1]:.3f} samples/s, ratio {ratios[-1]:.3f}")
            shutil.rmtree(folder / "trainer", ignore_errors=True)
        short = spec["measure"]["warmup_steps"] + spec["measure"]["steps"]
        longer = run_worker(spec, 10 * short - 2, folder)
    budget = spec["memory_budget_bytes"]
    peak = longer["peak_device_bytes"]
    print(f"ten times as long ({10 * short} steps): {longer['outcome']}, peak {peak} of {budget} bytes")
    print(f"ratio metered/plain: median {statistics.median(ratios):.3f}, {min(ratios):.3f} to {max(ratios):.3f}")
    return {
        "spec": {name: value for name, value in spec["trial"].items() if name != "model"},
        "versions": result["versions"],
        "machine": result["hardware"],
        "steps": steps,
        "plain_environment": "bare" if bare else "as a CPU rank's",
        "metered_samples_per_second": metered,
        "plain_samples_per_second": plain,
        "ratio_median": statistics.median(ratios),
        "longer": {"steps": 10 * short, "outcome": longer["outcome"], "peak_device_bytes": peak, "memory_budget_bytes": budget},
    }


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("spec", nargs="?", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--bare", action="store_true")
    parser.add_argument("--plain-rank", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--record", type=Path, help="write the figures to this JSON file")
    given = parser.parse_args()
    if given.plain_rank:
        plain_rank(given.spec, given.steps, given.plain_rank)
        return
    figures = compare(given.spec or demo_winner(), given.rounds, given.steps, bare=given.bare)
    if given.record:
        given.record.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
