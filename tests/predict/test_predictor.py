"""The predictor put together: a card's size, offloading and corrections, each from a spec to its figures."""

import sys
from dataclasses import replace
from importlib.metadata import version

import pytest

from autofit.config.legality import canonical
from autofit.config.model import resolve_model
from autofit.config.trial import TrialSpec
from autofit.errors import AutofitError
from autofit.predict.calibrate import Residual, calibrate
from autofit.predict.devices import CPU, device_model
from autofit.predict.predictor import Predictor
from autofit.predict.roofline import Constants

pytestmark = pytest.mark.train
GIB = 2**30
TINY = {"model": {"preset": "tiny-llama"}, "cutoff_len": 512, "micro_batch_size": 4, "gradient_checkpointing": False}


@pytest.fixture(scope="module")
def predictor(tmp_path_factory):
    pytest.importorskip("transformers")
    versions = {name: version(name) for name in ("torch", "transformers", "peft")}
    return Predictor(sys.executable, versions, cache=tmp_path_factory.mktemp("traces"))


def ask(predictor, budget=None, **knobs):
    spec = TrialSpec.model_validate({**TINY, **knobs})
    model = resolve_model(spec.model)
    return predictor.predict(canonical(spec, model), model, budget)


def test_a_budget_below_what_fragments_take_is_met_by_giving_them_back(predictor):
    knobs = {"gradient_checkpointing": True, "gradient_accumulation_steps": 2}
    free = ask(predictor, **knobs)
    assert (free.fits, free.alloc_retries) == (None, None)
    roomy = ask(predictor, 2 * GIB, **knobs)
    assert (roomy.fits, roomy.alloc_retries, roomy.terms) == (True, 0, free.terms)
    tight = free.peak_device_bytes - 8 * 2**20
    capped = ask(predictor, tight, **knobs)
    assert capped.alloc_retries
    assert capped.peak_device_bytes <= tight < free.peak_device_bytes
    assert sum(capped.terms.values()) == capped.peak_device_bytes
    assert capped.uncorrected_bytes["reserved"] == capped.peak_reserved_bytes
    small = replace(device_model("rtx-3090"), memory_bytes=tight)
    assert ask(replace(predictor, device=small), **knobs).peak_device_bytes == capped.peak_device_bytes


def test_offloading_saves_memory_and_costs_time(predictor):
    plain, offloaded = (ask(predictor, zero_stage=2, num_gpus=2, offload_optimizer=choice) for choice in (False, True))
    assert offloaded.peak_allocated_bytes < plain.peak_allocated_bytes
    assert offloaded.samples_per_second < plain.samples_per_second
    assert any("host memory at" in line for line in offloaded.assumptions)
    assert not any("host" in line for line in plain.assumptions + plain.not_modelled)


def test_ddp_holds_its_buckets_and_reduces_the_gradients(predictor):
    """Plain data parallelism on several ranks is one rank's step, buckets as large as its gradients, and an all-reduce."""
    alone, both = (ask(predictor, num_gpus=ranks, gradient_accumulation_steps=1) for ranks in (1, 2))
    assert both.terms["ddp_buckets"] == alone.terms["master_weights"] > 0  # fp32 gradients of all that is trained
    assert both.peak_allocated_bytes == alone.peak_allocated_bytes + both.terms["ddp_buckets"]
    slow = replace(device_model("a100-80gb"), link_bandwidth=1e8)
    assert "communication" not in ask(replace(predictor, device=slow)).step_terms
    parts = ask(replace(predictor, device=slow), num_gpus=2).step_terms
    assert parts["communication"] == pytest.approx(both.terms["ddp_buckets"] / (1e8 * Constants().link_share), rel=0.05)


def test_what_trials_taught_moves_the_figures_and_says_by_how_much(predictor):
    raw = ask(predictor)
    taught = {name: calibrate([Residual(100, 110)] * 30, name) for name in ("allocated", "reserved", "device")}
    learned = replace(predictor, calibrations=taught, constants=replace(Constants(), flop_share=0.1, measured_steps=3))
    found = ask(learned)
    assert found.uncorrected_bytes == raw.uncorrected_bytes
    assert found.peak_device_bytes == pytest.approx(1.1 * raw.peak_device_bytes, rel=1e-6)
    assert found.terms["correction_from_trials"] == found.peak_device_bytes - raw.peak_device_bytes
    assert found.step_time_seconds > raw.step_time_seconds
    assert not any("of the peak" in line for line in found.assumptions)


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_the_cpu_has_neither_context_nor_caching_allocator(predictor, stage):
    """What a rank of `--device cpu` needs: its tensors, as the CPU's kernels make them, and what its process adds."""
    on_cpu = replace(predictor, device=CPU)
    found = ask(on_cpu, 2 * GIB, zero_stage=stage, num_gpus=2)
    assert found.peak_reserved_bytes == found.peak_allocated_bytes
    assert found.peak_device_bytes - found.peak_reserved_bytes == found.terms["process"]
    assert not {"cuda_context", "communication_buffers", "fragmentation"} & set(found.terms)
    assert (found.fits, found.device_model) == (True, "cpu")
    assert ask(on_cpu, found.peak_device_bytes - 1, zero_stage=stage, num_gpus=2).fits is False
    if stage == 2:  # LLaMA-Factory's buckets of 5e8 elements end at the model's size, where a GPU would lose a GB for each
        assert found.peak_allocated_bytes < ask(predictor, zero_stage=2, num_gpus=2).peak_allocated_bytes - 500_000_000


def test_lengths_are_not_replayed_where_there_is_no_caching_allocator(predictor):
    spec = TrialSpec.model_validate(TINY)
    model = resolve_model(spec.model)
    shapes = [(256, 0), (512, 0)]
    assert predictor.epoch(canonical(spec, model), model, shapes).total.fits
    with pytest.raises(AutofitError, match="no caching allocator"):
        replace(predictor, device=CPU).epoch(canonical(spec, model), model, shapes)
