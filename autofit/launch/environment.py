"""The training environment: the interpreter that runs the trials, and the variables the real launch would set."""

import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

from autofit.config.base import Frozen
from autofit.config.trial import TrialSpec
from autofit.errors import LaunchError
from autofit.resources import worker_entry

PROBE_SECONDS = 60.0
CPU_MALLOC = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": str(2**20), "MALLOC_TRIM_THRESHOLD_": str(8 * 2**20)}
"""glibc's settings under which a worker trains on a CPU, as in `worker/supervisor.py`: a real run on a CPU needs them too, or
its peak is that of another heap."""
REQUIRED = ("torch", "transformers", "accelerate")


class TrainingEnvironment(Frozen):
    """What an interpreter has."""

    python: str
    versions: dict[str, str]
    """`python` and every package of the training stack that is there."""

    def missing(self, spec_methods: set[str], zero_stages: set[int]) -> list[str]:
        """Packages that trials with these methods and ZeRO stages would lack."""
        wanted = [*REQUIRED]
        wanted += ["peft"] if "lora" in spec_methods else []
        wanted += ["deepspeed"] if any(zero_stages) else []
        return [name for name in wanted if name not in self.versions]


def probe(python: str) -> TrainingEnvironment:
    """Asks an interpreter what it has, without importing any of it.

    A relative path becomes absolute, for trials start in folders of their own; links stay, for they are what makes a venv.

    Raises:
        LaunchError: it is no Python that can run the worker.
    """
    if os.sep in python:
        python = str(Path(python).expanduser().absolute())
    command = [python, str(worker_entry()), "probe"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PROBE_SECONDS, check=True)
        found = json.loads(done.stdout.strip().splitlines()[-1])
        return TrainingEnvironment(python=python, versions={name: version for name, version in found.items() if version})
    except FileNotFoundError:
        raise LaunchError(f"--python {python}: no such interpreter") from None
    except subprocess.CalledProcessError as error:
        last = (error.stderr.strip().splitlines() or ["no message"])[-1]
        raise LaunchError(f"--python {python}: cannot run the worker: {last}") from error
    except (OSError, subprocess.TimeoutExpired, ValueError, IndexError, AttributeError) as error:
        raise LaunchError(f"--python {python}: is no usable Python interpreter ({error})") from error


def worker_variables(
    python: str, trial: TrialSpec, device: str, device_uuids: list[str], base: Mapping[str, str] | None = None
) -> dict[str, str]:
    """The environment of a worker.

    LLaMA-Factory sets the allocator's expandable segments and NCCL's stream handling on its torchrun path only, that is with
    several ranks or DeepSpeed (its 0.9.5 `launcher.py`); a trial without them would measure another allocator.
    """
    env = dict(os.environ if base is None else base)
    env.pop("PYTHONPATH", None)  # the driver's packages are not the training environment's
    env.pop("PYTHONHOME", None)
    env["PATH"] = f"{Path(python).parent}{os.pathsep}{env.get('PATH', '')}"
    env["AUTOFIT_DRIVER_PID"] = str(os.getpid())
    env["PYTHONUNBUFFERED"] = "1"
    env.setdefault("TOKENIZERS_PARALLELISM", "false")
    if device == "cpu":
        env |= {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
        env.setdefault("OMP_NUM_THREADS", "1")
        return env
    env["CUDA_VISIBLE_DEVICES"] = ",".join(device_uuids)
    if trial.num_gpus > 1 or trial.zero_stage:
        env.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
        env.setdefault("TORCH_NCCL_AVOID_RECORD_STREAMS", "1")
    return env
