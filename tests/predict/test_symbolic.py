"""Symbolic traces against whole traces at random shapes, and the polynomials that they are made of."""

import random
from pathlib import Path

import numpy as np
import pytest

from autofit.config.model import resolve_model
from autofit.config.trial import TrialSpec
from autofit.errors import AutofitError
from autofit.predict.polynomials import FEATURES, features, fit
from autofit.predict.symbolic import SymbolicTrace
from autofit.predict.tracers import Tracers
from autofit.predict.variants import request, sliding_window, structure, symbolic_trace, variant_key

SAMPLES = np.concatenate([features(b, s, p, 0) for b, s, p in ((2, 640, 512), (3, 512, 1536), (4, 384, 1024), (2, 1024, 2048))])


def test_monomials_and_sums_of_two_are_found_exactly():
    truth = np.zeros((4, len(FEATURES)))
    for row, (name, value) in enumerate((("BS", 14.0), ("BSS", 2.0), ("P", 0.25), ("1", 786432.0))):
        truth[row, FEATURES.index(name)] = value
    truth[0, FEATURES.index("B")] = 8.0  # a shifted copy: B * (S + 1)
    found = fit(SAMPLES, SAMPLES @ truth.T)
    assert np.array_equal(found.coefficients, truth)
    assert (found.inexact, found.residual) == (0, 0.0)


def test_what_no_polynomial_meets_is_counted_and_its_error_kept():
    values = np.array([[1.0], [100.0], [3.0], [77777.0]])
    found = fit(SAMPLES[:, :], values)
    assert found.inexact == 1
    noisy = fit(np.concatenate([SAMPLES, SAMPLES]), np.concatenate([values, values + 50.0]))
    assert noisy.residual >= 20


def test_a_batch_of_one_uses_the_features_that_differ_there():
    samples = np.concatenate([features(1, s, p, 0) for s, p in ((512, 576), (1024, 256), (768, 1600))])
    found = fit(samples, samples[:, [FEATURES.index("S")]] * 6)
    assert found.coefficients[0, FEATURES.index("BS")] == 6


def make(preset="tiny-llama", **knobs):
    """(spec, model, symbolic trace) of a variant, traced in this process."""
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from autofit.worker.trace import trace

    spec = TrialSpec(model={"preset": preset}, **knobs)
    model = resolve_model(spec.model)
    return spec, model, SymbolicTrace.from_document(trace(request(spec, model)), sliding_window(model))


def whole(spec, model, batch, length, grids):
    """Peak and operations of a whole trace of one shape."""
    from autofit.worker.trace import trace

    order = request(spec, model)
    order["trace"]["depth"] = "full"
    order["trace"]["shapes"] = [{"micro_batch_size": batch, "cutoff_len": length, "grids": grids}]
    document = trace(order)
    part = document["groups"][0]
    sizes = -(-np.asarray(part["storages"]["bytes"][0]) // 512) * 512
    use = np.cumsum(sizes[part["events"]["storage"]] * np.asarray(part["events"]["kind"]))
    phase = document["phases"][part["events"]["phase"][int(use.argmax())]]
    return int(use.max()), phase, part["operations"]


@pytest.fixture(autouse=True)
def _no_value_checks(monkeypatch):
    monkeypatch.setenv("TRANSFORMERS_DISABLE_TORCH_CHECK", "1")


@pytest.mark.parametrize(
    ("preset", "knobs"),
    [
        ("tiny-llama", {"pure_bf16": True, "gradient_checkpointing": False}),
        ("tiny-llama", {"method": "lora", "gradient_accumulation_steps": 4}),
        ("tiny-qwen2.5-vl", {"freeze_vision_tower": False}),
        ("tiny-llama", {"attention": "eager", "optimizer": "adamw_torch_fused"}),
    ],
)
def test_symbolic_and_whole_trace_agree_at_random_shapes(preset, knobs):
    spec, model, symbolic = make(preset, **knobs)
    draw = random.Random(7)
    for batch in (1, 2, 5):
        length = draw.randrange(700, 3000)
        sides = [(2 * draw.randrange(4, 12), 2 * draw.randrange(4, 12)) for _ in range(batch)] if "vl" in preset else []
        grids = [[1, rows, columns] for rows, columns in sides]
        patches = sum(rows * columns for rows, columns in sides)
        peak, phase, operations = whole(spec, model, batch, length, grids)
        found = symbolic.peak(batch, length, patches)
        assert found.peak_bytes == pytest.approx(peak, rel=5e-4)
        assert found.phase == phase
        assert sum(found.terms.values()) == found.peak_bytes
        assert symbolic.peaks(batch, length, patches)[0] == pytest.approx(found.peak_bytes, rel=1e-6)
        if "vl" not in preset:
            micro, optimizer = symbolic.operations(batch, length)
            traced = symbolic.metadata["micro_steps_traced"]
            flops = micro.total_flops * traced + optimizer.total_flops
            assert flops == pytest.approx(sum(operations["flops"][0]), rel=1e-3)


def test_many_shapes_at_once_are_the_single_answers_and_never_fall_with_length():
    _, _, symbolic = make(pure_bf16=True)
    batches, lengths = np.array([1, 2, 3, 1]), np.array([256, 512, 4096, 4096])
    together = symbolic.peaks(batches, lengths)
    assert together == pytest.approx([symbolic.peak(int(b), int(s)).peak_bytes for b, s in zip(batches, lengths, strict=True)])
    for batch in (1, 4):
        assert np.all(np.diff(symbolic.peaks(batch, np.arange(64, 8192, 64))) >= 0)


def test_more_accumulation_adds_the_batches_that_wait():
    _, _, symbolic = make(pure_bf16=True, gradient_accumulation_steps=8)
    two, ten = symbolic.peaks(2, 512, 0, accumulation=np.array([2, 10]))
    assert ten - two == 8 * 3 * 2 * 512 * 8  # eight batches of ids, labels and mask, int64
    assert symbolic.peak(2, 512, 0, accumulation=10).peak_bytes == pytest.approx(ten)


def test_events_replay_to_the_same_peak_and_a_steady_step_returns_to_where_it_began():
    _, _, symbolic = make(pure_bf16=True)
    first, steady = symbolic.events(2, 512)
    use = np.cumsum(np.concatenate([first.sizes, steady.sizes]))
    assert use.max() == pytest.approx(symbolic.peak(2, 512).peak_bytes, abs=1)
    assert steady.sizes.sum() == 0


def test_moments_of_a_zero_trace_feed_the_replay():
    from autofit.predict.zero import llamafactory_settings, predict_zero

    _, _, symbolic = make(zero_stage=2)
    moments = symbolic.moments(2, 512)
    trained = sum(parameter.trainable for parameter in symbolic.parameters)
    assert sum(moment.kind == "grad" for moment in moments) == trained
    assert all(moment.peak_bytes >= moment.live_bytes >= 0 for moment in moments)
    assert moments[-1].kind == "end"
    del llamafactory_settings, predict_zero


def test_save_and_load_answer_alike_and_a_torn_file_is_named(tmp_path: Path):
    _, _, symbolic = make(pure_bf16=True)
    file = tmp_path / "variant.npz"
    symbolic.save(file)
    again = SymbolicTrace.load(file)
    assert again.peak(3, 777) == symbolic.peak(3, 777)
    assert again.operations(3, 777)[0].total_flops == symbolic.operations(3, 777)[0].total_flops
    assert again.metadata == symbolic.metadata
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(AutofitError, match="symbolic trace"):
        SymbolicTrace.load(file)


def test_shapes_of_a_regime_that_was_not_traced_are_refused():
    from dataclasses import replace

    _, _, symbolic = make(pure_bf16=True)
    with pytest.raises(AutofitError, match=r"many\+window"):
        replace(symbolic, window=1024).peak(2, 2048)


def test_a_sliding_window_splits_the_regimes():
    pytest.importorskip("torch")
    from autofit.worker.trace import trace

    config = resolve_model(TrialSpec(model={"preset": "tiny-llama"}).model).config
    config = config | {"model_type": "mistral", "sliding_window": 1024, "num_hidden_layers": 2}
    spec = TrialSpec(model={"config": config}, pure_bf16=True)
    model = resolve_model(spec.model)
    assert sliding_window(model) == 1024
    symbolic = SymbolicTrace.from_document(trace(request(spec, model)), sliding_window(model))
    assert set(symbolic.regimes) == {"many", "one", "many+window", "one+window"}
    for batch, length in ((2, 960), (2, 1984), (1, 1984)):
        assert symbolic.peak(batch, length).peak_bytes == pytest.approx(whole(spec, model, batch, length, [])[0], rel=5e-4)


def test_variant_keys_change_with_structure_and_versions_and_not_with_shape():
    spec = TrialSpec(model={"preset": "tiny-llama"})
    model = resolve_model(spec.model)
    versions = {"torch": "2.13.0"}
    key = variant_key(spec, model, versions)
    same = ({"micro_batch_size": 4}, {"cutoff_len": 512}, {"num_gpus": 2}, {"attention": "sdpa"})
    other = ({"method": "lora"}, {"gradient_checkpointing": False}, {"optimizer": "sgd"}, {"gradient_accumulation_steps": 2})
    assert all(variant_key(spec.model_copy(update=change), model, versions) == key for change in same)
    assert len({key, *(variant_key(spec.model_copy(update=change), model, versions) for change in other)}) == 5
    assert variant_key(spec, model, {"torch": "2.12.0"}) != key
    four = spec.model_copy(update={"gradient_accumulation_steps": 4})
    assert structure(four, model) == structure(spec.model_copy(update={"gradient_accumulation_steps": 2}), model)


def test_the_cache_answers_without_the_training_environment(tmp_path: Path):
    spec, model, symbolic = make(pure_bf16=True)
    symbolic.save(tmp_path / f"{variant_key(spec, model, {})}.npz")
    again = symbolic_trace(spec, model, {}, tmp_path, Tracers("/no/such/python"))
    assert again.peak(1, 512) == symbolic.peak(1, 512)
    with pytest.raises(AutofitError, match="cannot be started"):
        symbolic_trace(spec, model, {"torch": "0"}, tmp_path, Tracers("/no/such/python"))


@pytest.mark.train
def test_a_variant_is_traced_by_the_training_environment_and_cached(tmp_path: Path):
    import sys

    spec, model, symbolic = make(pure_bf16=True)
    found = symbolic_trace(spec, model, {}, tmp_path, Tracers(sys.executable))
    assert set(found.regimes) == {"one", "many"}
    for batch in (1, 3):
        assert found.peak(batch, 640) == symbolic.peak(batch, 640)
    assert [file.name for file in tmp_path.iterdir()] == [f"{variant_key(spec, model, {})}.npz"]
