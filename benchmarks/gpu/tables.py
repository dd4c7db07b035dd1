"""Records -> markdown for `benchmarks/results/README.md`.

    python -m benchmarks.gpu.tables [FOLDER]

The aims stand beside the figures. Records of a CPU are a rehearsal: their tables say so, hold no score against an aim, and are
refused in the folder of the GPU's records.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from autofit.predict.devices import recognise
from autofit.units import format_bytes
from benchmarks.gpu import scores
from benchmarks.gpu.records import Record, read
from benchmarks.gpu.scores import AIMS, PROBES, QUANTITIES, Score
from benchmarks.gpu.warm import SIDES, compared

HERE = Path(__file__).resolve().parents[1] / "results" / "gpu"
_NAMES = {"allocated": "allocated", "reserved": "reserved", "device": "device memory", "step_seconds": "step time"}
_REHEARSAL = "**A rehearsal on a CPU with tiny models: no figure here is a GPU's, and none is scored against an aim.**"


def render(folder: Path) -> str:
    """The tables of all records in a folder, device by device.

    Raises:
        ValueError: a line is no record, or a CPU's records lie among those that are published.
    """
    parts = {file.stem: list(read(file)) for file in sorted(folder.glob("*.jsonl"))}
    devices = list(dict.fromkeys((record["device"], record["device_name"]) for records in parts.values() for record in records))
    if folder == HERE and any(kind == "cpu" for kind, _ in devices):
        raise ValueError(f"{folder}: holds records of a CPU; they are a rehearsal and no evidence")
    if not devices:
        return "No records: nothing was measured on a GPU, and no figure is claimed.\n"
    return "\n".join(_device(kind, name, parts) for kind, name in devices)


def _device(kind: str, name: str, parts: dict[str, list[Record]]) -> str:
    lines = [f"## {name}", ""]
    if kind == "cpu":
        lines += [_REHEARSAL, ""]
    own = {
        part: [record for record in records if (record["device"], record["device_name"]) == (kind, name)]
        for part, records in parts.items()
    }
    last = max((record for records in own.values() for record in records), key=lambda record: record["at"])
    versions = ", ".join(f"{package} {version}" for package, version in last["versions"].items())
    commits = sorted({record["commit"][:12] for records in own.values() for record in records})
    lines += [f"{versions}; driver {last['driver']}; commit {', '.join(commits)}.", ""]
    for part, table in _TABLES.items():
        if newest := _newest(own.get(part, [])):
            lines += [f"### {part.capitalize()}", "", *table(newest, kind == "cpu"), ""]
    return "\n".join(lines)


def _newest(records: Sequence[Record]) -> list[Record]:
    """The last record of each key, plans left out."""
    return list({record["key"]: record for record in records if record["key"] != "plan"}.values())


def _accuracy(records: list[Record], rehearsal: bool) -> list[str]:
    outcomes = scores.counted(records, lambda record: record["measured"]["outcome"])
    lines = [f"{len(records)} configurations: {_list(outcomes)}."]
    lines += [f"Not run: {why} ({count})." for why, count in _reasons(records).items()]
    if rehearsal:
        header = ["family", "predicted allocated", "measured growth of the process"]
        return [*lines, "", *_table(header, [_rehearsed(record) for record in records])]
    rows = [_scored(_NAMES[quantity], scores.score(scores.pairs(records, quantity)), quantity) for quantity in QUANTITIES]
    lines += ["", *_table(_SCORE_HEADER, rows), "", "By family, allocated:", ""]
    families = dict.fromkeys(record["family"] for record in records)
    each = {name: [record for record in records if record["family"] == name] for name in families}
    lines += _table(
        _SCORE_HEADER, [_scored(n, scores.score(scores.pairs(r, "allocated")), "allocated") for n, r in each.items()]
    )
    lines += ["", "By term:", ""]
    lines += _table(
        _SCORE_HEADER, [_scored(name, scores.score(found), None) for name, found in scores.by_term(records).items()]
    )
    return [*lines, "", "Corrected by one half of the records, scored on the other:", "", *_corrected(records)]


def _corrected(records: list[Record]) -> list[str]:
    train, test = scores.halves(records)
    rows = [
        _scored(_NAMES[quantity], scores.score(scores.corrected(train, test, quantity)), quantity)
        for quantity in ("allocated", "reserved", "device")
    ]
    device = recognise(records[0]["device_name"])
    if device is not None:
        rows.append(_scored("step time", scores.score(scores.refitted(train, test, device)), "step_seconds"))
        after = scores.refitted(records[:PROBES], records[PROBES:], device)
        rows.append(_scored(f"step time, fitted on the first {PROBES} measured", scores.score(after), "step_seconds"))
    return _table(_SCORE_HEADER, rows)


def _rehearsed(record: Record) -> list[str]:
    said, seen = record["predicted"], record["measured"]
    return [record["family"], _bytes(said["allocated"]) if not said["error"] else said["error"], _bytes(seen.get("device"))]


def _reasons(records: list[Record]) -> dict[str, int]:
    idle = [record for record in records if record["measured"]["outcome"] == "NOT_RUN"]
    return scores.counted(idle, lambda record: record["measured"]["message"])


def _budgets(records: list[Record], rehearsal: bool) -> list[str]:
    kinds = ("hit", "miss", "refused", "false refusal", "no answer")
    cards = dict.fromkeys(record["card"] for record in records)
    rows = []
    for card in cards:
        found = scores.counted([r for r in records if r["card"] == card], lambda record: record["verdict"])
        rows.append([card, *(str(found.get(kind, 0)) for kind in kinds)])
    aim = "Aim: no miss. A hit was predicted to fit and ran; a miss was predicted to fit and ran out of memory."
    return [*_table(["card (emulated)", *kinds], rows), "", aim]


def _search(records: list[Record], rehearsal: bool) -> list[str]:
    lines = []
    for record in (record for record in records if record["key"] == "search"):
        use = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in record["use"].items())
        aim = "" if rehearsal else " (aim: under 600 s)"
        lines += [f"Space {record['space']}, {format_bytes(record['gpu_mem_bytes'])}, sampler {record['sampler']}:"]
        lines += [f"{len(record['trials'])} trials in {record['wall_seconds']:.0f} s{aim}; the GPU's seconds: {use}.", ""]
        winner = record["winner"]
        if winner is None:
            lines += [f"No winner: {record['last_words'].strip().splitlines()[-1:]}"]
        for confirmed in record["confirmed"]:
            lines += [
                f"Run ten times as long: {confirmed['outcome']}, peak {_bytes(confirmed['device'])}"
                f" (search trial {_bytes(winner['device']) if winner else 'none'})."
            ]
    return lines or ["Not finished."]


def _warm(records: list[Record], rehearsal: bool) -> list[str]:
    sides = {record["key"]: record for record in records if record["key"] in SIDES}
    if len(sides) < len(SIDES):
        return ["Not finished."]
    found = compared(sides["warm"], sides["fresh"])
    pairs, seconds = found["pairs"], found["seconds"]
    alike = sum(pair["warm"]["outcome"] == pair["fresh"]["outcome"] for pair in pairs)
    lines = [
        f"{len(pairs)} configurations that both ran: {seconds['warm']:.0f} s forked from a warm worker,"
        f" {seconds['fresh']:.0f} s in new interpreters; the same outcome in {alike}."
    ]
    if rehearsal or not seconds["warm"]:
        return lines
    rows = [_ratio(name, [(p["warm"][key], p["fresh"][key]) for p in pairs]) for name, key in _WARM_COLUMNS.items()]
    aims = "Aims: 5 times less time, peaks within 1 %, throughput within 5 %, all outcomes alike."
    return [*lines, f"{seconds['fresh'] / seconds['warm']:.1f} times less. {aims}", "", *_table(_WARM_HEADER, rows)]


_WARM_HEADER = ["figure", "median difference", "largest"]
_WARM_COLUMNS = {"peak of the device": "device", "step time": "step_seconds"}


def _ratio(name: str, found: list[tuple[float | None, float | None]]) -> list[str]:
    differences = sorted(abs(warm / fresh - 1) for warm, fresh in found if warm and fresh)
    if not differences:
        return [name, "-", "-"]
    return [name, f"{differences[len(differences) // 2]:.1%}", f"{differences[-1]:.1%}"]


def _growth(records: list[Record], rehearsal: bool) -> list[str]:
    rows = []
    for record in records:
        seen, errors = record["measured"], record["step_errors"]
        highest = max(seen["step_peaks"], default=None)
        predicted = max(record["predicted"].get("peak_reserved", []), default=None)
        scored = f"{errors['median']:.1%} / {errors['worst']:.1%}" if errors and not rehearsal else "-"
        rows.append(
            [
                record["key"],
                str(record["steps"]),
                record["verdict"]["outcome"],
                _bytes(highest),
                _bytes(predicted) if not rehearsal else "-",
                scored,
            ]
        )
    header = ["model", "steps", "verdict", "measured highest", "replay's highest", "error a step, median / worst"]
    return _table(header, rows)


def _safety(records: list[Record], rehearsal: bool) -> list[str]:
    rows = []
    for record in records:
        if not record["available"]:
            rows.append([record["key"], "not tried here", record["reason"], "-"])
            continue
        found = record.get("measured", {})
        what = f"{found.get('outcome')} in {found.get('phase')}" if found else record.get("message", "")
        freed = record.get("seconds_until_free")
        rows.append([record["key"], "as expected" if record["ok"] else "**NOT as expected**", what, _freed(record, freed)])
    return _table(["case", "", "found", "memory back"], rows)


def _freed(record: Record, seconds: float | None) -> str:
    if seconds is not None:
        return f"after {seconds:.1f} s"
    return "no process left" if record.get("processes_left") == 0 and record.get("used_before") is None else "-"


_TABLES: dict[str, Callable[[list[Record], bool], list[str]]] = {
    "accuracy": _accuracy,
    "budgets": _budgets,
    "search": _search,
    "warm": _warm,
    "growth": _growth,
    "safety": _safety,
}
_SCORE_HEADER = ["", "configurations", "median", "95th percentile", "worst", "under", "under by 3 %", "aim (median, 95th)"]


def _scored(name: str, found: Score | None, quantity: str | None) -> list[str]:
    aim = AIMS.get(quantity or "")
    wanted = "-" if aim is None else f"{aim.median:.0%}" + (f", {aim.p95:.0%}" if aim.p95 is not None else "")
    if found is None:
        return [name, "0", "-", "-", "-", "-", "-", wanted]
    shares = [f"{found.median:.2%}", f"{found.p95:.2%}", f"{found.worst:+.2%}", f"{found.under:.0%}", f"{found.under_far:.0%}"]
    return [name, str(found.count), *shares, wanted]


def _table(header: list[str], rows: list[list[str]]) -> list[str]:
    lines = [header, ["---"] * len(header), *rows]
    return ["| " + " | ".join(cell.replace("|", "/").replace("\n", " ") for cell in line) + " |" for line in lines]


def _list(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items())


def _bytes(value: float | None) -> str:
    return "-" if value is None else format_bytes(value)


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(prog="gpu-tables", description="Records of make gpu-evidence as markdown.")
    parser.add_argument("folder", nargs="?", type=Path, default=HERE)
    try:
        print(render(parser.parse_args().folder.resolve()))
    except ValueError as error:
        sys.stderr.write(f"gpu-tables: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
