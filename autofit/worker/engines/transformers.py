"""Engine `transformers`: Hugging Face Trainer with its DeepSpeed integration, on a synthetic worst batch."""

import time
from typing import Any

import torch
from transformers import Trainer, TrainingArguments
from transformers.trainer_utils import set_seed

from autofit.worker.batches import StepBatches, WorstBatch, collate
from autofit.worker.deepspeed_config import deepspeed_config
from autofit.worker.heartbeat import Heartbeat
from autofit.worker.meter import Meter
from autofit.worker.models import build, load_config, model_class, precision_mode, stored_dtype
from autofit.worker.observer import Observer
from autofit.worker.order import Order
from autofit.worker.precision import dtypes
from autofit.worker.report import RankReport
from autofit.worker.startup import (
    bucket_elements,
    launched_alike,
    load_libraries,
    meter_backend,
    prepare_deepspeed,
    start_helpers,
)
from autofit.worker.trainers import Watcher, observed

LEARNING_RATE = 1e-5
"""Constant and small: a trial measures, it does not teach."""


def run(order: Order, report: RankReport, heartbeat: Heartbeat) -> None:
    """Trains `order.total_steps` optimizer steps and fills the report, also when it raises."""
    meter = Meter(meter_backend(order))
    launched_alike(order)
    observer = Observer(order, report.rank, heartbeat, meter)
    try:
        _train(order, report, heartbeat, meter, observer)
    finally:
        meter.finish(report)
        observer.fill(report)


def _train(order: Order, report: RankReport, heartbeat: Heartbeat, meter: Meter, observer: Observer) -> None:
    started = time.perf_counter()
    trial = order.trial
    config = load_config(order.model)
    model_class(config)  # loads the model's code: not part of its memory
    if trial["zero_stage"]:
        prepare_deepspeed(order)
    load_libraries(trial)
    arguments = training_arguments(order, config)
    start_helpers(arguments.device, dtypes(trial).autocast or dtypes(trial).base)
    data = _data(order, config)
    report.precision_mode = precision_mode(trial, stored_dtype(order.model, config))
    imported = time.perf_counter()
    report.timings["import"] += imported - started
    heartbeat.beat("load")
    meter.start(order.memory_budget_bytes)
    set_seed(order.seed)
    model = build(order.model, trial, order.seed, arguments.device)
    trainer = observed(_InOrder, order, observer, report)(
        model=model,
        args=arguments,
        train_dataset=data,
        data_collator=collate,
        callbacks=[Watcher(order, observer, report)],
    )
    report.timings["load"] = time.perf_counter() - imported
    trainer.train(resume_from_checkpoint=str(order.resumed_from) if order.resumed_from else None)


def _data(order: Order, config: Any) -> WorstBatch | StepBatches:
    samples = order.total_steps * order.global_batch_size
    if not order.shapes:
        return WorstBatch(config, order.trial, seed=order.seed, length=samples)
    step_samples = order.global_batch_size
    return StepBatches(config, order.trial, order.shapes, seed=order.seed, length=samples, step_samples=step_samples)


class _InOrder(Trainer):
    """Trainer in sequential order of samples, so that an optimizer step sees the same ones however it is split."""

    def _get_train_sampler(self, *_: Any, **__: Any) -> Any:
        return torch.utils.data.SequentialSampler(self.train_dataset)


def training_arguments(order: Order, config: Any) -> TrainingArguments:
    """Trainer's arguments for a trial."""
    trial = order.trial
    kinds = dtypes(trial)
    chosen: dict[str, Any] = {}
    if trial["zero_stage"]:
        chosen["deepspeed"] = deepspeed_config(trial, kinds.deepspeed, bucket_elements=bucket_elements(order, config))
    if trial["method"] == "lora":
        chosen["ddp_find_unused_parameters"] = False  # as LLaMA-Factory sets it
    if order.device == "cpu":
        chosen["use_cpu"] = True
        if order.num_ranks > 1 or trial["zero_stage"]:
            chosen["ddp_backend"] = "gloo"
    half = kinds.deepspeed or {torch.bfloat16: "bf16", torch.float16: "fp16"}.get(kinds.autocast)
    return TrainingArguments(
        output_dir=str(order.output_dir),
        per_device_train_batch_size=trial["micro_batch_size"],
        per_device_eval_batch_size=trial["micro_batch_size"],
        gradient_accumulation_steps=trial["gradient_accumulation_steps"],
        max_steps=order.total_steps,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        optim=trial["optimizer"],
        bf16=half == "bf16",
        fp16=half == "fp16",
        gradient_checkpointing=False,  # `models.build` has turned it on where it is wanted, as LLaMA-Factory does
        use_liger_kernel=trial["fused_cross_entropy"],
        seed=order.seed,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        logging_strategy="no",
        dataloader_num_workers=0,
        dataloader_pin_memory=order.device == "cuda",
        remove_unused_columns=False,
        **chosen,
    )
