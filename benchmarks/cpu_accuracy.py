"""Predicted against really allocated bytes: traces of whole training steps, and the same steps on the CPU's own allocator.

Each configuration is traced on `meta` with the CPU's kernels (nothing is computed), then really trained for two optimizer
steps while torch's profiler lists every allocation and release. A third of them is prepared and trained by LLaMA-Factory
itself, and traced there too, by the interpreter of its environment (`llamafactory_bytes.py`); a third by transformers'
Trainer, which shares no line with the trace's loop; the others by that loop itself over real tensors.

    python benchmarks/cpu_accuracy.py [-n 66] [--seed 0] [--llamafactory PYTHON] [-o benchmarks/results/cpu_accuracy.md]
"""

import argparse
import gc
import json
import os
import platform
import random
import subprocess
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

os.environ.setdefault("TRANSFORMERS_DISABLE_TORCH_CHECK", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import numpy as np
import torch
from profiled import peak_of

from autofit.config.legality import canonical, refusal
from autofit.config.model import ModelRef, resolve_model
from autofit.config.trial import TrialSpec
from autofit.worker import models
from autofit.worker.batches import WorstBatch, collate
from autofit.worker.precision import dtypes
from autofit.worker.trace import trace
from autofit.worker.trace_loop import Loop
from autofit.worker.trace_optim import build_optimizer

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "cpu_accuracy.md"
LLAMAFACTORY = HERE.parent / ".venv-llamafactory" / "bin" / "python"
ENGINES = ("loop", "llamafactory", "trainer")
TEXT = {"hidden_size": 384, "intermediate_size": 1024, "num_attention_heads": 6, "num_key_value_heads": 2, "vocab_size": 8000}


def base_configs() -> dict[str, dict[str, Any]]:
    """Model classes of the benchmark, cut down in width and depth."""
    common = TEXT | {
        "num_hidden_layers": 4,
        "max_position_embeddings": 8192,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 1,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    }
    vision = resolve_model(TrialSpec(model={"preset": "tiny-qwen2.5-vl"}).model).config
    assert vision is not None
    vision = json.loads(json.dumps(vision))
    vision["vision_config"] |= {"hidden_size": 160, "intermediate_size": 448}
    return {
        "llama": common | {"model_type": "llama", "tie_word_embeddings": False},
        "qwen2": common | {"model_type": "qwen2", "tie_word_embeddings": True, "use_sliding_window": False},
        "qwen3": common | {"model_type": "qwen3", "head_dim": 64, "tie_word_embeddings": False},
        "mistral": common | {"model_type": "mistral", "sliding_window": None, "tie_word_embeddings": False},
        "gemma": common | {"model_type": "gemma", "head_dim": 64, "hidden_activation": "gelu_pytorch_tanh"},
        "phi3": common | {"model_type": "phi3", "tie_word_embeddings": False},
        "qwen2_5_vl": vision,
    }


def generate(count: int, seed: int) -> list[tuple[TrialSpec, str]]:
    """Configurations drawn at random among the legal ones; half of them with images. (spec, engine)"""
    draw = random.Random(seed)
    configs = base_configs()
    names = [name for name in configs if name != "qwen2_5_vl"]
    found: list[tuple[TrialSpec, str]] = []
    seen: set[str] = set()
    while len(found) < count:
        engine = ENGINES[len(found) % 3]
        vision = len(found) % 2 == 0
        name = "qwen2_5_vl" if vision else draw.choice(names)
        spec = TrialSpec(
            model={"config": configs[name]},
            method=draw.choice(["full", "full", "lora", "freeze"]),
            lora={"rank": draw.choice([4, 16])},
            precision=draw.choice(["bf16", "bf16", "fp32"]),
            pure_bf16=draw.random() < 0.3,
            optimizer=draw.choice(["adamw_torch", "adamw_torch_fused", "sgd", "adafactor"]),
            micro_batch_size=draw.choice([1, 2, 3]),
            gradient_accumulation_steps=draw.choice([1, 1, 2]),
            cutoff_len=draw.choice([256, 384, 512]),
            gradient_checkpointing=draw.random() < 0.6,
            freeze_vision_tower=draw.random() < 0.6,
            freeze_multi_modal_projector=draw.random() < 0.6,
            freeze_language_model=draw.random() < 0.2,
            attention=draw.choice(["auto", "auto", "auto", "eager"]) if not vision else "auto",
            images={"per_sample": draw.choice([1, 2]) if vision else 0, "max_pixels": draw.choice([12544, 50176])},
        )
        if engine == "llamafactory":
            # what its files hold decides how LLaMA-Factory loads a model: half precision mostly, as models are published
            stored = "float32" if spec.precision == "fp32" or len(found) % 5 == 0 else "bfloat16"
            spec = spec.model_copy(update={"model": ModelRef(config=configs[name] | {"dtype": stored})})
        model = resolve_model(spec.model)
        spec = canonical(spec, model)
        if refusal(spec, model) or spec.config_key() in seen:
            continue
        seen.add(spec.config_key())
        found.append((spec, engine))
    return found


def order_of(spec: TrialSpec, engine: str) -> dict[str, Any]:
    """What the trace is asked for. accelerate's loader fetches one batch ahead."""
    options = {"target": "cpu", "lookahead": int(engine != "loop")}
    model = resolve_model(spec.model).model_dump(mode="json")
    return {"trial": spec.model_dump(mode="json"), "model": model, "trace": options}


def predicted(spec: TrialSpec, engine: str) -> int:
    """Peak bytes of the trace, unrounded as the CPU's allocator is."""
    group = trace(order_of(spec, engine))["groups"][0]
    sizes = np.asarray(group["storages"]["bytes"][0])[np.asarray(group["events"]["storage"])]
    return int(np.cumsum(sizes * np.asarray(group["events"]["kind"])).max())


def measured(spec: TrialSpec, engine: str) -> int:
    """Peak bytes of real tensors over two optimizer steps."""
    trial = spec.model_dump(mode="json")
    model_dict = resolve_model(spec.model).model_dump(mode="json")
    config = models.load_config(model_dict)
    model = models.build(model_dict, trial, 0, "cpu")
    model.train()
    count = 2 * spec.gradient_accumulation_steps * spec.micro_batch_size
    source = WorstBatch(config, trial, seed=0, length=count)
    samples = [source[index] for index in range(count)]
    train = _with_trainer if engine == "trainer" else _with_loop
    run = train(model, spec, samples)
    gc.collect()
    return peak_of(model, run)


def _with_loop(model: Any, spec: TrialSpec, samples: list[Any]) -> Any:
    trial = spec.model_dump(mode="json")
    loop = Loop(model, build_optimizer(spec.optimizer, model), autocast=dtypes(trial).autocast)

    def run() -> None:
        for step in range(2):
            first = step * spec.gradient_accumulation_steps
            batches = [
                collate(samples[(first + i) * spec.micro_batch_size : (first + i + 1) * spec.micro_batch_size])
                for i in range(spec.gradient_accumulation_steps)
            ]
            loop.step(batches, step)
            del batches

    return run


def _with_trainer(model: Any, spec: TrialSpec, samples: list[Any]) -> Any:
    from transformers import Trainer, TrainingArguments

    arguments = TrainingArguments(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=spec.micro_batch_size,
        gradient_accumulation_steps=spec.gradient_accumulation_steps,
        max_steps=2,
        optim=spec.optimizer,
        learning_rate=1e-5,
        bf16=dtypes(spec.model_dump(mode="json")).autocast is not None,
        use_cpu=True,
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_num_workers=0,
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=samples, data_collator=collate)
    return trainer.train


def in_llamafactory(python: Path, specs: list[TrialSpec], folder: Path) -> "subprocess.Popen[bytes]":
    """Starts what traces and trains these in LLaMA-Factory's environment; the answers come into `folder`/answers.json."""
    orders = folder / "orders.json"
    orders.write_text(json.dumps([order_of(spec, "llamafactory") for spec in specs]))
    with (folder / "log").open("wb") as log:
        script = str(HERE / "llamafactory_bytes.py")
        return subprocess.Popen([python, script, orders, folder / "answers.json"], stdout=log, stderr=log)


def describe(spec: TrialSpec) -> str:
    """The knobs that make a row."""
    kind = spec.model.label
    parts = [kind, spec.method + (f" r{spec.lora.rank}" if spec.method == "lora" else "")]
    parts.append("pure bf16" if spec.pure_bf16 else spec.precision)
    parts += ["stored in fp32"] if (spec.model.config or {}).get("dtype") == "float32" and spec.precision != "fp32" else []
    parts += [spec.optimizer, f"bs {spec.micro_batch_size}x{spec.gradient_accumulation_steps}", f"seq {spec.cutoff_len}"]
    parts += ["ckpt"] if spec.gradient_checkpointing else []
    parts += [spec.attention] if spec.attention != "auto" else []
    if spec.images.per_sample:
        frozen = "".join(
            letter
            for letter, flag in zip(
                "VPL", (spec.freeze_vision_tower, spec.freeze_multi_modal_projector, spec.freeze_language_model), strict=True
            )
            if flag
        )
        parts += [f"{spec.images.per_sample} x {spec.images.max_pixels} px", f"frozen {frozen or 'none'}"]
    return ", ".join(parts)


def main() -> None:
    """Prints a row a configuration and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("-n", type=int, default=66)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--llamafactory", type=Path, default=LLAMAFACTORY, help="interpreter of its environment")
    parser.add_argument("--only", type=int, nargs="+", default=None, help="numbers of rows to print; no table is written")
    parser.add_argument("-o", type=Path, default=RESULTS)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    started = time.perf_counter()
    chosen = [
        (number, spec, engine)
        for number, (spec, engine) in enumerate(generate(options.n, options.seed))
        if options.only is None or number in options.only
    ]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        there = [spec for _, spec, engine in chosen if engine == "llamafactory"]
        child = in_llamafactory(options.llamafactory, there, folder)
        here = {number: _row_here(number, spec, engine) for number, spec, engine in chosen if engine != "llamafactory"}
        if child.wait():
            raise SystemExit((folder / "log").read_text()[-4000:])
        answers = iter(json.loads((folder / "answers.json").read_text()) if there else [])
    rows, versions = [], _versions()
    for number, spec, engine in chosen:
        if engine == "llamafactory":
            answer = next(answers)
            versions |= {"LLaMA-Factory's environment": answer["versions"]}
            here[number] = (number, describe(spec), engine, answer["predicted"], answer["measured"])
        rows.append(here[number])
        print(_line(here[number]), flush=True)
    if options.only is None:
        options.o.parent.mkdir(exist_ok=True)
        options.o.write_text(_table(rows, options, versions, time.perf_counter() - started), encoding="utf-8")


Row = tuple[int, str, str, int, int]


def _row_here(number: int, spec: TrialSpec, engine: str) -> Row:
    row = (number, describe(spec), engine, predicted(spec, engine), measured(spec, engine))
    gc.collect()
    print(_line(row), flush=True)
    return row


def _line(row: Row) -> str:
    number, text, engine, guess, truth = row
    return f"{number:3d} {guess / truth - 1:+.4%} {guess / 2**20:9.2f} {truth / 2**20:9.2f} MiB {engine:12s} {text}"


def _versions() -> dict[str, Any]:
    import peft
    import transformers

    return {
        "this environment": {"transformers": transformers.__version__, "peft": peft.__version__, "torch": torch.__version__}
    }


def _table(rows: list[Row], options: Any, versions: dict[str, Any], seconds: float) -> str:
    errors = np.array([guess / truth - 1 for *_, guess, truth in rows])
    theirs = np.array([row[2] == "llamafactory" for row in rows])
    lines = [
        "# Predicted and really allocated bytes on the CPU",
        "",
        f"`python benchmarks/cpu_accuracy.py -n {options.n} --seed {options.seed}`, {seconds:.0f} s;"
        f" Python {platform.python_version()}, {platform.machine()}.",
        *(f"{where}: {', '.join(f'{name} {number}' for name, number in found.items())}." for where, found in versions.items()),
        "",
        f"{len(rows)} configurations: {_summary(errors)}.",
        f"Prepared and trained by LLaMA-Factory, {theirs.sum()}: {_summary(errors[theirs])}.",
        "",
        "| # | configuration | trained by | predicted MiB | measured MiB | error |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {n} | {text} | {engine} | {guess / 2**20:.3f} | {truth / 2**20:.3f} | {guess / truth - 1:+.4%} |"
        for n, text, engine, guess, truth in rows
    ]
    return "\n".join(lines) + "\n"


def _summary(errors: Any) -> str:
    sizes = np.abs(errors)
    return (
        f"median |error| {np.median(sizes):.4%}, 95th percentile {np.percentile(sizes, 95):.4%}, worst {sizes.max():.4%};"
        f" under-predicted by more than 0.05 %: {(errors < -5e-4).sum()}"
    )


if __name__ == "__main__":
    main()
