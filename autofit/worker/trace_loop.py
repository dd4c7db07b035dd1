"""One optimizer step as Trainer runs it, over `meta` tensors for the trace, over real ones for the benchmark that checks it.

Order of things (transformers Trainer.training_step and _inner_training_loop, accelerate's prepare_model): the batches of all
accumulation steps are on the device before the first forward; forward runs under autocast and its outputs are converted to
fp32; the outputs die before backward; clipping, optimizer, gradients set to None.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

Observer = Callable[[str, int], None]


@dataclass
class Loop:
    """What a step needs.

    Attributes:
        model: called with the batch as keyword arguments; its output has a `loss`.
        optimizer: None: gradients are computed and dropped (something else owns the optimizer, for example DeepSpeed).
        autocast: type of the forward's arithmetic, None without autocast.
        autocast_device: device type given to `torch.autocast`.
        scaled: gradients are scaled and checked, as fp16 needs.
        max_grad_norm: clipping, None for none.
        observe: told (phase, step) whenever a phase begins.
    """

    model: Any
    optimizer: torch.optim.Optimizer | None
    autocast: torch.dtype | None = None
    autocast_device: str = "cpu"
    scaled: bool = False
    max_grad_norm: float | None = 1.0
    observe: Observer = lambda phase, step: None

    def step(self, batches: Sequence[dict[str, Any]], step: int) -> None:
        """One optimizer step over these micro-batches."""
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        for number, batch in enumerate(batches):
            self.micro_step(batch, step, len(batches), number)
        if self.optimizer is not None:
            self.observe("clip", step)
            if self.scaled:
                _unscale(trained)
            if self.max_grad_norm is not None:
                torch.nn.utils.clip_grad_norm_(trained, self.max_grad_norm)
            self.observe("optimizer", step)
            self.optimizer.step()
        self.observe("zero_grad", step)
        for parameter in trained:
            parameter.grad = None

    def micro_step(self, batch: dict[str, Any], step: int, accumulation: int = 1, number: int = 0) -> None:
        """Forward and backward of one micro-batch; gradients stay."""
        self.observe("forward", step)
        loss = self._loss(batch)
        if accumulation > 1:
            loss = loss / accumulation
        if self.scaled:
            loss = loss * torch.ones((), device=loss.device)
        self.observe("backward", step)
        loss.backward()

    def _loss(self, batch: dict[str, Any]) -> torch.Tensor:
        with self._casting():
            outputs = self.model(**batch)
        if self.autocast is not None:
            outputs = {name: _to_fp32(value) for name, value in outputs.items()}
        return outputs["loss"]

    def _casting(self) -> AbstractContextManager[Any]:
        if self.autocast is None:
            return nullcontext()
        return torch.autocast(self.autocast_device, dtype=self.autocast)


def _to_fp32(value: Any) -> Any:
    """accelerate.utils.convert_to_fp32 for the outputs of a model."""
    if isinstance(value, torch.Tensor) and value.dtype in (torch.bfloat16, torch.float16):
        return value.float()
    return value


def _unscale(parameters: list[torch.nn.Parameter]) -> None:
    """GradScaler.unscale_: checks and divides in place."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    device = gradients[0].device
    found, inverse = torch.zeros(1, device=device), torch.ones(1, device=device)
    torch._amp_foreach_non_finite_check_and_unscale_(gradients, found, inverse)
