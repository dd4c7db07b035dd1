"""What a plan starts ahead: tracing, while the data are read, where something will have to be traced."""

from pathlib import Path

import pytest

from autofit.predict.predictor import Predictor
from autofit.tuning.plan import SearchRequest, plan_study


@pytest.mark.parametrize(
    ("sampler", "device", "known", "started"),
    [
        ("guided", "cpu", False, True),
        ("guided", "cpu", True, False),
        ("random", "cpu", False, False),
        ("random", "none", False, True),
    ],
)
def test_tracers_import_ahead_only_where_something_is_to_be_traced(
    stub_python: str, monkeypatch: pytest.MonkeyPatch, sampler: str, device: str, known: bool, started: bool
) -> None:
    warmed: list[Predictor] = []
    monkeypatch.setattr(Predictor, "warm_up", lambda self: warmed.append(self))  # noqa: PLW0108 - a method
    monkeypatch.setattr(Predictor, "kept", lambda self, spec, model: known)
    request = SearchRequest(
        gpu_mem_bytes=2**31,
        space="tiny_qwen2_5_vl",
        device=device,  # type: ignore[arg-type]
        python=stub_python,
        engine="transformers",
        sampler=sampler,
    )
    plan = plan_study(request)
    assert warmed == ([plan.predictor] if started else [])
    assert plan.predictor is not None and Path(plan.predictor.python) == Path(stub_python)
