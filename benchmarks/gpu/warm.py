"""Part (d): one warm worker for many trials against a fresh process for each, on the same configurations.

Where this autofit has no warm worker, that is what the record says.
"""

import re
from typing import Any

from benchmarks.gpu.command import Searched, figures, options_of_search, search
from benchmarks.gpu.place import Place

COMPARED = "warm against fresh"


def run(place: Place) -> tuple[int, int]:
    """(1 if the comparison is recorded, 1)"""
    ledger = place.ledger("warm")
    if COMPARED in ledger.mine():
        return 1, 1
    switches = switches_in(options_of_search())
    if switches is None:
        ledger.add(COMPARED, available=False, reason="autofit search has no option for a warm worker")
        return 1, 1
    warm, fresh = switches
    same = ("--sampler", "grid", "--trials", str(place.load.comparison_trials))
    suffix = place.commit[:12]
    found = {
        "warm": search(place, f"warm-{place.kind}-{suffix}", (*same, *warm)),
        "fresh": search(place, f"fresh-{place.kind}-{suffix}", (*same, *fresh)),
    }
    ledger.add(COMPARED, available=True, options={"warm": warm, "fresh": fresh}, **compare(found["warm"], found["fresh"]))
    return 1, 1


def switches_in(text: str) -> tuple[tuple[str, ...], tuple[str, ...]] | None:
    """(arguments for warm workers, arguments for fresh processes) of the `--help` text; None where there is no such option."""
    options = set(re.findall(r"--[a-z][a-z-]*", text))
    pairs = (("--warm", "--no-warm"), ("--warm", "--fresh"), ("--no-fresh", "--fresh"))
    for warm, fresh in pairs:
        if {warm, fresh} <= options:
            return (warm,), (fresh,)
    if "--warm" in options:
        return ("--warm",), ()
    return ((), ("--fresh",)) if "--fresh" in options else None


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
