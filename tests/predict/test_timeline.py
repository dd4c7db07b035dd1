"""The timeline of a step: its peak, phases and terms are those of the prediction, and thinning it loses no peak."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from autofit.config.legality import canonical
from autofit.config.model import ModelRef, resolve_model
from autofit.config.prediction import Prediction
from autofit.config.trial import TrialSpec
from autofit.launch.environment import probe
from autofit.predict.predictor import Predictor
from autofit.predict.timeline import Segment, Timeline, zero_timeline
from autofit.predict.zero import Parameter, bare_moments, llamafactory_settings, predict_zero
from autofit.predict.zero_settings import ZeroSettings

VL = {
    "model": {"preset": "tiny-qwen2.5-vl"},
    "cutoff_len": 256,
    "micro_batch_size": 2,
    "gradient_accumulation_steps": 4,
    "freeze_vision_tower": False,
    "images": {"max_pixels": 50_176},
}
BESIDE = {"fragmentation", "cuda_context", "communication_buffers"}


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    environment = probe(sys.executable)
    return Predictor(environment.python, environment.versions, cache=tmp_path_factory.mktemp("traces"))


def _both(predictor: Predictor, **knobs: object) -> tuple[Prediction, Timeline]:
    spec = TrialSpec.model_validate({**VL, **knobs})
    model = resolve_model(spec.model)
    spec = canonical(spec, model)
    return predictor.predict(spec, model), predictor.timeline(spec, model)


def _tensors(prediction: Prediction) -> dict[str, int]:
    return {name: size for name, size in prediction.terms.items() if name not in BESIDE}


@pytest.mark.train
@pytest.mark.parametrize("knobs", [{}, {"num_gpus": 2}, {"micro_batch_size": 1}])
def test_the_peak_and_its_terms_are_those_of_the_prediction(predictor: Predictor, knobs: dict[str, object]) -> None:
    pytest.importorskip("torch")
    prediction, timeline = _both(predictor, **knobs)
    assert timeline.allocated[timeline.peak] == prediction.peak_allocated_bytes
    assert timeline.peak_terms == _tensors(prediction)
    assert timeline.peak_segment.phase == prediction.phase
    assert max(timeline.phases.values()) == prediction.peak_allocated_bytes == timeline.phases[prediction.phase]
    assert list(timeline.phases) == ["batch", "forward", "backward", "clip", "optimizer_step", "zero_grad"]
    order = [(segment.phase, segment.micro_batch) for segment in timeline.segments]
    assert order[:5] == [("batch", None), ("forward", 1), ("backward", 1), ("forward", 2), ("backward", 2)]
    assert timeline.not_shown == ("micro-batches 3 to 4, which are like the second",)
    for segment in timeline.segments:
        assert timeline.allocated[segment.start : segment.stop].max() <= timeline.phases[segment.phase]


@pytest.mark.train
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_under_zero_the_replay_is_what_is_shown(predictor: Predictor, stage: int) -> None:
    pytest.importorskip("torch")
    prediction, timeline = _both(predictor, zero_stage=stage, num_gpus=2)
    assert timeline.allocated[timeline.peak] == prediction.peak_allocated_bytes == max(timeline.phases.values())
    assert timeline.peak_segment.phase == prediction.phase
    here, there = timeline.peak_terms, _tensors(prediction)
    model = there.pop("activations_and_gathers") + there.pop("workspace")
    assert here.pop("zero_buffers", 0) + here.pop("activations") == model
    assert here == there
    assert any("one term under ZeRO" in line for line in timeline.not_shown)


@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize("offload", [False, True])
def test_zero_phases_equal_those_of_the_replay(stage: int, offload: bool) -> None:
    parameters = [Parameter(n, trainable=True, module=k) for k, n in enumerate((700, 30_000, 900, 50_001, 4_000))]
    settings: ZeroSettings = llamafactory_settings(stage, 3, 64, gradient_accumulation_steps=5, offload_optimizer=offload)
    settings = replace(settings, reduce_bucket_size=min(settings.reduce_bucket_size, 40_000))
    moments = bare_moments(parameters)
    expected, timeline = (
        predict_zero(settings, parameters, moments),
        zero_timeline(settings, parameters, moments),
    )
    assert timeline.phases == {
        "forward": expected.forward_peak_bytes,
        "backward": expected.backward_peak_bytes,
        "optimizer_step": expected.step_peak_bytes,
    }
    assert timeline.allocated.max() == expected.peak_bytes
    assert (timeline.use >= 0).all()
    shown = {segment.micro_batch for segment in timeline.segments} - {None}
    assert shown == ({1} if stage == 3 else {1, 2, 5})  # all of stage 3's are alike, of the others those between
    assert any("micro-batches, each like one that is shown" in text for text in timeline.not_shown)
    assert timeline.segments[-1].stop == len(timeline.use)
    assert any("runs on the host" in line for line in timeline.not_shown) == offload


def test_thinning_keeps_the_highest_point_of_every_segment() -> None:
    generator = np.random.default_rng(0)
    use = generator.integers(0, 1000, (5000, 3))
    use[3217] = (5000, 1, 2)
    segments = (Segment("forward", 1, 0, 3000), Segment("backward", 1, 3000, 4997), Segment("clip", None, 4997, 5000))
    timeline = Timeline(("weights", "inputs", "gradients"), use, segments, False, 1, {}, ())
    for segment in segments:
        thin = timeline.highest(segment, 40)
        assert len(thin) == min(40, segment.stop - segment.start)
        assert thin.sum(axis=1).max() == timeline.allocated[segment.start : segment.stop].max()
    assert [5000, 1, 2] in timeline.highest(segments[1], 40).tolist()
    assert timeline.peak == 3217 and timeline.peak_segment == segments[1]


def test_a_model_known_by_its_id_only_has_no_timeline(tmp_path: Path) -> None:
    spec = TrialSpec(model=ModelRef(id="some/model"))
    with pytest.raises(Exception, match="known by its hub id only"):
        Predictor("python", {}, cache=tmp_path).timeline(spec, resolve_model(spec.model))
