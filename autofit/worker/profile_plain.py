"""Rows to lengths where LLaMA-Factory is not installed: its data formats re-told, and the tokenizer's own chat template.

What LLaMA-Factory's template would do otherwise (its own system text, tool formats, thinking) is not known here, and said so.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from autofit.worker.profile_files import read_rows
from autofit.worker.profile_images import ImageError, ImageRule, image_size
from autofit.worker.profile_samples import Dropped, ProfileError, RowError, Sample, Turn, last_place, one_line

_IMAGE = "<image>"
_DUMMY = (64, 64)
_COLUMNS = {"prompt": "instruction", "query": "input", "response": "output", "messages": "conversations"}
_TAGS = {
    "role_tag": "from",
    "content_tag": "value",
    "user_tag": "human",
    "assistant_tag": "gpt",
    "observation_tag": "observation",
    "function_tag": "function_call",
    "system_tag": "system",
}
_OPENAI_SYSTEM = "detailed thinking off"
"""What LLaMA-Factory 0.9.5 adds to the system text of every row of the format openai."""

Message = dict[str, str]


class PlainRows:
    """One dataset read with the standard library, and the names that its entry in dataset_info.json gives to columns."""

    def __init__(self, name: str, entry: dict[str, Any], files: list[str]) -> None:
        self.name = name
        self.format = str(entry.get("formatting", "alpaca"))
        columns, tags = entry.get("columns"), entry.get("tags")
        self.columns = _COLUMNS if columns is None else columns
        self.tags = _TAGS if tags is None else tags
        self.rows = [row for file in files for row in read_rows(Path(file))]

    def __len__(self) -> int:
        return len(self.rows)

    def between(self, start: int, end: int) -> Iterator[dict[str, Any]]:
        """Rows `start` to `end`, the latter not included."""
        yield from self.rows[start:end]

    def value(self, row: dict[str, Any], column: str) -> Any:
        """What a row holds in the column that plays that part; None where no column does."""
        name = self.columns.get(column)
        if name is None:
            return None
        if name not in row:
            raise RowError(f"has no column '{name}', which dataset_info.json names; it has {', '.join(row)}")
        return row[name]


class PlainBackend:
    """transformers' tokenizer and its chat template."""

    def __init__(self, order: dict[str, Any]) -> None:
        self.order = order
        self.datasets = [PlainRows(name, order["entries"][name], order["files"][name]) for name in order["datasets"]]
        self.tokenizer = _tokenizer(order["model"])
        self.rule = _rule(order)
        config = _json(Path(order["model"]) / "config.json")
        ids = [config.get(name) for name in ("image_token_id", "vision_start_token_id", "vision_end_token_id")]
        self.image, self.start, self.end = (
            "" if number is None else self.tokenizer.convert_ids_to_tokens(number) for number in ids
        )
        self.image_ids = frozenset(number for number in ids[:1] if number is not None)

    def sample(self, dataset: int, row: dict[str, Any]) -> Sample | Dropped:
        """See `Backend.sample`."""
        source = self.datasets[dataset]
        try:
            system, messages, images = _CONVERTERS[source.format](source, row)
        except (TypeError, AttributeError, ValueError, KeyError) as error:
            raise RowError(f"is not of the format {source.format} ({one_line(error)})") from error
        if isinstance(messages, str):
            return Dropped(messages)
        paths = [self._found(image) for image in images]
        try:
            grids = [self._grid(path) for path in paths]
        except ImageError as error:
            raise RowError(str(error)) from error
        turns = tuple(self._turns(system, self._with_images(messages, grids)))
        merged = self.rule.merge**2 if self.rule else 1
        return Sample(
            turns=turns[::-1] if self.order["options"].get("mask_history") else turns,
            images=len(images),
            image_tokens=sum(rows * columns // merged for rows, columns in grids),
            patches=sum(rows * columns for rows, columns in grids),
            empty_answer=not messages[-1]["content"].strip(),
            media=tuple(path for path in paths if isinstance(path, str)),
        )

    def facts(self) -> dict[str, Any]:
        """See `Backend.facts`."""
        rows, columns = self.rule.grid(*_DUMMY) if self.rule and self.image else (0, 0)
        return {
            "engine": "transformers",
            "template": None,
            "mask_history": bool(self.order["options"].get("mask_history")),
            "train_on_prompt": bool(self.order["options"].get("train_on_prompt")),
            "efficient_eos": False,
            "dummy_tokens": self.rule.tokens(*_DUMMY) + 2 if self.rule and self.image else 0,
            "dummy_patches": rows * columns,
            "notes": [
                f"{source.name}: all rows were read, not the split that dataset_info.json names"
                for source in self.datasets
                if self.order["entries"][source.name].get("split", "train") != "train"
            ],
            "cannot": [
                f"LLaMA-Factory's template {self.order['template']}: LLaMA-Factory is not installed in this interpreter, so"
                " lengths are those of the tokenizer's own chat template",
                "tools, videos and audio: not counted without LLaMA-Factory",
            ],
        }

    def _found(self, image: Any) -> Any:
        """A path below the media folder where there is such a file, as LLaMA-Factory looks for it."""
        path = Path(self.order.get("media_dir") or self.order["dataset_dir"], image) if isinstance(image, str) else None
        return str(path) if path is not None and path.is_file() else image

    def _grid(self, image: Any) -> tuple[int, int]:
        if self.rule is None or not self.image:
            raise ImageError("has images, and the model folder describes no image processor of the Qwen2-VL kind")
        return self.rule.grid(*image_size(image))

    def _with_images(self, messages: list[Message], grids: list[tuple[int, int]]) -> list[Message]:
        places = sum(message["content"].count(_IMAGE) for message in messages)
        if self.image and places != len(grids):
            raise RowError(f"has {len(grids)} images and {places} {_IMAGE} placeholders in the text")
        merged, left = self.rule.merge**2 if self.rule else 1, iter(grids)

        def expanded(_: "re.Match[str]") -> str:
            rows, columns = next(left)
            return self.start + self.image * (rows * columns // merged) + self.end

        return (
            [{**message, "content": re.sub(_IMAGE, expanded, message["content"])} for message in messages]
            if grids
            else messages
        )

    def _turns(self, system: str, messages: list[Message]) -> Iterator[Turn]:
        conversation = [{"role": "system", "content": system}] if system else []
        before = ""
        for place in range(0, len(messages), 2):
            conversation.append(messages[place])
            asked = self._rendered(conversation, prompt=True)
            conversation.append(messages[place + 1])
            answered = self._rendered(conversation, prompt=False)
            source, target = self._ids(asked.removeprefix(before)), self._ids(answered.removeprefix(asked))
            wanted = self.image_ids
            yield Turn(len(source), len(target), last_place(source, wanted), last_place(target, wanted))
            before = answered

    def _rendered(self, conversation: list[Message], prompt: bool) -> str:
        return str(self.tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=prompt))

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False)
        return ids


Converted = tuple[str, list[Message] | str, list[Any]]
"""System text, messages (or why the row is left out), images."""


def _alpaca(source: PlainRows, row: dict[str, Any]) -> Converted:
    messages = []
    for question, answer in source.value(row, "history") or []:
        messages += [_message("user", question), _message("assistant", answer)]
    asked = [text for text in (source.value(row, "prompt"), source.value(row, "query")) if text]
    response = source.value(row, "response")
    images = _images(source, row)
    if not isinstance(response, str):
        return "", "no answer", images
    messages += [_message("user", "\n".join(asked)), _message("assistant", response)]
    return source.value(row, "system") or "", messages, images


def _sharegpt(source: PlainRows, row: dict[str, Any]) -> Converted:
    tags, listed = source.tags, source.value(row, "messages")
    system, listed = _system(source, row, listed)
    prompts, answers = (
        (tags.get("user_tag"), tags.get("observation_tag")),
        (tags.get("assistant_tag"), tags.get("function_tag")),
    )
    images = _images(source, row)
    messages = []
    for place, message in enumerate(listed):
        if message[tags["role_tag"]] not in (answers if place % 2 else prompts):
            return system, "roles out of order or an odd number of messages", images
        messages.append(_message("assistant" if place % 2 else "user", message[tags["content_tag"]]))
    if not messages or len(messages) % 2:
        return system, "roles out of order or an odd number of messages", images
    return system, messages, images


def _openai(source: PlainRows, row: dict[str, Any]) -> Converted:
    system, messages, images = _sharegpt(source, row)
    if _OPENAI_SYSTEM not in system and "detailed thinking on" not in system:
        system = f"{system}\n{_OPENAI_SYSTEM}" if system else _OPENAI_SYSTEM
    return system, messages, images


_CONVERTERS = {"alpaca": _alpaca, "sharegpt": _sharegpt, "openai": _openai}


def _system(source: PlainRows, row: dict[str, Any], listed: list[Any]) -> tuple[str, list[Any]]:
    tags = source.tags
    if tags.get("system_tag") and listed and listed[0][tags["role_tag"]] == tags["system_tag"]:
        return listed[0][tags["content_tag"]], listed[1:]
    return source.value(row, "system") or "", listed


def _images(source: PlainRows, row: dict[str, Any]) -> list[Any]:
    found = source.value(row, "images")
    if found is None:
        return []
    return found if isinstance(found, list) else [found]


def _message(role: str, content: Any) -> Message:
    if not isinstance(content, str):
        raise TypeError(f"a {role} message is a {type(content).__name__}, not text")
    return {"role": role, "content": content}


def _tokenizer(folder: str) -> Any:
    try:
        from transformers import AutoTokenizer
    except ImportError:
        raise ProfileError(
            "this interpreter has neither LLaMA-Factory nor transformers; name another with --python PATH"
        ) from None
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except Exception as error:  # the tokenizers library raises bare ones
        raise ProfileError(f"{folder}: its tokenizer cannot be loaded ({one_line(error)})") from error
    if not tokenizer.chat_template:
        raise ProfileError(
            f"{folder}: its tokenizer has no chat template, and LLaMA-Factory, which has its own, is not installed here;"
            " name a Python that has it with --python PATH"
        )
    return tokenizer


def _rule(order: dict[str, Any]) -> ImageRule | None:
    """From the model folder's `preprocessor_config.json`, which older models write with `min_pixels` and `max_pixels`."""
    settings = _json(Path(order["model"]) / "preprocessor_config.json")
    size = settings.get("size") or {}
    shortest = settings.get("min_pixels") or size.get("shortest_edge")
    longest = settings.get("max_pixels") or size.get("longest_edge")
    if not (shortest and longest and settings.get("patch_size") and settings.get("merge_size")):
        return None
    limits = order["image_max_pixels"], order["image_min_pixels"]
    return ImageRule(*limits, settings["patch_size"], settings["merge_size"], int(shortest), int(longest))


def _json(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
