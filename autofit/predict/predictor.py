"""Spec -> Prediction: the symbolic trace of its variant, ZeRO or DDP on top, allocator, device overheads, roofline.

    allocated = one-rank trace at (micro-batch, length, patches), or the ZeRO replay over its moments on N ranks
    reserved  = the trace's events replayed through the caching allocator of a card of the given size (`capacity.py`);
                with ZeRO, whose events are not traced, allocated and an assumed share of fragmentation
    device    = reserved + CUDA context (+ NCCL on several ranks)
    time      = roofline of the trace's operations + collectives

On the CPU (`devices.CPU`), where small models really train, the trace is of the CPU's kernels, and the process is the device:
allocated tensors, and what its heap and libraries add.

The first question about a variant traces it in the training environment (seconds); later ones, other shapes included, are
answered from the cache in milliseconds.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from autofit.config.legality import refusal
from autofit.config.model import Model
from autofit.config.prediction import Prediction
from autofit.config.trial import TrialSpec
from autofit.errors import AutofitError, UsageError
from autofit.predict.allocator import Events
from autofit.predict.calibrate import Calibration, calibrate
from autofit.predict.capacity import ZERO_FRAGMENTATION, Demand, alone, assumed, device_peak, replayed
from autofit.predict.devices import DeviceModel, for_memory
from autofit.predict.epoch import Epoch
from autofit.predict.images import image_patches
from autofit.predict.lengths import BatchShape, replay_batches
from autofit.predict.offload import UPDATE_BYTES, Offload
from autofit.predict.roofline import Constants, Job, StepTime, Timing, step_time
from autofit.predict.symbolic import Peak, SymbolicTrace
from autofit.predict.timeline import Timeline, phase_name, traced_timeline, zero_timeline
from autofit.predict.tracers import Tracers
from autofit.predict.variants import Progress, symbolic_trace, symbolic_traces, variant_key
from autofit.predict.zero import ZeroSettings, ddp_terms
from autofit.predict.zero_spec import Kept, zero_settings, zero_terms

CONTEXT_BYTES = 512 * 2**20
"""A CUDA context with its loaded kernels; 0.4 to 0.6 GiB are seen, more on devices with more multiprocessors."""
NCCL_BYTES = 512 * 2**20
"""NCCL's channels on several ranks; 0.3 to 1 GiB are seen, by topology."""
CPU_PROCESS_BYTES = {0: 56 * 2**20, 1: 44 * 2**20, 2: 44 * 2**20, 3: 97 * 2**20}
"""By ZeRO stage: what a rank's process grows by beside its tensors (heap, scratch of oneDNN and gloo). Medians of 13 trials of
the tiny Qwen2.5-VL on two ranks, 38 to 98 MiB."""


def default_cache() -> Path:
    """`$XDG_CACHE_HOME/autofit/traces`, or the same under `~/.cache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "autofit" / "traces"


@dataclass
class Predictor:
    """Predicts specs of any model; keeps the traces it has used in memory."""

    python: str
    """Interpreter of the training environment."""
    versions: Mapping[str, str]
    """Of its training stack; they are part of a trace's identity."""
    cache: Path = field(default_factory=default_cache)
    device: DeviceModel | None = None
    """None: the fastest card whose label is at least the budget (80 GB without a budget)."""
    constants: Constants = field(default_factory=Constants)
    calibrations: Mapping[str, Calibration] = field(
        default_factory=lambda: {name: calibrate([], name) for name in ("allocated", "reserved", "device")}
    )
    tracers: Tracers | None = None
    """Of `python`; None: its own, once it needs one."""
    _traces: dict[str, SymbolicTrace | AutofitError] = field(default_factory=dict, init=False, repr=False)
    _zero: Kept = field(default_factory=Kept, init=False, repr=False)

    def predict(self, spec: TrialSpec, model: Model, gpu_mem_bytes: int | None = None) -> Prediction:
        """The prediction for a canonical spec.

        Args:
            gpu_mem_bytes: memory that a rank may use; decides `fits`, and caps what the allocator reserves. None: the
                memory of `device`, if one was named.

        Raises:
            AutofitError: the configuration cannot train, or cannot be modelled; says why.
        """
        trace, patches = self._traced(spec, model)
        peak = self._allocated(spec, model, trace, patches)
        overhead = self._overhead(spec)
        budget = self.budget(gpu_mem_bytes)
        hopeless = None if budget is None else round(budget / self.calibrations["device"].factor) - sum(overhead.values())
        demand, notes = self._demand(spec, trace, patches, peak, hopeless)
        corrections = {name: self.calibrations[name] for name in ("device", "reserved")}
        held = device_peak(demand, sum(overhead.values()), budget, **corrections)
        terms = {**peak.terms, "fragmentation": held.raw_reserved - peak.peak_bytes, **overhead}
        terms["correction_from_trials"] = held.device[1] - sum(terms.values())
        step, device, assumed = self._time(spec, model, gpu_mem_bytes)
        intervals = {
            f"peak_{name}_bytes{suffix}": value
            for name, interval in (
                ("allocated", self.calibrations["allocated"].interval(peak.peak_bytes)),
                ("reserved", held.reserved),
                ("device", held.device),
            )
            for suffix, value in zip(("_low", "", "_high"), interval, strict=True)
        }
        return Prediction(
            **intervals,
            step_time_seconds=step.seconds,
            step_terms={name: value for name, value in step.parts.items() if value},
            samples_per_second=spec.global_batch_size / step.seconds,
            tokens_per_second=spec.global_batch_size * spec.cutoff_len / step.seconds,
            fits=held.fits,
            alloc_retries=held.retries,
            terms={name: value for name, value in terms.items() if value},
            uncorrected_bytes={
                "allocated": peak.peak_bytes,
                "reserved": held.raw_reserved,
                "device": held.raw_reserved + sum(overhead.values()),
            },
            phase=phase_name(peak.phase),
            precision_mode=str(trace.metadata["precision_mode"]),
            device_model=device.name,
            assumptions=[*assumed, *notes],
            not_modelled=_not_modelled(spec, trace),
            versions=dict(trace.metadata["versions"]),
        )

    def prepare(self, specs: Iterable[tuple[TrialSpec, Model]], on_progress: Progress = lambda done, total: None) -> None:
        """Traces the variants of these specs in parallel; `predict` then answers at once, or raises what a variant said.

        Specs that cannot train are left out; `predict` says why.

        Args:
            on_progress: told (variants answered, variants in all) after each.
        """
        stack = self._stack()
        able = [(spec, model) for spec, model in specs if model.config is not None and not refusal(spec, model)]
        wanted = [pair for pair in able if variant_key(*pair, stack, self._target) not in self._traces]
        self._traces |= symbolic_traces(wanted, stack, self.cache, self._crew(), self._target, on_progress)

    def warm_up(self) -> None:
        """Starts what traces, which imports for seconds, for a variant that is asked about within a minute."""
        self._crew().warm_up()

    def kept(self, spec: TrialSpec, model: Model) -> bool:
        """Whether the variant of a spec is in the cache (a torn file counts; whoever reads it traces it again)."""
        return (self.cache / f"{variant_key(spec, model, self._stack(), self._target)}.npz").is_file()

    def untraceable(self, spec: TrialSpec, model: Model) -> AutofitError | None:
        """What `prepare` was told when it traced the variant of a spec in vain."""
        found = self._traces.get(variant_key(spec, model, self._stack(), self._target))
        return found if isinstance(found, AutofitError) else None

    def timeline(self, spec: TrialSpec, model: Model) -> Timeline:
        """Allocated memory of a canonical spec over one step; its peak is that of `predict`, before calibration.

        Raises:
            AutofitError: as `predict`.
        """
        trace, patches = self._traced(spec, model)
        shape = (spec.micro_batch_size, spec.cutoff_len, patches)
        if spec.zero_stage:
            return zero_timeline(self._zero_settings(spec, model, trace), trace.parameters, trace.moments(*shape))
        return traced_timeline(trace, shape, spec.gradient_accumulation_steps, {"ddp_buckets": _ddp_buckets(spec, trace)})

    def peaks(self, spec: TrialSpec, model: Model, length: npt.ArrayLike, patches: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Peak allocated bytes of a canonical spec at other batches than its own: real ones, of a dataset.

        Args:
            length, patches: tokens of each sample of a micro-batch, and image patches of all; one entry a batch.

        Raises:
            AutofitError: the variant cannot be modelled, or not at one of these shapes.
        """
        trace, micro = self._trace(spec, model), spec.micro_batch_size
        if spec.zero_stage == 0:
            return trace.peaks(micro, length, patches, spec.gradient_accumulation_steps)
        settings = self._zero_settings(spec, model, trace)
        shapes = np.broadcast(np.asarray(length), np.asarray(patches))
        found = [zero_terms(settings, trace, micro, int(tokens), int(p), self._zero).peak_bytes for tokens, p in shapes]
        return np.asarray(found, dtype=np.float64)

    def epoch(
        self, spec: TrialSpec, model: Model, shapes: Sequence[tuple[int, int]], gpu_mem_bytes: int | None = None
    ) -> Epoch:
        """Optimizer steps of real batches through the caching allocator: what they leave behind is fragmentation.

        Args:
            shapes: (tokens of each sample, image patches of the micro-batch) of each step, which has one shape throughout.
            gpu_mem_bytes: what a rank may use; the allocator gets it less context and communication. None: no limit.

        Raises:
            AutofitError: the CPU, which has no caching allocator; ZeRO, whose own allocations are not traced; or as `peaks`.
        """
        if self._target == "cpu":
            raise AutofitError("a CPU has no caching allocator that could fragment")
        if spec.zero_stage:
            raise AutofitError(
                f"zero_stage {spec.zero_stage}: DeepSpeed's own allocations are not traced, so none are replayed"
            )
        outside, budget = sum(self._overhead(spec).values()), self.budget(gpu_mem_bytes)
        batches = [BatchShape(spec.micro_batch_size, length, patches) for length, patches in shapes]
        capacity = None if budget is None else budget - outside
        return replay_batches(self._trace(spec, model), batches, expandable=spec.num_gpus > 1, capacity_bytes=capacity)

    def _traced(self, spec: TrialSpec, model: Model) -> tuple[SymbolicTrace, int]:
        """The trace of a spec's variant, and the image patches in a micro-batch."""
        if model.config is None:
            raise UsageError(f"{model.label} is known by its hub id only; give a folder with config.json, or a preset")
        if reason := refusal(spec, model):
            raise AutofitError(f"cannot train: {reason}")
        return self._trace(spec, model), spec.micro_batch_size * spec.images.per_sample * image_patches(spec, model)

    def budget(self, gpu_mem_bytes: int | None) -> int | None:
        """What a rank may use: `gpu_mem_bytes`, and no more than a named device has; None: neither is known."""
        if self.device is None:
            return gpu_mem_bytes
        return min(gpu_mem_bytes or self.device.memory_bytes, self.device.memory_bytes)

    @property
    def _target(self) -> str:
        """Whose kernels are traced."""
        return "cuda" if self.device is None else self.device.kind

    def _overhead(self, spec: TrialSpec) -> dict[str, int]:
        """Bytes of the device outside of the allocator."""
        if self._target == "cpu":
            return {"process": CPU_PROCESS_BYTES[spec.zero_stage]}
        return {"cuda_context": CONTEXT_BYTES} | ({"communication_buffers": NCCL_BYTES} if spec.num_gpus > 1 else {})

    def _zero_settings(self, spec: TrialSpec, model: Model, trace: SymbolicTrace) -> ZeroSettings:
        elements = sum(parameter.elements for parameter in trace.parameters) if self._target == "cpu" else None
        return zero_settings(spec, model, elements)

    def _allocated(self, spec: TrialSpec, model: Model, trace: SymbolicTrace, patches: int) -> Peak:
        """Allocated bytes at the peak of the worst rank, by term."""
        shape = (spec.micro_batch_size, spec.cutoff_len, patches)
        if spec.zero_stage == 0:
            peak = trace.peak(*shape, spec.gradient_accumulation_steps)
            buckets = _ddp_buckets(spec, trace)
            return peak._replace(peak_bytes=peak.peak_bytes + buckets, terms={**peak.terms, "ddp_buckets": buckets})
        terms = zero_terms(self._zero_settings(spec, model, trace), trace, *shape, self._zero)
        resident = dict(terms.resident_parts)
        workspace = int(trace.metadata["cublas_workspace_bytes"]) * 2  # the moments of the trace hold it
        rest = terms.peak_bytes - sum(resident.values()) - workspace
        return Peak(terms.peak_bytes, terms.phase, 1, {**resident, "activations_and_gathers": rest, "workspace": workspace})

    def _crew(self) -> Tracers:
        self.tracers = self.tracers or Tracers(self.python)
        return self.tracers

    def _stack(self) -> dict[str, str]:
        return {name: self.versions[name] for name in ("torch", "transformers", "peft") if name in self.versions}

    def _trace(self, spec: TrialSpec, model: Model) -> SymbolicTrace:
        key = variant_key(spec, model, self._stack(), self._target)
        if key not in self._traces:
            self._traces[key] = symbolic_trace(spec, model, self._stack(), self.cache, self._crew(), self._target)
        found = self._traces[key]
        if isinstance(found, AutofitError):
            raise found
        return found

    def _demand(
        self, spec: TrialSpec, trace: SymbolicTrace, patches: int, peak: Peak, hopeless_bytes: int | None
    ) -> tuple[Demand, list[str]]:
        context = f"CUDA context {CONTEXT_BYTES / 2**30:.1f} GiB" + (
            f", NCCL {NCCL_BYTES / 2**30:.1f} GiB" if spec.num_gpus > 1 else ""
        )
        if self._target == "cpu":
            return alone(peak.peak_bytes), []
        if spec.zero_stage:
            share = f"reserved {ZERO_FRAGMENTATION:.0%} above allocated (ZeRO's own allocations are not replayed)"
            return assumed(peak.peak_bytes), [context, share]
        if hopeless_bytes is not None and peak.peak_bytes > hopeless_bytes:
            said = "reserved at least what is allocated, which is more than the budget (not replayed)"
            return alone(peak.peak_bytes), [context, said]
        first, steady = trace.events(spec.micro_batch_size, spec.cutoff_len, patches)
        both = Events(np.concatenate([first.ids, steady.ids]), np.concatenate([first.sizes, steady.sizes]))
        return replayed(both, expandable=spec.num_gpus > 1, allocated_bytes=peak.peak_bytes), [context]

    def _time(self, spec: TrialSpec, model: Model, gpu_mem_bytes: int | None) -> tuple[StepTime, DeviceModel, list[str]]:
        device, assumed = self.device, list(self.constants.assumptions)
        if device is None:
            device = for_memory(gpu_mem_bytes or 80 * 2**30)
            assumed.append(f"the device is a {device.name}")
        micro, optimizer, job = self.timing(spec, model)
        if job.offload is not None:
            assumed += self.constants.offload_assumptions
        return step_time(device, micro, optimizer, job, self.constants), device, assumed

    def timing(self, spec: TrialSpec, model: Model) -> Timing:
        """What a canonical spec's step is made of: what its time is predicted from, and the constants are fitted on.

        Raises:
            AutofitError: as `predict`.
        """
        trace = self._trace(spec, model)
        patches = spec.micro_batch_size * spec.images.per_sample * image_patches(spec, model)
        images = max(1, spec.micro_batch_size * spec.images.per_sample)
        micro, optimizer = trace.operations(spec.micro_batch_size, spec.cutoff_len, patches, images)
        trainable = sum(p.elements * p.weight_bytes for p in trace.parameters if p.trainable)
        frozen = sum(p.elements * p.weight_bytes for p in trace.parameters if not p.trainable)
        job = Job(
            micro_steps=spec.gradient_accumulation_steps,
            ranks=spec.num_gpus,
            zero_stage=spec.zero_stage,
            trainable_bytes=trainable,
            frozen_bytes=frozen,
            gradient_bytes=trainable,
            recomputes=spec.gradient_checkpointing,
            fp32=spec.precision == "fp32",
            offload=_offload(spec, trace),
        )
        return Timing(micro, optimizer, job)


def _ddp_buckets(spec: TrialSpec, trace: SymbolicTrace) -> int:
    width = max((p.weight_bytes for p in trace.parameters if p.trainable), default=2)
    return ddp_terms(trace.parameters, gradient_bytes=width, ranks=spec.num_gpus).buckets


def _offload(spec: TrialSpec, trace: SymbolicTrace) -> Offload | None:
    if not spec.zero_stage or not (spec.offload_optimizer or spec.offload_param):
        return None
    width = 4 if spec.precision == "fp32" else 2
    return Offload(
        optimizer=spec.offload_optimizer,
        param=spec.offload_param,
        trained_elements=sum(p.elements for p in trace.parameters if p.trainable),
        weight_bytes=width * sum(p.elements for p in trace.parameters),
        element_bytes=width,
        update_bytes=UPDATE_BYTES.get(spec.optimizer, UPDATE_BYTES["adamw_torch"]),
    )


def _not_modelled(spec: TrialSpec, trace: SymbolicTrace) -> list[str]:
    named = [str(item) for item in trace.metadata["not_modelled"]]
    if spec.offload_optimizer or spec.offload_param:
        named.append("the host's own memory, and copies that hide behind the computation")
    if spec.zero_stage:
        named.append("the time of DeepSpeed's own optimizer kernels")
    return named
