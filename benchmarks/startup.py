"""How long `autofit --help` and `autofit trials` take above an empty Python, on a database of 100,000 trials.

Each round runs an empty Python and every command once, in turn, so that all see the same machine; what is reported is the
median over rounds of the difference within a round, of the clock and of processor time (which other work on the machine
moves less; the least of the clock's differences is the one with least of it). Writes benchmarks/results/startup.json.

    python benchmarks/startup.py [--rounds N] [--trials N] [--database FILE]
"""

import argparse
import importlib.metadata
import json
import os
import platform
import random
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from autofit import __version__
from autofit.config.hardware import Device, Hardware
from autofit.config.model import ModelRef, resolve_model
from autofit.config.record import StudyRecord, TrialRecord
from autofit.config.result import RankResult, TrialResult
from autofit.config.space import SearchSpace
from autofit.config.trial import TrialSpec
from autofit.store.rows import result_row, to_json, trial_row
from autofit.store.store import Store
from autofit.units import GIB

STORED = Path(__file__).parent / "results" / "startup.json"
BUDGET = 72 * GIB
STUDIES = 4
ORIGINALS = 500
"""Records made one by one; the rest of the rows are theirs with other numbers and figures."""
AUTOFIT = [sys.executable, "-m", "autofit.cli"]
HEAVY = ("torch", "sqlalchemy", "alembic", "optuna", "pydantic", "numpy", "rich")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--trials", type=int, default=100_000)
    parser.add_argument("--database", type=Path, help="keep the database here; used again if it exists")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        file = options.database or Path(folder) / "autofit.db"
        if not file.exists():
            began = time.perf_counter()
            make_database(file, options.trials)
            sys.stderr.write(f"made {file} in {time.perf_counter() - began:.1f} s, {file.stat().st_size / 1024**2:.0f} MiB\n")
        text = json.dumps({"trials_in_database": options.trials, **measure(file, options.rounds)}, indent=1) + "\n"
    STORED.write_text(text)
    sys.stdout.write(text)


def measure(file: Path, rounds: int) -> dict[str, object]:
    """Medians over `rounds`, in seconds."""
    trials = [*AUTOFIT, "--db", str(file), "trials"]
    query = "SELECT zero_stage, count(*), max(samples_per_second) FROM trials WHERE outcome = 'COMPLETED' GROUP BY zero_stage"
    commands = {
        "--help": [*AUTOFIT, "--help"],
        "trials": trials,
        "trials --where --sort --limit": [
            *[*trials, "--where", "peak_reserved_gib < 70 and zero_stage = 3"],
            *["--sort", "samples_per_second", "--descending", "--limit", "20"],
        ],
        "query (group by)": [*AUTOFIT, "--db", str(file), "query", query],
        "query best_trials": [*AUTOFIT, "--db", str(file), "query", "SELECT study, trial_number FROM best_trials"],
        "query pareto_front": [*AUTOFIT, "--db", str(file), "query", "SELECT count(*) FROM pareto_front"],
        "studies": [*AUTOFIT, "--db", str(file), "studies"],
    }
    empty = [sys.executable, "-c", "pass"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPYCACHEPREFIX"] = str(file.parent / "bytecode")  # as installed: compiled once, here in the first round
    above: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
    baseline: list[float] = []
    for round_number in range(rounds + 1):  # the first warms the page cache and is dropped
        base = _seconds(empty, environment)
        took = {name: _seconds(command, environment) for name, command in commands.items()}
        if round_number:
            baseline.append(base[0])
            for name, seconds in took.items():
                above[name].append((seconds[0] - base[0], seconds[1] - base[1]))
    return {
        "rounds": rounds,
        "empty_python_seconds": round(statistics.median(baseline), 4),
        "seconds_above_empty_python": {name: _median(clock for clock, _ in values) for name, values in above.items()},
        "least_seconds_above_empty_python": {
            name: round(min(clock for clock, _ in values), 4) for name, values in above.items()
        },
        "processor_seconds_above_empty_python": {name: _median(cpu for _, cpu in values) for name, values in above.items()},
        "heavy_modules_loaded": {name: _heavy(command) for name, command in commands.items()},
        "load_average": os.getloadavg()[0],
        "autofit": __version__,
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "typer": importlib.metadata.version("typer"),
        "cpu_count": os.cpu_count(),
        "commit": subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip(),
        "machine": platform.machine(),
    }


def _median(values: Iterable[float]) -> float:
    return round(statistics.median(values), 4)


def _seconds(command: list[str], environment: dict[str, str]) -> tuple[float, float]:
    """Seconds of the clock and of the processor."""
    began = time.perf_counter()
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    took = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} exited with {process.returncode}")
    return took, usage.ru_utime + usage.ru_stime


def _heavy(command: list[str]) -> list[str]:
    """Which of HEAVY the command has in `sys.modules` at its end."""
    program = "import json, sys; from autofit.cli import main; main(); json.dump(sorted(sys.modules), sys.stderr)"
    done = subprocess.run([sys.executable, "-c", program, *command[3:]], check=True, capture_output=True, text=True)
    modules = set(json.loads(done.stderr.splitlines()[-1]))
    return [name for name in HEAVY if name in modules]


def make_database(file: Path, trials: int) -> None:
    """A database of `trials` finished trials in STUDIES studies, with documents as long as those of two ranks."""
    with Store.open(str(file)) as store:
        for number in range(STUDIES):
            store.create_study(_study(f"study-{number}"))
    chance = random.Random(1)
    made = [_row(number, chance) for number in range(ORIGINALS)]
    rows = [row for row, _, _ in made]
    documents = [(number, spec, result) for number, (_, spec, result) in enumerate(made, start=1)]
    columns = list(rows[0])
    with sqlite3.connect(file) as connection:
        listed, marks = ", ".join(columns), ", ".join(f":{name}" for name in columns)
        connection.executemany(f"INSERT INTO trials ({listed}) VALUES ({marks})", rows)
        connection.executemany("INSERT INTO trial_documents (trial_id, spec, result) VALUES (?, ?, ?)", documents)
        copied = [name for name in columns if name not in {"study_id", "trial_number", "config_key"}]
        speeds = ("samples_per_second", "tokens_per_second", "effective_tokens_per_second", "objective_value")
        values = [f"{name} * (1 + 0.001 * (n.i % 997))" if name in speeds else name for name in copied]
        connection.execute(
            f"""
            WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {trials // ORIGINALS} - 1)
            INSERT INTO trials (study_id, trial_number, config_key, {", ".join(copied)})
            SELECT 1 + n.i % {STUDIES}, trial_number + {ORIGINALS} * n.i, config_key || n.i, {", ".join(values)}
            FROM n CROSS JOIN trials
            """
        )
        connection.execute(
            f"""
            INSERT INTO trial_documents (trial_id, spec, result)
            SELECT t.id, d.spec, d.result
            FROM trials AS t JOIN trial_documents AS d ON d.trial_id = 1 + t.trial_number % {ORIGINALS}
            WHERE t.id > {ORIGINALS}
            """
        )


def _study(name: str) -> StudyRecord:
    space = SearchSpace.load("qwen2_5_vl_7b")
    devices = tuple(Device(index=index, uuid=f"GPU-{index}", name="card", memory_bytes=80 * GIB) for index in range(2))
    hardware = Hardware(device="cuda", devices=devices, cpu_count=8, host_memory_bytes=256 * GIB)
    fixed = {"python": "python", "sampler": "tpe", "seed": 0, "gpu_mem_bytes": 80 * GIB, "memory_budget_bytes": BUDGET}
    now = datetime(2026, 11, 23, tzinfo=UTC)
    model = resolve_model(space.model)
    return StudyRecord(
        name=name, created_at=now, space=space, model=model, hardware=hardware, autofit_version=__version__, **fixed
    )


def _row(number: int, chance: random.Random) -> tuple[dict[str, object], str, str]:
    """The columns of a finished trial, its spec and its result."""
    spec = TrialSpec(
        model=ModelRef(preset="qwen2.5-vl-7b"),
        micro_batch_size=1 + number,
        zero_stage=chance.choice([0, 1, 2, 3]),
        cutoff_len=chance.choice([1024, 2048, 4096]),
        gradient_checkpointing=chance.random() < 0.5,
        num_gpus=2,
    )
    began = datetime(2026, 11, 23, tzinfo=UTC) + timedelta(minutes=number)
    record = TrialRecord(
        study="study-0", trial_number=number, spec=spec, reason="sampled", run_dir=f"runs/{number}", started_at=began
    )
    row = {"study_id": 1, **trial_row(record, BUDGET, as_asked=number % 2)}
    finished = {"started_at": row["started_at"], "finished_at": began + timedelta(seconds=90), "memory_budget_bytes": BUDGET}
    result = _result(chance)
    return {**row, **result_row(result, objective="samples_per_second", **finished)}, to_json(spec), to_json(result)


def _result(chance: random.Random) -> TrialResult:
    versions = {"torch": "2.13.0", "transformers": "5.23.0", "deepspeed": "0.19.8", "peft": "0.21.2", "accelerate": "1.15.0"}
    said = {"versions": versions, "hardware": {"gpu": "card", "driver": "999.1"}, "timings": {"import": 6.5, "load": 9.1}}
    if chance.random() < 0.3:
        message = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.10 GiB"
        ranks = [RankResult(rank=rank, outcome="OOM", phase="backward", message=message) for rank in range(2)]
        return TrialResult(outcome="OOM", phase="backward", message=message, requested_bytes=2 * GIB, ranks=ranks, **said)
    peak, speed = int(chance.uniform(20, 75) * GIB), chance.uniform(0.5, 8)
    phases = {phase: int(peak * chance.uniform(0.5, 1)) for phase in ("load", "forward", "backward", "optimizer_step")}
    steps = [chance.uniform(1, 2) for _ in range(7)]
    rank = {"outcome": "COMPLETED", "phase_peak_bytes": phases, "step_seconds": steps, "step_peak_bytes": [peak] * 7}
    return TrialResult(
        outcome="COMPLETED",
        phase="backward",
        peak_allocated_bytes=int(peak * 0.93),
        peak_reserved_bytes=int(peak * 0.98),
        peak_device_bytes=peak,
        step_time_seconds=8 / speed,
        samples_per_second=speed,
        tokens_per_second=speed * 2048,
        effective_tokens_per_second=speed * 2000,
        timed_steps=5,
        losses=[chance.uniform(1, 3) for _ in range(7)],
        ranks=[RankResult(rank=number, **rank) for number in range(2)],
        **said,
    )


if __name__ == "__main__":
    main()
