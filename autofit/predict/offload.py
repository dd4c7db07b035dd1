"""What offloading costs in time: bytes over the link to the host, and the update in the host's memory.

Source of what moves: Ren et al., "ZeRO-Offload", USENIX ATC 2021, section 4 (gradients to the host, the update there, weights
in half precision back), and DeepSpeed 0.19 where it does more (`async_accumulate_grad_in_cpu_via_gpu` of stage_1_and_2.py,
`partition_grads` of stage3.py: from the second micro-batch on the sum so far comes back to be added to). The update is bound by
memory: its seconds are its traffic over the bandwidth that all ranks of the node share.

Nothing is taken to overlap with the computation, which is the safe assumption.
"""

from dataclasses import dataclass

_AROUND_UPDATE = 2 + 4 + 4 + 4 + 2
"""Bytes of host traffic an element beside the optimizer: gradient cast to fp32 (2 read, 4 written), its norm (4), new weight
cast back (4 and 2)."""
UPDATE_BYTES = {"adamw_torch_fused": 28, "adamw_torch": 84, "adafactor": 80, "sgd": 12}
"""Optimizer -> bytes of host traffic an element of its fp32 update.

One pass (fused, and DeepSpeed's CPU-Adam): weight, gradient and two moments read, three written, 7 x 4. torch one tensor at a
time (`_single_tensor_adamw`): decay 8, lerp 12, mul and addcmul 24, sqrt 8, division and eps 16, addcdiv 16. transformers'
Adafactor on a flat partition: square and eps 16, moment 20, rsqrt 8, product 12, clipping 12, weight 12. DeepSpeed's tutorial
on ZeRO-Offload puts CPU-Adam at 5 to 7 times torch's speed: what is not traffic is not in here."""


@dataclass(frozen=True)
class Offload:
    """What lives in host memory. Elements and bytes over all ranks."""

    optimizer: bool
    param: bool
    trained_elements: int
    weight_bytes: int
    """Of all parameters, frozen ones too, in the dtype that travels."""
    element_bytes: int
    """Of a weight or gradient that travels."""
    update_bytes: int = UPDATE_BYTES["adamw_torch"]
    """Host traffic an element of the update."""


def link_bytes(offload: Offload, *, stage: int, ranks: int, micro_steps: int, recomputes: bool) -> float:
    """Bytes that cross one rank's link to the host in an optimizer step, both directions added."""
    total = 0.0
    if offload.optimizer:
        part = offload.element_bytes * offload.trained_elements / ranks
        gradients = 1 if stage == 1 else 2 * micro_steps - 1
        weights = 0 if offload.param else 1  # offloaded weights stay where the update made them
        total += part * (gradients + weights)
    if offload.param:
        gathers = 3 if recomputes else 2  # as in `roofline.collective_bytes`
        total += gathers * micro_steps * offload.weight_bytes / ranks
    return total


def host_traffic(offload: Offload) -> float:
    """Bytes through the host's memory in an optimizer step, all ranks of the node together."""
    if not offload.optimizer:
        return 0.0
    return float(offload.trained_elements * (offload.update_bytes + _AROUND_UPDATE))
