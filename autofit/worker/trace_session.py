"""One structural variant being traced: the model built once, then one run a shape."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch

from autofit.worker import trace_liger
from autofit.worker.groups import NothingToTrain
from autofit.worker.models import attention_of, build, load_config, stored_dtype
from autofit.worker.precision import dtypes
from autofit.worker.trace_autocast import AutocastPolicy, state_on_cpu
from autofit.worker.trace_blocks import Shallow, stacks_of
from autofit.worker.trace_expand import STRIDE
from autofit.worker.trace_inputs import (
    Shape,
    TraceError,
    check_images,
    check_shapes,
    image_grid,
    image_share,
    make_batch,
    resident_only,
)
from autofit.worker.trace_kernels import CUBLAS_WORKSPACE, NOT_MODELLED, device_kernels, flash_attention_interface, scratch_of
from autofit.worker.trace_loop import Loop
from autofit.worker.trace_optim import build_optimizer
from autofit.worker.trace_parts import parameters_of, watch_blocks, watch_modules, watch_parts
from autofit.worker.trace_tracer import StorageTracer

MICRO_STEPS = 2
"""Micro-batches traced at most: the second accumulates into existing gradients, all others are like it."""


class Session:
    """Builds the model and traces shapes.

    Args:
        model: `autofit.config.model.Model` as a dict.
        trial: `autofit.config.trial.TrialSpec` as a dict.
        options: the spec's `trace` key.
        shallow: the model that stands for `model`; what is traced is that one.

    Raises:
        TraceError: the model cannot be built or its knobs cannot be traced.
    """

    def __init__(
        self, model: dict[str, Any], trial: dict[str, Any], options: dict[str, Any], shallow: Shallow | None = None
    ) -> None:
        self.trial, self.shallow = trial, shallow
        model = shallow.model if shallow is not None else model
        self.target = str(options.get("target", "cuda"))
        self.foreach = bool(options.get("foreach", self.target == "cuda"))  # torch's default: together on CUDA, else singly
        self.owns_optimizer = bool(options.get("optimizer", int(trial["zero_stage"]) == 0))
        self.max_grad_norm = options.get("max_grad_norm", 1.0)
        self.not_modelled = list(NOT_MODELLED.get(self.target, []))
        self._check()
        try:
            self.config = load_config(model)
            check_shapes(self.config)
            flash = attention_of(self.config, trial) == "flash_attention_2"
            self.model = build(model, {**trial, "attention": "sdpa"} if flash else trial, 0, "meta")
        except TraceError:
            raise
        except NothingToTrain as error:
            raise TraceError(str(error)) from error
        except Exception as error:  # transformers and its config checks raise many kinds
            raise TraceError(f"the model cannot be built without weights: {' '.join(str(error).split())[:400]}") from error
        self.model.train()
        if flash:
            _use_flash_attention(self.model)
        if trial["fused_cross_entropy"]:
            trace_liger.use_fused_cross_entropy(self.model, self.config.model_type, self.target)
        self.kinds = dtypes(trial, stored_dtype(model, self.config))
        self.optimizer: torch.optim.Optimizer | None = None
        self._tracer: StorageTracer | None = None
        self._hooked = False
        self.lookahead = int(options.get("lookahead", 0))
        self.watches_modules = bool(options.get("moments", int(trial["zero_stage"]) > 0))
        self.parameters = parameters_of(self.model)
        self.blocks: dict[str, int] = {}
        """Name of each block of a shallow model -> its tag; the tag after a stack's last is what follows its blocks."""
        if shallow is not None:
            for number, stack in enumerate(stacks_of(self.model)):
                self.blocks |= {f"{stack.name}.{place}": number * STRIDE + place for place in range(stack.depth)}

    def _check(self) -> None:
        trial = self.trial
        if self.target not in NOT_MODELLED:
            raise TraceError(f"target {self.target!r}: allowed are {', '.join(NOT_MODELLED)}")
        if trial["fused_cross_entropy"]:
            self.not_modelled += trace_liger.NOT_MODELLED
        if trial["optimizer"] in ("adamw_8bit", "paged_adamw_8bit"):
            self.not_modelled.append("bitsandbytes' kernels (its optimizer state is)")
            if trial["optimizer"].startswith("paged"):
                self.not_modelled.append("paged optimizer state in device memory")
        if trial["attention"] == "eager" and self.target == "cpu":
            self.not_modelled.append("oneDNN scratch of batched products")

    def own_shape(self) -> Shape:
        """The trial's own batch: full sequences, the largest legal images."""
        trial = self.trial
        grids: tuple[tuple[int, int, int], ...] = ()
        batch = int(trial["micro_batch_size"])
        if getattr(self.config, "vision_config", None) is not None and int(trial["images"]["per_sample"]):
            vision = self.config.vision_config
            merge = int(getattr(vision, "spatial_merge_size", 2))
            grid = image_grid(int(trial["images"]["max_pixels"]), int(vision.patch_size), merge)
            grids = (grid,) * (batch * int(trial["images"]["per_sample"]))
        return Shape(batch, int(trial["cutoff_len"]), grids, "one" if batch == 1 else "many")

    def index_operators(self) -> list[str]:
        """Operators that took a small real tensor to the device, as a run would."""
        return sorted(self._tracer.unmixed) if self._tracer else []

    @property
    def micro_steps(self) -> int:
        """Micro-batches of a traced step."""
        return min(int(self.trial["gradient_accumulation_steps"]), MICRO_STEPS)

    # ---- running ------------------------------------------------------------------------------------------------------

    def full(self, shape: Shape, micro_steps: int) -> StorageTracer:
        """Two optimizer steps of `micro_steps` micro-batches; operations are recorded in the second."""
        return self._run(shape, micro_steps, steps=2)

    def probe(self, shape: Shape, micro_steps: int) -> StorageTracer:
        """Forward and backward of one step, operations recorded; no optimizer."""
        return self._run(shape, micro_steps, steps=0)

    def _run(self, shape: Shape, micro_steps: int, steps: int) -> StorageTracer:
        check_images(self.config, shape)
        tracer = StorageTracer("meta", scratch_of(self.target))
        self._tracer = tracer
        self._watch()
        self._load(tracer)
        policy = AutocastPolicy(self.target, lambda: tracer.labelled("autocast_copies"))
        casting = policy.installed() if self.kinds.autocast is not None else state_on_cpu()
        try:
            with device_kernels(self.target, image_share(self.config, shape)), _plain_sequences(), casting, tracer:
                self._steps(tracer, shape, micro_steps, steps)
        except NotImplementedError as error:
            raise TraceError(
                f"{self.config.model_type}: its code reads values of tensors, which a trace does not have"
                f" ({' '.join(str(error).split())[:200]})"
            ) from error
        finally:
            tracer.close()
            self.optimizer = None
            for parameter in self.model.parameters():
                parameter.grad = None
        return tracer

    def _load(self, tracer: StorageTracer) -> None:
        masters = self.kinds.autocast is not None
        for name, parameter in self.model.named_parameters():
            category = "master_weights" if masters and parameter.requires_grad else "weights"
            tracer.see(parameter, category, "parameter", self.tag_of(name))
        for name, buffer in self.model.named_buffers():
            tracer.see(buffer, "weights", "buffer", self.tag_of(name))

    def tag_of(self, name: str) -> int:
        """Tag of the block that a module or parameter is in; -1: in none."""
        parts = name.split(".")
        return next((self.blocks[key] for end in range(len(parts), 0, -1) if (key := ".".join(parts[:end])) in self.blocks), -1)

    def _steps(self, tracer: StorageTracer, shape: Shape, micro_steps: int, steps: int) -> None:
        with_optimizer, steps = steps > 0, max(steps, 1)
        optimizer = None
        if with_optimizer and self.owns_optimizer:
            optimizer = build_optimizer(self.trial["optimizer"], self.model, self.foreach)
        self.optimizer = optimizer  # outlives the steps
        threads: set[str] = set()  # forward's and autograd's: each takes a cuBLAS workspace with its first product

        def observe(phase: str, step: int) -> None:
            tracer.end_backward()
            tracer.enter(phase, step)
            if self.target == "cuda" and phase in ("forward", "backward") and phase not in threads:
                threads.add(phase)
                tracer.keep(CUBLAS_WORKSPACE, "cublas_workspace")
            last = step == steps - 1
            tracer.recording = last and (phase != "zero_grad")

        loop = Loop(
            self.model,
            optimizer,
            autocast=self.kinds.autocast,
            scaled=self.kinds.autocast == torch.float16,
            max_grad_norm=self.max_grad_norm,
            observe=observe,
        )
        pixels = self.kinds.autocast or dtypes(self.trial).base
        for step in range(steps):
            tracer.enter("batch", step)
            with tracer.labelled("inputs"):
                batches, extra = [], []
                for _ in range(micro_steps):
                    batches.append(make_batch(self.config, shape, pixels))
                    extra.append(resident_only(self.config, shape))
                if step + 1 < steps:
                    extra += [list(make_batch(self.config, shape, pixels).values()) for _ in range(self.lookahead)]
            if with_optimizer:
                loop.step(batches, step)
                if optimizer is not None:
                    _label_state(tracer, optimizer)
            else:
                for number, batch in enumerate(batches):
                    loop.micro_step(batch, step, micro_steps, number)
                tracer.recording = False
                tracer.end_backward()
                tracer.enter("zero_grad", step)
                for parameter in self.model.parameters():
                    parameter.grad = None
            tracer.enter("zero_grad", step)
            del batches, extra

    def _watch(self) -> None:
        if self._hooked:
            return
        self._hooked = True
        watch_parts(self.model, _Current(self))  # type: ignore[arg-type]
        watch_blocks(self.model, self.blocks, _Current(self))  # type: ignore[arg-type]
        if self.watches_modules:
            watch_modules(self.model, _Current(self))  # type: ignore[arg-type]
        for index, parameter in enumerate(self.model.parameters()):
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(lambda tensor, index=index: self._gradient(tensor, index))

    def _gradient(self, parameter: torch.Tensor, index: int) -> None:
        if self._tracer is not None and parameter.grad is not None:
            self._tracer.relabel(parameter.grad, "gradients")
            if self.watches_modules:
                self._tracer.gradient(index, parameter.grad)


class _Current:
    """Forwards what hooks say to the tracer of the run in progress: hooks are put on once."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def mark(self, part: str, share: float = 1.0) -> tuple[str, float]:
        tracer = self._session._tracer
        return tracer.mark(part, share) if tracer is not None else (part, share)

    def block(self, tag: int) -> None:
        if self._session._tracer is not None:
            self._session._tracer.block(tag)

    def block_end(self, tag: int) -> None:
        if self._session._tracer is not None:
            self._session._tracer.block_end(tag)

    def module_forward(self, index: int) -> None:
        if self._session._tracer is not None:
            self._session._tracer.module_forward(index)

    def module_forward_end(self, index: int) -> None:
        if self._session._tracer is not None:
            self._session._tracer.module_forward_end(index)


def _label_state(tracer: StorageTracer, optimizer: torch.optim.Optimizer) -> None:
    for parameter, state in optimizer.state.items():
        for value in state.values():
            if isinstance(value, torch.Tensor):
                tracer.relabel(value, "optimizer_state")
                tracer.belongs(value, parameter)


def _use_flash_attention(model: torch.nn.Module) -> None:
    """Sets the attention after building: asking for it earlier demands the package, whose kernels are replaced anyway.

    Raises:
        TraceError: this transformers has a class for each attention of each model, and no table of functions.
    """
    from transformers import __version__, modeling_utils

    try:
        ALL_ATTENTION_FUNCTIONS = modeling_utils.ALL_ATTENTION_FUNCTIONS  # noqa: N806 - its name there
    except AttributeError:
        raise TraceError(
            f"attention flash_attention_2: cannot be traced with transformers {__version__}, only from 4.48 on; set it to sdpa"
        ) from None
    ALL_ATTENTION_FUNCTIONS.register("flash_attention_2", flash_attention_interface())
    for module in model.modules():
        config = getattr(module, "config", None)
        if config is not None and hasattr(config, "_attn_implementation_internal"):
            config._attn_implementation_internal = "flash_attention_2"


@contextmanager
def _plain_sequences() -> Iterator[None]:
    """transformers looks for packed sequences in the values of position ids, and leaves autocast alone on `meta`."""
    import sys

    changed: list[tuple[Any, str, Any]] = []

    def put(module: Any, name: str, value: Any) -> None:
        if hasattr(module, name):
            changed.append((module, name, getattr(module, name)))
            setattr(module, name, value)

    for name, module in list(sys.modules.items()):
        if name.startswith("transformers.") and module is not None:
            if "find_packed_sequence_indices" in vars(module):
                put(module, "find_packed_sequence_indices", lambda position_ids: None)
            if "maybe_autocast" in vars(module):
                put(module, "maybe_autocast", _maybe_autocast)
    try:
        yield
    finally:
        for module, name, value in changed:
            setattr(module, name, value)


def _maybe_autocast(
    device_type: str, dtype: torch.dtype | None = None, enabled: bool = True, cache_enabled: bool | None = None
) -> Any:
    """transformers.utils.generic.maybe_autocast, with the state that `trace_autocast` keeps."""
    if torch.is_autocast_enabled("cpu") or enabled:
        return torch.autocast("cpu", dtype=dtype, enabled=enabled, cache_enabled=cache_enabled)
    return nullcontext()
