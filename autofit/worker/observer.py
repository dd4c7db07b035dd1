"""Watches a training from inside: tells meter and heartbeat where it is, keeps losses and token counts."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from autofit.worker import faults
from autofit.worker.heartbeat import Heartbeat
from autofit.worker.meter import Meter
from autofit.worker.order import Order
from autofit.worker.report import RankReport


class Observer:
    """One rank's training. Nothing here waits for the device between steps."""

    def __init__(self, order: Order, rank: int, heartbeat: Heartbeat, meter: Meter) -> None:
        self._order, self._rank, self._heartbeat, self._meter = order, rank, heartbeat, meter
        self._hooks: list[Any] = []
        self._train_seconds = 0.0
        self._watching_since: float | None = None
        self._step = order.first_step
        self._held = 0
        self._step_loss: torch.Tensor | float | None = None
        self._losses: list[torch.Tensor | float] = []
        self._batches: list[tuple[int, int, torch.Tensor | int]] = []
        self._steps: list[list[tuple[int, int, torch.Tensor | int]]] = []

    def watch(self, model: torch.nn.Module) -> None:
        """Hooks into the model and into every optimizer: DeepSpeed steps its own, deep inside."""
        from torch.optim.optimizer import register_optimizer_step_pre_hook

        self._watching_since = time.perf_counter()
        self._hooks = [
            model.register_forward_pre_hook(lambda *_: self._forward_begins()),
            model.register_forward_hook(lambda *_: self.enter("backward")),
            register_optimizer_step_pre_hook(lambda *_: self.enter("optimizer_step")),
        ]

    def leave(self) -> None:
        """Takes the hooks away; the training is over."""
        for hook in self._hooks:
            hook.remove()
        if self._watching_since is not None:
            self._train_seconds = time.perf_counter() - self._watching_since
            self._watching_since = None

    def enter(self, phase: str) -> None:
        """A phase of the step begins; inside `during` it is only a sign of life."""
        if self._held:
            self._heartbeat.beat()
            return
        self._meter.enter(phase)
        self._heartbeat.beat(phase)

    @contextmanager
    def during(self, phase: str) -> Iterator[None]:
        """An evaluation or a save. When it raises, its phase stays: it says where that happened."""
        if not self._held:
            self.enter(phase)
            self._heartbeat.beat(phase)
            faults.strike_phase(phase, self._order.device)
        self._held += 1
        yield
        self._held -= 1
        if not self._held:
            self._meter.pause()

    def step_begins(self) -> None:
        """First micro-batch of an optimizer step."""
        self._meter.step_begins()
        self._heartbeat.beat(step=self._step)

    def step_ends(self) -> None:
        """The optimizer has stepped."""
        self._meter.step_ends()
        self._step += 1
        self._steps.append(self._batches)
        self._batches = []
        if self._step_loss is not None:
            self._losses.append(self._step_loss)
            self._step_loss = None
        self._heartbeat.beat(step=self._step)

    def add_batch(self, inputs: Mapping[str, Any]) -> None:
        """Counts a micro-batch's tokens and image patches; what has to be read from the device is read at the end."""
        ids, mask, pixels = inputs.get("input_ids"), inputs.get("attention_mask"), inputs.get("pixel_values")
        tokens = int(ids.numel()) if ids is not None else 0
        real = _kept((mask > 0).sum()) if mask is not None and mask.dim() == 2 else tokens
        patches = int(pixels.shape[0]) if isinstance(pixels, torch.Tensor) else 0
        self._batches.append((tokens, patches, real))

    def add_loss(self, loss: torch.Tensor | float) -> None:
        """Adds a micro-batch's share of the step's loss; stays on the device, so nothing waits for it."""
        loss = _kept(loss)
        self._step_loss = loss if self._step_loss is None else self._step_loss + loss

    def fill(self, report: RankReport) -> None:
        """Stops watching; writes losses (unrounded) and token counts of the finished steps into the report."""
        self.leave()
        report.timings["train"] = self._train_seconds
        report.step_tokens = [sum(tokens for tokens, _, _ in step) for step in self._steps]
        report.step_batch_tokens = [max(tokens for tokens, _, _ in step) for step in self._steps]
        report.step_batch_patches = [max(patches for _, patches, _ in step) for step in self._steps]
        try:
            report.step_effective_tokens = [sum(int(real) for _, _, real in step) for step in self._steps]
            report.losses = [float(loss) for loss in self._losses] if self._order.record_losses else []
        except RuntimeError:  # after a CUDA error nothing can be read from the device any more
            pass

    def _forward_begins(self) -> None:
        self.enter("forward")
        if not self._held:
            faults.strike(self._rank, self._step, self._order.folder)


def _kept(value: torch.Tensor | float) -> Any:
    """What is kept of a scalar: on the CPU its number, for a tensor that stays would pin the heap between a step's large ones

    and make it creep, which is what is being measured.
    """
    return value.item() if isinstance(value, torch.Tensor) and value.device.type == "cpu" else value
