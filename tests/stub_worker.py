"""A worker without torch, for tests of everything around it. It stands in for the interpreter of the training environment:
it is started as `STUB <worker entry> probe|run|serve ...` and keeps the worker's contract of files and of answers.

Memory and speed are simple functions of the spec. $AUTOFIT_STUB names a fault; $AUTOFIT_STUB_SECONDS is how long a trial takes;
$AUTOFIT_STUB_LOG gets one line a run, `number time run|serve`, for counting how often each trial really ran.
$AUTOFIT_STUB_SERVER names a fault of the server alone: `refuse`, `die` (with its trial running), `garbage`, `deaf` (never
answers), `crash` (its trials crash).
"""

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

MIB = 1024**2


def peak_bytes(trial: dict) -> int:
    """More with micro-batch, length, trained parts; less with sharding and checkpointing."""
    weights = 100 * MIB // (trial["num_gpus"] if trial["zero_stage"] == 3 else 1)
    trained = 0.2 if trial["method"] == "lora" else 1.0
    states = int(100 * MIB * trained) // (trial["num_gpus"] if trial["zero_stage"] else 1)
    per_sample = trial["cutoff_len"] * MIB // 64 // (3 if trial["gradient_checkpointing"] else 1)
    return weights + states + trial["micro_batch_size"] * per_sample


def step_seconds(trial: dict) -> float:
    cost = trial["cutoff_len"] / 1000 * (1.3 if trial["gradient_checkpointing"] else 1.0)
    cost *= 0.8 if trial["method"] == "lora" else 1.0
    overhead = 0.02 * (1 + trial["zero_stage"])
    return trial["gradient_accumulation_steps"] * (overhead + 0.1 * cost * trial["micro_batch_size"] ** 0.8)


def beat(run_dir: Path, progress: int, phase: str = "forward") -> None:
    file = run_dir / "heartbeat.rank0.json"
    temporary = file.with_suffix(".tmp")
    temporary.write_text(
        json.dumps({"pid": os.getpid(), "phase": phase, "step": progress, "progress": progress, "time": time.time()})
    )
    temporary.replace(file)


def completed(spec: dict) -> dict:
    trial = spec["trial"]
    seconds = step_seconds(trial)
    batch = trial["micro_batch_size"] * trial["gradient_accumulation_steps"] * trial["num_gpus"]
    steps = spec["measure"]["warmup_steps"] + spec["measure"]["steps"]
    return {
        "outcome": "COMPLETED",
        "phase": "backward",
        "peak_device_bytes": peak_bytes(trial),
        "step_time_seconds": seconds,
        "samples_per_second": batch / seconds,
        "tokens_per_second": batch * trial["cutoff_len"] / seconds,
        "effective_tokens_per_second": batch * trial["cutoff_len"] / seconds,
        "timed_steps": spec["measure"]["steps"],
        "losses": [1.0] * steps,
        "trainable_parameters": 10,
        "total_parameters": 10,
        "memory_limit": "stub",
    }


def result_of(spec: dict) -> dict:
    budget = spec["memory_budget_bytes"]
    peak = peak_bytes(spec["trial"])
    if budget is not None and peak > budget:
        return {
            "outcome": "OOM",
            "phase": "forward",
            "error_type": "RuntimeError",
            "message": f"can't allocate memory: you tried to allocate {peak - budget} bytes",
            "requested_bytes": peak - budget,
        }
    return completed(spec)


def run(spec_file: Path) -> int:
    run_dir, spec, fault = spec_file.parent, json.loads(spec_file.read_text()), os.environ.get("AUTOFIT_STUB", "")
    if log := os.environ.get("AUTOFIT_STUB_LOG"):
        with Path(log).open("a") as stream:
            stream.write(f"{run_dir.name} {time.time()} {sys.argv[2]}\n")
    if fault == "ignore-sigterm":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, lambda *_: None)
    if fault == "child":
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    end = time.monotonic() + float(os.environ.get("AUTOFIT_STUB_SECONDS", "0.05"))
    progress = 0
    while time.monotonic() < end or fault in {"hang", "slow", "ignore-sigterm", "die"}:
        progress += fault != "hang" or progress < 3
        beat(run_dir, progress)
        time.sleep(0.02)
        if fault != "orphan" and os.getppid() != int(os.environ["AUTOFIT_DRIVER_PID"]):
            return 1  # the driver is gone: so goes the worker
        if fault == "die" and progress > 2:
            os.kill(os.getpid(), signal.SIGKILL)
    if fault == "silent":
        print("OSError: [Errno 28] No space left on device", file=sys.stderr)
        return 1
    text = json.dumps(result_of(spec))
    if fault == "crash":
        text = json.dumps(
            {"outcome": "CRASHED", "phase": "load", "error_type": "ImportError", "message": "no module named flash"}
        )
    if fault == "garbage":
        text = "Segmentation fault? <html>\x00"
    if fault == "torn":
        text = text[: len(text) // 2]
    if fault == "no-peak":
        text = json.dumps({"outcome": "COMPLETED"})
    if fault == "creeping":  # fits, but its steps need more and more; in a short trial nobody can tell
        steps = spec["measure"]["warmup_steps"] + spec["measure"]["steps"]
        peaks = [peak_bytes(spec["trial"]) + step * MIB for step in range(steps)]
        rank = {"rank": 0, "outcome": "COMPLETED", "step_peak_bytes": peaks}
        text = json.dumps({**json.loads(text), "ranks": [rank]})
    if fault == "leaky" and spec["measure"]["steps"] > 5:  # fits a short trial only
        text = json.dumps({**json.loads(text), "peak_device_bytes": 10**12})
    temporary = run_dir / "result.tmp"
    temporary.write_text(text)
    temporary.replace(run_dir / "result.json")
    return 0


def say(**content: object) -> None:
    os.write(1, json.dumps(content).encode() + b"\n")


def serve() -> int:
    fault = os.environ.get("AUTOFIT_STUB_SERVER", "")
    ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)  # dies with the driver
    for line in iter(sys.stdin.readline, ""):
        if fault == "deaf":
            time.sleep(600)
        if fault == "refuse":
            say(refused="planted refusal")
            return 1
        if fault == "garbage":
            os.write(1, b"Segmentation fault?\n")
        server = os.getpid()
        if (pid := os.fork()) == 0:
            os.setpgid(0, 0)
            os.environ["AUTOFIT_DRIVER_PID"] = str(server)
            file = Path(line.strip())
            for number, name in ((1, "stdout.log"), (2, "stderr.log")):
                os.dup2(os.open(file.parent / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
            if fault == "crash":
                os._exit(1)
            os._exit(run(file))
        say(pid=pid)
        if fault == "die":
            time.sleep(0.2)
            os.kill(server, signal.SIGKILL)
        say(exit=os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    return 0


if __name__ == "__main__":
    verb = sys.argv[2]
    if verb == "probe":
        stack = ("torch", "transformers", "accelerate", "peft", "deepspeed")
        print(json.dumps({"python": "3.11", **dict.fromkeys(stack, "stub"), "llamafactory": None}))
        raise SystemExit(0)
    raise SystemExit(serve() if verb == "serve" else run(Path(sys.argv[3])))
