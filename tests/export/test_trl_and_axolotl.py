"""TRL's and axolotl's files: judged by TRL's own parser and by axolotl's keys; what either cannot say is refused."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from export_cases import make_case, weights_of
from ruamel.yaml import YAML
from test_llamafactory_runs import environment, python  # noqa: F401 - the fixture

from autofit.config.model import ModelRef
from autofit.config.space import DatasetRef
from autofit.errors import UsageError
from autofit.export import EXPORTERS, Source, export, launch_command

# The fields of `axolotl.utils.schemas.config.AxolotlInputConfig` of axolotl 0.19.0, which itself took every file of AXOLOTL
KEYS = Path(__file__).parents[1] / "data" / "axolotl_0.19.0_keys.txt"
ROOT = Path(__file__).parents[2]
TEXT = "llama-3.1-8b"
TRL: dict[str, dict[str, Any]] = {
    "lora": {"method": "lora", "lora": {"rank": 16, "target": "all"}},
    "lora_named": {"method": "lora", "lora": {"rank": 4, "target": "q_proj,v_proj"}, "attention": "sdpa"},
    "full": {"micro_batch_size": 2, "gradient_checkpointing": False},
    "full_pure": {"pure_bf16": True, "fused_cross_entropy": True},
    "full_zero_3": {"zero_stage": 3, "num_gpus": 4, "gradient_accumulation_steps": 3},
    "fp16": {"precision": "fp16", "optimizer": "adafactor"},
    "cpu": {"precision": "fp32", "device": "cpu"},
}
AXOLOTL: dict[str, dict[str, Any]] = {
    "lora": {"model": TEXT, "method": "lora"},
    "full_zero_2": {"model": TEXT, "zero_stage": 2, "num_gpus": 2},
    "full_pure": {"model": TEXT, "pure_bf16": True},
    "freeze": {"model": TEXT, "method": "freeze", "pure_bf16": True},
    "vl_full": {"zero_stage": 3, "num_gpus": 8},
    "vl_projector": {"freeze_multi_modal_projector": False, "freeze_language_model": True, "pure_bf16": True},
    "vl_lora": {"method": "lora", "attention": "flash_attention_2"},
}


def keys_of(launcher: str, model: str | ModelRef = TEXT, **fields: Any) -> dict[str, Any]:
    case = make_case(model, **fields)
    text = EXPORTERS[launcher].render(Source(case.study, case.trial, case.reference))["train.yaml"]
    values: dict[str, Any] = YAML(typ="safe").load(text)
    return values


def dataset(folder: Path, **entry: Any) -> DatasetRef:
    (folder / "d.jsonl").write_text('{"a": 1}\n')
    (folder / "dataset_info.json").write_text(json.dumps({"d": {"file_name": "d.jsonl", **entry}}))
    return DatasetRef(name="d", dir=str(folder))


@pytest.mark.llamafactory
def test_trls_own_parser_reads_what_the_trial_ran(python: Path, tmp_path: Path) -> None:  # noqa: F811
    for name, fields in TRL.items():
        case = make_case(TEXT, **fields)
        export(case.study, case.trial, case.reference, "trl", tmp_path / name)
        (tmp_path / name / "train.yaml").rename(tmp_path / f"{name}.yaml")
    (tmp_path / "planted.yaml").write_text((tmp_path / "full.yaml").read_text() + "max_lenght: 3\n")
    out = tmp_path / "out.json"
    script = Path(__file__).with_name("trl_parse.py")
    done = subprocess.run(
        [python, script, tmp_path, out], env=environment(python), capture_output=True, text=True, timeout=300, check=False
    )
    assert out.exists(), done.stderr[-3000:]
    found = json.loads(out.read_text())
    assert found["planted.yaml"]["unknown"] == ["--max_lenght", "3"]
    for name, fields in TRL.items():
        assert "error" not in found[f"{name}.yaml"], (name, found[f"{name}.yaml"])
        spec, values = make_case(TEXT, **fields).trial.spec, found[f"{name}.yaml"]["values"]
        ranks = ["--num_processes", str(spec.num_gpus)] if spec.num_gpus > 1 else []
        assert found[f"{name}.yaml"]["unknown"] == ranks, "the only key that is accelerate's"
        assert values["per_device_train_batch_size"] == values["per_device_eval_batch_size"] == spec.micro_batch_size
        assert values["gradient_accumulation_steps"] == spec.gradient_accumulation_steps
        assert values["max_length"] == spec.cutoff_len
        assert values["gradient_checkpointing"] is spec.gradient_checkpointing
        assert values["optim"].removeprefix("OptimizerNames.").lower() == spec.optimizer
        assert values["bf16"] is (spec.precision == "bf16" and not spec.pure_bf16)
        assert values["use_peft"] is (spec.method == "lora")
        assert values["use_liger_kernel"] is spec.fused_cross_entropy
        assert values["attn_implementation"] == (None if spec.attention == "auto" else spec.attention)
        assert ((values["deepspeed"] or {}).get("zero_optimization") or {}).get("stage", 0) == spec.zero_stage
        full_dtype = "float32" if spec.zero_stage == 0 and not spec.pure_bf16 else "bfloat16"
        assert values["dtype"] == ("bfloat16" if spec.method == "lora" else full_dtype)
        if spec.method == "lora":
            assert (values["lora_r"], values["lora_alpha"]) == (spec.lora.rank, 2 * spec.lora.rank)
            assert values["lora_target_modules"] == ("all-linear" if spec.lora.target == "all" else ["q_proj", "v_proj"])


@pytest.mark.llamafactory
def test_trl_trains_three_steps_of_an_export(python: Path, tmp_path: Path) -> None:  # noqa: F811
    made = [python, ROOT / "examples" / "make_tiny.py", tmp_path]
    subprocess.run(made, env=environment(python), capture_output=True, check=True, timeout=300)
    ref = dataset(
        tmp_path, formatting="sharegpt", columns={"messages": "messages"}, tags={"role_tag": "role", "content_tag": "content"}
    )
    row = {"messages": [{"role": "user", "content": "where is it"}, {"role": "assistant", "content": "on the left"}]}
    (tmp_path / "d.jsonl").write_text((json.dumps(row) + "\n") * 24)
    case = make_case(
        ModelRef(path=str(tmp_path / "tiny-llama")), dataset=ref, method="lora", precision="fp32", device="cpu", cutoff_len=64,
        micro_batch_size=2, gradient_accumulation_steps=4,
    )  # fmt: skip
    export(case.study, case.trial, case.reference, "trl", tmp_path / "out")
    # the script that `trl sft` starts: TRL 0.24's own program cannot import its other trainers beside transformers 5
    command = [python, "-m", "trl.scripts.sft", "--config", "out/train.yaml", "--num_train_epochs", "1", "--logging_steps", "1"]
    env = {**environment(python), "HF_HOME": str(tmp_path / "hf"), "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    losses = re.findall(r"'loss': '?([0-9.]+)", done.stdout)
    assert len(losses) == 3, done.stdout[-2000:]
    assert (tmp_path / "saves" / "s1-trial-7" / "adapter_model.safetensors").exists()


@pytest.mark.parametrize("name", AXOLOTL)
def test_axolotl_knows_every_key(name: str) -> None:
    known = set(KEYS.read_text().split())
    assert len(known) > 300
    fields = dict(AXOLOTL[name])
    values = keys_of("axolotl", fields.pop("model", "qwen2.5-vl-7b"), **fields)
    assert set(values) <= known
    assert values["sequence_len"] == 2048
    assert values["micro_batch_size"] == values["eval_batch_size"] == 1
    zero = ((values.get("deepspeed") or {}).get("zero_optimization") or {}).get("stage", 0)
    assert zero == AXOLOTL[name].get("zero_stage", 0)


def frozen_as_axolotl_does(patterns: list[str], names: list[str]) -> list[str]:
    """The names that stay trainable: axolotl's `utils/freeze.py` takes every dot as a dot and matches from the start."""
    compiled = [re.compile(re.sub(r"\.(?!\+)", "\\.", pattern)) for pattern in patterns]
    return [name for name in names if any(pattern.match(name) for pattern in compiled)]


def test_axolotls_frozen_parts() -> None:
    names = [
        "model.visual.patch_embed.proj.weight",
        "model.visual.blocks.0.mlp.up_proj.weight",
        "model.visual.merger.mlp.0.weight",
        "model.language_model.layers.27.mlp.up_proj.weight",
        "model.language_model.layers.7.mlp.up_proj.weight",
        "lm_head.weight",
    ]

    def trained(**fields: Any) -> list[int]:
        patterns = keys_of("axolotl", "qwen2.5-vl-7b", pure_bf16=True, **fields)["unfrozen_parameters"]
        return [names.index(name) for name in frozen_as_axolotl_does(patterns, names)]

    assert trained() == [3, 4, 5]
    assert trained(freeze_multi_modal_projector=False, freeze_language_model=True) == [2]
    assert trained(freeze_multi_modal_projector=False, freeze_vision_tower=False) == [0, 1, 2, 3, 4, 5]
    assert trained(method="freeze") == [3]
    target = keys_of("axolotl", "qwen2.5-vl-7b", method="lora")["lora_target_modules"]
    adapted = [name for name in names if re.fullmatch(target, name.removesuffix(".weight"))]
    assert adapted == [names[3], names[4]]


def test_the_forms_of_data(tmp_path: Path) -> None:
    file = str(tmp_path / "d.jsonl")
    alpaca = dataset(tmp_path)
    assert keys_of("axolotl", method="lora", dataset=alpaca)["datasets"] == [
        {"path": file, "ds_type": "json", "split": "train", "type": "alpaca"}
    ]
    with pytest.raises(UsageError, match=r"data set d \(d\.jsonl\) has no columns that trl reads"):
        keys_of("trl", dataset=alpaca)
    pairs = dataset(tmp_path, columns={"prompt": "prompt", "response": "completion"})
    assert keys_of("trl", dataset=pairs)["datasets"] == [{"path": "json", "data_files": file, "split": "train"}]
    with pytest.raises(UsageError, match="names its alpaca columns otherwise"):
        keys_of("axolotl", method="lora", dataset=pairs)
    chat = dataset(tmp_path, formatting="sharegpt", columns={"messages": "conversations"})
    entry = keys_of("axolotl", method="lora", dataset=chat)["datasets"][0]
    assert (entry["type"], entry["field_messages"]) == ("chat_template", "conversations")
    assert entry["message_property_mappings"] == {"role": "from", "content": "value"}
    with pytest.raises(UsageError, match="is no local file that trl reads"):
        keys_of("trl", dataset=dataset(tmp_path, file_name=None))
    with pytest.raises(UsageError, match="is not here"):
        keys_of("trl", dataset=DatasetRef(name="d", dir=str(tmp_path / "nowhere")))


@pytest.mark.parametrize(
    ("launcher", "model", "fields", "words"),
    [
        ("trl", "qwen2.5-vl-7b", {}, "can neither freeze parts of a vision-language model"),
        ("trl", TEXT, {"method": "freeze"}, "cannot train the last layers only"),
        ("trl", TEXT, {"zero_stage": 2}, "one device without a process group"),
        ("axolotl", TEXT, {}, "without fp32 masters unless DeepSpeed keeps them"),
        ("axolotl", TEXT, {"device": "cpu", "precision": "fp32"}, "axolotl needs a GPU"),
        ("axolotl", TEXT, {"method": "lora", "fused_cross_entropy": True}, "Liger"),
        ("axolotl", "qwen2.5-vl-7b", {"method": "lora", "freeze_vision_tower": False}, "adapters in the vision tower"),
        ("axolotl", "other-vl", {"pure_bf16": True}, "parameter names, which are not known here for llava_like"),
    ],
)
def test_what_cannot_be_said_is_refused_in_one_line(
    tmp_path: Path, launcher: str, model: str, fields: dict[str, Any], words: str
) -> None:
    ref: str | ModelRef = model
    if model == "other-vl":
        ref = weights_of("qwen2.5-vl-7b", tmp_path / "m")
        config = json.loads((tmp_path / "m" / "config.json").read_text())
        (tmp_path / "m" / "config.json").write_text(json.dumps({**config, "model_type": "llava_like"}))
    with pytest.raises(UsageError, match=words) as error:
        keys_of(launcher, ref, **fields)
    assert "\n" not in str(error.value)


def test_commands() -> None:
    lora = make_case(TEXT, method="lora")
    assert launch_command(lora.study, lora.trial, "trl", Path("o")) == "trl sft --config o/train.yaml"
    assert launch_command(lora.study, lora.trial, "axolotl", Path("o")) == "axolotl train o/train.yaml --launcher python"
    many = make_case(TEXT, zero_stage=2, num_gpus=4)
    assert launch_command(many.study, many.trial, "axolotl", Path("o")) == (
        "axolotl train o/train.yaml --launcher torchrun -- --nproc_per_node=4"
    )
