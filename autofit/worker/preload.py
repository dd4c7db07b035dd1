"""What a server imports before it forks: all that ranks of such orders would import, and nothing that outlives a fork badly.

Nothing here starts a thread, computes a gradient (autograd's engine must start in the rank) or touches a device.
"""

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager

from autofit.worker.order import Order

_NVML_CHECK = "PYTORCH_NVML_BASED_CUDA_CHECK"
"""Has torch ask NVML whether there is a device: CUDA's own answer starts its driver, which a fork must not have."""


def preload(order: Order) -> None:
    """Imports. What is missing is left for the rank to report, in the run folder of its trial."""
    with _cuda_untouched(order.device):
        try:
            _import(order)
        except Exception as error:  # noqa: BLE001 - whatever it is, the rank meets it too, where it becomes the trial's result
            os.write(2, f"autofit.worker: serving without all imports: {type(error).__name__}: {error}\n".encode())


def _import(order: Order) -> None:
    from autofit.worker.models import load_config, model_class
    from autofit.worker.probe import versions
    from autofit.worker.startup import load_libraries

    importlib.import_module("transformers.trainer")
    importlib.import_module("autofit.worker.meter_cpu" if order.device == "cpu" else "autofit.worker.meter_cuda")
    if order.engine == "transformers":
        importlib.import_module("autofit.worker.engines.transformers")
    elif order.engine == "llamafactory" and order.device == "cpu":
        # On a GPU its modules ask the device for bfloat16 when they are imported, which starts CUDA.
        importlib.import_module("autofit.worker.engines.llamafactory")
        importlib.import_module("llamafactory.train.tuner")
    model_class(load_config(order.model))
    load_libraries({"zero_stage": 3, "method": "lora"})
    versions()


@contextmanager
def _cuda_untouched(device: str) -> Iterator[None]:
    if device == "cpu" or _NVML_CHECK in os.environ:
        yield
        return
    os.environ[_NVML_CHECK] = "1"
    try:
        yield
    finally:
        del os.environ[_NVML_CHECK]
