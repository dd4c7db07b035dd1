"""Which model is meant: a shipped preset, a Hugging Face folder, a hub id or an inline config.

A preset is a Hugging Face `config.json` in `presets/`, with the id of its published weights where there is one.
"""

import difflib
import json
from pathlib import Path
from typing import Any, Self

from pydantic import Field, model_validator

from autofit.config.base import Frozen
from autofit.errors import UsageError

_PRESETS = Path(__file__).parent / "presets"


class ModelRef(Frozen):
    """Exactly one of the four ways to name a model."""

    preset: str | None = None
    """A configuration that ships with autofit, for example `qwen2.5-vl-7b`."""
    path: str | None = None
    """A Hugging Face folder; its `config.json` is required, its weights are used if they are there."""
    id: str | None = None
    """A hub id `org/name`; the training environment must have it in its cache or reach the hub."""
    config: dict[str, Any] | None = Field(default=None, repr=False)
    """A Hugging Face config, inline; the weights are random."""

    @model_validator(mode="after")
    def _one_of_four(self) -> Self:
        given = [name for name in ("preset", "path", "id", "config") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"name the model in exactly one way: preset, path, id or config (got {given or 'none'})")
        return self

    def __hash__(self) -> int:
        """Leaves the inline config out, a dict; equal references still hash alike."""
        return hash((self.preset, self.path, self.id))

    @classmethod
    def from_text(cls, text: str) -> Self:
        """What `--model` accepts: the name of a preset, an existing folder, or a hub id.

        Raises:
            UsageError: none of the three.
        """
        if text in preset_names():
            return cls(preset=text)
        if Path(text).is_dir():
            return cls(path=str(Path(text).resolve()))
        if text.count("/") == 1 and not text.startswith((".", "/", "~")):
            return cls(id=text)
        near = difflib.get_close_matches(text, preset_names(), n=1, cutoff=0.5)
        hint = f"did you mean the preset '{near[0]}'?" if near else f"presets: {', '.join(preset_names())}"
        raise UsageError(f"--model {text}: neither a preset, nor a folder, nor a hub id org/name; {hint}")

    @property
    def label(self) -> str:
        """A short name for tables and messages."""
        if self.config is not None:
            return str(self.config.get("model_type", "inline config"))
        return self.preset or self.id or Path(self.path or "").name


class Model(Frozen):
    """A model reference resolved as far as the driver can: what the worker builds and what legality needs to know."""

    label: str
    """A short name for tables and messages."""
    config: dict[str, Any] | None = Field(default=None, repr=False)
    """The Hugging Face config; None for a hub id that only the training environment can read."""
    path: str | None = None
    """Folder with weights, tokenizer and processor, if there is one."""
    id: str | None = None
    """Hub id of the published weights, if there is one."""

    @property
    def is_vision_language(self) -> bool:
        """Whether the model has a vision tower. A hub id is judged by its name."""
        if self.config is None:
            return "vl" in (self.id or "").lower()
        return "vision_config" in self.config

    @property
    def is_tiny(self) -> bool:
        """Whether a CPU can train it within seconds a step (under about 200 million parameters, embeddings included)."""
        if self.config is None:
            return False
        text = self.config.get("text_config") or self.config
        hidden, layers = int(text.get("hidden_size", 0)), int(text.get("num_hidden_layers", 0))
        matrices = 4 * hidden * hidden + 3 * hidden * int(text.get("intermediate_size", 4 * hidden))
        return layers * matrices + 2 * hidden * int(text.get("vocab_size", 0)) < 200_000_000

    def image_tokens(self, max_pixels: int) -> int:
        """Upper bound of the tokens of one image of at most `max_pixels` pixels, its two boundary tokens included.

        One token covers `patch_size * spatial_merge_size` pixels square (Qwen2-VL, Qwen2.5-VL, Qwen3-VL image processors).
        0 for a model without a vision tower.
        """
        if not self.is_vision_language:
            return 0
        vision = (self.config or {}).get("vision_config", {})
        side = int(vision.get("patch_size", 14)) * int(vision.get("spatial_merge_size", 2))
        return max(1, max_pixels // side**2) + 2


def preset_names() -> list[str]:
    """The presets that ship."""
    return sorted(path.stem for path in _PRESETS.glob("*.json"))


def resolve_model(ref: ModelRef) -> Model:
    """Reads the config behind a reference.

    Raises:
        UsageError: no such preset or folder, a folder without `config.json`, or a config that is not one.
    """
    if ref.config is not None:
        return Model(label=ref.label, config=_checked(ref.config, "model.config"))
    if ref.id is not None:
        return Model(label=ref.id, id=ref.id)
    if ref.preset is not None:
        file = _PRESETS / f"{ref.preset}.json"
        if not file.is_file():
            near = difflib.get_close_matches(ref.preset, preset_names(), n=1, cutoff=0.4)
            hint = f"did you mean '{near[0]}'?" if near else f"presets: {', '.join(preset_names())}"
            raise UsageError(f"no preset '{ref.preset}'; {hint}")
        content = _read_json(file)
        return Model(label=ref.preset, config=_checked(content["config"], str(file)), id=content.get("id"))
    folder = Path(ref.path or "").expanduser()
    if not folder.is_dir():
        raise UsageError(f"model folder {folder} does not exist")
    if not (folder / "config.json").is_file():
        raise UsageError(f"model folder {folder} has no config.json; give a Hugging Face model folder")
    config = _checked(_read_json(folder / "config.json"), str(folder / "config.json"))
    return Model(label=folder.name, config=config, path=str(folder.resolve()))


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{file}: is not readable JSON ({error})") from error
    if not isinstance(content, dict):
        raise UsageError(f"{file}: must hold a JSON object")
    return content


def _checked(config: dict[str, Any], source: str) -> dict[str, Any]:
    if not isinstance(config.get("model_type"), str):
        raise UsageError(f"{source}: is no Hugging Face model config (it has no 'model_type')")
    return config
