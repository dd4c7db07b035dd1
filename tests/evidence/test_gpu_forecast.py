"""What the records keep of a prediction is enough to make it again; and a search over several calls counts all of them."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))
from autofit.config.hardware import Device
from autofit.config.legality import canonical
from autofit.config.model import ModelRef, resolve_model
from autofit.config.trial import TrialSpec
from autofit.launch.environment import probe
from autofit.predict.devices import device_model
from autofit.predict.roofline import step_time
from benchmarks.gpu import command, scores
from benchmarks.gpu.command import Searched, search_in_sessions
from benchmarks.gpu.forecast import Forecaster
from benchmarks.gpu.place import OutOfTimeError
from benchmarks.gpu.records import Ledger, Stamp

CARD = Device(index=0, uuid="x", name="NVIDIA H100 80GB HBM3", memory_bytes=80 * 2**30)


def test_the_recorded_operations_give_the_predicted_step_time(tmp_path: Path) -> None:
    model = resolve_model(ModelRef(preset="tiny-llama"))
    spec = canonical(TrialSpec(model=ModelRef(preset="tiny-llama"), gradient_accumulation_steps=2), model)
    said = Forecaster("cuda", CARD, probe(sys.executable), tmp_path).of(spec, whole=True)
    assert said.error is None and said.fits
    timing = scores._timing({"predicted": said.document()})
    assert step_time(device_model("h100-80gb"), *timing).seconds == pytest.approx(said.step_seconds)
    assert max(said.phases.values()) == said.allocated


def test_what_cannot_be_predicted_says_why(tmp_path: Path) -> None:
    spec = TrialSpec(model=ModelRef(preset="tiny-llama"), freeze_language_model=True)
    said = Forecaster("cuda", CARD, probe(sys.executable), tmp_path).of(canonical(spec, resolve_model(spec.model)))
    assert said.fits is None and "everything is frozen" in str(said.error)


@pytest.mark.parametrize(("kept", "expected"), [(True, (15.0, 2)), (False, (5.0, 1))])
def test_a_search_over_two_calls_takes_as_long_as_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: bool, expected: tuple[float, int]
) -> None:
    ledger = Ledger(tmp_path / "search.jsonl", "search", Stamp("cuda", "card", 1, None, {}, "c"))
    place: Any = SimpleNamespace(kind="cuda", commit="c", work=tmp_path)
    monkeypatch.setattr(command, "_known", lambda url, name: kept)  # whether the first call's database is still there
    monkeypatch.setattr(command, "search", lambda *_: (_ for _ in ()).throw(OutOfTimeError))
    with pytest.raises(OutOfTimeError):
        search_in_sessions(place, ledger, "search")
    ledger.add("search session 0", seconds=10.0)
    monkeypatch.setattr(command, "search", lambda *_: Searched(None, [], 5.0, 0, ""))  # type: ignore[arg-type]
    found = search_in_sessions(place, ledger, "search")
    assert (found.seconds, found.sessions) == expected
