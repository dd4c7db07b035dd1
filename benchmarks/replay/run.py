"""Search strategies on recorded tables: writes benchmarks/results/replay.json and replay.md.

    .venv/bin/python -m benchmarks.replay.run [--seeds 100] [--strategies guided,tpe,...] [TABLE.jsonl ...]

A seed is one course: it draws the noise between runs of a configuration, the distortion of the predictor, and what a strategy
draws itself. Strategies that do not stop by themselves run until they reach 98 % of the exhaustive best, or `LIMIT` trials.
With `--strategies`, what the files say of the others stays: only `guided` depends on predictions and on autofit's own models.
"""

import argparse
import json
import math
import platform
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean, median
from typing import Any

from benchmarks.replay import distort
from benchmarks.replay.course import Course, Strategy, replay
from benchmarks.replay.deepspeed_rules import deepspeed
from benchmarks.replay.strategies import sampled
from benchmarks.replay.table import Table, load

HERE = Path(__file__).parent
RESULTS = HERE.parent / "results"
LIMIT = 60
SLOW_SEEDS = 10
"""For `gp`, which takes a second a proposal."""
COUNTS = (1, 2, 4, 8, 15, 30, 60)


@dataclass(frozen=True)
class Contestant:
    """A strategy and what it is told of the table."""

    make: Callable[[Table, int], Strategy]
    told: Callable[[Table, int], Table] = lambda table, seed: table
    share: float = 0.98
    """Of the exhaustive best: what its trials are counted to."""
    stops: bool = True
    """Whether it ends by itself."""
    seeds: int | None = None


guided = partial(sampled, "guided")
CONTESTANTS = {
    "guided": Contestant(guided),
    "guided, predictor off by +-30 %": Contestant(guided, distort.common, share=0.95),
    "guided, each prediction off by up to 30 %": Contestant(guided, distort.scattered, share=0.95),
    "guided, nothing predicted": Contestant(guided, lambda table, seed: table.without_forecasts()),
    "deepspeed": Contestant(deepspeed, seeds=1),
    "tpe": Contestant(partial(sampled, "tpe"), stops=False),
    "gp": Contestant(partial(sampled, "gp"), stops=False, seeds=SLOW_SEEDS),
    "random": Contestant(partial(sampled, "random"), stops=False),
    "grid": Contestant(partial(sampled, "grid"), stops=False, seeds=1),
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("tables", nargs="*", type=Path, default=sorted((HERE / "tables").glob("*.jsonl")))
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--strategies", default=None, help="comma-separated beginnings of names; default: all")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--output", type=Path, default=RESULTS / "replay.json")
    options = parser.parse_args()
    wanted = options.strategies.split(",") if options.strategies else list(CONTESTANTS)
    names = [name for name in CONTESTANTS if any(name.startswith(start) for start in wanted)]
    if not names or not options.tables:
        parser.error(f"no such strategy or no table; strategies: {'; '.join(CONTESTANTS)}")
    jobs = [(path, name, options.seeds) for path in options.tables for name in names]
    found: dict[str, dict[str, Any]] = {}
    if options.strategies and options.output.exists():
        found = json.loads(options.output.read_text(encoding="utf-8"))["results"]
    with ProcessPoolExecutor(options.processes) as pool:
        for (path, name, _), figures in zip(jobs, pool.map(_compete, *zip(*jobs, strict=True)), strict=True):
            found.setdefault(path.stem, {})[name] = figures
            print(path.stem, name, {key: figures[key] for key in ("median", "p95", "oom_share", "trials")}, flush=True)
    document = {"machine": platform.machine(), "python": platform.python_version(), "limit": LIMIT}
    document["tables"] = {path.stem: _describe(load(path)) for path in options.tables}
    document["results"] = {
        path.stem: {name: found[path.stem][name] for name in CONTESTANTS if name in found[path.stem]} for path in options.tables
    }
    options.output.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    options.output.with_suffix(".md").write_text(as_markdown(document), encoding="utf-8")


def _compete(path: Path, name: str, seeds: int) -> dict[str, Any]:
    table, contestant = load(path), CONTESTANTS[name]
    count = min(seeds, contestant.seeds or seeds)
    courses = []
    for seed in range(count):
        told = contestant.told(table, seed)
        until = None if contestant.stops else contestant.share
        courses.append(replay(contestant.make(told, seed), told, seed, LIMIT, until))
    return summarise(courses, contestant.share, contestant.stops)


def summarise(courses: Sequence[Course], share: float, stops: bool) -> dict[str, Any]:
    """Figures of many courses. Trials that never reached `share` count as infinite (None where a quantile is)."""
    reached = sorted(course.trials_to(share) or math.inf for course in courses)
    trials = sum(len(course.regrets) for course in courses)
    return {
        "seeds": len(courses),
        "share": share,
        "median": _finite(median(reached)),
        "p95": _finite(reached[math.ceil(0.95 * len(reached)) - 1]),
        "reached": sum(map(math.isfinite, reached)) / len(reached),
        "oom_share": sum(course.out_of_memory for course in courses) / trials,
        "trials": trials / len(courses),
        "stops": stops,
        "regret": {str(count): mean(course.regret_at(count) for course in courses) for count in COUNTS},
        "final_regret": mean(course.regrets[-1] for course in courses),
        "worst_final_regret": max(course.regrets[-1] for course in courses),
        "wall_seconds": mean(course.wall_seconds for course in courses),
    }


def as_markdown(document: dict[str, Any]) -> str:
    """The report for people."""
    lines = [
        "# Search strategies on recorded tables",
        "",
        "`make replay` writes this file. How to read it: `replay/README.md`.",
        "",
    ]
    for table, figures in document["results"].items():
        about = document["tables"][table]
        lines += [f"## {table} ({about['evidence']})", "", about["note"], ""]
        lines += [
            f"{about['configurations']} configurations, {about['asked_for']} run the reference's training,"
            f" {about['asked_for_fit']} of those within {about['budget_bytes']:,} bytes.",
            "",
            "| strategy | seeds | share | median | p95 | reached | OOM | trials | regret after 4 | 8 | 15 | 30 | end | worst |",
            "|" + 14 * "---|",
        ]
        lines += [_line(name, one) for name, one in figures.items()] + [""]
    return "\n".join(lines)


def _line(name: str, one: dict[str, Any]) -> str:
    regrets = [f"{one['regret'][count]:.1%}" for count in ("4", "8", "15", "30")]
    cells = [
        name,
        str(one["seeds"]),
        f"{one['share']:.0%}",
        *(f"> {LIMIT}" if one[key] is None and not one["stops"] else str(one[key] or "never") for key in ("median", "p95")),
        f"{one['reached']:.0%}",
        f"{one['oom_share']:.1%}",
        f"{one['trials']:.1f}" + ("" if one["stops"] else " (cut)"),
        *regrets,
        f"{one['final_regret']:.1%}",
        f"{one['worst_final_regret']:.1%}",
    ]
    return "| " + " | ".join(cells) + " |"


def _describe(table: Table) -> dict[str, Any]:
    asked_for = [spec for spec in table.legal.points if table.wanted(spec)]
    header = table.header
    return {
        "evidence": header.evidence,
        "note": header.note,
        "budget_bytes": header.budget_bytes,
        "configurations": len(table.legal.points),
        "fit": sum(table.runs(spec) for spec in table.legal.points),
        "asked_for": len(asked_for),
        "asked_for_fit": sum(table.runs(spec) for spec in asked_for),
        "best": table.best,
        "machine": header.machine,
        "versions": header.versions,
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


if __name__ == "__main__":
    main()
