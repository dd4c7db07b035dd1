"""What an engine does before the baseline of memory is taken: libraries, process group, kernels. None of it is the model's."""

import importlib
import os
from typing import Any

import torch

from autofit.worker.deepspeed_config import BUCKET_ELEMENTS
from autofit.worker.models import model_class
from autofit.worker.order import Order

_TORCHRUN = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
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


def meter_backend(order: Order) -> Any:
    """The meter's back-end for the ordered device; create it before anything touches the device."""
    if order.device == "cuda":
        from autofit.worker.meter_cuda import CudaBackend

        return CudaBackend(int(os.environ.get("LOCAL_RANK", "0")))
    from autofit.worker.meter_cpu import CpuBackend

    return CpuBackend()


def launched_alike(order: Order) -> None:
    """Several ranks and DeepSpeed are started by torchrun; a training on one device is no member of a process group.

    In one, its NCCL communicator would be measured as the training's own.
    """
    if order.num_ranks == 1 and not order.trial["zero_stage"]:
        for name in _TORCHRUN:
            os.environ.pop(name, None)


def load_libraries(trial: dict[str, Any]) -> None:
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


def prepare_deepspeed(order: Order) -> None:
    """On the CPU keeps DeepSpeed from compiling its shared-memory all-reduce (100-150 s); gloo gives bit-identical losses."""
    import deepspeed
    import deepspeed.ops

    if order.device != "cpu":
        return
    compatible = vars(deepspeed.ops).setdefault("__compatible_ops__", {})
    compatible["deepspeed_shm_comm"] = False
    deepspeed.init_distributed("gloo")


def know_cpu_by_number() -> None:
    """Has torch load what is mapped onto `cpu:0`: so transformers 5.5 names the device of a rank among several without a GPU.

    Without it a trial of several CPU ranks (DDP) cannot resume, as a real run there cannot; on GPUs torch knows the name.
    """
    torch.serialization.register_package(
        0, lambda _storage: None, lambda storage, location: storage if location.startswith("cpu:") else None
    )


def bucket_elements(order: Order, config: Any) -> int:
    """Elements of the reduce bucket, which DeepSpeed allocates whole.

    LLaMA-Factory's 5e8 are what a GPU really loses. On the CPU they would be address space that counts against RLIMIT_DATA and
    is hardly touched, so there the bucket ends at the model's own size.
    """
    if order.device == "cuda" or order.trial["zero_stage"] == 3:
        return BUCKET_ELEMENTS
    with torch.device("meta"):
        skeleton = model_class(config)(config)
    return min(BUCKET_ELEMENTS, sum(parameter.numel() for parameter in skeleton.parameters()))


def start_helpers(place: torch.device, kind: torch.dtype) -> None:
    """Starts thread pools, CUDA context and communicators (the process group is there): they belong to the baseline."""
    if place.type == "cuda":
        from autofit.worker.meter_cuda import warm_up

        warm_up(int(os.environ.get("LOCAL_RANK", "0")))
    _exercise_kernels(place, kind)
    if place.type == "cuda":
        torch.cuda.empty_cache()  # what it left would be reused, and reserve otherwise than the training alone does
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
