"""The predictor against memory that others measured and published (benchmarks/published), row by row. Needs no GPU.

Every row is traced by an environment with the row's own transformers and peft, for the loss and attention code of a version
decides several per cent. The torch of these environments is one and the same. The prediction is the raw one: no constant was
fitted to a row. Rows that cannot be scored are listed with the reason. Writes results/published_accuracy.json and .md.

    python -m benchmarks.published_accuracy --python 4.45.2=/path/to/python [--python ...] [--only TEXT] [--no-write]
"""

import argparse
import json
import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from autofit.config.legality import canonical
from autofit.config.model import Model, resolve_model
from autofit.config.trial import TrialSpec
from autofit.errors import AutofitError
from autofit.predict.devices import DEVICES
from autofit.predict.epoch import replay_epoch
from autofit.predict.predictor import CONTEXT_BYTES, Predictor
from autofit.predict.symbolic import SymbolicTrace, read_document
from autofit.predict.variants import request, sliding_window, variant_key
from benchmarks.published import Row, load
from benchmarks.published_report import table
from benchmarks.published_steps import ANCHORS, Steps, anchor_of

_ROOT = Path(__file__).resolve().parents[1]
STORED = _ROOT / "benchmarks" / "results" / "published_accuracy.json"
_KINDS = {"reserved": ("reserved_mean", "reserved_99th")}
"""Figures that are one quantity; both are of what was reserved at the end of a step."""
UNDER = 0.03
"""An under-prediction beyond this share is one that may cost a run."""
_TRACE = Path(__file__).with_name("published_trace.py")
_TRACED = ("autocast", "fused_kernels", "lora_dropout", "outputs_kept", "padding_mask", "use_dora")
"""Keys of a row's loop that `published_trace.py` follows."""
_HONOURED = {*_TRACED, "padded_to_cutoff_len", "weights_dtype", "empty_cache_every_steps", "counted_from_bytes"}
"""Keys of a row's loop that do not keep it from being scored."""
_TIMEOUT_SECONDS = 1800
_EPOCH_STEPS = 4
"""Steady steps replayed within the card's size: the first refusal comes in the first of them or the second."""


@dataclass(frozen=True)
class Score:
    """One quantity of one row; errors are (predicted - measured) / measured."""

    measured_bytes: int
    predicted_bytes: int

    @property
    def error(self) -> float:
        return self.predicted_bytes / self.measured_bytes - 1


@dataclass(frozen=True)
class Scored:
    """One row's outcome."""

    id: str
    repository: str
    versions: dict[str, str]
    traced_with: dict[str, str]
    scores: dict[str, Score]
    """`allocated`, `reserved`, `device` (nvidia-smi) as far as published; `end_allocated`, after the last step, tells terms."""
    phase: str
    terms: dict[str, int]
    not_modelled: list[str]
    retries: int = 0
    """Times that the card's size made the replayed allocator give its cache back."""


class Traces:
    """Symbolic traces of the rows' variants; those of one loop and one environment lie in a cache folder of their own."""

    def __init__(self, pythons: dict[str, str], folder: Path) -> None:
        self.pythons = pythons
        self.folder = folder
        self._stacks = {version: _stack(python) for version, python in pythons.items()}
        self._rows = {row.id: row for row in load()}
        self.lengths: dict[tuple[str, int], int] = {}

    def stack(self, row: Row) -> dict[str, str]:
        """Versions that the row is traced with.

        Raises:
            AutofitError: no environment for this row.
        """
        wanted = row.versions.get("transformers", "?")
        if wanted not in self.pythons:
            raise AutofitError(f"no environment with transformers {wanted}")
        return self._stacks[wanted]

    def trace(self, row: Row, spec: TrialSpec, model: Model) -> tuple[SymbolicTrace, Path]:
        """The trace and the cache folder that holds it."""
        stack = self.stack(row)
        python = self.pythons[row.versions["transformers"]]
        loop = "-".join(f"{name}={row.loop[name]}" for name in _TRACED if row.loop.get(name))
        own = f"-{spec.micro_batch_size}x{spec.cutoff_len}" if _own_shape_only(row) else ""
        cache = self.folder / f"{stack['transformers']}-{stack['peft']}-{loop}{own}"
        cache.mkdir(parents=True, exist_ok=True)
        file = cache / f"{variant_key(spec, model, _identity(stack))}.npz"
        if not file.is_file():
            document = _traced(python, self._order(row, spec, model))
            SymbolicTrace.from_document(document, sliding_window(model)).save(file)
        return SymbolicTrace.load(file), cache

    def length(self, anchor: tuple[str, int]) -> int:
        """Tokens of the batches behind a figure over steps, found in the anchor's record (published_steps.py)."""
        if anchor not in self.lengths:
            row = self._rows[ANCHORS[anchor]]
            spec = row.trial()
            assert spec is not None
            model = resolve_model(spec.model)
            trace, _ = self.trace(row, canonical(spec, model), model)
            offset = int(row.loop["counted_from_bytes"])  # type: ignore[call-overload]
            measured = int(getattr(row.measured, f"{anchor[0]}_bytes")) + offset
            self.lengths[anchor] = Steps(trace, spec.micro_batch_size).length_of(anchor[0], measured)
        return self.lengths[anchor]

    def _order(self, row: Row, spec: TrialSpec, model: Model) -> dict[str, Any]:
        """What a prediction would ask for, without the regimes that no row is in: every row has batches of several samples."""
        order = request(spec, model)
        window = sliding_window(model)
        beyond = window is not None and spec.cutoff_len >= window
        wanted = "many+window" if beyond else "many"
        shapes = [shape for shape in order["trace"]["shapes"] if shape["regime"] == wanted]
        if _own_shape_only(row):
            shape = {"micro_batch_size": spec.micro_batch_size, "cutoff_len": spec.cutoff_len, "grids": [], "regime": wanted}
            shapes = [shape]
        return order | {"trace": order["trace"] | {"shapes": shapes}, "loop": row.loop}


def _own_shape_only(row: Row) -> bool:
    """The joined loss works in pieces whose number depends on the shape: no polynomial, the shape itself is traced."""
    return row.loop.get("fused_kernels") == "fms-linear-loss"


def score(row: Row, traces: Traces) -> Scored:
    """Predicts one row.

    Raises:
        AutofitError: it cannot be scored; says why.
    """
    spec = row.trial()
    if spec is None:
        raise AutofitError(row.not_expressible or "no spec")
    if unknown := set(row.loop) - _HONOURED:
        raise AutofitError(f"its loop cannot be followed: {', '.join(sorted(unknown))}")
    if spec.micro_batch_size < 2:
        raise AutofitError("a batch of one sample, which this benchmark does not trace")
    model = resolve_model(spec.model)
    spec = canonical(spec, model)
    stack = traces.stack(row)
    trace, cache = traces.trace(row, spec, model)
    if "empty_cache_every_steps" in row.loop:
        return _scored(row, trace, _steps(row, traces, trace), phase="")
    python = traces.pythons[row.versions["transformers"]]
    prediction = Predictor(python=python, versions=_identity(stack), cache=cache).predict(spec, model)
    first, steady = trace.events(spec.micro_batch_size, spec.cutoff_len)
    card = DEVICES[row.device].memory_bytes - CONTEXT_BYTES
    held = replay_epoch(first, [steady], [0] * _EPOCH_STEPS, capacity_bytes=card).total
    predicted = {
        "allocated": prediction.peak_allocated_bytes,
        "device": held.peak_reserved_bytes + CONTEXT_BYTES,
        "end_allocated": int(first.sizes.sum() + steady.sizes.sum()),
    }
    scores = {
        name: Score(int(measured), int(value))
        for name, value in predicted.items()
        if (measured := getattr(row.measured, f"{name}_bytes"))
    }
    return _scored(row, trace, scores, str(prediction.phase), prediction.terms, prediction.not_modelled, held.retries)


def _scored(
    row: Row,
    trace: SymbolicTrace,
    scores: dict[str, Score],
    phase: str,
    terms: Mapping[str, int] | None = None,
    not_modelled: Sequence[str] = (),
    retries: int = 0,
) -> Scored:
    return Scored(
        id=row.id,
        repository=row.source.repository,
        versions=row.versions,
        traced_with=dict(trace.metadata["versions"]),
        scores=scores,
        phase=phase,
        terms=dict(terms or {}),
        not_modelled=list(not_modelled),
        retries=retries,
    )


def _steps(row: Row, traces: Traces, trace: SymbolicTrace) -> dict[str, Score]:
    """Figures over all steps of a run; those that told a length are left out."""
    every, offset = int(row.loop["empty_cache_every_steps"]), int(row.loop["counted_from_bytes"])  # type: ignore[call-overload]
    steps = Steps(trace, int((row.spec or {})["micro_batch_size"]))  # type: ignore[call-overload]
    scores = {}
    for quantity in ("reserved_mean", "reserved_99th", "end_allocated_mean"):
        anchor = anchor_of(quantity, every)
        if row.id == ANCHORS[anchor] and anchor == (quantity, every):
            continue
        value = steps.value(quantity, traces.length(anchor))
        scores[quantity] = Score(int(getattr(row.measured, f"{quantity}_bytes")) + offset, round(value))
    return scores


def summary(scored: list[Scored], quantity: str) -> dict[str, Any] | None:
    """Of one quantity over all rows that have it; the macro-median is the mean of the sources' medians. None: no row has it."""
    by_source: dict[str, list[float]] = {}
    for item in scored:
        for name in _KINDS.get(quantity, (quantity,)):
            if name in item.scores:
                by_source.setdefault(item.repository, []).append(item.scores[name].error)
    if not by_source:
        return None
    errors = np.array([error for source in by_source.values() for error in source])
    return {
        "rows": len(errors),
        "macro_median": float(np.mean([np.median(np.abs(source)) for source in by_source.values()])),
        "p95": float(np.percentile(np.abs(errors), 95)),
        "worst": float(errors[np.argmax(np.abs(errors))]),
        "bias": float(np.mean(errors)),
        "under_beyond_3_percent": float(np.mean(errors < -UNDER)),
        "of_source": {
            name: {
                "rows": len(source),
                "median": float(np.median(np.abs(source))),
                "p95": float(np.percentile(np.abs(source), 95)),
                "worst": float(max(source, key=abs)),
                "bias": float(np.mean(source)),
                "under_beyond_3_percent": float(np.mean(np.array(source) < -UNDER)),
            }
            for name, source in by_source.items()
        },
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", action="append", default=[], metavar="VERSION=PATH", help="environment of a transformers")
    parser.add_argument("--only", default="", help="rows whose id contains this text")
    parser.add_argument("--cache", type=Path, help="keep the traces in this folder")
    parser.add_argument("--no-write", action="store_true")
    arguments = parser.parse_args()
    pythons = dict(pair.split("=", 1) for pair in arguments.python)
    scored: list[Scored] = []
    left: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="autofit-published-") as folder:
        traces = Traces(pythons, arguments.cache or Path(folder))
        for row in load():
            if arguments.only not in row.id:
                continue
            try:
                scored.append(score(row, traces))
                print(_line(scored[-1]), flush=True)
            except AutofitError as error:
                left[row.id] = str(error)
                if row.not_expressible is None:
                    print(f"{row.id}: {error}", flush=True)
    result = _result(scored, left) | {"lengths": [[*anchor, length] for anchor, length in sorted(traces.lengths.items())]}
    print(table(result))
    if not arguments.no_write:
        STORED.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        STORED.with_suffix(".md").write_text(table(result), encoding="utf-8")
    return 0


def _result(scored: list[Scored], left: dict[str, str]) -> dict[str, Any]:
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=_ROOT, capture_output=True, text=True, check=False).stdout.strip()
    rows = [asdict(item) | {"errors": {name: round(value.error, 6) for name, value in item.scores.items()}} for item in scored]
    done = {item.id for item in scored}
    specs = {(json.dumps(row.spec, sort_keys=True), row.config) for row in load() if row.id in done}
    quantities = ("allocated", "reserved", "device", "end_allocated", "end_allocated_mean")
    return {
        "commit": commit,
        "changed_since": _changed(),
        "distinct": len(specs),
        "summary": {name: summary(scored, name) for name in quantities},
        "rows": rows,
        "not_scored": left,
    }


def _changed() -> list[str]:
    """Files of the program that differ from the commit."""
    command = ["git", "diff", "--name-only", "HEAD", "--", "autofit", "benchmarks/published", "benchmarks/published_trace.py"]
    return subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, check=False).stdout.split()


def _line(item: Scored) -> str:
    return f"{item.id} [{item.phase}] " + "  ".join(f"{name} {100 * value.error:+.3f} %" for name, value in item.scores.items())


def _identity(stack: dict[str, str]) -> dict[str, str]:
    return {name: stack[name] for name in ("torch", "transformers", "peft")}


def _stack(python: str) -> dict[str, str]:
    """Versions in an environment, asked of itself."""
    code = (
        "import json, importlib.metadata as m; print(json.dumps({n: m.version(n) for n in ('torch', 'transformers', 'peft')}))"
    )
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{python}: is no training environment: {done.stderr.strip()[-300:]}")
    found: dict[str, str] = json.loads(done.stdout)
    return found


def _traced(python: str, order: dict[str, Any]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="autofit-published-") as folder:
        given, answer = Path(folder) / "order.json", Path(folder) / "answer.json.gz"
        given.write_text(json.dumps(order), encoding="utf-8")
        environment = os.environ | {"OMP_NUM_THREADS": "1", "TRANSFORMERS_VERBOSITY": "error"}
        done = subprocess.run(
            [python, str(_TRACE), str(given), str(answer)],
            capture_output=True,
            text=True,
            env=environment,
            timeout=_TIMEOUT_SECONDS,
            check=False,
        )
        if done.returncode != 0:
            raise AutofitError(f"cannot be traced: {(done.stderr.strip().splitlines() or ['?'])[-1][:300]}")
        return read_document(answer)


if __name__ == "__main__":
    raise SystemExit(main())
