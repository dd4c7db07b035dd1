"""LLaMA-Factory 0.9.5: one `train.yaml`, the DeepSpeed config inside, and the evidence as comments."""

import io
import shlex
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap

from autofit.config.trial import TrialSpec
from autofit.export.deepspeed import bucket_for
from autofit.export.evidence import evidence, warning
from autofit.export.llamafactory_arguments import sections
from autofit.export.source import Source

FILE = "train.yaml"


def render(source: Source) -> dict[str, str]:
    """`train.yaml`.

    Raises:
        UsageError: LLaMA-Factory cannot run what the trial ran, or the model has no weights or no certain template.
    """
    document = CommentedMap()
    for title, section in _sections(source).items():
        first = next(iter(section))
        document.update(section)
        document.yaml_set_comment_before_after_key(first, before=f"\n{title}")
    for key, note in _notes(source).items():
        if key in document:
            document.yaml_add_eol_comment(note, key)
    document.yaml_set_start_comment("\n".join(_heading(source)))
    yaml = YAML()
    yaml.width = 4096  # never fold a path over lines
    stream = io.StringIO()
    yaml.dump(document, stream)
    return {FILE: stream.getvalue()}


def command(source: Source, out_dir: Path) -> str:
    """How to start it. LLaMA-Factory goes distributed by itself where it sees several GPUs, so one device is named."""
    file = shlex.quote(str(out_dir / FILE))
    if needs_torchrun(source.spec):
        return f"FORCE_TORCHRUN=1 NPROC_PER_NODE={source.spec.num_gpus} llamafactory-cli train {file}"
    if source.study.hardware.device != "cpu":
        return f"CUDA_VISIBLE_DEVICES=0 llamafactory-cli train {file}"
    return f"llamafactory-cli train {file}"


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
    lines = evidence(source)
    if (failed := warning(source.result)) is not None:
        lines.insert(0, failed)
    return [*lines, "", f"run it in this folder with: {command(source, Path())}"]
