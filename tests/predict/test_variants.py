"""Many variants at once: each traced once, the cache first, errors by variant, and what `Predictor.prepare` makes of it."""

import os
import signal
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from autofit.config.model import resolve_model
from autofit.config.trial import TrialSpec
from autofit.errors import AutofitError
from autofit.predict.predictor import Predictor
from autofit.predict.symbolic import SymbolicTrace
from autofit.predict.tracers import Answer, Tracers
from autofit.predict.variants import symbolic_traces, variant_key

STUB = """
import json, os, sys
for line in sys.stdin:
    name = line.strip()
    order = json.load(open(name))
    what = order["what"]
    if what == "die" or what == "die once" and not os.path.exists(__file__ + ".died"):
        open(__file__ + ".died", "w").close()
        sys.stderr.write("noise\\nthe last word\\n")
        sys.stderr.flush()
        os._exit(3)
    answer = {"spec": name}
    if what == "fail":
        answer["error"] = "cannot do it"
    else:
        answer["answer"] = name + ".out"
        open(answer["answer"], "w").write(what + str(os.getpid()))
    print(json.dumps(answer), flush=True)
"""


@pytest.fixture
def stub(tmp_path: Path) -> str:
    """An "interpreter" that answers instead of the worker."""
    script, python = tmp_path / "stub.py", tmp_path / "python"
    script.write_text(STUB)
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{script}"\n')
    python.chmod(0o755)
    return str(python)


def told(tracers: Tracers, orders: dict[str, str]) -> dict[str, str]:
    return {
        key: str(found) if isinstance(found, AutofitError) else found.read_text()
        for key, found in tracers.traced({key: {"what": what} for key, what in orders.items()})
    }


def test_one_that_fails_does_not_spoil_the_others(stub: str):
    found = told(Tracers(stub), {"a": "fine", "b": "fail", "c": "fine"})
    assert found["b"] == "cannot be traced: cannot do it"
    assert found["a"] == found["c"] and found["a"].startswith("fine")


def test_what_a_crew_leaves_unanswered_another_is_asked_once(stub: str):
    tracers = Tracers(stub)
    found = told(tracers, {"a": "fine", "b": "die once", "c": "fine"})
    assert all(found[key].startswith(what) for key, what in (("a", "fine"), ("b", "die once"), ("c", "fine")))
    assert found["a"] != found["b"].replace("die once", "fine") == found["c"]  # the first answered one, another did the rest
    found = told(tracers, {"a": "fine", "b": "die"})
    assert found["a"].startswith("fine") and "status 3 (the last word)" in found["b"]


def test_a_crew_is_kept_and_one_that_has_left_is_replaced(stub: str):
    tracers = Tracers(stub)
    tracers.warm_up()
    first = told(tracers, {"a": "fine"})
    assert told(tracers, {"b": "fine"})["b"] == first["a"]
    os.kill(int(first["a"].removeprefix("fine")), signal.SIGKILL)
    assert told(tracers, {"c": "fine"})["c"] != first["a"]


def test_a_crew_that_nobody_waits_for_ends(stub: str):
    tracers = Tracers(stub)
    asked = tracers.traced({"a": {"what": "fine"}, "b": {"what": "fine"}})
    _, found = next(asked)
    worker = int(found.read_text().removeprefix("fine"))
    asked.close()
    assert not Path(f"/proc/{worker}").exists()


def test_a_missing_interpreter_is_said_of_every_variant(tmp_path: Path):
    spec = TrialSpec(model={"preset": "tiny-llama"})
    pairs = [(spec.model_copy(update={"method": method}), resolve_model(spec.model)) for method in ("full", "lora")]
    found = symbolic_traces(pairs, {}, tmp_path, Tracers("/no/such/python"))
    assert len(found) == 2
    assert all("cannot be started" in str(error) for error in found.values())


class Refusing(Tracers):
    """Answers every order with its own error, so that nothing is traced."""

    def __init__(self) -> None:
        super().__init__("/no/such/python")
        self.asked: list[str] = []

    def traced(self, orders: Mapping[str, dict[str, Any]]) -> Iterator[Answer]:
        for key in orders:
            self.asked.append(key)
            yield key, AutofitError(f"no trace of {key}")


def test_variants_are_asked_once_and_progress_is_told(tmp_path: Path):
    tracers = Refusing()
    spec = TrialSpec(model={"preset": "tiny-llama"})
    model = resolve_model(spec.model)
    specs = [spec, spec.model_copy(update={"micro_batch_size": 4}), spec.model_copy(update={"method": "freeze"})]
    told: list[tuple[int, int]] = []
    found = symbolic_traces([(item, model) for item in specs], {}, tmp_path, tracers, on_progress=lambda *now: told.append(now))
    assert list(found) == tracers.asked == [variant_key(spec, model, {}), variant_key(specs[2], model, {})]
    assert told == [(1, 2), (2, 2)]


def test_what_was_prepared_is_not_asked_again_and_its_error_is_raised(tmp_path: Path):
    tracers = Refusing()
    spec = TrialSpec(model={"preset": "tiny-llama"})
    model = resolve_model(spec.model)
    predictor = Predictor(tracers.python, versions={}, cache=tmp_path, tracers=tracers)
    predictor.prepare([(spec, model)])
    predictor.prepare([(spec, model)])
    assert len(tracers.asked) == 1
    with pytest.raises(AutofitError, match="no trace of"):
        predictor.predict(spec, model)


def test_variants_that_differ_in_accumulation_alone_are_one_order(tmp_path: Path):
    tracers = Refusing()
    spec = TrialSpec(model={"preset": "tiny-llama"})
    model = resolve_model(spec.model)
    specs = [spec, spec.model_copy(update={"method": "lora"})]
    accumulating = [item.model_copy(update={"gradient_accumulation_steps": 4}) for item in specs]
    for first in (specs[0], accumulating[0]):
        tracers.asked.clear()
        other = accumulating[0] if first is specs[0] else specs[0]
        found = symbolic_traces([(item, model) for item in (first, other, specs[1])], {}, tmp_path, tracers)
        assert len(found) == 3
        assert tracers.asked == [variant_key(accumulating[0], model, {}), variant_key(specs[1], model, {})]


@pytest.mark.train
def test_real_workers_trace_several_variants_and_the_cache_answers_them(tmp_path: Path):
    pytest.importorskip("torch")
    spec = TrialSpec(model={"preset": "tiny-llama"}, pure_bf16=True)
    model = resolve_model(spec.model)
    bad = model.model_copy(update={"config": {**(model.config or {}), "num_key_value_heads": 3}})
    accumulating = spec.model_copy(update={"method": "lora", "gradient_accumulation_steps": 4})
    pairs = [(spec, model), (spec, bad), (accumulating, model)]
    found = symbolic_traces(pairs, {}, tmp_path, Tracers(sys.executable))
    kinds = [type(value) for value in found.values()]
    assert kinds == [SymbolicTrace, AutofitError, SymbolicTrace]
    assert "no multiple" in str(list(found.values())[1])
    assert sorted(file.suffix for file in tmp_path.iterdir()) == [".npz"] * 3
    single = (accumulating.model_copy(update={"gradient_accumulation_steps": 1}), model)
    again = symbolic_traces([pairs[0], pairs[2], single], {}, tmp_path, Tracers("/no/such/python"))
    kept = list(again.values())
    assert [trace.metadata["micro_steps_traced"] for trace in kept] == [1, 2, 1]
    for key in list(again)[:2]:
        assert again[key].peak(2, 512) == found[key].peak(2, 512)
