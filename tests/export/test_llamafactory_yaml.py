"""What stands in `train.yaml`, checked without LLaMA-Factory. Its own parser judges in test_llamafactory_runs.py."""

import json
from pathlib import Path
from typing import Any

import pytest
from export_cases import Case, make_case
from ruamel.yaml import YAML

from autofit.config.model import ModelRef
from autofit.config.result import TrialResult
from autofit.config.space import DatasetRef
from autofit.errors import AutofitError, UsageError
from autofit.export import EXPORTERS, Source, export, launch_command
from autofit.export.deepspeed import deepspeed_config
from autofit.export.llamafactory_arguments import arguments


def text_of(case: Case, launcher: str = "llamafactory") -> str:
    source = Source(case.study, case.trial, case.reference)
    return next(iter(EXPORTERS[launcher].render(source).values()))


def keys_of(case: Case) -> dict[str, object]:
    return dict(YAML(typ="safe").load(text_of(case)))


@pytest.mark.parametrize("zero_stage", [0, 3])
def test_the_file_says_what_a_trial_of_this_engine_runs_with(zero_stage: int) -> None:
    case = make_case(method="lora", zero_stage=zero_stage, num_gpus=4, micro_batch_size=2)
    keys = keys_of(case)
    for name in ("output_dir", "logging_steps", "save_steps", "report_to"):
        del keys[name]
    assert keys == arguments(case.trial.spec, case.study.model, case.study.space.dataset, "cuda")


def test_every_knob_of_the_trial_stands_in_the_file() -> None:
    case = make_case(
        method="lora",
        lora={"rank": 16, "target": "q_proj,v_proj"},
        precision="fp16",
        optimizer="adafactor",
        micro_batch_size=4,
        gradient_accumulation_steps=3,
        cutoff_len=4096,
        zero_stage=2,
        offload_optimizer=True,
        num_gpus=8,
        gradient_checkpointing=False,
        freeze_vision_tower=False,
        freeze_multi_modal_projector=True,
        freeze_language_model=True,
        attention="flash_attention_2",
        fused_cross_entropy=True,
        images={"per_sample": 2, "max_pixels": 262144},
    )
    keys = keys_of(case)
    expected = {
        "model_name_or_path": "Qwen/Qwen2.5-VL-7B-Instruct",
        "stage": "sft",
        "do_train": True,
        "finetuning_type": "lora",
        "lora_rank": 16,
        "lora_target": "q_proj,v_proj",
        "freeze_vision_tower": False,
        "freeze_multi_modal_projector": True,
        "freeze_language_model": True,
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 4,
        "gradient_accumulation_steps": 3,
        "optim": "adafactor",
        "bf16": False,
        "fp16": True,
        "cutoff_len": 4096,
        "image_max_pixels": 262144,
        "disable_gradient_checkpointing": True,
        "enable_liger_kernel": True,
        "flash_attn": "fa2",
        "dataset": "mllm_demo",
        "template": "qwen2_vl",
        "deepspeed": deepspeed_config(case.trial.spec),
    }
    assert {name: keys.get(name) for name in expected} == expected


def test_yaml_reads_back_as_numbers_and_flags() -> None:
    keys = keys_of(make_case(zero_stage=3, num_gpus=2))
    assert isinstance(keys["learning_rate"], float)
    zero = keys["deepspeed"]["zero_optimization"]  # type: ignore[index]
    assert zero["sub_group_size"] == 10**9
    assert zero["stage3_gather_16bit_weights_on_model_save"] is True


def test_text_model_has_no_vision_keys() -> None:
    keys = keys_of(make_case("llama-3.1-8b"))
    assert not [name for name in keys if name.startswith("freeze_") or name == "image_max_pixels"]
    assert (keys["template"], keys["dataset"]) == ("llama3", "alpaca_en_demo")


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"precision": "bf16"}, {"bf16": True, "fp16": False}),
        ({"precision": "fp16"}, {"bf16": False, "fp16": True}),
        ({"pure_bf16": True}, {"pure_bf16": True}),
        ({"pure_bf16": True, "zero_stage": 2}, {"pure_bf16": True}),
    ],
)
def test_precision(fields: dict[str, object], expected: dict[str, bool]) -> None:
    keys = keys_of(make_case(**fields))
    assert {name: keys[name] for name in ("pure_bf16", "bf16", "fp16", "use_cpu") if name in keys} == expected


TEXT = {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 100, "num_attention_heads": 2}


@pytest.mark.parametrize(
    ("stored", "fields", "said"),
    [
        (None, {"method": "lora"}, "does not say how"),
        ("bfloat16", {"method": "lora"}, "bfloat16 as its config.json says"),
        ("bfloat16", {"zero_stage": 3}, "bfloat16 as its config.json says"),
        ("bfloat16", {}, None),  # everything is trained, and so raised to fp32
        ("float32", {"method": "lora"}, None),
        ("float32", {"zero_stage": 3}, None),
    ],
)
def test_fp32_on_a_gpu_is_refused_where_llamafactory_would_not_do_it(
    tmp_path: Path, stored: str | None, fields: dict[str, Any], said: str | None
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(TEXT | ({"dtype": stored} if stored else {})))
    (tmp_path / "model.safetensors").touch()
    case = make_case(ModelRef(path=str(tmp_path)), precision="fp32", dataset=DatasetRef(name="d", template="llama3"), **fields)
    if said is None:
        assert (keys_of(case)["bf16"], keys_of(case)["fp16"]) == (False, False)
        return
    with pytest.raises(UsageError, match=rf"would not train .* in fp32 throughout on a GPU.*{said}.*--launcher transformers"):
        text_of(case)


def test_fp32_with_images_on_a_gpu_is_refused_and_on_a_cpu_is_not() -> None:
    with pytest.raises(UsageError, match="casts the images to half precision"):
        text_of(make_case(precision="fp32", images={"per_sample": 1, "max_pixels": 50176}))
    keys = keys_of(make_case(precision="fp32", device="cpu"))
    assert (keys["bf16"], keys["fp16"]) == (False, False)


def test_half_precision_on_a_cpu_says_use_cpu() -> None:
    assert keys_of(make_case(device="cpu"))["use_cpu"] is True
    assert "use_cpu" not in keys_of(make_case(device="cpu", precision="fp32"))
    assert "use_cpu" not in keys_of(make_case())


@pytest.mark.parametrize(
    ("attention", "flash_attn"), [("auto", "auto"), ("eager", "disabled"), ("sdpa", "sdpa"), ("flash_attention_2", "fa2")]
)
def test_attention(attention: str, flash_attn: str) -> None:
    assert keys_of(make_case(attention=attention))["flash_attn"] == flash_attn


def test_evidence() -> None:
    text = text_of(make_case(num_gpus=2, zero_stage=3, cutoff_len=1024, study_name="my study\nbf16: false"))
    assert "outcome: COMPLETED on 2026-11-20 12:30 UTC" in text
    assert "measured peak 60.00 GiB, worst rank (80% of the budget), budget 75.00 GiB a rank" in text
    assert "4 samples/s" in text
    assert "2.00 x the reference (trial 0, 2 samples/s)" in text
    assert "synthetic worst batch, every sample 1024 tokens, 1 image(s) of 589824 pixels" in text
    assert "device: 2 rank(s) on Card X" in text
    assert "engine: transformers; torch 2.13.0, transformers 5.23.0" in text
    assert "FORCE_TORCHRUN=1 NPROC_PER_NODE=2 llamafactory-cli train train.yaml" in text
    assert YAML(typ="safe").load(text)["bf16"] is True, "a line break in a name must not end the comment"


def test_nothing_is_called_measured_that_was_not() -> None:
    oom = TrialResult(outcome="OOM", phase="backward")
    text = text_of(make_case(result=oom))
    assert text.startswith("# NOT A FIT: this configuration ended OOM in backward;")
    assert "peak not measured" in text
    assert "speed: not measured" in text
    never_run = text_of(make_case(result=TrialResult(outcome="PREDICTED")))
    assert "this configuration was never run" in never_run
    assert "measured on" not in never_run


def test_reference_that_did_not_fit_gives_no_ratio() -> None:
    case = make_case()
    failed = case.reference.model_copy(update={"result": TrialResult(outcome="OOM", phase="forward")})
    text = text_of(Case(case.study, case.trial, failed))
    assert "no speed of the reference to compare with: trial 0 ended OOM" in text
    assert " x the reference" not in text
    assert "this is the reference itself" in text_of(Case(case.study, case.reference, case.reference))


@pytest.mark.parametrize(
    ("fields", "start"),
    [
        ({"num_gpus": 2}, "FORCE_TORCHRUN=1 NPROC_PER_NODE=2 llamafactory-cli"),
        ({"zero_stage": 2}, "FORCE_TORCHRUN=1 NPROC_PER_NODE=1 llamafactory-cli"),
        ({}, "CUDA_VISIBLE_DEVICES=0 llamafactory-cli"),
        ({"device": "cpu"}, "llamafactory-cli"),
    ],
)
def test_command(fields: dict[str, object], start: str) -> None:
    case = make_case(**fields)
    assert launch_command(case.study, case.trial, "llamafactory", Path("my out")) == f"{start} train 'my out/train.yaml'"


def test_model_without_weights_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"tiny-qwen2\.5-vl is a bare config.*--model DIR") as error:
        text_of(make_case("tiny-qwen2.5-vl"))
    assert "\n" not in str(error.value)
    (tmp_path / "config.json").write_text('{"model_type": "qwen2"}')
    with pytest.raises(UsageError, match="has no weights"):
        text_of(make_case(ModelRef(path=str(tmp_path))))


@pytest.mark.parametrize(
    ("config", "template"),
    [
        ({"model_type": "qwen2"}, "qwen"),
        ({"model_type": "qwen2_5_vl", "vision_config": {}}, "qwen2_vl"),
        ({"model_type": "llama", "vocab_size": 128256}, "llama3"),
        ({"model_type": "llama", "vocab_size": 32000}, None),
        ({"model_type": "qwen3_vl", "vision_config": {}}, None),
        ({"model_type": "something_new"}, None),
    ],
)
def test_template(tmp_path: Path, config: dict[str, object], template: str | None) -> None:
    import json

    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").touch()
    ref = ModelRef(path=str(tmp_path))
    if template is None:
        with pytest.raises(UsageError, match=r"is not certain; set dataset: \{name: ..., template: ...\}"):
            text_of(make_case(ref))
    else:
        assert keys_of(make_case(ref))["template"] == template
    assert keys_of(make_case(ref, dataset=DatasetRef(name="mine", template="chatml")))["template"] == "chatml"


def test_dataset_folder_that_exists_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert keys_of(make_case(dataset=DatasetRef(name="d")))["dataset_dir"] == "data"
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "dataset_info.json").write_text("{}")
    assert keys_of(make_case(dataset=DatasetRef(name="d")))["dataset_dir"] == str(tmp_path / "data")


def test_demo_data_asks_to_be_replaced() -> None:
    assert "replace it with yours" in text_of(make_case())
    assert "replace it with yours" not in text_of(make_case(dataset=DatasetRef(name="mine")))


def test_export_writes_and_replaces_its_own_file_only(tmp_path: Path) -> None:
    case = make_case()
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "train.yaml").write_text("old")
    paths = export(case.study, case.trial, case.reference, "llamafactory", tmp_path)
    assert paths == [tmp_path / "train.yaml", tmp_path / "autofit.json"]
    assert paths[0].read_text() == text_of(case)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["autofit.json", "notes.txt", "train.yaml"]
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_failed_write_keeps_the_old_file_and_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno
    import os

    case = make_case()
    (tmp_path / "train.yaml").write_text("old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(AutofitError, match=r"cannot write to .*: No space left on device; choose another folder") as error:
        export(case.study, case.trial, None, "llamafactory", tmp_path)
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["train.yaml"], "no temporary file is left"
    assert (tmp_path / "train.yaml").read_text() == "old"


def test_folder_that_is_a_file(tmp_path: Path) -> None:
    case = make_case()
    (tmp_path / "file").touch()
    with pytest.raises(AutofitError, match="cannot write to"):
        export(case.study, case.trial, None, "llamafactory", tmp_path / "file")


def test_unknown_launcher_and_unfinished_trial(tmp_path: Path) -> None:
    case = make_case()
    with pytest.raises(UsageError, match="choose from llamafactory, transformers, trl, axolotl, deepspeed"):
        export(case.study, case.trial, None, "verl", tmp_path)
    running = case.trial.model_copy(update={"result": None, "finished_at": None})
    for launcher in EXPORTERS:
        with pytest.raises(AutofitError, match="trial 7 of study s1 has not finished"):
            export(case.study, running, None, launcher, tmp_path)


def test_yaml_of_a_path_with_odd_characters(tmp_path: Path) -> None:
    folder = tmp_path / "a: b #c"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "qwen2"}')
    (folder / "model.safetensors").touch()
    case = make_case(ModelRef(path=str(folder)))
    file, _ = export(case.study, case.trial, None, "llamafactory", tmp_path / "out")
    assert YAML(typ="safe").load(file.read_text())["model_name_or_path"] == str(folder)
