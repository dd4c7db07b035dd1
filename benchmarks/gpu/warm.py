"""Part (d): trials forked from one warm worker against new processes for each, on the same configurations."""

from typing import Any

from benchmarks.gpu.command import Searched, figures, search
from benchmarks.gpu.place import Place

COMPARED = "warm against fresh"


def run(place: Place) -> tuple[int, int]:
    """(1 if the comparison is recorded, 1)"""
    ledger = place.ledger("warm")
    if COMPARED in ledger.mine():
        return 1, 1
    same = ("--sampler", "grid", "--no-reuse", "--trials", str(place.load.comparison_trials))
    suffix = place.commit[:12]
    found = {
        "warm": search(place, f"warm-{place.kind}-{suffix}", same),
        "fresh": search(place, f"fresh-{place.kind}-{suffix}", (*same, "--fresh-processes")),
    }
    ledger.add(COMPARED, **compare(found["warm"], found["fresh"]))
    return 1, 1


def compare(warm: Searched, fresh: Searched) -> dict[str, Any]:
    """Wall seconds of both, and the figures of every configuration that both ran."""
    sides = {"warm": warm, "fresh": fresh}
    by_config = {
        name: {row["config"]: row for trial in side.trials if (row := figures(trial))["purpose"] == "search"}
        for name, side in sides.items()
    }
    both = [key for key in by_config["warm"] if key in by_config["fresh"]]
    return {
        "wall_seconds": {name: side.seconds for name, side in sides.items()},
        "pairs": [{name: by_config[name][key] for name in sides} for key in both],
        "only_one_ran": len(set(by_config["warm"]) ^ set(by_config["fresh"])),
    }
