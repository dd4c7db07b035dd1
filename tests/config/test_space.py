"""Search spaces: what ships, what is refused, and how the message reads."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ruamel.yaml import YAML

from autofit.config.legality import canonical, refusal, training_changes
from autofit.config.model import Model, ModelRef, resolve_model
from autofit.config.space import LegalSpace, SearchSpace, enumerate_space
from autofit.config.trial import TrialSpec
from autofit.errors import UsageError
from autofit.resources import resource_dir

SHIPPED = sorted(file.stem for file in resource_dir("search_spaces").glob("*.yaml"))
VISION = ["qwen2_5_vl_7b", "qwen2_vl_7b", "tiny_qwen2_5_vl"]


def legal(name: str, num_gpus: int = 8) -> LegalSpace:
    space = SearchSpace.load(name)
    return enumerate_space(space, resolve_model(space.model), space.num_gpus or num_gpus)


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_space_is_legal_and_unique(name: str) -> None:
    found = legal(name)
    model = resolve_model(SearchSpace.load(name).model)
    assert len({point.config_key() for point in found.points}) == len(found.points) > 100
    assert len({point.global_batch_size for point in found.points}) == 1
    assert all(refusal(point, model) is None and canonical(point, model) == point for point in found.points)
    assert found.reference in found.points


def test_what_ships_is_what_was_promised() -> None:
    assert set(SHIPPED) >= {*VISION, "llama_text"}


@pytest.mark.parametrize("name", ["qwen2_5_vl_7b", "qwen2_vl_7b"])
def test_the_recommended_start_is_the_reference_of_the_vision_spaces(name: str) -> None:
    start = legal(name, num_gpus=8).reference
    assert (start.micro_batch_size, start.gradient_accumulation_steps, start.zero_stage) == (1, 2, 3)
    assert start.freeze_vision_tower and start.freeze_multi_modal_projector and not start.freeze_language_model
    assert start.method == "full"


def test_the_spaces_hold_full_lora_and_projector_only() -> None:
    points = legal("qwen2_5_vl_7b").points
    assert {point.method for point in points} == {"full", "lora"}
    assert {point.zero_stage for point in points} == {0, 1, 2, 3}
    only_projector = [point for point in points if point.freeze_language_model]
    assert only_projector
    assert all(point.freeze_vision_tower and not point.freeze_multi_modal_projector for point in only_projector)


@pytest.fixture
def tiny() -> dict[str, Any]:
    content: dict[str, Any] = YAML(typ="safe").load(resource_dir("search_spaces") / "tiny_qwen2_5_vl.yaml")
    return content


def written(content: dict[str, Any], folder: Path) -> str:
    file = folder / "space.yaml"
    YAML(typ="safe").dump(content, file)
    return str(file)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"knbos": {}}, "unknown key 'knbos'; did you mean 'knobs'?"),
        ({"model": {"presett": "x"}}, "unknown key 'model.presett'; did you mean 'preset'?"),
        ({"model": {"preset": "tiny-llama", "path": "x"}}, "exactly one way"),
        ({"knobs": {"micro_batchsize": [1]}}, "unknown knob 'micro_batchsize'; did you mean 'micro_batch_size'?"),
        ({"fixed": {"precison": "fp32"}}, "unknown fixed field 'precison'; did you mean 'precision'?"),
        ({"fixed": {"zero_stage": 2}}, "'zero_stage' is both fixed and a knob"),
        ({"global_batch_size": "free"}, "gradient_accumulation_steps must be a knob"),
        ({"global_batch_size": 0}, "global_batch_size"),
        ({"conditions": [{"when": {"zero": 3}, "only": {"zero_stage": 3}}]}, "unknown knob in a condition 'zero'"),
        ({"reference": {"method": "full"}}, "the reference gives no value for"),
        ({"measure": {"steps": 0}}, "measure.steps"),
    ],
)
def test_bad_keys_and_values_are_one_line_that_helps(
    tiny: dict[str, Any], tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    file = written({**tiny, **change}, tmp_path)
    with pytest.raises(UsageError) as caught:
        SearchSpace.load(file)
    message = str(caught.value)
    assert words in message and file in message and "\n" not in message


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"knobs": {"micro_batch_size": [3]}, "reference": {"micro_batch_size": 3}}, "does not divide the global batch 8"),
        ({"knobs": {"micro_batch_size": ["two"]}, "reference": {"micro_batch_size": 1}}, "micro_batch_size"),
        (
            {"knobs": {"freeze_language_model": [True]}, "reference": {"freeze_language_model": True}},
            "everything is frozen",
        ),
        ({"knobs": {"cutoff_len": [16]}, "reference": {"cutoff_len": 16}}, "would cut image tokens"),
    ],
)
def test_a_space_without_a_legal_start_says_why(
    tiny: dict[str, Any], tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    space = SearchSpace.load(written({**tiny, "fixed": {}, **change}, tmp_path))
    with pytest.raises(UsageError, match=words):
        enumerate_space(space, resolve_model(space.model), 2)


def test_a_space_with_no_legal_point_says_what_excluded_everything(tiny: dict[str, Any], tmp_path: Path) -> None:
    contradiction = [{"when": {"method": ["full", "lora"]}, "only": {"zero_stage": 1}}]
    space = SearchSpace.load(written({**tiny, "conditions": contradiction}, tmp_path))
    words = "no legal point: its conditions exclude everything .method full or lora only with zero_stage 1"
    with pytest.raises(UsageError, match=words):
        enumerate_space(space, resolve_model(space.model), 2)


def test_a_reference_that_its_own_conditions_forbid_is_refused(tiny: dict[str, Any], tmp_path: Path) -> None:
    forbids = [{"when": {"method": "full"}, "only": {"zero_stage": [0, 2]}, "why": "made up"}]
    space = SearchSpace.load(written({**tiny, "conditions": forbids}, tmp_path))
    with pytest.raises(
        UsageError, match=r"reference contradicts its condition: method full only with zero_stage 0 or 2 .made up"
    ):
        enumerate_space(space, resolve_model(space.model), 2)


def test_not_a_mapping_not_yaml_not_there(tmp_path: Path) -> None:
    for text, words in (("- 1\n", "must hold a mapping"), ("a: [1\n", "is not YAML"), ("\x00\x01", "is not YAML")):
        (tmp_path / "x.yaml").write_text(text)
        with pytest.raises(UsageError, match=words):
            SearchSpace.load(str(tmp_path / "x.yaml"))
    with pytest.raises(UsageError, match=r"did you mean 'qwen2_vl_7b'\?"):
        SearchSpace.load("qwen2vl_7b")
    with pytest.raises(UsageError, match="cannot be read"):
        SearchSpace.load(str(tmp_path / "none.yaml"))


def test_a_model_folder_needs_its_config(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"has no config\.json"):
        resolve_model(ModelRef(path=str(tmp_path)))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UsageError, match="no 'model_type'"):
        resolve_model(ModelRef(path=str(tmp_path)))
    with pytest.raises(UsageError, match="did you mean the preset 'tiny-llama'"):
        ModelRef.from_text("tiny-lama")


def test_conditions_couple_knobs(tiny: dict[str, Any], tmp_path: Path) -> None:
    only_small = [{"when": {"method": "lora"}, "only": {"zero_stage": [0], "micro_batch_size": [1, 2]}}]
    space = SearchSpace.load(written({**tiny, "conditions": only_small}, tmp_path))
    points = enumerate_space(space, resolve_model(space.model), 2).points
    assert {(p.zero_stage, p.micro_batch_size) for p in points if p.method == "lora"} == {(0, 1), (0, 2)}
    assert {p.zero_stage for p in points if p.method == "full"} == {0, 2, 3}


def test_an_inline_config_is_a_model_like_any_other(tiny: dict[str, Any], tmp_path: Path) -> None:
    config = resolve_model(ModelRef(preset="tiny-qwen2.5-vl")).config
    space = SearchSpace.load(written({**tiny, "model": {"config": config}}, tmp_path))
    by_name = legal("tiny_qwen2_5_vl", 2)
    assert len(enumerate_space(space, resolve_model(space.model), 2).points) == len(by_name.points)


def test_a_free_global_batch_keeps_the_accumulation_as_a_knob(tiny: dict[str, Any], tmp_path: Path) -> None:
    content = {**tiny, "global_batch_size": "free"}
    content["knobs"] = {**tiny["knobs"], "gradient_accumulation_steps": [1, 4]}
    content["reference"] = {**tiny["reference"], "gradient_accumulation_steps": 4}
    space = SearchSpace.load(written(content, tmp_path))
    points = enumerate_space(space, resolve_model(space.model), 2).points
    assert len({point.global_batch_size for point in points}) > 2


VL, TEXT = (
    Model(label="vl", config={"model_type": "qwen2_5_vl", "vision_config": {}}),
    Model(label="t", config={"model_type": "llama"}),
)

SPECS = st.builds(
    TrialSpec,
    model=st.just(ModelRef(preset="tiny-llama")),
    method=st.sampled_from(["full", "lora", "freeze"]),
    precision=st.sampled_from(["bf16", "fp32"]),
    pure_bf16=st.booleans(),
    zero_stage=st.sampled_from([0, 1, 2, 3]),
    offload_optimizer=st.booleans(),
    offload_param=st.booleans(),
    freeze_vision_tower=st.booleans(),
    freeze_multi_modal_projector=st.booleans(),
    freeze_language_model=st.booleans(),
    cutoff_len=st.sampled_from([64, 2048]),
)


@given(spec=SPECS, model=st.sampled_from([VL, TEXT]))
def test_canonical_is_a_projection_and_never_touches_what_works(spec: TrialSpec, model: Model) -> None:
    once = canonical(spec, model)
    assert canonical(once, model) == once
    if spec.zero_stage == 3:
        assert (once.offload_optimizer, once.offload_param) == (spec.offload_optimizer, spec.offload_param)
    if model is VL and spec.method != "lora":
        assert once.freeze_multi_modal_projector == spec.freeze_multi_modal_projector
    assert (once.method, once.cutoff_len, once.zero_stage) == (spec.method, spec.cutoff_len, spec.zero_stage)


@pytest.mark.parametrize(
    ("fields", "same_as"),
    [
        ({"method": "lora", "freeze_multi_modal_projector": False}, {"method": "lora"}),  # LoRA `all` never adapts it
        ({"zero_stage": 0, "offload_optimizer": True}, {"zero_stage": 0}),
        ({"zero_stage": 2, "offload_param": True}, {"zero_stage": 2}),
        ({"precision": "fp32", "pure_bf16": True}, {"precision": "fp32"}),
    ],
)
def test_no_ops_become_one(fields: dict[str, Any], same_as: dict[str, Any]) -> None:
    base = {"model": {"preset": "tiny-qwen2.5-vl"}}
    one, other = (TrialSpec.model_validate({**base, **extra}) for extra in (fields, same_as))
    assert one != other
    assert canonical(one, VL) == canonical(other, VL)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"zero_stage": 3, "pure_bf16": True}, "pure_bf16"),
        ({"method": "lora", "freeze_language_model": True}, "no module is left"),
        ({"freeze_language_model": True}, "everything is frozen"),
        ({"method": "freeze", "freeze_language_model": True, "freeze_vision_tower": False}, "last layers"),
        ({"cutoff_len": 512}, "would cut image tokens"),
    ],
)
def test_fatal_combinations_are_refused_with_the_reason(fields: dict[str, Any], words: str) -> None:
    spec = TrialSpec.model_validate({"model": {"preset": "tiny-qwen2.5-vl"}, **fields})
    assert words in str(refusal(canonical(spec, VL), VL))


def test_changes_of_the_training_are_named_and_other_ways_to_run_it_are_none() -> None:
    wanted = TrialSpec(model=ModelRef(preset="tiny-qwen2.5-vl"), cutoff_len=2048, freeze_vision_tower=False)
    less = wanted.model_copy(update={"cutoff_len": 1024, "freeze_vision_tower": True})
    assert training_changes(wanted, wanted) == []
    assert training_changes(less, wanted) == ["cutoff_len 1024 instead of 2048", "vision tower frozen"]
    assert training_changes(wanted, less) == ["vision tower trained"]  # more data is no loss, more trained parts are a change
    assert training_changes(wanted.model_copy(update={"method": "lora"}), wanted) == ["lora instead of full"]
    assert training_changes(wanted.model_copy(update={"pure_bf16": True}), wanted) == ["pure bf16"]
    assert training_changes(wanted.model_copy(update={"optimizer": "adamw_torch_fused"}), wanted) == []
    assert training_changes(wanted.model_copy(update={"optimizer": "sgd"}), wanted) == ["optimizer sgd"]
    other_way = wanted.model_copy(update={"zero_stage": 2, "micro_batch_size": 4, "gradient_checkpointing": False})
    assert training_changes(other_way, wanted) == []
