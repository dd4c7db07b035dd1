"""`predict` and `explain` from file to answer, on a real trace of a tiny model."""

import json
import sys
from pathlib import Path

import pytest

from autofit.config.legality import canonical, training_changes
from autofit.config.model import ModelRef, resolve_model
from autofit.config.trial import Images, TrialSpec
from autofit.errors import AutofitError, UsageError
from autofit.launch.environment import probe
from autofit.predict.images import image_patches
from autofit.predict.predictor import Predictor
from autofit.tuning.forecast import explain, predict_file, read_spec
from autofit.tuning.remedies import families

pytest.importorskip("torch")
GIB = 2**30
TINY = {"model": {"preset": "tiny-llama"}, "cutoff_len": 512, "micro_batch_size": 4, "gradient_accumulation_steps": 2}


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    environment = probe(sys.executable)
    return Predictor(environment.python, environment.versions, cache=tmp_path_factory.mktemp("traces"))


@pytest.mark.parametrize("max_pixels", [784, 3136, 50_176, 200_000, 589_824, 1_003_520])
def test_the_largest_image_is_that_of_the_trials_worst_batch(max_pixels: int) -> None:
    from autofit.worker.batches import _largest_grid

    model = resolve_model(ModelRef(preset="qwen2.5-vl-7b"))
    rows, columns = _largest_grid(max_pixels // 28**2)
    spec = TrialSpec(model=ModelRef(preset="qwen2.5-vl-7b"), images=Images(max_pixels=max_pixels))
    assert image_patches(spec, model) == 4 * rows * columns


@pytest.mark.train
def test_every_line_of_a_file_is_answered_in_its_place(predictor: Predictor, tmp_path: Path) -> None:
    lines = [
        json.dumps(TINY),
        '{"model": {"preset": "tiny-llama"',
        json.dumps({**TINY, "micro_batch_sise": 2}),
        json.dumps({**TINY, "cutoff_len": 1024}),
        json.dumps({**TINY, "freeze_language_model": True}),
        json.dumps({**TINY, "model": {"preset": "tiny-lama"}}),
    ]
    (tmp_path / "specs.jsonl").write_text("\n".join(lines))
    answers = list(predict_file(tmp_path / "specs.jsonl", predictor, 2 * GIB))
    assert [answer.line for answer in answers] == [1, 2, 3, 4, 5, 6]
    assert [answer.prediction is not None for answer in answers] == [True, False, False, True, False, False]
    words = ["is no JSON", "did you mean 'micro_batch_size'?", "everything is frozen", "did you mean 'tiny-llama'?"]
    said = [answer.error for answer in answers if answer.error]
    assert all(word in error and "\n" not in error for word, error in zip(words, said, strict=True))
    short, long = answers[0].prediction, answers[3].prediction
    assert short is not None and long is not None
    assert short.peak_allocated_bytes < long.peak_allocated_bytes
    assert short.peak_allocated_bytes <= short.peak_reserved_bytes < short.peak_device_bytes <= short.peak_device_bytes_high
    assert sum(short.terms.values()) == short.peak_device_bytes
    assert short.fits and short.not_modelled and short.assumptions


@pytest.mark.train
def test_explain_says_what_makes_it_fit_and_what_that_does_to_the_training(predictor: Predictor) -> None:
    spec = TrialSpec.model_validate({**TINY, "gradient_checkpointing": False})
    whole = explain(spec, predictor, 2 * GIB, lambda _: None)
    assert whole.shortfall_bytes <= 0 and whole.remedies == ()
    # Less than what is allocated needs with its margin: giving cached blocks back does not help.
    overhead = whole.prediction.peak_device_bytes - whole.prediction.peak_reserved_bytes
    budget = int((whole.prediction.peak_allocated_bytes + overhead) * 1.05) - 2**20
    tight = explain(spec, predictor, budget, lambda _: None)
    assert not tight.prediction.fits
    assert tight.shortfall_bytes == tight.prediction.peak_device_bytes_high - budget > 0
    assert tight.timeline.allocated.max() == tight.prediction.peak_allocated_bytes
    changes = {remedy.change: remedy for remedy in tight.remedies}
    assert changes["micro_batch_size 2 x accumulation 4"].training == ()  # the mildest that fits: 1 x 8 is not listed
    assert not any(name.startswith("micro_batch_size 1") for name in changes)
    assert changes["cutoff_len 256"].training == ("cutoff_len 256 instead of 512",)
    assert changes["optimizer adamw_8bit"].training == ("optimizer adamw_8bit",)
    assert changes["gradient_checkpointing on"].training == ()
    offloaded = changes["zero_stage 3 with offload_optimizer and offload_param"]
    assert any("host's own memory" in item for item in offloaded.not_modelled)
    assert all(remedy.prediction.peak_device_bytes_high <= budget for remedy in tight.remedies)
    assert [len(remedy.training) for remedy in tight.remedies] == sorted(len(remedy.training) for remedy in tight.remedies)


def _offered(**knobs: object) -> tuple[TrialSpec, list[list[tuple[str, TrialSpec]]]]:
    model = resolve_model(ModelRef(preset="qwen2.5-vl-7b"))
    spec = canonical(TrialSpec.model_validate({"model": {"preset": "qwen2.5-vl-7b"}, **knobs}), model)
    return spec, families(spec, model)


def test_single_changes_keep_the_global_batch_and_are_legal() -> None:
    _, found = _offered(micro_batch_size=4, num_gpus=8, zero_stage=2, cutoff_len=1024)
    points = dict(change for family in found for change in family)
    assert {point.global_batch_size for point in points.values()} == {32}
    assert {"zero_stage 3", "offload_optimizer on", "num_gpus 16, micro_batch_size 2 x accumulation 1"} <= set(points)
    assert not any(name.startswith("cutoff_len") for name in points)  # 512 tokens would cut the image
    assert not any(name.startswith("optimizer") for name in points)  # ZeRO's prediction would not change


def test_every_kind_of_change_is_offered_from_mild_to_harsh() -> None:
    _, found = _offered(
        micro_batch_size=2,
        gradient_accumulation_steps=4,
        gradient_checkpointing=False,
        cutoff_len=4096,
        freeze_vision_tower=False,
        freeze_multi_modal_projector=False,
    )
    names = [[name for name, _ in family] for family in found]
    assert ["cutoff_len 2048", "cutoff_len 1024"] in names  # 512 would cut the image
    assert [f"images.max_pixels {589_824 >> k}" for k in range(1, 6)] in names
    gpus = ["2, zero_stage 3, micro_batch_size 2 x accumulation 2", "4, zero_stage 3, micro_batch_size 2 x accumulation 1"]
    assert [f"num_gpus {end}" for end in [*gpus, "8, zero_stage 3, micro_batch_size 1 x accumulation 1"]] in names
    for single in (
        "micro_batch_size 1 x accumulation 8",
        "gradient_checkpointing on",
        "optimizer adamw_torch_fused",
        "optimizer adamw_8bit",
        "zero_stage 2 with offload_optimizer",
        "zero_stage 3 with offload_optimizer and offload_param",
        "pure_bf16 on",
        "freeze_vision_tower on",
        "freeze_multi_modal_projector on",
        "freeze_language_model on",
        "method freeze",
        "method lora",
    ):
        assert [single] in names


def test_what_a_change_does_to_the_training_is_said() -> None:
    spec, found = _offered(micro_batch_size=2, gradient_checkpointing=False, num_gpus=2)
    said = {name: training_changes(point, spec) for family in found for name, point in family}
    assert said["images.max_pixels 294912"] == ["images of at most 294912 pixels instead of 589824"]
    assert said["pure_bf16 on"] == ["pure bf16"] and said["method lora"] == ["lora instead of full"]
    same = {name for name, changes in said.items() if not changes}
    assert {"gradient_checkpointing on", "optimizer adamw_torch_fused", "zero_stage 1", "zero_stage 3"} <= same
    assert not any(name.startswith(("cutoff", "images", "method", "freeze", "pure")) for name in same)


def test_what_is_no_spec_is_one_line(tmp_path: Path, predictor: Predictor) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        read_spec(tmp_path / "none.yaml")
    (tmp_path / "spec.yaml").write_text("model: {preset: tiny-llama}\nzero: 3\n")
    with pytest.raises(UsageError, match="unknown key 'zero'; did you mean 'zero_stage'"):
        read_spec(tmp_path / "spec.yaml")
    by_id = TrialSpec(model=ModelRef(id="some/model"))
    with pytest.raises(AutofitError, match="known by its hub id only"):
        predictor.predict(by_id, resolve_model(by_id.model))
