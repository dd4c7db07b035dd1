"""What pictures and pages say: names and colours of memory terms, titles, notes. Text only, nothing is drawn here."""

from dataclasses import dataclass

from autofit.config.prediction import Prediction
from autofit.config.trial import TrialSpec
from autofit.predict.timeline import Timeline
from autofit.units import format_bytes

TERMS = {
    "weights": ("weights", "#4e79a7"),
    "persisted_weights": ("weights kept whole", "#6f94ba"),
    "master_weights": ("fp32 master weights", "#86a9cf"),
    "optimizer_state": ("optimizer state", "#9c755f"),
    "gradients": ("gradients", "#e0a030"),
    "ddp_buckets": ("DDP gradient buckets", "#f2cf5b"),
    "communication": ("communication buffers", "#f2cf5b"),
    "zero_buffers": ("ZeRO: gradients, gathers, buckets", "#e8b84a"),
    "autocast_copies": ("autocast copies", "#76b7b2"),
    "inputs": ("inputs", "#8d8d8d"),
    "activations_vision": ("activations: vision", "#59a14f"),
    "activations_projector": ("activations: projector", "#b6d86b"),
    "activations_language": ("activations: language", "#8cc47c"),
    "activations": ("activations and inputs", "#8cc47c"),
    "logits_loss": ("logits and loss", "#e15759"),
    "workspace": ("workspace, temporaries", "#b07aa1"),
}
"""Term of a timeline -> name and colour, from the bottom of the stack (what stays) to its top (what comes and goes)."""
BESIDE = {
    "fragmentation": "fragmentation",
    "cuda_context": "CUDA context",
    "communication_buffers": "NCCL",
}
"""Terms of a prediction that are no tensors."""
PHASES = {"optimizer_step": "optimizer", "zero_grad": "zero_grad"}


def phase_label(phase: str) -> str:
    """A phase as pictures name it."""
    return PHASES.get(phase, phase)


def stacked(timeline: Timeline) -> list[str]:
    """The terms of a timeline from the bottom of the stack to its top."""
    return sorted(timeline.terms, key=list(TERMS).index)


def title(model: str) -> str:
    """Of a picture."""
    return f"Predicted GPU memory over one training step: {model}"


def knobs(spec: TrialSpec) -> str:
    """The knobs that decide memory, in a line."""
    method = f"LoRA rank {spec.lora.rank}" if spec.method == "lora" else spec.method
    found = [
        method,
        "pure bf16" if spec.pure_bf16 else spec.precision,
        spec.optimizer,
        f"micro-batch {spec.micro_batch_size} x accumulation {spec.gradient_accumulation_steps}",
        f"{spec.cutoff_len} tokens",
        f"checkpointing {'on' if spec.gradient_checkpointing else 'off'}",
    ]
    if spec.images.per_sample:
        plural = "" if spec.images.per_sample == 1 else "s"
        found.append(f"{spec.images.per_sample} image{plural} of {spec.images.max_pixels:,} pixels")
        parts = {"vision tower": spec.freeze_vision_tower, "projector": spec.freeze_multi_modal_projector}
        parts["language model"] = spec.freeze_language_model
        frozen = [name for name, is_frozen in parts.items() if is_frozen]
        found.append(f"{' and '.join(frozen)} frozen" if frozen else "nothing frozen")
    if spec.num_gpus > 1:
        found.append(f"{spec.num_gpus} GPUs, {f'ZeRO-{spec.zero_stage}' if spec.zero_stage else 'DDP'}")
    elif spec.zero_stage:
        found.append(f"ZeRO-{spec.zero_stage}")
    found += [name.replace("_", " ") for name in ("offload_optimizer", "offload_param") if getattr(spec, name)]
    return ", ".join(found)


def verdict(prediction: Prediction, budget_bytes: int) -> str:
    """Whether it fits, with the figures that decide it."""
    over = prediction.peak_device_bytes_high - budget_bytes
    if over > 0:
        return f"does not fit {format_bytes(budget_bytes)}: {format_bytes(over)} too much"
    return f"fits {format_bytes(budget_bytes)}, {format_bytes(-over)} to spare"


def beside_bytes(prediction: Prediction) -> int:
    """What the upper end of the prediction needs on the device beyond the tensors at the peak."""
    return prediction.peak_device_bytes_high - prediction.peak_allocated_bytes


@dataclass(frozen=True)
class Row:
    """A line of the table at the peak."""

    name: str
    size: int
    """Bytes."""
    colour: str | None = None
    """Of the term in the stack."""
    total: bool = False
    """It is the sum of what stands above."""


def at_the_peak(prediction: Prediction, timeline: Timeline, budget_bytes: int) -> list[Row]:
    """The stack from its top to its bottom, its sum, what is no tensor, the device, the budget."""
    held = timeline.peak_terms
    rows = [Row(TERMS[name][0], held.get(name, 0), TERMS[name][1]) for name in stacked(timeline)[::-1]]
    rows.append(Row("allocated", sum(held.values()), total=True))
    rows += [Row(text, prediction.terms[name]) for name, text in BESIDE.items() if name in prediction.terms]
    rows.append(Row("device", prediction.peak_device_bytes, total=True))
    margin = prediction.peak_device_bytes_high - prediction.peak_device_bytes
    rows += [Row("margin of the prediction", margin), Row("device at most", prediction.peak_device_bytes_high, total=True)]
    return [*rows, Row("budget", budget_bytes, total=True)]


def size(value: int) -> str:
    """Bytes for a table: nothing and next to nothing are told apart."""
    if value == 0:
        return "0"
    return format_bytes(value) if value >= 2**20 / 10 else "< 0.1 MiB"


def peak_label(timeline: Timeline) -> str:
    """Value and place of the peak."""
    segment = timeline.peak_segment
    where = f" of micro-batch {segment.micro_batch}" if segment.micro_batch and timeline.micro_batches > 1 else ""
    return f"peak {format_bytes(int(timeline.allocated[timeline.peak]))} in {phase_label(segment.phase)}{where}"


def notes(prediction: Prediction, timeline: Timeline) -> list[str]:
    """How to read a picture, and what it leaves out."""
    step = "a steady step"
    if timeline.first_step:
        step = "the first step, which makes the optimizer's state and needs more than later ones"
    beside = ", ".join([*(BESIDE[name] for name in BESIDE if name in prediction.terms), "margin of the prediction"])
    said = [
        f"Left to right: the order of allocations and releases in {step}, not time; short phases are drawn wider."
        f" Hatched: {beside}."
    ]
    if timeline.not_shown:
        said.append(f"Not shown: {'; '.join(timeline.not_shown)}.")
    return said
