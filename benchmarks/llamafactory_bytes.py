"""The part of `cpu_accuracy.py` that runs in LLaMA-Factory's environment: traces there, and trains as LLaMA-Factory does.

    PYTHON benchmarks/llamafactory_bytes.py ORDERS.json OUT.json

ORDERS.json is a list of {"model", "trial", "trace"}; OUT.json gets a list of {"predicted", "measured", "prepared", "versions"}
in bytes. The model is written with random weights in the dtype that its config declares, loaded and prepared by LLaMA-Factory's
own `load_model` from parsed arguments, and trained by its `CustomSeq2SeqTrainer` with its collator for two optimizer steps.
`prepared` counts the parameters by dtype and whether they are trained. Torch stack and LLaMA-Factory only.
"""

import gc
import json
import os
import sys
import tempfile
import warnings
from collections import Counter
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "examples")]
os.environ.setdefault("TRANSFORMERS_DISABLE_TORCH_CHECK", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("LLAMAFACTORY_VERBOSITY", "ERROR")

import numpy as np
import torch
from profiled import peak_of

from autofit.worker import models
from autofit.worker.batches import WorstBatch, image_layout
from autofit.worker.trace import trace

ATTENTION = {"auto": "auto", "eager": "disabled", "sdpa": "sdpa"}
TEMPLATES = {"qwen2_5_vl": "qwen2_vl", "qwen2_vl": "qwen2_vl"}


def predicted(order: dict[str, Any]) -> int:
    """Peak bytes of the trace, unrounded as the CPU's allocator is."""
    group = trace(order)["groups"][0]
    sizes = np.asarray(group["storages"]["bytes"][0])[np.asarray(group["events"]["storage"])]
    return int(np.cumsum(sizes * np.asarray(group["events"]["kind"])).max())


def measured(order: dict[str, Any], folder: Path) -> tuple[int, dict[str, int]]:
    """Peak bytes of two optimizer steps through LLaMA-Factory, and its parameters by dtype and `trained` or `frozen`."""
    from llamafactory.data import get_template_and_fix_tokenizer
    from llamafactory.data.collator import SFTDataCollatorWith4DAttentionMask
    from llamafactory.hparams import parser
    from llamafactory.model import load_model, load_tokenizer
    from llamafactory.train.sft.trainer import CustomSeq2SeqTrainer

    parser.is_torch_bf16_gpu_available = lambda: True  # asked for `pure_bf16`, which a CPU computes as well
    config = write_model(order, folder / "model")
    model_args, data_args, training_args, finetuning_args, _ = parser.get_train_args(arguments(order, config, folder))
    tokenizers = load_tokenizer(model_args)
    template = get_template_and_fix_tokenizer(tokenizers["tokenizer"], data_args)
    model = load_model(tokenizers["tokenizer"], model_args, finetuning_args, is_trainable=True)
    collator = SFTDataCollatorWith4DAttentionMask(
        template=template,
        model=model,
        pad_to_multiple_of=8,
        label_pad_token_id=-100,
        attn_implementation=getattr(model.config, "_attn_implementation", None),
        compute_dtype=model_args.compute_dtype,
        **tokenizers,
    )
    trainer = CustomSeq2SeqTrainer(
        model=model,
        args=training_args,
        finetuning_args=finetuning_args,
        data_collator=collator,
        train_dataset=samples(order["trial"], config),
        **tokenizers,
    )
    gc.collect()
    peak = peak_of(model, trainer.train)
    return peak, prepared(model)


def prepared(model: torch.nn.Module) -> dict[str, int]:
    """`float32 trained` -> number of parameters, and so on."""
    counts: Counter[str] = Counter()
    for parameter in model.parameters():
        kind = "trained" if parameter.requires_grad else "frozen"
        counts[f"{str(parameter.dtype).removeprefix('torch.')} {kind}"] += parameter.numel()
    return dict(sorted(counts.items()))


def write_model(order: dict[str, Any], folder: Path) -> Any:
    """Random weights, tokenizer and, for images, processor; returns the config."""
    from make_tiny import write_image_processor, write_tokenizer

    config = models.load_config(order["model"])
    torch.manual_seed(0)
    model = models.model_class(config)(config).to(getattr(torch, str(order["model"]["config"]["dtype"])))
    model.save_pretrained(folder)
    write_tokenizer(folder)
    (folder / "config.json").write_text(json.dumps({**order["model"]["config"], "architectures": [type(model).__name__]}))
    if getattr(config, "vision_config", None) is not None:
        write_image_processor(folder)
    return config


def arguments(order: dict[str, Any], config: Any, folder: Path) -> dict[str, Any]:
    """What the user's YAML would say."""
    trial = order["trial"]
    given: dict[str, Any] = {
        "model_name_or_path": str(folder / "model"),
        "flash_attn": ATTENTION[trial["attention"]],
        "disable_gradient_checkpointing": not trial["gradient_checkpointing"],
        "image_max_pixels": trial["images"]["max_pixels"],
        "stage": "sft",
        "do_train": True,
        "finetuning_type": trial["method"],
        "lora_rank": trial["lora"]["rank"],
        "lora_target": trial["lora"]["target"],
        "pure_bf16": trial["pure_bf16"],
        "bf16": trial["precision"] == "bf16" and not trial["pure_bf16"],
        "freeze_vision_tower": trial["freeze_vision_tower"],
        "freeze_multi_modal_projector": trial["freeze_multi_modal_projector"],
        "freeze_language_model": trial["freeze_language_model"],
        "dataset": "none",
        "template": TEMPLATES.get(config.model_type, "empty"),
        "cutoff_len": trial["cutoff_len"],
        "per_device_train_batch_size": trial["micro_batch_size"],
        "gradient_accumulation_steps": trial["gradient_accumulation_steps"],
        "optim": trial["optimizer"],
        "learning_rate": 1e-5,
        "max_steps": 2,
        "output_dir": str(folder / "saves"),
        "save_strategy": "no",
        "logging_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "dataloader_num_workers": 0,
    }
    return given


def samples(trial: dict[str, Any], config: Any) -> list[dict[str, Any]]:
    """Full sequences as LLaMA-Factory's preprocessing hands them on: token lists, and images as pictures."""
    from PIL import Image

    count = 2 * trial["gradient_accumulation_steps"] * trial["micro_batch_size"]
    source = WorstBatch(config, trial, seed=0, length=count)
    pictures: list[Any] = []
    if getattr(config, "vision_config", None) is not None and trial["images"]["per_sample"]:
        _, rows, columns = image_layout(config, trial["images"]["max_pixels"]).grid
        side = config.vision_config.patch_size
        pictures = [Image.new("RGB", (columns * side, rows * side))] * trial["images"]["per_sample"]
    names = ("input_ids", "attention_mask", "labels")
    lists = ({name: sample[name].tolist() for name in names} for sample in (source[index] for index in range(count)))
    return [{**sample, "images": list(pictures), "videos": [], "audios": []} for sample in lists]


def main() -> None:
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    orders, out = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    import_module("llamafactory.train.sft.trainer")  # before tracing, so that both see what it does to transformers
    versions = {name: version(name) for name in ("llamafactory", "transformers", "peft", "accelerate", "torch")}
    answers = []
    for number, order in enumerate(orders):
        guess = predicted(order)
        with tempfile.TemporaryDirectory() as folder:
            truth, parameters = measured(order, Path(folder))
        gc.collect()
        answers.append({"predicted": guess, "measured": truth, "prepared": parameters, "versions": versions})
        print(f"{number:3d} {guess / truth - 1:+.4%} {guess / 2**20:9.2f} {truth / 2**20:9.2f} MiB {parameters}", flush=True)
        out.write_text(json.dumps(answers))


if __name__ == "__main__":
    main()
