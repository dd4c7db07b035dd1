"""`--from train.yaml`: the user's own LLaMA-Factory file becomes the study's space, reference and first trial.

What the file says stays fixed but for the knobs that are free: by default those that only run the same training in another way
(micro-batch with the accumulation that keeps the global batch, checkpointing, ZeRO stage), and those that the user names.
"""

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from autofit.config.base import describe, read_yaml
from autofit.config.launcher_keys import DEFAULTS, KNOB_OF_KEY, Meaning, meaning
from autofit.config.launcher_yaml import launcher_values
from autofit.config.model import ModelRef, preset_names, resolve_model
from autofit.config.space import KNOBS, DatasetRef, SearchSpace, Value
from autofit.config.trial import TrialSpec
from autofit.errors import UsageError
from autofit.export.deepspeed import deepspeed_config

SAME_TRAINING = ("micro_batch_size", "gradient_checkpointing", "zero_stage")
"""Free unless the user keeps them."""
MIN_CUTOFF_LEN = 64
_BOOLEANS = tuple(name for name, field in TrialSpec.model_fields.items() if field.annotation is bool)
_COMMUNICATION = (
    "overlap_comm", "reduce_bucket_size", "allgather_bucket_size", "sub_group_size", "stage3_prefetch_bucket_size",
    "stage3_param_persistence_threshold", "stage3_max_live_parameters", "stage3_max_reuse_distance", "round_robin_gradients",
)  # fmt: skip


@dataclass(frozen=True)
class Start:
    """A file to start from."""

    path: str
    text: str
    space: SearchSpace
    beyond: tuple[str, ...]
    """Keys of the file that change memory and that a trial spec cannot say."""

    def refuse(self, engine: str) -> None:
        """
        Raises:
            UsageError: `engine` builds the training from the spec alone, and the file asks for more.
        """
        if engine == "transformers" and self.beyond:
            more = f" (and {len(self.beyond) - 1} more)" if len(self.beyond) > 1 else ""
            raise UsageError(
                f"{self.path}: {self.beyond[0]}{more} changes memory in a way that engine transformers cannot run; take it out"
                " of the file, or search with the engine that runs the file itself (llamafactory)"
            )


def start_from(
    file: str, device: Literal["cuda", "cpu"], num_gpus: int, *, free: Sequence[str] = (), keep: Sequence[str] = ()
) -> Start:
    """Reads `file` for `num_gpus` devices. Knobs in `free` and `keep` go by the spec's names or LLaMA-Factory's.

    Raises:
        UsageError: the file cannot be read or means no training; a knob that is none.
    """
    try:
        # newlines are kept as they are: the export changes single lines of this text
        text = Path(file).read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--from {file}: cannot be read ({getattr(error, 'strerror', None) or error})") from error
    values = launcher_values(text, file)
    said = meaning(values, device, file)
    model = _model(values, file)
    spec = _reference(said, model, values, num_gpus, file)
    freed = _freed(free, keep, num_gpus > 1 or said.deepspeed is not None)
    knobs = {name: list(_choices(name, spec, device)) for name in freed} or {"micro_batch_size": [spec.micro_batch_size]}
    fixed = {
        name: value
        for name, value in spec.model_dump(mode="json").items()
        if name not in {"model", "num_gpus", "gradient_accumulation_steps", *knobs}
    }
    space = SearchSpace(
        name=Path(file).stem,
        description=f"started from {file}",
        model=model,
        dataset=_dataset(values),
        num_gpus=num_gpus,
        fixed=fixed,
        knobs=knobs,
        reference={
            **{name: getattr(spec, name) for name in knobs},
            "gradient_accumulation_steps": spec.gradient_accumulation_steps,
        },
    )
    return Start(str(Path(file).resolve()), text, space, (*said.beyond, *_other_buckets(said, spec)))


def _model(values: Mapping[str, Any], file: str) -> ModelRef:
    """A folder, the preset of that hub id (its config is known without the hub), or the hub id."""
    name = values.get("model_name_or_path")
    if not isinstance(name, str) or not name:
        raise UsageError(f"{file}: model_name_or_path is missing; LLaMA-Factory needs it too")
    if Path(name).expanduser().is_dir():
        return ModelRef(path=str(Path(name).expanduser().resolve()))
    for preset in preset_names():
        if resolve_model(ModelRef(preset=preset)).id == name:
            return ModelRef(preset=preset)
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        return ModelRef(id=name)
    raise UsageError(f"{file}: model_name_or_path {name} is neither a folder here nor a hub id org/name")


def _reference(said: Meaning, model: ModelRef, values: Mapping[str, Any], num_gpus: int, file: str) -> TrialSpec:
    images = {
        "per_sample": _images_per_sample(values),
        "max_pixels": values.get("image_max_pixels") or DEFAULTS["image_max_pixels"],
    }
    try:
        return TrialSpec.model_validate({**said.fields, "images": images, "model": model, "num_gpus": num_gpus})
    except ValidationError as error:
        raise UsageError(f"{file}: {describe(error, TrialSpec)}") from error


def _dataset(values: Mapping[str, Any]) -> DatasetRef | None:
    names = values.get("dataset")
    if not names:
        return None
    joined = ",".join(map(str, names)) if isinstance(names, list) else str(names)
    return DatasetRef(
        name=joined, dir=str(values.get("dataset_dir") or DEFAULTS["dataset_dir"]), template=values.get("template")
    )


def _images_per_sample(values: Mapping[str, Any]) -> int:
    """0 where `dataset_info.json` is here and says that none of the file's datasets has images; else 1."""
    dataset = _dataset(values)
    info = Path(dataset.dir) / "dataset_info.json" if dataset else None
    if dataset is None or info is None or not info.is_file():
        return 1
    entries = read_yaml(info)
    columns = [
        (entries.get(name.strip()) or {"columns": {"images": ""}}).get("columns", {}) for name in dataset.name.split(",")
    ]
    return 1 if any("images" in each for each in columns) else 0


def _freed(free: Sequence[str], keep: Sequence[str], several: bool) -> list[str]:
    """The knobs to search, in the order of KNOBS."""
    wanted = {name for name in SAME_TRAINING if name != "zero_stage" or several}
    wanted |= {_knob(name, "--free") for name in free}
    wanted -= {_knob(name, "--keep") for name in keep}
    return [name for name in KNOBS if name in wanted]


def _knob(name: str, flag: str) -> str:
    ours = KNOB_OF_KEY.get(name, name)
    if ours == "gradient_accumulation_steps":
        raise UsageError(f"{flag} {name}: it follows from the micro-batch, so that the global batch of the file stays")
    if ours not in KNOBS:
        valid = [knob for knob in KNOBS if knob != "gradient_accumulation_steps"]
        near = difflib.get_close_matches(ours, [*valid, *KNOB_OF_KEY], n=1, cutoff=0.5)
        raise UsageError(f"{flag} {name}: no such knob; {f'did you mean {near[0]}?' if near else ', '.join(valid)}")
    return ours


def _choices(knob: str, spec: TrialSpec, device: str) -> list[Value]:
    """The values to try of a freed knob; the file's own is one of them."""
    own: Value = getattr(spec, knob)
    if knob in _BOOLEANS:
        return [own, not own]
    per_device = spec.micro_batch_size * spec.gradient_accumulation_steps
    values: dict[str, Callable[[], set[Value]]] = {
        "micro_batch_size": lambda: {size for size in range(1, per_device + 1) if per_device % size == 0},
        "zero_stage": lambda: {0, 2, 3},
        "cutoff_len": lambda: {cut for part in (2, 4) if (cut := spec.cutoff_len // part // 8 * 8) >= MIN_CUTOFF_LEN},
        "method": lambda: {"full", "lora", "freeze"},
        "precision": lambda: {"bf16", "fp16"} if device == "cuda" else set(),
        "optimizer": lambda: {"adamw_torch", "adamw_torch_fused", "adafactor"},
        "attention": lambda: {"sdpa", "flash_attention_2" if device == "cuda" else "eager"},
    }
    return sorted({own, *values[knob]()})


def _other_buckets(said: Meaning, spec: TrialSpec) -> list[str]:
    """Where the file's DeepSpeed configuration differs, in what takes memory, from the one that trials run with."""
    ours = deepspeed_config(spec)
    if said.deepspeed is None or ours is None:
        return []
    mine, theirs = ours["zero_optimization"], said.deepspeed.get("zero_optimization", {})
    return [
        f"deepspeed.zero_optimization.{name} {theirs[name]}"
        for name in _COMMUNICATION
        if name in theirs and not _equal(theirs[name], mine.get(name, theirs[name]))
    ]


def _equal(one: object, other: object) -> bool:
    try:
        return float(str(one)) == float(str(other))
    except ValueError:
        return one == other
