"""LLaMA-Factory itself judges the exports: its parser reads them and its CLI trains one.

Runs in the environment of `make llamafactory-env`, or the interpreter in $AUTOFIT_LLAMAFACTORY_PYTHON.
"""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from export_cases import Case, make_case

from autofit.config.model import ModelRef
from autofit.config.space import DatasetRef
from autofit.export import export
from autofit.export.llamafactory_arguments import ATTENTION
from autofit.export.templates import BY_MODEL_TYPE

pytestmark = pytest.mark.llamafactory

ROOT = Path(__file__).parents[2]
TEXT_MODEL = "llama-3.1-8b"
MATRIX: dict[str, dict[str, Any]] = {
    "full": {},
    "full_everything": {"freeze_vision_tower": False, "freeze_multi_modal_projector": False},
    "projector_only": {"freeze_multi_modal_projector": False, "freeze_language_model": True},
    "lora": {"method": "lora", "lora": {"rank": 32, "target": "all"}},
    "lora_named": {"method": "lora", "lora": {"rank": 4, "target": "q_proj,v_proj"}, "freeze_vision_tower": False},
    "freeze": {"method": "freeze"},
    "text_lora": {"model": TEXT_MODEL, "method": "lora"},
    "zero_1": {"zero_stage": 1, "micro_batch_size": 4},
    "zero_2": {"zero_stage": 2, "gradient_accumulation_steps": 16},
    "zero_2_offload": {"zero_stage": 2, "offload_optimizer": True},
    "zero_3": {"zero_stage": 3, "num_gpus": 8},
    "zero_3_offload": {"zero_stage": 3, "offload_optimizer": True, "offload_param": True},
    "zero_3_lora": {"zero_stage": 3, "method": "lora"},
    "fp16": {"precision": "fp16"},
    "fp32_cpu": {"precision": "fp32", "device": "cpu"},
    "bf16_cpu": {"device": "cpu"},
    "pure_bf16": {"pure_bf16": True},
    "pure_bf16_zero_2": {"pure_bf16": True, "zero_stage": 2},
    "no_checkpointing": {"gradient_checkpointing": False, "cutoff_len": 512},
    **{f"attention_{name}": {"attention": name} for name in ATTENTION},
    **{
        f"optimizer_{name}": {"optimizer": name}
        for name in ("adamw_torch", "adamw_8bit", "paged_adamw_8bit", "adafactor", "sgd")
    },
}


@pytest.fixture(scope="module")
def python() -> Path:
    """The interpreter of the LLaMA-Factory environment. CI must have it; elsewhere its absence skips."""
    found = Path(os.environ.get("AUTOFIT_LLAMAFACTORY_PYTHON") or ROOT / ".venv-llamafactory" / "bin" / "python")
    if not found.exists():
        reason = f"no LLaMA-Factory environment at {found}; `make llamafactory-env` builds it"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return found


def environment(python: Path) -> dict[str, str]:
    return {
        **{name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "VIRTUAL_ENV"}},
        "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}",  # torchrun is found there
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "DS_ACCELERATOR": "cpu",
    }


@pytest.fixture(scope="module")
def judged(python: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The matrix, and two files with a planted fault, through LLaMA-Factory's parser in one process."""
    folder = tmp_path_factory.mktemp("parsed")
    for name, fields in MATRIX.items():
        case = make_case(fields.get("model", "qwen2.5-vl-7b"), **{k: v for k, v in fields.items() if k != "model"})
        written = export(case.study, case.trial, case.reference, "llamafactory", folder / name)
        written[0].rename(folder / f"{name}.yaml")
    good = (folder / "full_everything.yaml").read_text()
    (folder / "planted_unknown_key.yaml").write_text(f"{good}gradient_checkpointing_please: true\n")
    dropped = "".join(line for line in good.splitlines(keepends=True) if not line.startswith("freeze_vision_tower"))
    (folder / "planted_dropped_flag.yaml").write_text(dropped)
    out = folder / "out.json"
    script = Path(__file__).with_name("llamafactory_parse.py")
    done = subprocess.run(
        [python, script, folder, out], env=environment(python), capture_output=True, text=True, timeout=300, check=False
    )
    assert out.exists(), done.stderr[-3000:]
    verdict: dict[str, Any] = json.loads(out.read_text())
    return verdict


@pytest.fixture(scope="module")
def parsed(judged: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """File name -> what the parser understood, or its error."""
    files: dict[str, dict[str, Any]] = judged["files"]
    return files


@pytest.mark.parametrize("name", MATRIX)
def test_llamafactory_reads_what_the_trial_ran(parsed: dict[str, dict[str, Any]], name: str) -> None:
    assert "error" not in parsed[name + ".yaml"]
    assert mistakes(name, parsed[name + ".yaml"]["values"]) == {}


def test_planted_faults_are_seen(parsed: dict[str, dict[str, Any]]) -> None:
    assert "gradient_checkpointing_please" in parsed["planted_unknown_key.yaml"]["error"]
    values = parsed["planted_dropped_flag.yaml"]["values"]
    assert mistakes("full_everything", values) == {"freeze_vision_tower": (True, False)}


def mistakes(name: str, values: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Key -> (what LLaMA-Factory understood, what the trial ran), where they differ."""
    fields = {key: value for key, value in MATRIX[name].items() if key != "model"}
    spec = make_case(MATRIX[name].get("model", "qwen2.5-vl-7b"), **fields).trial.spec
    is_text = MATRIX[name].get("model") == TEXT_MODEL
    wanted: dict[str, Any] = {
        "finetuning_type": spec.method,
        "per_device_train_batch_size": spec.micro_batch_size,
        "per_device_eval_batch_size": spec.micro_batch_size,
        "gradient_accumulation_steps": spec.gradient_accumulation_steps,
        "cutoff_len": spec.cutoff_len,
        "bf16": spec.precision == "bf16" and not spec.pure_bf16,
        "fp16": spec.precision == "fp16",
        "pure_bf16": spec.pure_bf16,
        "disable_gradient_checkpointing": not spec.gradient_checkpointing,
        "use_liger_kernel": False,
        "template": "llama3" if is_text else "qwen2_vl",
        "model_name_or_path": "meta-llama/Llama-3.1-8B-Instruct" if is_text else "Qwen/Qwen2.5-VL-7B-Instruct",
        "freeze_vision_tower": spec.freeze_vision_tower,
        "freeze_multi_modal_projector": spec.freeze_multi_modal_projector,
        "freeze_language_model": spec.freeze_language_model,
        "image_max_pixels": spec.images.max_pixels,
        "warmup_steps": 0.1,  # the parser turns warmup_ratio into it
    }
    if spec.method == "lora":
        wanted |= {"lora_rank": spec.lora.rank, "lora_alpha": 2 * spec.lora.rank, "lora_target": spec.lora.target.split(",")}
    found = {key: values[key] for key in wanted}
    found["optim"], wanted["optim"] = values["optim"].removeprefix("OptimizerNames.").lower(), spec.optimizer
    found["flash_attn"] = values["flash_attn"].removeprefix("AttentionFunction.").lower()
    wanted["flash_attn"] = ATTENTION[spec.attention]
    zero = (values["deepspeed"] or {}).get("zero_optimization", {})
    found |= {"stage": zero.get("stage", 0), "offload": sorted(key for key in zero if key.startswith("offload"))}
    offloaded = {"offload_optimizer": spec.offload_optimizer, "offload_param": spec.offload_param}
    wanted |= {"stage": spec.zero_stage, "offload": sorted(key for key, yes in offloaded.items() if yes)}
    return {key: (found[key], wanted[key]) for key in wanted if found[key] != wanted[key]}


def test_templates_exist(judged: dict[str, Any]) -> None:
    ours = {*BY_MODEL_TYPE.values(), "llama3", "deepseekr1", "qwen3_vl", "qwen3_vl_nothink", "qwen3_nothink"}
    assert ours <= set(judged["templates"])


@pytest.fixture(scope="module")
def tiny(python: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    subprocess.run(
        [python, ROOT / "examples" / "make_tiny.py", folder],
        env=environment(python),
        capture_output=True,
        check=True,
        timeout=120,
    )
    return folder


def test_one_export_trains_three_steps(python: Path, tiny: Path, tmp_path: Path) -> None:
    """Two ranks under ZeRO-2, started by the command that the export gives."""
    case = tiny_case(
        tiny, num_gpus=2, zero_stage=2, micro_batch_size=2, gradient_accumulation_steps=2, freeze_vision_tower=False
    )
    export(case.study, case.trial, case.reference, "llamafactory", tmp_path)
    last = (tmp_path / "train.yaml").read_text().split("run it in this folder with: ")[1].splitlines()[0]
    assert last == "FORCE_TORCHRUN=1 NPROC_PER_NODE=2 llamafactory-cli train train.yaml"
    done = subprocess.run(
        [python.parent / "llamafactory-cli", "train", "train.yaml", "max_steps=3", "logging_steps=1"],
        cwd=tmp_path,
        env={**environment(python), "FORCE_TORCHRUN": "1", "NPROC_PER_NODE": "2", "HF_HOME": str(tmp_path / "hf")},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    output = tmp_path / "saves" / "s1-trial-7"
    steps = [json.loads(line) for line in (output / "trainer_log.jsonl").read_text().splitlines()]
    losses = [step["loss"] for step in steps if "loss" in step]
    assert len(losses) == 3
    assert all(0 < loss < 20 for loss in losses)
    assert len(set(losses)) > 1, "weights move"
    assert (output / "model.safetensors").exists()
    assert "Set vision model not trainable" not in done.stdout + done.stderr


def tiny_case(tiny: Path, **fields: Any) -> Case:
    dataset = DatasetRef(name="tiny_vl", dir=str(tiny / "data"))
    shared = {"device": "cpu", "precision": "fp32", "cutoff_len": 256, "images": {"per_sample": 1, "max_pixels": 50176}}
    return make_case(ModelRef(path=str(tiny / "tiny-qwen2.5-vl")), dataset=dataset, attention="sdpa", **shared, **fields)


def test_the_tiny_folder_is_the_preset(tiny: Path) -> None:
    from autofit.config.model import resolve_model

    for name in ("tiny-qwen2.5-vl", "tiny-llama"):
        assert resolve_model(ModelRef(path=str(tiny / name))).config == resolve_model(ModelRef(preset=name)).config
