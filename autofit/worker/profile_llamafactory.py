"""Rows to lengths by LLaMA-Factory's own code: parser, converters, template, plugin and supervised processor.

Nothing is truncated here (`cutoff_len` is out of reach), and the turns are noted as the template makes them, so that one pass
answers every `cutoff_len`. Images of the Qwen2-VL kind are sized from their headers (`profile_images`), after the rule has
been compared with the installed plugin; the plugins of other models open the images themselves.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from autofit.worker.profile_files import diagnose
from autofit.worker.profile_images import ImageError, ImageRule, image_size
from autofit.worker.profile_samples import Dropped, ProfileError, RowError, Sample, Turn, last_place, nearest, one_line

_NO_CUTOFF = 2**30
_BY_HEADER = ("Qwen2VLPlugin", "Qwen3VLPlugin")
"""Plugins whose images follow `ImageRule`. Others that derive from them do not."""
_COMPARED_SIZES = ((64, 64), (31, 640), (1000, 333), (1601, 1201))
_DUMMY = (64, 64)
"""The image that LLaMA-Factory's collator adds to a batch without any."""


class LlamaFactoryRows:
    """One dataset as LLaMA-Factory loads it."""

    def __init__(self, name: str, attributes: Any, data_args: Any) -> None:
        from llamafactory.data.converter import get_dataset_converter

        self.name = name
        self.attributes = attributes
        self.rows = _load(name, attributes, data_args)
        self.convert = get_dataset_converter(attributes.formatting, attributes, data_args)

    def __len__(self) -> int:
        return len(self.rows)

    def between(self, start: int, end: int) -> Iterator[dict[str, Any]]:
        """Rows `start` to `end`, the latter not included."""
        yield from self.rows.select(range(start, end))


class LlamaFactoryBackend:
    """LLaMA-Factory with one model's tokenizer and one template."""

    def __init__(self, order: dict[str, Any]) -> None:
        from llamafactory.data.processor import SupervisedDatasetProcessor
        from llamafactory.data.template import TEMPLATES
        from llamafactory.hparams import DataArguments, ModelArguments
        from llamafactory.model import load_tokenizer

        self.notes: list[str] = []
        self.cannot: list[str] = []
        if order["template"] not in TEMPLATES:
            raise ProfileError(
                f"template '{order['template']}' is none of the installed LLaMA-Factory's;"
                f" {nearest(order['template'], TEMPLATES)}"
            )
        data_args = DataArguments(
            template=order["template"],
            dataset=",".join(order["datasets"]),
            dataset_dir=order["dataset_dir"],
            media_dir=order.get("media_dir"),
            cutoff_len=_NO_CUTOFF,
            **order["options"],
        )
        self.datasets = _datasets(order, data_args)
        model_args = ModelArguments(
            model_name_or_path=order["model"],
            image_max_pixels=order["image_max_pixels"],
            image_min_pixels=order["image_min_pixels"],
        )
        try:
            loaded = load_tokenizer(model_args)
        except Exception as error:  # the tokenizers library raises bare ones
            raise ProfileError(
                f"{order['model']}: its tokenizer cannot be loaded ({one_line(error.__cause__ or error)})"
            ) from error
        self.tokenizer, self.processor = loaded["tokenizer"], loaded["processor"]
        self.data_args = data_args
        self.template = self._template()
        self.plugin = self.template.mm_plugin
        self._media_ids = self._ids_of_media()
        self._image_ids = frozenset(self._media_ids[:1])
        self._every_media_id = frozenset(self._media_ids)
        self._grids: list[tuple[int, int]] = []
        self._pairs: list[tuple[list[int], list[int]]] = []
        self.rule = self._by_header()
        self._note_the_pairs()
        self.supervised = SupervisedDatasetProcessor(
            template=self.template, tokenizer=self.tokenizer, processor=self.processor, data_args=data_args
        )

    def sample(self, dataset: int, row: dict[str, Any]) -> Sample | Dropped:
        """See `Backend.sample`."""
        source = self.datasets[dataset]
        try:
            found = source.convert(row)
        except KeyError as error:
            raise RowError(f"has no column {error}, which dataset_info.json names; it has {', '.join(row)}") from error
        except (TypeError, AttributeError, ValueError, IndexError) as error:
            raise RowError(f"is not of the format {source.attributes.formatting} ({one_line(error)})") from error
        prompt, response = found["_prompt"], found["_response"]
        if len(prompt) % 2 != 1 or len(response) != 1:
            return Dropped(_why_dropped(prompt, response))
        images, videos, audios = (found[name] or [] for name in ("_images", "_videos", "_audios"))
        self._grids, self._pairs = [], []
        try:
            ids, _ = self.supervised._encode_data_example(
                prompt=prompt,
                response=response,
                system=found["_system"],
                tools=found["_tools"],
                images=images,
                videos=videos,
                audios=audios,
            )
        except ImageError as error:
            raise RowError(str(error)) from error
        except (ValueError, TypeError, LookupError, OSError, RuntimeError, AttributeError, ArithmeticError) as error:
            raise RowError(_shortened(error)) from error
        turns = tuple(self._turn(*pair) for pair in self._pairs)
        if self.data_args.mask_history:
            turns = turns[::-1]
        return Sample(
            turns=turns,
            reserve=len(ids) - sum(turn.source + turn.target for turn in turns),
            images=len(images),
            image_tokens=sum(1 for token in ids if token in self._image_ids) if images else 0,
            patches=sum(rows * columns for rows, columns in self._grids),
            empty_answer=not str(response[0]["content"] or "").strip(),
            media=tuple(item for item in (*images, *videos, *audios) if isinstance(item, str)),
        )

    def facts(self) -> dict[str, Any]:
        """See `Backend.facts`."""
        dummy_tokens, dummy_patches = 0, 0
        if self.plugin.image_token is not None and self.rule is not None:
            rows, columns = self.rule.grid(*_DUMMY)
            block = self.plugin.image_token * self.rule.tokens(*_DUMMY)
            text = f"{self.plugin.vision_bos_token}{block}{self.plugin.vision_eos_token}"
            dummy_tokens = len(self.tokenizer.encode(text, add_special_tokens=False))
            dummy_patches = rows * columns
        return {
            "engine": "llamafactory",
            "template": self.data_args.template,
            "mask_history": bool(self.data_args.mask_history),
            "train_on_prompt": bool(self.data_args.train_on_prompt),
            "efficient_eos": bool(self.template.efficient_eos),
            "dummy_tokens": dummy_tokens,
            "dummy_patches": dummy_patches,
            "notes": self.notes,
            "cannot": self.cannot,
        }

    def _template(self) -> Any:
        from llamafactory.data.template import get_template_and_fix_tokenizer

        before = len(self.tokenizer)
        template = get_template_and_fix_tokenizer(self.tokenizer, self.data_args)
        if added := len(self.tokenizer) - before:
            self.notes.append(
                f"template {self.data_args.template} adds {added} token(s) that the model's vocabulary lacks; is it the"
                " model's template?"
            )
        return template

    def _turn(self, source: list[int], target: list[int]) -> Turn:
        wanted = self._every_media_id
        return Turn(len(source), len(target), last_place(source, wanted), last_place(target, wanted))

    def _ids_of_media(self) -> list[int]:
        """The image token's id first, if there is one."""
        tokens = [self.plugin.image_token, self.plugin.video_token, self.plugin.audio_token]
        return [int(self.tokenizer.convert_tokens_to_ids(token)) for token in tokens if token is not None]

    def _note_the_pairs(self) -> None:
        """Makes the template tell the turns of what it encodes."""
        encode = self.template.encode_multiturn

        def noted(*arguments: Any, **named: Any) -> Any:
            pairs = encode(*arguments, **named)
            self._pairs = list(pairs)
            return pairs

        self.template.encode_multiturn = noted

    def _by_header(self) -> ImageRule | None:
        """Makes the plugin size images by their headers, if its rule is known and proves right; None otherwise."""
        plugin, name = self.plugin, type(self.plugin).__name__
        if plugin.image_token is None or self.processor is None:
            return None
        image_processor = getattr(self.processor, "image_processor", None)
        rule = ImageRule.of_processor(image_processor, self.processor.image_max_pixels, self.processor.image_min_pixels)
        if name not in _BY_HEADER or rule is None or not _agrees(plugin, self.processor, rule):
            self.cannot.append(
                f"image patches, and the dummy image of batches without any: no rule is known for {name}; images were opened"
                " whole, patches count 0"
            )
            return None
        inputs = plugin._get_mm_inputs

        def from_headers(images: Any, videos: Any, audios: Any, processor: Any, *rest: Any, **named: Any) -> Any:
            import numpy as np

            answer = dict(inputs([], videos, audios, processor, *rest, **named)) if len(videos) or len(audios) else {}
            if len(images):
                self._grids = [rule.grid(*image_size(image)) for image in images]
                answer["image_grid_thw"] = np.array([(1, rows, columns) for rows, columns in self._grids])
            return answer

        plugin._get_mm_inputs = from_headers
        return rule


def _agrees(plugin: Any, processor: Any, rule: ImageRule) -> bool:
    """Whether the rule gives the grids that the installed plugin and processor make of real images."""
    from PIL import Image

    images = [Image.new("RGB", size) for size in _COMPARED_SIZES]
    grids = plugin._get_mm_inputs(images, [], [], processor)["image_grid_thw"].tolist()
    return [tuple(grid[1:]) for grid in grids] == [rule.grid(*size) for size in _COMPARED_SIZES]


def _datasets(order: dict[str, Any], data_args: Any) -> list[LlamaFactoryRows]:
    from llamafactory.data.parser import get_dataset_list

    found = get_dataset_list(order["datasets"], order["dataset_dir"])
    return [LlamaFactoryRows(name, attributes, data_args) for name, attributes in zip(order["datasets"], found, strict=True)]


def _load(name: str, attributes: Any, data_args: Any) -> Any:
    """As `llamafactory.data.loader._load_single_dataset` loads a file or a folder of files."""
    import datasets
    from llamafactory.extras.constants import FILEEXT2TYPE

    datasets.disable_progress_bars()
    path = os.path.join(data_args.dataset_dir, attributes.dataset_name)  # noqa: PTH118 - as it is joined there
    files = [str(file) for file in Path(path).iterdir()] if Path(path).is_dir() else [path]
    kind = FILEEXT2TYPE.get(Path(files[0]).suffix[1:])
    if kind is None or any(FILEEXT2TYPE.get(Path(file).suffix[1:]) != kind for file in files):
        raise ProfileError(f"{path}: LLaMA-Factory reads files of one kind out of {', '.join(FILEEXT2TYPE)}")
    try:
        return datasets.load_dataset(path=kind, name=attributes.subset, data_files=files, split=attributes.split)
    except (datasets.exceptions.DatasetsError, ValueError, OSError) as error:
        raise ProfileError(diagnose(files, f"dataset {name}", error)) from error


def _why_dropped(prompt: list[Any], response: list[Any]) -> str:
    if not prompt and not response:
        return "roles out of order or an odd number of messages"
    return "no answer" if not response else f"{len(prompt)} prompts and {len(response)} answers"


def _shortened(error: Exception) -> str:
    """LLaMA-Factory's messages quote the whole conversation."""
    text = one_line(error, 10_000)
    if " tokens in [" in text:
        text = text.split(" tokens in [")[0] + " placeholders in the text"
    return text if len(text) <= 200 else text[:197] + "..."
