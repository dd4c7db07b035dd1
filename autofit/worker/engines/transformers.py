"""Engine `transformers`: Hugging Face Trainer with its DeepSpeed integration, on a synthetic worst batch."""

import importlib
import os
import time
from typing import Any

import torch
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import set_seed

from autofit.worker import faults
from autofit.worker.batches import WorstBatch, collate
from autofit.worker.deepspeed_config import BUCKET_ELEMENTS, deepspeed_config
from autofit.worker.heartbeat import Heartbeat
from autofit.worker.meter import Meter
from autofit.worker.models import build, load_config, model_class, parameter_counts, precision_mode, stored_dtype
from autofit.worker.order import Order
from autofit.worker.precision import dtypes
from autofit.worker.report import RankReport

LEARNING_RATE = 1e-5
"""Constant and small: a trial measures, it does not teach."""


def run(order: Order, report: RankReport, heartbeat: Heartbeat) -> None:
    """Trains `order.total_steps` optimizer steps and fills the report, also when it raises."""
    meter = Meter(_backend(order))
    try:
        _train(order, report, heartbeat, meter)
    finally:
        meter.finish(report)


def _train(order: Order, report: RankReport, heartbeat: Heartbeat, meter: Meter) -> None:
    started = time.perf_counter()
    trial = order.trial
    config = load_config(order.model)
    model_class(config)  # loads the model's code: not part of its memory
    if trial["zero_stage"]:
        _prepare_deepspeed(order)
    _load_libraries(trial)
    arguments = _arguments(order, config)
    _start_helpers(arguments, order.device, dtypes(trial).autocast or dtypes(trial).base)
    data = WorstBatch(config, trial, seed=order.seed, length=order.total_steps * order.global_batch_size)
    report.padded_tokens_per_sample, report.real_tokens_per_sample = data.padded_tokens_per_sample, data.real_tokens_per_sample
    report.precision_mode = precision_mode(trial, stored_dtype(order.model, config))
    imported = time.perf_counter()
    report.timings["import"] += imported - started
    heartbeat.beat("load")
    meter.start(order.memory_budget_bytes)
    set_seed(order.seed)
    model = build(order.model, trial, order.seed, arguments.device)
    report.trainable_parameters, report.total_parameters = parameter_counts(model)
    observer = _Observer(order, report.rank, heartbeat, meter)
    trainer = _ObservedTrainer(
        model=model, args=arguments, train_dataset=data, data_collator=collate, callbacks=[observer], observer=observer
    )
    loaded = time.perf_counter()
    report.timings["load"] = loaded - imported
    observer.watch(model)
    try:
        trainer.train()
    finally:
        observer.leave()
        report.timings["train"] = time.perf_counter() - loaded
        report.losses = observer.losses() if order.record_losses else []


class _Observer(TrainerCallback):
    """Tells meter and heartbeat where the training is."""

    def __init__(self, order: Order, rank: int, heartbeat: Heartbeat, meter: Meter) -> None:
        self._order, self._rank, self._heartbeat, self._meter = order, rank, heartbeat, meter
        self._hooks: list[Any] = []
        self._step = 0
        self._step_loss: torch.Tensor | None = None
        self._losses: list[torch.Tensor] = []

    def watch(self, model: torch.nn.Module) -> None:
        """Hooks into the model and into every optimizer: DeepSpeed steps its own, deep inside."""
        from torch.optim.optimizer import register_optimizer_step_pre_hook

        self._hooks = [
            model.register_forward_pre_hook(lambda *_: self._forward_begins()),
            model.register_forward_hook(lambda *_: self._enter("backward")),
            register_optimizer_step_pre_hook(lambda *_: self._enter("optimizer_step")),
        ]

    def leave(self) -> None:
        """Takes the hooks away."""
        for hook in self._hooks:
            hook.remove()

    def add_loss(self, loss: torch.Tensor) -> None:
        """Adds a micro-batch's share of the step's loss; stays on the device, so nothing waits for it."""
        self._step_loss = loss if self._step_loss is None else self._step_loss + loss

    def losses(self) -> list[float]:
        """Of each finished optimizer step, unrounded."""
        try:
            return [float(loss) for loss in self._losses]
        except RuntimeError:  # after a CUDA error nothing can be read from the device any more
            return []

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """First micro-batch of an optimizer step."""
        self._meter.step_begins()
        self._heartbeat.beat(step=self._step)

    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
        """After gradient clipping; not called under DeepSpeed."""
        self._enter("optimizer_step")

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """The optimizer has stepped."""
        self._meter.step_ends()
        self._step += 1
        if self._step_loss is not None:
            self._losses.append(self._step_loss)
            self._step_loss = None
        self._heartbeat.beat(step=self._step)

    def _forward_begins(self) -> None:
        self._enter("forward")
        faults.strike(self._rank, self._step, self._order.folder)

    def _enter(self, phase: str) -> None:
        self._meter.enter(phase)
        self._heartbeat.beat(phase)


class _ObservedTrainer(Trainer):
    """Trainer in sequential order of samples, with every micro-batch's loss handed to the observer."""

    def __init__(self, *, observer: _Observer, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._observer = observer

    def training_step(self, *arguments: Any, **named: Any) -> torch.Tensor:
        loss: torch.Tensor = super().training_step(*arguments, **named)
        self._observer.add_loss(loss)
        return loss

    def _get_train_sampler(self, *_: Any, **__: Any) -> Any:
        """In order, so that an optimizer step sees the same samples however it is split into micro-batches and ranks."""
        return torch.utils.data.SequentialSampler(self.train_dataset)


def _backend(order: Order) -> Any:
    if order.device == "cuda":
        from autofit.worker.meter_cuda import CudaBackend

        return CudaBackend(int(os.environ.get("LOCAL_RANK", "0")))
    from autofit.worker.meter_cpu import CpuBackend

    return CpuBackend()


_LATE_IMPORTS = (
    "torch.distributed.algorithms.ddp_comm_hooks",  # DistributedDataParallel
    "deepspeed",  # accelerate's unwrapping of models, wherever it is installed
)
_LATE_IMPORTS_DEEPSPEED = (
    "deepspeed.module_inject.auto_ep_layer",
    "deepspeed.runtime.zero.muon.muon_optimizer",
    "deepspeed.runtime.zero.stage_1_and_2",
    "deepspeed.runtime.zero.stage3",
)


def _load_libraries(trial: dict[str, Any]) -> None:
    """Imports what Trainer and DeepSpeed would import in the middle of the run, where it would count as the model's memory."""
    names = [*_LATE_IMPORTS]
    if trial["zero_stage"]:
        names += _LATE_IMPORTS_DEEPSPEED
    if trial["method"] == "lora":
        names.append("peft")
    for name in names:
        try:
            importlib.import_module(name)
        except ImportError:
            continue  # another version, which needs it not, or says so itself


def _prepare_deepspeed(order: Order) -> None:
    """On the CPU keeps DeepSpeed from compiling its shared-memory all-reduce (100-150 s); gloo gives bit-identical losses."""
    import deepspeed
    import deepspeed.ops

    if order.device != "cpu":
        return
    compatible = vars(deepspeed.ops).setdefault("__compatible_ops__", {})
    compatible["deepspeed_shm_comm"] = False
    deepspeed.init_distributed("gloo")


def _arguments(order: Order, config: Any) -> TrainingArguments:
    trial = order.trial
    kinds = dtypes(trial)
    chosen: dict[str, Any] = {}
    if trial["zero_stage"]:
        chosen["deepspeed"] = deepspeed_config(trial, kinds.deepspeed, bucket_elements=_bucket_elements(order, config))
    if trial["method"] == "lora":
        chosen["ddp_find_unused_parameters"] = False  # as LLaMA-Factory sets it
    if order.device == "cpu":
        chosen["use_cpu"] = True
        chosen["ddp_backend"] = "gloo"
    half = kinds.deepspeed or {torch.bfloat16: "bf16", torch.float16: "fp16"}.get(kinds.autocast)
    return TrainingArguments(
        output_dir=str(order.folder / "trainer"),
        per_device_train_batch_size=trial["micro_batch_size"],
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


def _bucket_elements(order: Order, config: Any) -> int:
    """Elements of the reduce bucket, which DeepSpeed allocates whole.

    LLaMA-Factory's 5e8 are what a GPU really loses. On the CPU they would be address space that counts against RLIMIT_DATA and
    is hardly touched, so there the bucket ends at the model's own size.
    """
    if order.device == "cuda" or order.trial["zero_stage"] == 3:
        return BUCKET_ELEMENTS
    with torch.device("meta"):
        skeleton = model_class(config)(config)
    return min(BUCKET_ELEMENTS, sum(parameter.numel() for parameter in skeleton.parameters()))


def _start_helpers(arguments: TrainingArguments, device: str, kind: torch.dtype) -> None:
    """Starts process group, thread pools and CUDA context: they belong to the baseline, not to the model's memory."""
    place = arguments.device  # creates the process group
    if device == "cuda":
        from autofit.worker.meter_cuda import warm_up

        warm_up(int(os.environ.get("LOCAL_RANK", "0")))
    _exercise_kernels(place, kind)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(torch.ones(1, device=place))
        torch.distributed.barrier()


def _exercise_kernels(place: torch.device, kind: torch.dtype) -> None:
    """One small step of the operations that such models are made of, so that their code is loaded (20 MiB on the CPU)."""
    layers = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.SiLU(), torch.nn.Linear(256, 64), torch.nn.LayerNorm(64))
    layers.to(place, kind)
    patches = torch.nn.Conv3d(3, 8, (2, 14, 14), stride=(2, 14, 14), device=place, dtype=kind)
    optimizer = torch.optim.AdamW(layers.parameters(), lr=1e-6)
    hidden = layers(torch.rand(2, 64, 64, device=place, dtype=kind)).view(2, 64, 4, 16).transpose(1, 2)
    attended = torch.nn.functional.scaled_dot_product_attention(hidden, hidden, hidden, is_causal=True)
    pixels = patches(torch.rand(4, 3, 2, 14, 14, device=place, dtype=kind)).sum()
    logits = attended.reshape(128, 64).float()
    loss = torch.nn.functional.cross_entropy(logits, torch.zeros(128, dtype=torch.long, device=place)) + pixels.float()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(layers.parameters(), 1.0)
    optimizer.step()
