"""Part (d): a search whose trials are forked from a warm worker, against one that starts new interpreters for each.

Both try the same configurations.

Where this autofit has no warm worker, that is what the record says.
"""

import re
from typing import Any

from benchmarks.gpu.command import figures, options_of_search, search_in_sessions
from benchmarks.gpu.place import Place
from benchmarks.gpu.records import Record

SIDES = {"warm": (), "fresh": ("--fresh-processes",)}
"""Side -> what it adds to the command line."""


def run(place: Place) -> tuple[int, int]:
    """(sides recorded, sides planned)"""
    ledger = place.ledger("warm")
    available = has_warm_worker(options_of_search())
    for name, more in SIDES.items():
        if name in ledger.mine():
            continue
        if not available:
            ledger.add(name, available=False, reason="autofit search has no option --fresh-processes, so no warm worker")
            continue
        trials = str(place.load.comparison_trials)
        found = search_in_sessions(place, ledger, name, ("--sampler", "grid", "--trials", trials, *more))
        rows = [figures(trial) for trial in found.trials if trial.purpose == "search"]
        ledger.add(name, available=True, options=more, wall_seconds=found.seconds, trials=rows)
    return len(set(SIDES) & set(ledger.mine())), len(SIDES)


def has_warm_worker(help_text: str) -> bool:
    """Whether `autofit search` can do without one, and so has one."""
    return "--fresh-processes" in set(re.findall(r"--[a-z][a-z-]*", help_text))


def compared(warm: Record, fresh: Record) -> dict[str, Any]:
    """Seconds of the trials of both sides, and the figures of every configuration that both ran."""
    by_config = {name: {row["config"]: row for row in side["trials"]} for name, side in (("warm", warm), ("fresh", fresh))}
    both = [key for key in by_config["warm"] if key in by_config["fresh"]]
    pairs = [{name: rows[key] for name, rows in by_config.items()} for key in both]
    return {
        "pairs": pairs,
        "seconds": {name: sum(pair[name]["wall_seconds"] or 0.0 for pair in pairs) for name in SIDES},
        "only_one_ran": len(set(by_config["warm"]) ^ set(by_config["fresh"])),
    }
