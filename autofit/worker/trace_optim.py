"""The optimizers of a trial on tensors without data; those of bitsandbytes as their state and nothing else."""

import re
from collections.abc import Iterable
from typing import Any

import torch

OPTIMIZERS = ("adamw_torch", "adamw_torch_fused", "adamw_8bit", "paged_adamw_8bit", "adafactor", "sgd")


class EightBitAdamW(torch.optim.Optimizer):
    """State of bitsandbytes' block-wise AdamW (bitsandbytes/optim/optimizer.py, block size 256): two bytes a parameter.

    Tensors of less than 4096 elements keep fp32 state. The kernel works in place. Paged state is managed memory, outside
    the allocator, and is left out.
    """

    def __init__(self, parameters: Iterable[Any], paged: bool = False) -> None:
        super().__init__(parameters, {})
        self.paged = paged

    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None or self.state[parameter]:
                    continue
                count, state = parameter.numel(), self.state[parameter]
                if count < 4096:
                    state["state1"] = torch.zeros_like(parameter, dtype=torch.float32)
                    state["state2"] = torch.zeros_like(parameter, dtype=torch.float32)
                    continue
                if not self.paged:
                    state["state1"] = torch.zeros(count, dtype=torch.uint8, device=parameter.device)
                    state["state2"] = torch.zeros(count, dtype=torch.uint8, device=parameter.device)
                blocks = -(-count // 256)
                state["absmax1"] = torch.zeros(blocks, dtype=torch.float32, device=parameter.device)
                state["absmax2"] = torch.zeros(blocks, dtype=torch.float32, device=parameter.device)


_NO_DECAY = re.compile(r"bias|layernorm|rmsnorm|(?:^|\.)norm(?:$|\.)|_norm(?:$|\.)")


def decays(model: torch.nn.Module) -> list[bool]:
    """Whether Trainer lets weight decay work on each parameter: by name and kind of layer, not by dimension.

    transformers 5's `Trainer.get_decay_parameter_names`; Qwen2.5-VL's `ln_q.weight`, for example, is a vector that decays.
    """
    norms = {id(item) for layer in model.modules() if isinstance(layer, torch.nn.LayerNorm) for item in layer.parameters()}
    return [
        id(parameter) not in norms and _NO_DECAY.search(name.lower()) is None for name, parameter in model.named_parameters()
    ]


def decay_groups(model: torch.nn.Module) -> list[dict[str, Any]]:
    """Trainer's two parameter groups: what weight decay works on, and the rest. Their order decides which tensors meet."""
    trained = [(item, flag) for item, flag in zip(model.parameters(), decays(model), strict=True) if item.requires_grad]
    return [{"params": [item for item, flag in trained if flag is wanted], "weight_decay": 0.0} for wanted in (True, False)]


def build_optimizer(name: str, model: torch.nn.Module, foreach: bool | None = None) -> torch.optim.Optimizer:
    """The optimizer that Trainer makes for `name`.

    Args:
        foreach: None leaves torch's default of the device; False is one tensor at a time.

    Raises:
        KeyError: no such optimizer.
    """
    groups = [group for group in decay_groups(model) if group["params"]]
    if name == "adamw_torch":
        return torch.optim.AdamW(groups, lr=1e-5, foreach=foreach)
    if name == "adamw_torch_fused":
        return torch.optim.AdamW(groups, lr=1e-5, fused=True)
    if name == "sgd":
        return torch.optim.SGD(groups, lr=1e-5, foreach=foreach)
    if name in ("adamw_8bit", "paged_adamw_8bit"):
        return EightBitAdamW(groups, paged=name.startswith("paged"))
    if name == "adafactor":
        from transformers.optimization import Adafactor

        return Adafactor(groups, lr=1e-5, scale_parameter=False, relative_step=False)
    raise KeyError(name)
