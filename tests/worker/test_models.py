"""The model is what LLaMA-Factory would train, and equal seeds give equal weights."""

from typing import Any

import pytest
from worker_orders import write_spec

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from pathlib import Path  # noqa: E402

from autofit.worker.batches import IGNORED_LABEL, StepBatches, WorstBatch, _largest_grid, collate  # noqa: E402
from autofit.worker.groups import NothingToTrain  # noqa: E402
from autofit.worker.models import _fill, build, load_config, parameter_counts, precision_mode, stored_dtype  # noqa: E402
from autofit.worker.order import Order, read_order  # noqa: E402
from autofit.worker.outcomes import DataError  # noqa: E402


def order(folder: Path, **knobs: Any) -> Order:
    return read_order(write_spec(folder, **knobs))


def trained(folder: Path, **knobs: Any) -> set[str]:
    """Names of the parameters that get a gradient, their layer numbers cut out."""
    spec = order(folder, **knobs)
    model = build(spec.model, spec.trial, 0, "meta")
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


VISION, PROJECTOR, LANGUAGE = "visual.blocks", "visual.merger", "language_model"


@pytest.mark.parametrize(
    ("knobs", "expected"),
    [
        ({}, {LANGUAGE, "lm_head"}),
        ({"freeze_vision_tower": False}, {LANGUAGE, "lm_head", VISION, "visual.patch_embed"}),
        ({"freeze_multi_modal_projector": False, "freeze_language_model": True}, {PROJECTOR}),
        ({"method": "freeze"}, {"language_model.layers.4", "language_model.layers.5"}),
        (
            {"method": "freeze", "freeze_multi_modal_projector": False},
            {PROJECTOR, "language_model.layers.4", "language_model.layers.5"},
        ),
    ],
)
def test_what_is_trained(tmp_path: Path, knobs: dict[str, Any], expected: set[str]) -> None:
    names = trained(tmp_path, **knobs)
    assert all(any(part in name for part in expected) for name in names)
    assert all(any(part in name for name in names) for part in expected)


@pytest.mark.parametrize("vision_frozen", [True, False])
def test_lora_never_adapts_projector_head_or_patch_embedding(tmp_path: Path, vision_frozen: bool) -> None:
    names = trained(tmp_path, method="lora", freeze_vision_tower=vision_frozen, freeze_multi_modal_projector=False)
    assert all("lora_" in name for name in names)
    assert any("language_model.layers.0.mlp.down_proj" in name for name in names)
    assert any(VISION in name for name in names) is not vision_frozen
    assert not any(part in name for name in names for part in (PROJECTOR, "lm_head", "patch_embed"))


def test_everything_frozen_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NothingToTrain):
        trained(tmp_path, freeze_language_model=True)
    with pytest.raises(NothingToTrain):
        trained(tmp_path, freeze_language_model=True, method="lora")


@pytest.mark.parametrize(
    ("knobs", "trainable", "frozen"),
    [
        ({"precision": "fp32"}, torch.float32, torch.float32),
        ({"precision": "bf16"}, torch.float32, torch.bfloat16),
        ({"precision": "bf16", "pure_bf16": True}, torch.bfloat16, torch.bfloat16),
        ({"precision": "bf16", "zero_stage": 2}, torch.bfloat16, torch.bfloat16),
        ({"precision": "bf16", "method": "lora"}, torch.float32, torch.bfloat16),
        ({"precision": "bf16", "pure_bf16": True, "method": "lora"}, torch.float32, torch.bfloat16),  # PEFT's default
        ({"precision": "bf16", "pure_bf16": True, "method": "lora", "zero_stage": 2}, torch.float32, torch.bfloat16),
    ],
)
def test_dtypes(tmp_path: Path, knobs: dict[str, Any], trainable: torch.dtype, frozen: torch.dtype) -> None:
    spec = order(tmp_path, **knobs)
    model = build(spec.model, spec.trial, 0, "meta")
    assert {parameter.dtype for parameter in model.parameters() if parameter.requires_grad} == {trainable}
    assert {parameter.dtype for parameter in model.parameters() if not parameter.requires_grad} == {frozen}
    assert precision_mode(spec.trial)


@pytest.mark.parametrize(
    ("knobs", "trainable", "frozen"),
    [
        ({"precision": "bf16", "method": "lora"}, torch.float32, torch.float32),
        ({"precision": "bf16", "pure_bf16": True}, torch.float32, torch.float32),
        ({"precision": "fp32"}, torch.float32, torch.float32),
        ({"precision": "bf16", "zero_stage": 2}, torch.bfloat16, torch.bfloat16),  # DeepSpeed casts the whole model
    ],
)
def test_weights_stored_in_fp32_stay_so(
    tmp_path: Path, knobs: dict[str, Any], trainable: torch.dtype, frozen: torch.dtype
) -> None:
    """LLaMA-Factory loads with dtype "auto"."""
    spec = order(tmp_path, **knobs)
    stored = {**spec.model, "config": {**spec.model["config"], "dtype": "float32"}}
    model = build(stored, spec.trial, 0, "meta")
    assert {parameter.dtype for parameter in model.parameters() if parameter.requires_grad} == {trainable}
    assert {parameter.dtype for parameter in model.parameters() if not parameter.requires_grad} == {frozen}
    words = precision_mode(spec.trial, stored_dtype(stored, load_config(stored)))
    assert ("stored" in words) is (knobs["precision"] != "fp32" and not knobs.get("zero_stage"))


def test_the_files_tell_what_the_config_does_not(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    spec = order(tmp_path)
    config = load_config(spec.model)
    assert stored_dtype(spec.model, config) is None
    save_file({"a": torch.zeros(2, dtype=torch.long), "b": torch.zeros(2)}, tmp_path / "model.safetensors")
    assert stored_dtype({**spec.model, "path": str(tmp_path)}, config) == torch.float32


def test_weights_follow_the_seed_alone(tmp_path: Path) -> None:
    spec = order(tmp_path, preset="tiny-llama")
    first, again, other = (build(spec.model, spec.trial, seed, "cpu") for seed in (0, 0, 1))
    _fill(again, 1, 0.02)
    torch.manual_seed(99)  # neither the generator's state nor the building before must matter
    _fill(again, 0, 0.02)
    for (name, one), two, three in zip(first.named_parameters(), again.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two), name
        if one.dim() > 1:
            assert not torch.equal(one, three), name
            assert one.std().item() == pytest.approx(0.02, rel=0.05)
    assert parameter_counts(first)[0] == parameter_counts(first)[1] > 4_000_000


def test_checkpointing_keeps_the_gradients(tmp_path: Path) -> None:
    """Also below a frozen embedding, where re-entrant checkpointing alone would cut the graph."""
    for method in ("full", "freeze", "lora"):
        gradients = []
        for checkpointing in (True, False):
            spec = order(tmp_path, preset="tiny-llama", method=method, gradient_checkpointing=checkpointing)
            model = build(spec.model, spec.trial, 0, "cpu").train()
            config = load_config(spec.model)
            batch = collate([WorstBatch(config, spec.trial, seed=0, length=2)[index] for index in range(2)])
            model(**batch).loss.backward()
            gradients.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
        assert gradients[0].keys() == gradients[1].keys()
        for name, gradient in gradients[0].items():
            torch.testing.assert_close(gradient, gradients[1][name])


def test_worst_batch_is_full_and_deterministic(tmp_path: Path) -> None:
    spec = order(tmp_path, cutoff_len=128)
    config = load_config(spec.model)
    data = WorstBatch(config, spec.trial, seed=3, length=4)
    sample, again = data[1], WorstBatch(config, spec.trial, seed=3, length=4)[1]
    assert all(torch.equal(sample[name], again[name]) for name in sample)
    assert not torch.equal(sample["input_ids"], data[2]["input_ids"])
    assert sample["input_ids"].shape == (128,)
    is_image = sample["input_ids"] == config.image_token_id
    assert int(is_image.sum()) == 64  # 50176 pixels / (28 x 28)
    assert sample["pixel_values"].shape == (256, 3 * 2 * 14 * 14)
    assert sample["image_grid_thw"].tolist() == [[1, 16, 16]]
    assert (sample["labels"][is_image] == IGNORED_LABEL).all()
    assert int((sample["labels"] != IGNORED_LABEL).sum()) == 128 - 66
    batch = collate([data[0], data[1]])
    assert batch["input_ids"].shape == (2, 128)
    assert batch["pixel_values"].shape[0] == 512


def test_batches_change_their_shape_from_step_to_step(tmp_path: Path) -> None:
    spec = order(tmp_path, cutoff_len=128)
    config, trial = load_config(spec.model), spec.trial
    shapes = [
        {"cutoff_len": 128, "image_max_pixels": 50_176},
        {"cutoff_len": 40, "image_max_pixels": 12_544},
        {"cutoff_len": 16, "image_max_pixels": 0},
    ]
    data = StepBatches(config, trial, shapes, seed=3, length=8, step_samples=2)
    assert [len(data[index]["input_ids"]) for index in range(8)] == [128, 128, 40, 40, 16, 16, 128, 128]
    assert [len(data[index]["pixel_values"]) for index in (0, 2)] == [256, 64]
    assert "pixel_values" not in data[4]
    worst = WorstBatch(config, trial, seed=3, length=8)
    assert all(torch.equal(data[6][name], worst[6][name]) for name in worst[6])  # the largest is the worst batch's own


def test_an_image_that_does_not_fit_is_a_data_error(tmp_path: Path) -> None:
    spec = order(tmp_path, cutoff_len=64)
    with pytest.raises(DataError, match="do not fit into cutoff_len 64"):
        WorstBatch(load_config(spec.model), spec.trial, seed=0, length=1)


@pytest.mark.parametrize(("cells", "grid"), [(64, (8, 8)), (752, (16, 47)), (1, (1, 1)), (0, (1, 1)), (3, (1, 3)), (7, (2, 3))])
def test_largest_grid(cells: int, grid: tuple[int, int]) -> None:
    assert _largest_grid(cells) == grid


def test_random_weights_are_tied_where_the_config_ties_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers before 5 leaves tying out together with its initialisation, which is skipped here."""
    from transformers import PreTrainedModel

    monkeypatch.setattr(PreTrainedModel, "init_weights", lambda self: None)
    spec = order(tmp_path)
    model = build({**spec.model, "config": {**spec.model["config"], "tie_word_embeddings": True}}, spec.trial, 0, "meta")
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
