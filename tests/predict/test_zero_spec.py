"""Specs under ZeRO: settings by knob, the record against real DeepSpeed, and the golden resident figures of the 7B model."""

import json
import sys
from pathlib import Path

import pytest

from autofit.config.model import ModelRef, resolve_model
from autofit.config.trial import TrialSpec
from autofit.predict.zero import Moment, Parameter, ReplicatedRank, ZeroSettings, predict_zero, resident_bytes
from autofit.predict.zero_spec import zero_settings

sys.path.insert(0, str(Path(__file__).parents[2]))
from benchmarks.zero_predictor import CASES, STORED, run, spec_of

GIB = 2**30
RESIDENT, PEAK = 0.005, 0.03


def test_the_record_covers_every_case_within_bounds():
    stored = json.loads(STORED.read_text())
    assert {row["case"]: row["spec"] for row in stored["rows"]} == json.loads(json.dumps(CASES))
    specs = [spec_of(name)[0] for name in CASES]
    assert len(specs) >= 12 and {spec.zero_stage for spec in specs} == {1, 2, 3}
    for knob in ("method", "precision", "gradient_checkpointing", "freeze_language_model"):
        assert len({getattr(spec, knob) for spec in specs}) > 1, knob
    assert max(spec.gradient_accumulation_steps for spec in specs) > 2
    for row in stored["rows"]:
        assert abs(row["predicted"]["resident_bytes"] / row["measured"]["resident_bytes"] - 1) <= RESIDENT, row["case"]
        assert abs(row["predicted"]["peak_bytes"] / row["measured"]["peak_bytes"] - 1) <= PEAK, row["case"]


@pytest.mark.train
def test_the_predictor_meets_what_a_rank_really_allocates(tmp_path):
    pytest.importorskip("deepspeed")
    for row in run(["z2-lora", "z3-lora"], tmp_path):
        assert abs(row["error"]["resident"]) <= RESIDENT, row
        assert abs(row["error"]["peak"]) <= PEAK, row


@pytest.mark.train
@pytest.mark.parametrize(("stage", "expected"), [(1, 27.0), (2, 27.0), (3, 16.4)])
def test_resident_memory_of_qwen2_5_vl_7b_on_eight_ranks(stage, expected):
    """Buckets of 5e8, overlap, everything trained; from the real parameter list, not from sums."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from autofit.worker import models

    knobs = {"freeze_vision_tower": False, "freeze_multi_modal_projector": False, "pure_bf16": True}
    spec = TrialSpec(model=ModelRef(preset="qwen2.5-vl-7b"), **knobs)
    trial = spec.model_dump(mode="json")
    built = models.build(resolve_model(spec.model).model_dump(mode="json"), trial, 0, torch.device("meta"))
    parameters = [Parameter(p.numel(), p.requires_grad, k, decays=p.dim() > 1) for k, p in enumerate(built.parameters())]
    assert sum(p.elements for p in parameters) == 8_292_166_656
    settings = ZeroSettings(stage=stage, ranks=8, overlap_comm=True)
    assert resident_bytes(settings, parameters) / GIB == pytest.approx(expected, rel=0.02)


def test_settings_follow_the_spec():
    model = resolve_model(ModelRef(preset="qwen2.5-vl-7b"))

    def of(**knobs):
        return zero_settings(TrialSpec(model=ModelRef(preset="qwen2.5-vl-7b"), num_gpus=8, **knobs), model)

    z3 = of(zero_stage=3, offload_param=True, gradient_accumulation_steps=4)
    assert (z3.reduce_bucket_size, z3.param_persistence_threshold) == (3584**2, 35840)
    assert (z3.ranks, z3.gradient_accumulation_steps, z3.offload_param, z3.overlap) == (8, 4, True, False)
    assert (of(zero_stage=2).reduce_bucket_size, of(zero_stage=2).round_robin_gradients) == (500_000_000, True)
    widths = {
        name: (of(zero_stage=2, optimizer=name).state_bytes) for name in ("adamw_torch", "adamw_8bit", "sgd", "adafactor")
    }
    assert widths == {"adamw_torch": 8, "adamw_8bit": 2.03125, "sgd": 0, "adafactor": 4}
    temporaries = [of(zero_stage=1, optimizer=name).optimizer_temporary_bytes for name in ("adamw_torch", "adamw_torch_fused")]
    assert temporaries == [4, 0]
    full = of(zero_stage=2, precision="fp32")
    assert (full.weight_bytes, full.gradient_bytes, full.master_bytes) == (4, 4, 4)  # ZeRO copies fp32 weights too


def test_kept_gradients_live_until_the_last_optimizer_group_has_stepped():
    settings = ZeroSettings(stage=2, ranks=1, overlap_comm=False, optimizer_temporary_bytes=8, gradient_clipping=False)
    matrices = [Parameter(1000, True, 0), Parameter(1000, True, 1)]
    vectors = [Parameter(10, True, 2, decays=False)]
    one, two = (predict_zero(settings, found, []) for found in (matrices, matrices + vectors))
    # one group: fp32 gradient and temporaries, the half gradients gone; two groups: their buffer is still there
    assert one.step_peak_bytes - one.resident_bytes == (4 + 8) * 2000
    assert two.step_peak_bytes - two.resident_bytes == (4 + 8) * 2000 + 2 * 2010
    assert ReplicatedRank(settings, matrices + vectors, 0).partitions == [2000, 10]


def test_a_tied_embedding_is_gathered_for_the_output_layer_too():
    settings = ZeroSettings(stage=3, ranks=2, param_persistence_threshold=0, prefetch_bucket_size=0, max_reuse_distance=0)
    moments = [Moment(kind, module, 0, 0) for module in (0, 1, 2) for kind in ("forward", "forward_end")]
    peaks = []
    for tied in (False, True):
        parameters = [Parameter(5000, False, 0, tied=tied), Parameter(100, True, 1)]  # module 2 owns none
        terms = predict_zero(settings, parameters, [*moments[2:], Moment("end", 0, 0, 0)])
        peaks.append(terms.forward_peak_bytes - terms.resident_bytes)
    assert peaks[1] >= 2 * 5000 > peaks[0]
