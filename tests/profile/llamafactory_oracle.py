"""What LLaMA-Factory itself does, run in its own environment: `python llamafactory_oracle.py VERB IN.json OUT.json`.

`sizes`: image tokens of its plugin for real images of given sizes. `encode`: lengths, labels and image tokens of a dataset at
given values of cutoff_len, by its loader and its processor. `collate`: tokens and patches of its collator's batches. `train`:
what becomes of a run.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def sizes(order: dict[str, Any]) -> list[int | str]:
    from llamafactory.data.mm_plugin import get_mm_plugin
    from PIL import Image
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(order["model"])
    plugin = get_mm_plugin(order["plugin"], image_token="<|image_pad|>", video_token="<|video_pad|>")
    found: list[int | str] = []
    for width, height, max_pixels in order["sizes"]:
        processor.image_max_pixels, processor.image_min_pixels = max_pixels, 1024
        message = [{"role": "user", "content": "<image>"}]
        try:
            told = plugin.process_messages(message, [Image.new("RGB", (width, height))], [], [], processor)
        except ValueError as error:
            found.append(str(error))
            continue
        found.append(told[0]["content"].count("<|image_pad|>"))
    return found


def encode(order: dict[str, Any]) -> dict[str, list[list[int]]]:
    found = {}
    for cutoff, made, _, image in _made(order):
        found[str(cutoff)] = [
            [len(ids), sum(label != -100 for label in labels), ids.count(image)]
            for ids, labels in zip(made["input_ids"], made["labels"], strict=True)
        ]
    return found


def collate(order: dict[str, Any]) -> dict[str, list[list[int]]]:
    from llamafactory.data import SFTDataCollatorWith4DAttentionMask

    found = {}
    for cutoff, made, loaded, _ in _made(order):
        collator = SFTDataCollatorWith4DAttentionMask(pad_to_multiple_of=8, label_pad_token_id=-100, **loaded)
        shapes = []
        for batch in order["batches"]:
            told = collator([{name: made[name][sample] for name in made} for sample in batch])
            shapes.append([told["input_ids"].shape[1], int(told["image_grid_thw"].prod(dim=1).sum())])
        found[str(cutoff)] = shapes
    return found


def _made(order: dict[str, Any]) -> Iterator[tuple[int, dict[str, list[Any]], dict[str, Any], int]]:
    """Per value of cutoff_len: what the processor makes of the dataset, template and tokenizer, the image token."""
    from llamafactory.data.loader import _get_merged_dataset
    from llamafactory.data.processor import SupervisedDatasetProcessor
    from llamafactory.data.template import get_template_and_fix_tokenizer
    from llamafactory.hparams import DataArguments, ModelArguments
    from llamafactory.model import load_tokenizer
    from transformers import Seq2SeqTrainingArguments

    model_args = ModelArguments(model_name_or_path=order["model"], image_max_pixels=order["image_max_pixels"])
    data_args = DataArguments(
        template=order["template"], dataset=order["dataset"], dataset_dir=order["dataset_dir"], **order.get("options", {})
    )
    training_args = Seq2SeqTrainingArguments(output_dir=order["dataset_dir"] + "/out", use_cpu=True, report_to="none")
    loaded = load_tokenizer(model_args)
    template = get_template_and_fix_tokenizer(loaded["tokenizer"], data_args)
    rows = _get_merged_dataset(data_args.dataset, model_args, data_args, training_args, "sft")
    columns = rows.to_dict()
    image = loaded["tokenizer"].convert_tokens_to_ids("<|image_pad|>")
    for cutoff in order["cutoffs"]:
        data_args.cutoff_len = cutoff
        processor = SupervisedDatasetProcessor(template, loaded["tokenizer"], loaded["processor"], data_args)
        yield cutoff, processor.preprocess_dataset(columns), loaded | {"template": template}, image


def train(order: dict[str, Any]) -> list[str]:
    """Per value of cutoff_len: `trained`, or what ended the run."""
    from llamafactory.train.tuner import run_exp

    found = []
    for number, cutoff in enumerate(order["cutoffs"]):
        given = {**order["train"], "cutoff_len": cutoff, "output_dir": f"{order['output_dir']}/{number}"}
        try:
            run_exp(args=given)
            found.append("trained")
        except (ValueError, IndexError, RuntimeError) as error:
            found.append(f"{type(error).__name__}: {error}")
    return found


if __name__ == "__main__":
    verb, given_file, out_file = sys.argv[1:]
    answer = {"sizes": sizes, "encode": encode, "collate": collate, "train": train}[verb](
        json.loads(Path(given_file).read_text())
    )
    Path(out_file).write_text(json.dumps(answer))
