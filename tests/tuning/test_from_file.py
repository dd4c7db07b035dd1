"""`--from`: what a LLaMA-Factory file says, which of it is free, and what is refused."""

from pathlib import Path

import pytest
from llamafactory_files import BEYOND, NAMES, lay_out

from autofit.config.launcher_yaml import launcher_values
from autofit.config.space import enumerate_space
from autofit.config.trial import TrialSpec
from autofit.errors import UsageError
from autofit.tuning.from_file import Start, start_from
from autofit.tuning.plan import SearchRequest, plan_study


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(lay_out(tmp_path / "here"))
    return tmp_path / "here"


def reference(start: Start, num_gpus: int = 2) -> TrialSpec:
    from autofit.config.model import resolve_model

    return enumerate_space(start.space, resolve_model(start.space.model), num_gpus).reference


@pytest.mark.parametrize("name", NAMES)
def test_every_example_is_read_and_planned(here: Path, stub_python: str, name: str) -> None:
    request = SearchRequest(gpu_mem_bytes=2**29, device="cpu", num_gpus=2, python=stub_python, from_file=f"{name}.yaml")
    plan = plan_study(request)
    values = launcher_values((here / f"{name}.yaml").read_text(), name)
    spec = plan.legal.reference
    assert plan.study.source_yaml == (here / f"{name}.yaml").read_text()
    assert plan.study.source_path == str(here / f"{name}.yaml")
    assert spec.micro_batch_size == values.get("per_device_train_batch_size", 8)
    assert spec.gradient_accumulation_steps == values.get("gradient_accumulation_steps", 1)
    assert spec.method == values.get("finetuning_type", "lora")
    assert spec.cutoff_len == values.get("cutoff_len", 2048)
    assert spec.zero_stage == next((int(digit) for digit in "23" if f"ds{digit}" in name), 0)
    assert spec.offload_optimizer == ("offload" in name)
    assert spec.images.per_sample == ("vl_" in name)
    assert {point.global_batch_size for point in plan.legal.points} == {spec.global_batch_size}
    assert {point.method for point in plan.legal.points} == {spec.method}
    assert {point.gradient_checkpointing for point in plan.legal.points} == {True, False}
    assert {point.zero_stage for point in plan.legal.points} >= {0, 2}
    assert len(plan.legal.points) >= 4


def test_the_examples_are_of_every_kind() -> None:
    assert len(NAMES) >= 10
    for part in ("text_", "vl_", "lora", "full", "freeze", "ds2", "ds3", "offload"):
        assert any(part in name for name in NAMES)


@pytest.mark.parametrize("name", BEYOND)
def test_what_a_spec_cannot_say_is_refused_by_its_name(here: Path, name: str) -> None:
    key = {
        "qlora": "quantization_bit 4", "pissa": "pissa_init True", "galore": "use_galore True", "badam": "use_badam True",
        "dpo": "stage dpo", "fsdp": "fsdp full_shard", "zero_0": "deepspeed with stage 0", "overlap": "overlap_comm True",
        "llama_pro": "use_llama_pro True", "no_half": "neither bf16 nor fp16",
    }[name]  # fmt: skip
    start = start_from(f"beyond/{name}.yaml", "cuda", 2)
    with pytest.raises(UsageError, match=key) as error:
        start.refuse("transformers")
    assert "\n" not in str(error.value)
    start.refuse("llamafactory")


def test_free_and_keep(here: Path) -> None:
    kept = start_from("vl_lora.yaml", "cuda", 2, keep=["per_device_train_batch_size", "gradient_checkpointing", "deepspeed"])
    assert kept.space.knobs == {"micro_batch_size": [1]}
    assert len(enumerate_space(kept.space, plan_model(kept), 2).points) == 1
    freed = start_from("vl_full_ds3.yaml", "cuda", 8, free=["cutoff_len", "freeze_vision_tower", "flash_attn"])
    assert freed.space.knobs["cutoff_len"] == [64, 128, 256]
    assert freed.space.knobs["freeze_vision_tower"] == [True, False]
    assert freed.space.knobs["attention"] == ["auto", "flash_attention_2", "sdpa"]
    assert freed.space.knobs["micro_batch_size"] == [1, 2]
    assert "zero_stage" not in start_from("text_lora.yaml", "cuda", 1).space.knobs
    assert "zero_stage" in start_from("text_lora_ds3.yaml", "cuda", 1).space.knobs


def plan_model(start: Start):
    from autofit.config.model import resolve_model

    return resolve_model(start.space.model)


def test_a_hub_id_that_is_a_preset_is_known_without_the_hub(here: Path) -> None:
    text = (here / "vl_lora.yaml").read_text()
    (here / "hub.yaml").write_text(text.replace("models/tiny-qwen2.5-vl", "Qwen/Qwen2.5-VL-7B-Instruct"))
    (here / "other.yaml").write_text(text.replace("models/tiny-qwen2.5-vl", "org/some-model"))
    assert start_from("hub.yaml", "cuda", 1).space.model.preset == "qwen2.5-vl-7b"
    assert start_from("other.yaml", "cuda", 1).space.model.id == "org/some-model"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("models/tiny-llama", "no_such_folder"), "neither a folder here nor a hub id"),
        (("model_name_or_path", "model"), "model_name_or_path is missing"),
        (("cutoff_len: 192", "cutoff_len: long"), "'cutoff_len'.*got 'long'"),
        (("finetuning_type: lora", "finetuning_type: oft"), "finetuning_type oft is none that autofit knows"),
        (("bf16: true", "deepspeed: gone.json"), r"deepspeed: gone.json cannot be read.*where you start LLaMA-Factory"),
        (("bf16: true", "bf16: ["), "is not YAML"),
    ],
)
def test_bad_files_get_one_line(here: Path, change: tuple[str, str], words: str) -> None:
    (here / "bad.yaml").write_text((here / "text_lora.yaml").read_text().replace(*change))
    with pytest.raises(UsageError, match=words) as error:
        start_from("bad.yaml", "cuda", 1)
    assert "\n" not in str(error.value)


def test_bad_requests_get_one_line(here: Path, stub_python: str) -> None:
    with pytest.raises(UsageError, match="did you mean cutoff_len"):
        start_from("text_lora.yaml", "cuda", 1, free=["cutof_len"])
    with pytest.raises(UsageError, match="it follows from the micro-batch"):
        start_from("text_lora.yaml", "cuda", 1, free=["gradient_accumulation_steps"])
    with pytest.raises(UsageError, match="cannot be read"):
        start_from("gone.yaml", "cuda", 1)
    request = SearchRequest(gpu_mem_bytes=2**29, device="cpu", python=stub_python, from_file="text_lora.yaml", model="qwen2-7b")
    with pytest.raises(UsageError, match="leave --model out"):
        plan_study(request)
    beyond = SearchRequest(gpu_mem_bytes=2**29, device="cpu", python=stub_python, from_file="beyond/pissa.yaml")
    with pytest.raises(UsageError, match="pissa_init True changes memory"):
        plan_study(beyond)
