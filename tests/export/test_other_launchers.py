"""DeepSpeed JSON and plain Trainer, and that an export's DeepSpeed config is the one its trial ran with."""

import itertools
import json
from pathlib import Path
from typing import Any, get_args

import pytest
from export_cases import Case, make_case

from autofit.config.model import ModelRef
from autofit.config.trial import Precision, TrialSpec
from autofit.errors import UsageError
from autofit.export import EXPORTERS, Source, export, launch_command
from autofit.export.deepspeed import deepspeed_config
from autofit.worker.deepspeed_config import deepspeed_config as workers_config


def rendered(case: Case, launcher: str, file: str) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(EXPORTERS[launcher].render(Source(case.study, case.trial, case.reference))[file])
    return value


@pytest.mark.parametrize(
    ("stage", "optimizer", "param", "precision", "pure"),
    [
        (stage, optimizer, param, precision, pure)
        for stage, optimizer, param, precision, pure in itertools.product(
            (1, 2, 3), (False, True), (False, True), get_args(Precision), (False, True)
        )
        if not (param and stage < 3) and not (pure and precision != "bf16")
    ],
)
def test_an_export_has_its_trials_deepspeed_config(
    stage: int, optimizer: bool, param: bool, precision: Precision, pure: bool
) -> None:
    """The worker is an island and has a copy of this function; `half` is what its `precision.dtypes` derives."""
    case = make_case(zero_stage=stage, offload_optimizer=optimizer, offload_param=param, precision=precision, pure_bf16=pure)
    spec: TrialSpec = case.trial.spec
    half = precision if precision != "fp32" and not pure else None
    assert deepspeed_config(spec) == workers_config(spec.model_dump(mode="json"), half)


def test_no_deepspeed_at_stage_0() -> None:
    case = make_case()
    assert deepspeed_config(case.trial.spec) is None
    with pytest.raises(UsageError, match="trial 7 ran without DeepSpeed"):
        rendered(case, "deepspeed", "ds_config.json")
    assert "deepspeed" not in rendered(case, "transformers", "train_args.json")


def test_deepspeed_alone_has_no_auto() -> None:
    case = make_case(zero_stage=3, num_gpus=8, micro_batch_size=2, gradient_accumulation_steps=3)
    config = rendered(case, "deepspeed", "ds_config.json")
    assert "auto" not in json.dumps(config)
    assert config["train_batch_size"] == 8 * 2 * 3
    assert config["zero_optimization"]["reduce_bucket_size"] == 3584**2, "the text model's hidden size, as transformers has it"
    assert config["bf16"] == {"enabled": True}


def test_bucket_of_a_cpu_trial_is_the_models_size() -> None:
    case = make_case(zero_stage=2, device="cpu", precision="fp32")
    result = case.trial.result
    assert result is not None
    sized = case.trial.model_copy(update={"result": result.model_copy(update={"total_parameters": 6_000_000})})
    for trial, size in ((sized, 6_000_000), (case.trial, 500_000_000)):
        config = rendered(Case(case.study, trial, case.reference), "deepspeed", "ds_config.json")
        assert config["zero_optimization"]["reduce_bucket_size"] == size


@pytest.mark.parametrize(("version", "key"), [("4.57.1", "warmup_ratio"), ("5.23.0", "warmup_steps")])
def test_warmup_is_spelt_as_the_trials_transformers_spells_it(version: str, key: str) -> None:
    case = make_case()
    assert case.trial.result is not None
    result = case.trial.result.model_copy(update={"versions": {"transformers": version}})
    arguments = rendered(
        Case(case.study, case.trial.model_copy(update={"result": result}), case.reference), "transformers", "train_args.json"
    )
    assert {name for name in arguments if name.startswith("warmup")} == {key}


@pytest.mark.parametrize(
    ("fields", "dtype", "trainable"),
    [
        ({}, "bfloat16", "float32"),
        ({"pure_bf16": True}, "bfloat16", None),
        ({"zero_stage": 2}, "bfloat16", "bfloat16"),
        ({"precision": "fp32", "zero_stage": 3}, "float32", "float32"),
        ({"precision": "fp16"}, "float16", "float32"),
    ],
)
def test_model_description(fields: dict[str, Any], dtype: str, trainable: str | None) -> None:
    model = rendered(make_case(method="lora", freeze_vision_tower=False, **fields), "transformers", "model.json")
    assert (model["dtype"], model["trainable_dtype"]) == (dtype, trainable)
    assert model["lora"] == {"r": 8, "lora_alpha": 16, "lora_dropout": 0.0, "target": "all"}
    assert model["freeze"] == {"vision_tower": False, "multi_modal_projector": True, "language_model": False}
    assert any("2.00 x the reference" in line for line in model["evidence"])


FOLDERS: dict[str, tuple[str | None, str | None]] = {
    "says fp32": ("float32", None),
    "says bf16": ("bfloat16", None),
    "says nothing, files in fp32": (None, "float32"),
    "says nothing, files in bf16": (None, "bfloat16"),
    "says nothing, no readable files": (None, None),
}
"""What a model folder is like -> dtype in its config, dtype of its safetensors."""


@pytest.mark.train
@pytest.mark.parametrize(("declared", "filed"), FOLDERS.values(), ids=FOLDERS)
def test_an_export_loads_its_trials_dtypes(tmp_path: Path, declared: str | None, filed: str | None) -> None:
    """What `dtype` of the export makes transformers load is what the worker loaded."""
    torch = pytest.importorskip("torch")
    save_file = pytest.importorskip("safetensors.torch").save_file
    from autofit.worker import models
    from autofit.worker.precision import dtypes

    config = make_case("tiny-llama").study.model.config
    assert config is not None
    (tmp_path / "config.json").write_text(json.dumps(config | ({"dtype": declared} if declared else {})))
    save_file({"w": torch.zeros(1, dtype=getattr(torch, filed))}, tmp_path / "m.safetensors") if filed else None
    (tmp_path / "pytorch_model.bin").touch()
    auto = declared or filed  # from_pretrained's
    for precision, pure, stage in itertools.product(("fp32", "bf16", "fp16"), (False, True), (0, 2)):
        if pure and precision != "bf16":
            continue
        case = make_case(ModelRef(path=str(tmp_path)), precision=precision, pure_bf16=pure, zero_stage=stage)
        described = rendered(case, "transformers", "model.json")
        resolved = case.study.model.model_dump(mode="json")
        kinds = dtypes(case.trial.spec.model_dump(mode="json"), models.stored_dtype(resolved, models.load_config(resolved)))
        loaded = auto if described["dtype"] == "auto" else described["dtype"]
        assert getattr(torch, str(loaded)) == kinds.base, (precision, pure, stage)
        trained = described["trainable_dtype"]
        assert (None if trained is None else getattr(torch, trained)) == kinds.trainable, (precision, pure, stage)


@pytest.mark.train
@pytest.mark.filterwarnings("ignore:.gradient_checkpointing")  # the new name is unknown to older transformers
def test_trainer_reads_the_arguments(tmp_path: Path) -> None:
    from transformers import HfArgumentParser, TrainingArguments

    for number, fields in enumerate(({"zero_stage": 0}, {"zero_stage": 2, "method": "lora"}, {"optimizer": "adafactor"})):
        case = make_case(device="cpu", precision="fp32", micro_batch_size=4, **fields)
        paths = export(case.study, case.trial, case.reference, "transformers", tmp_path / str(number))
        (arguments,) = HfArgumentParser(TrainingArguments).parse_json_file(paths[0])
        assert arguments.per_device_train_batch_size == arguments.per_device_eval_batch_size == 4
        assert arguments.optim.value == case.trial.spec.optimizer
        assert arguments.gradient_checkpointing is True
        assert (arguments.deepspeed is not None) == (case.trial.spec.zero_stage > 0)


def test_commands() -> None:
    case = make_case(zero_stage=2, num_gpus=4)
    out = Path("o")
    assert launch_command(case.study, case.trial, "transformers", out).startswith("torchrun --nproc-per-node 4 ")
    assert launch_command(case.study, case.trial, "deepspeed", out).startswith("deepspeed --num_gpus 4 ")
