"""A trial spec: one fully resolved configuration, and the order under which the worker runs it."""

import hashlib
import json
from typing import Any, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from autofit.config.base import Frozen
from autofit.config.model import Model, ModelRef

Precision = Literal["bf16", "fp16", "fp32"]
Method = Literal["full", "lora", "freeze"]
Engine = Literal["transformers", "llamafactory"]
Optimizer = Literal["adamw_torch", "adamw_torch_fused", "adamw_8bit", "paged_adamw_8bit", "adafactor", "sgd"]


class Lora(Frozen):
    """Low-rank adapters; read only when `method` is lora."""

    rank: PositiveInt = 8
    """Rank of the adapter matrices."""
    target: str = "all"
    """`all` (every linear layer outside lm_head, as LLaMA-Factory finds them) or comma-separated module names."""


class Images(Frozen):
    """What one sample carries; read only for a model with a vision tower."""

    per_sample: int = Field(default=1, ge=0, le=64)
    """Images in each sample."""
    max_pixels: int = Field(default=589_824, ge=28 * 28, le=2**26)
    """Pixels of the largest image (LLaMA-Factory `image_max_pixels`)."""


class TrialSpec(Frozen):
    """One configuration of a fine-tuning run. Names are those of LLaMA-Factory and DeepSpeed."""

    model: ModelRef
    method: Method = "full"
    """What is trained: every parameter that is not frozen, low-rank adapters, or the last layers (LLaMA-Factory `freeze`)."""
    lora: Lora = Lora()
    precision: Precision = "bf16"
    """Arithmetic of forward and backward."""
    pure_bf16: bool = False
    """Weights, gradients and moments in bf16; False keeps fp32 masters of what is trained."""
    optimizer: Optimizer = "adamw_torch"
    micro_batch_size: PositiveInt = 1
    """Samples per device per forward."""
    gradient_accumulation_steps: PositiveInt = 1
    """Forwards per optimizer step."""
    cutoff_len: int = Field(default=2048, ge=8, le=2**22)
    """Tokens kept per sample."""
    zero_stage: Literal[0, 1, 2, 3] = 0
    """DeepSpeed ZeRO stage; 0 is no DeepSpeed (DDP on several devices)."""
    offload_optimizer: bool = False
    """Optimizer state in host memory; needs ZeRO 1-3."""
    offload_param: bool = False
    """Parameters in host memory; needs ZeRO 3."""
    num_gpus: PositiveInt = 1
    """Devices, one rank each (data parallel)."""
    gradient_checkpointing: bool = True
    """Recompute activations in backward."""
    freeze_vision_tower: bool = True
    freeze_multi_modal_projector: bool = True
    freeze_language_model: bool = False
    attention: Literal["auto", "eager", "sdpa", "flash_attention_2"] = "auto"
    fused_cross_entropy: bool = False
    """Liger kernels."""
    images: Images = Images()

    @property
    def global_batch_size(self) -> int:
        """Samples per optimizer step over all devices."""
        return self.micro_batch_size * self.gradient_accumulation_steps * self.num_gpus

    def config_key(self) -> str:
        """Digest of the whole spec: equal for equal configurations. Canonicalise first (`legality.canonical`)."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


class Measure(Frozen):
    """How long a trial runs."""

    warmup_steps: int = Field(default=2, ge=1, le=1000)
    """Optimizer steps before timing starts; the first also allocates the optimizer state."""
    steps: int = Field(default=5, ge=1, le=100_000)
    """Optimizer steps that are timed."""
    evaluate: bool = False
    """Afterwards an evaluation of the longest samples at the evaluation's own batch size, and one more step."""
    save: bool = False
    """Afterwards (after the evaluation) a checkpoint with all that resuming needs, and one more step."""
    resume: bool = False
    """Then a fresh process resumes from the checkpoint and makes the step after it again; needs `save`."""

    @model_validator(mode="after")
    def _resume_what_was_saved(self) -> Self:
        if self.resume and not self.save:
            raise ValueError("resume needs save: without a checkpoint there is nothing to resume from")
        return self


class StepShape(Frozen):
    """What all samples of one optimizer step look like."""

    cutoff_len: int = Field(ge=8, le=2**22)
    """Tokens of each sample."""
    image_max_pixels: int = Field(default=0, ge=0, le=2**26)
    """Pixels that each of its images has at most; 0: it carries none."""


class RunSpec(Frozen):
    """`spec.json`: what the worker reads. Written by the driver, one file a trial."""

    schema_version: Literal[1] = 1
    trial: TrialSpec
    model: Model
    engine: Engine = "transformers"
    arguments: dict[str, Any] | None = None
    """Engine `llamafactory`: the keys of its YAML file, which go to LLaMA-Factory as they are. The worker adds only what makes
    the run a trial (folder, number of steps, no reports) and, on the CPU, cuts DeepSpeed's buckets to the model's size."""
    worst_batch: tuple[int, ...] | None = None
    """Samples (their places in the tokenised training set) of the micro-batch that runs first and again after the timed steps,
    on all ranks. None: engine `llamafactory` takes the longest sample, filled up to `cutoff_len`; engine `transformers` runs
    on nothing but synthetic samples of that length."""
    timed_batches: tuple[tuple[int, ...], ...] | None = None
    """Samples of each timed optimizer step, by micro-batch, then rank, then place in the micro-batch. None: the training's own
    order."""
    shapes: tuple[StepShape, ...] | None = None
    """Engine `transformers`: the shapes that the optimizer steps take in turn. None: every sample is the worst that the trial
    allows. Batches that change from step to step fragment memory, which equal ones never do."""
    device: Literal["cuda", "cpu"]
    measure: Measure
    memory_budget_bytes: PositiveInt | None = None
    """Peak that each rank may reach; enforced, so that an OOM is a real allocation failure. None: whatever the device has."""
    seed: int = 0
    record_losses: bool = True

    @model_validator(mode="after")
    def _buildable(self) -> Self:
        if not (self.model.config or self.model.path or self.model.id):
            raise ValueError("the model has neither a config, nor a folder, nor a hub id")
        if (self.engine == "llamafactory") != (self.arguments is not None):
            raise ValueError("arguments are for engine llamafactory, which cannot do without them")
        if self.worst_batch is not None and len(self.worst_batch) != self.trial.micro_batch_size:
            raise ValueError(
                f"worst_batch names {len(self.worst_batch)} sample(s), but micro_batch_size is {self.trial.micro_batch_size}"
            )
        if self.timed_batches is not None:
            lengths = [len(step) for step in self.timed_batches]
            if lengths != [self.trial.global_batch_size] * self.measure.steps:
                raise ValueError(
                    f"timed_batches must name {self.trial.global_batch_size} samples for each of {self.measure.steps} steps"
                )
        for shape in self.shapes or ():
            if shape.cutoff_len > self.trial.cutoff_len or shape.image_max_pixels > self.trial.images.max_pixels:
                raise ValueError(
                    f"shapes: {shape.cutoff_len} tokens, {shape.image_max_pixels} pixels: more than the trial's own"
                )
        if self.shapes is not None and (self.engine != "transformers" or not self.shapes):
            raise ValueError("shapes: at least one, and for engine transformers, which makes its samples itself")
        return self
