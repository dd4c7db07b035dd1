"""The predictor's ZeRO figures against real DeepSpeed on two gloo ranks: trace, symbolic fit, moments, settings, terms.

Where `zero_accuracy.py` checks the terms over models of its own, this takes whole specs: transformers models, adapters, frozen
parts, checkpointing, precision and accumulation as a trial has them, with the DeepSpeed configuration that a trial gets. The
prediction is made as the predictor makes it, of a trace of the CPU's kernels; bytes are counted in torch's CPU allocator. What
differs from a trial on CUDA is told to both sides: the bucket of stages 1 and 2 (LLaMA-Factory's 5e8 elements would be all of
the memory of so small a model), and AdamW's temporaries on the CPU. Forward and backward are one figure, since the moments of a
trace put the loss at the beginning of backward. Writes benchmarks/results/zero_predictor.json.

    python -m benchmarks.zero_predictor [--only NAME] [--no-write]
"""

import argparse
import gc
import json
import os
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("TRANSFORMERS_DISABLE_TORCH_CHECK", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

from autofit.config.legality import canonical, refusal
from autofit.config.model import Model, resolve_model
from autofit.config.trial import TrialSpec
from autofit.predict.symbolic import SymbolicTrace
from autofit.predict.variants import request
from autofit.predict.zero_spec import zero_settings, zero_terms
from benchmarks.zero_accuracy import RANKS, allocations, launch, mark, sections

STORED = Path(__file__).parent / "results" / "zero_predictor.json"
BUCKET = 700_000
"""Elements of the buckets of stages 1 and 2."""
STEPS = 3
TEXT = {
    "hidden_size": 256,
    "intermediate_size": 700,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 3000,
    "max_position_embeddings": 4096,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 1,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
}
LLAMA = {"config": TEXT | {"model_type": "llama", "tie_word_embeddings": False}}
QWEN2 = {"config": TEXT | {"model_type": "qwen2", "tie_word_embeddings": True, "use_sliding_window": False}}
VISION = {"preset": "tiny-qwen2.5-vl"}
ONE_IMAGE = {"per_sample": 1, "max_pixels": 12544}

# z1-full and z3-lora showed what the terms lacked: Trainer's two optimizer groups, and tied embeddings. The others were run
# once, after that was put right.
CASES: dict[str, dict[str, Any]] = {
    "z1-full": {"model": LLAMA, "zero_stage": 1, "micro_batch_size": 2, "cutoff_len": 128},
    "z1-full-fp32-accumulated": {
        "model": QWEN2,
        "zero_stage": 1,
        "precision": "fp32",
        "micro_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "cutoff_len": 192,
    },
    "z1-lora-no-checkpointing": {
        "model": LLAMA,
        "zero_stage": 1,
        "method": "lora",
        "lora": {"rank": 16},
        "micro_batch_size": 3,
        "cutoff_len": 128,
        "gradient_checkpointing": False,
    },
    "z1-vision-frozen-tower": {
        "model": VISION,
        "zero_stage": 1,
        "micro_batch_size": 2,
        "cutoff_len": 192,
        "freeze_multi_modal_projector": False,
        "images": ONE_IMAGE,
    },
    "z2-full-no-checkpointing": {
        "model": LLAMA,
        "zero_stage": 2,
        "micro_batch_size": 2,
        "cutoff_len": 256,
        "gradient_checkpointing": False,
    },
    "z2-full-accumulated": {
        "model": QWEN2,
        "zero_stage": 2,
        "micro_batch_size": 1,
        "gradient_accumulation_steps": 3,
        "cutoff_len": 192,
    },
    "z2-lora": {"model": QWEN2, "zero_stage": 2, "method": "lora", "micro_batch_size": 2, "cutoff_len": 320},
    "z2-fp32-frozen-language": {
        "model": VISION,
        "zero_stage": 2,
        "precision": "fp32",
        "micro_batch_size": 2,
        "cutoff_len": 128,
        "freeze_vision_tower": False,
        "freeze_language_model": True,
        "images": ONE_IMAGE,
    },
    "z2-last-layers": {"model": LLAMA, "zero_stage": 2, "method": "freeze", "micro_batch_size": 2, "cutoff_len": 256},
    "z3-full": {"model": LLAMA, "zero_stage": 3, "micro_batch_size": 2, "cutoff_len": 128},
    "z3-full-no-checkpointing-accumulated": {
        "model": QWEN2,
        "zero_stage": 3,
        "micro_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "cutoff_len": 192,
        "gradient_checkpointing": False,
    },
    "z3-full-fp32": {"model": LLAMA, "zero_stage": 3, "precision": "fp32", "micro_batch_size": 1, "cutoff_len": 256},
    "z3-lora": {"model": QWEN2, "zero_stage": 3, "method": "lora", "micro_batch_size": 2, "cutoff_len": 256},
    "z3-vision-frozen-tower": {"model": VISION, "zero_stage": 3, "micro_batch_size": 2, "cutoff_len": 192, "images": ONE_IMAGE},
}


def spec_of(name: str) -> tuple[TrialSpec, Model]:
    """A case as a canonical spec on two ranks."""
    spec = TrialSpec.model_validate({"num_gpus": RANKS, **CASES[name]})
    model = resolve_model(spec.model)
    spec = canonical(spec, model)
    if reason := refusal(spec, model):
        raise ValueError(f"{name}: {reason}")
    return spec, model


def predict(name: str) -> dict[str, int]:
    """Bytes of the worst rank in a steady step, as the predictor makes them."""
    from autofit.worker.trace import trace

    spec, model = spec_of(name)
    order = request(spec, model, target="cpu")
    regime = "one" if spec.micro_batch_size == 1 else "many"
    order["trace"]["shapes"] = [shape for shape in order["trace"]["shapes"] if shape["regime"] == regime]
    symbolic = SymbolicTrace.from_document(trace(order))
    settings = replace(zero_settings(spec, model), optimizer_temporary_bytes=8)  # the CPU's AdamW: one tensor at a time
    if spec.zero_stage < 3:
        settings = replace(settings, reduce_bucket_size=BUCKET)
    terms = zero_terms(settings, symbolic, spec.micro_batch_size, spec.cutoff_len, _patches(spec, model))
    return {
        "resident_bytes": terms.resident_bytes,
        "compute_bytes": max(terms.forward_peak_bytes, terms.backward_peak_bytes),
        "step_bytes": terms.step_peak_bytes,
        "peak_bytes": terms.peak_bytes,
    }


def _patches(spec: TrialSpec, model: Model) -> int:
    from autofit.predict.images import image_patches

    return spec.micro_batch_size * spec.images.per_sample * image_patches(spec, model)


def configuration(spec: TrialSpec, hidden: int) -> dict[str, Any]:
    """The trial's DeepSpeed configuration, `auto` filled as transformers fills it (`integrations/deepspeed.py`)."""
    from autofit.worker.deepspeed_config import deepspeed_config
    from autofit.worker.precision import dtypes

    trial = spec.model_dump(mode="json")
    config = deepspeed_config(trial, dtypes(trial).deepspeed, bucket_elements=BUCKET)
    config |= {
        "train_batch_size": spec.global_batch_size,
        "train_micro_batch_size_per_gpu": spec.micro_batch_size,
        "gradient_accumulation_steps": spec.gradient_accumulation_steps,
        "gradient_clipping": 1.0,
        "steps_per_print": 1_000_000,
    }
    automatic = {
        "reduce_bucket_size": hidden**2,
        "stage3_prefetch_bucket_size": int(0.9 * hidden**2),
        "stage3_param_persistence_threshold": 10 * hidden,
    }
    zero = config["zero_optimization"]
    zero |= {name: value for name, value in automatic.items() if zero.get(name) == "auto"}
    return config


def train(name: str) -> dict[str, int]:
    """Bytes that DeepSpeed's rank holds between steps, and its peaks, in the last step."""
    import deepspeed

    from autofit.worker import models
    from autofit.worker.batches import WorstBatch, collate
    from autofit.worker.trace_optim import build_optimizer

    spec, resolved = spec_of(name)
    trial, model_dict = spec.model_dump(mode="json"), resolved.model_dump(mode="json")
    config = models.load_config(model_dict)
    samples = STEPS * spec.gradient_accumulation_steps * spec.micro_batch_size
    source = WorstBatch(config, trial, seed=0, length=samples)
    drawn = [source[index] for index in range(samples)]
    hidden = int(models.text_config(config).hidden_size)
    gc.collect()
    with allocations() as events:
        model = models.build(model_dict, trial, 0, "cpu")
        model.train()
        optimizer = build_optimizer(spec.optimizer, model, foreach=False)
        engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=configuration(spec, hidden))
        del model, optimizer
        micro = spec.micro_batch_size
        for step in range(STEPS):
            last = step == STEPS - 1
            first = step * spec.gradient_accumulation_steps
            batches = [
                collate(drawn[(first + k) * micro : (first + k + 1) * micro]) for k in range(spec.gradient_accumulation_steps)
            ]
            for batch in batches:
                if last:
                    mark(1)
                loss = engine(**batch)["loss"]
                if last:
                    mark(2)
                engine.backward(loss)
                del loss
                if last:
                    mark(3)
                engine.step()
            del batches, batch
        mark(4)
    rows = sections(events)
    peaks = {part: max(max(c) for m, c in rows if m == k) for part, k in {"forward": 1, "backward": 2, "step": 3}.items()}
    resident = rows[-1][1][0]
    engine.destroy()
    del engine
    gc.collect()
    return {
        "resident_bytes": resident,
        "compute_bytes": max(peaks["forward"], peaks["backward"]),
        "step_bytes": peaks["step"],
        "peak_bytes": max(peaks.values()),
    }


def worker(names: list[str], out: Path) -> None:
    """Runs in each rank."""
    import deepspeed
    import torch
    from deepspeed import ops

    from benchmarks.zero_accuracy import collectives_outside_the_allocator

    ops.__compatible_ops__["deepspeed_shm_comm"] = False  # would be compiled for minutes; gloo serves without it
    collectives_outside_the_allocator()
    torch.autograd.set_multithreading_enabled(False)
    deepspeed.init_distributed("gloo")
    rows = [train(name) for name in names]
    out.with_suffix(f".{os.environ['RANK']}").write_text(json.dumps(rows), encoding="utf-8")


def run(names: list[str], scratch: Path) -> list[dict[str, Any]]:
    """One row a case: predicted, measured (worst rank) and the error of each figure."""
    measured = launch(names, scratch, program=Path(__file__))
    rows = []
    for name, *of_ranks in zip(names, *measured, strict=True):
        predicted = predict(name)
        worst = {key: max(rank[key] for rank in of_ranks) for key in predicted}
        error = {key.removesuffix("_bytes"): round(predicted[key] / worst[key] - 1, 5) for key in worst}
        rows.append({"case": name, "spec": CASES[name], "measured": worst, "predicted": predicted, "error": error})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=CASES, help="a case (default: all)")
    parser.add_argument("--no-write", action="store_true", help="print only")
    parser.add_argument("--rank", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    names = arguments.only or list(CASES)
    if arguments.rank:
        worker(names, arguments.out)
        return
    with tempfile.TemporaryDirectory() as scratch:
        rows = run(names, Path(scratch))
    for row in rows:
        print(f"{row['case']:38}", {k: f"{100 * v:+.2f} %" for k, v in row["error"].items()})
    if not arguments.no_write and not arguments.only:
        STORED.write_text(json.dumps(record(rows), indent=1) + "\n", encoding="utf-8")


def record(rows: list[dict[str, Any]]) -> dict[str, Any]:
    from importlib.metadata import version

    return {
        "what": "bytes of torch's CPU allocator in a rank of real DeepSpeed against the predictor's ZeRO",
        "ranks": RANKS,
        "versions": {name: version(name) for name in ("deepspeed", "torch", "transformers", "peft")},
        "worst_absolute_error": {k: max(abs(row["error"][k]) for row in rows) for k in ("resident", "peak")},
        "rows": rows,
    }


if __name__ == "__main__":
    main()
