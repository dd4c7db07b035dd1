"""LLaMA-Factory 0.9.5: one `train.yaml`, the DeepSpeed config inside, and the evidence as comments."""

from typing import Any

from autofit.config.certificate import Start
from autofit.config.trial import TrialSpec
from autofit.export.deepspeed import bucket_for
from autofit.export.evidence import heading
from autofit.export.llamafactory_arguments import sections
from autofit.export.source import Source
from autofit.export.user_file import changed_file, evaluation_note, starts_deepspeed
from autofit.export.yaml_text import yaml_text

FILE = "train.yaml"


def render(source: Source) -> dict[str, str]:
    """`train.yaml`; for a study that started from the user's file, that file with its changed lines, and `train.diff`.

    Raises:
        UsageError: LLaMA-Factory cannot run what the trial ran, or the model has no weights or no certain template.
    """
    if source.study.source_yaml is not None:
        return changed_file(source, FILE, _heading(source))
    return {FILE: yaml_text(_heading(source), _sections(source), _notes(source))}


def start(source: Source) -> Start:
    """How to start it. LLaMA-Factory goes distributed by itself where it sees several GPUs, so one device is named."""
    environment: dict[str, str] = {}
    if needs_torchrun(source.spec) or starts_deepspeed(source):
        environment = {"FORCE_TORCHRUN": "1", "NPROC_PER_NODE": str(source.spec.num_gpus)}
    elif source.study.hardware.device != "cpu":
        environment = {"CUDA_VISIBLE_DEVICES": "0"}
    return Start(arguments=("llamafactory-cli", "train", FILE), environment=environment)


def needs_torchrun(spec: TrialSpec) -> bool:
    """Several ranks, or DeepSpeed, which LLaMA-Factory refuses without torchrun."""
    return spec.num_gpus > 1 or spec.zero_stage > 0


def _sections(source: Source) -> dict[str, dict[str, Any]]:
    """Heading -> keys: what the trial ran with, and the output."""
    device = source.study.hardware.device
    return {
        **sections(source.spec, source.model, source.study.space.dataset, device, bucket_for(source)),
        "output": {
            "output_dir": source.output_dir,
            "logging_steps": 10,
            "save_steps": 500,
            "report_to": "none",
        },
    }


def _notes(source: Source) -> dict[str, str]:
    """Key -> what to know about its value."""
    spec = source.spec
    notes = {
        "cutoff_len": "tried at this length; a longer one needs more memory",
        "image_max_pixels": "tried at this size; a larger one needs more memory",
        "gradient_accumulation_steps": f"{spec.global_batch_size} samples an optimizer step on {spec.num_gpus} device(s)",
        "per_device_eval_batch_size": "LLaMA-Factory's default of 8 can run out of memory where training fits",
    }
    if source.study.space.dataset is None:
        notes["dataset"] = "LLaMA-Factory's demo data: replace it with yours"
    return notes


def _heading(source: Source) -> list[str]:
    lines = heading(source, start(source))
    if (note := evaluation_note(source)) is not None:
        lines.insert(-2, note)
    return lines
