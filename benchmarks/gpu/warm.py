"""Part (d): a search whose trials are forked from a warm worker, against one that starts new interpreters for each.

Both try the same configurations.
"""

from typing import Any

from benchmarks.gpu.command import figures, search_in_sessions
from benchmarks.gpu.place import Place
from benchmarks.gpu.records import Record

SIDES = {"warm": (), "fresh": ("--fresh-processes",)}
"""Side -> what it adds to the command line."""


def run(place: Place) -> tuple[int, int]:
    """(sides recorded, sides planned)"""
    ledger = place.ledger("warm")
    for name, more in SIDES.items():
        if name in ledger.mine():
            continue
        trials = str(place.load.comparison_trials)
        found = search_in_sessions(place, ledger, name, ("--sampler", "grid", "--trials", trials, *more))
        rows = [figures(trial) for trial in found.trials if trial.purpose == "search"]
        ledger.add(name, options=more, wall_seconds=found.seconds, trials=rows)
    return len(set(SIDES) & set(ledger.mine())), len(SIDES)


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
