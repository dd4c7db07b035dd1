"""Makes models and data so small that a CPU trains them within seconds, without a download.

    PYTHON examples/make_tiny.py OUT

writes OUT/tiny-qwen2.5-vl and OUT/tiny-llama (the presets of those names with random weights, a tokenizer and, for images, a
processor), and OUT/data (32 samples with an image, 32 of text, and LLaMA-Factory's `dataset_info.json`). PYTHON is that of a
training environment: torch, transformers and pillow; autofit itself is not needed. The same call makes the same files.
"""

import copy
import json
import random
import sys
from pathlib import Path
from typing import Any

PRESETS = Path(__file__).resolve().parent.parent / "autofit" / "config" / "presets"
VOCABULARY = 1024
SPECIAL_TOKENS = (  # Qwen2-VL's, in its order; the last of them get the last ids, which the presets name
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
COLOURS = ("red", "green", "blue", "orange")
SHAPES = ("circle", "square")
FILLER = [
    "the",
    "a",
    "is",
    "on",
    "left",
    "right",
    "of",
    "image",
    "picture",
    "shows",
    "what",
    "where",
    "how",
    "many",
    "and",
    "it",
    "small",
    "large",
    "near",
    "far",
]
ROLES = ["You", "are", "a", "helpful", "assistant", ".", "user", "system"]
IMAGE_SIZES = ((64, 64), (112, 84), (168, 224), (224, 224), (320, 168), (500, 400))
SAMPLES = 32
CHAT_TEMPLATE = """\
{%- for message in messages -%}
<|im_start|>{{ message.role }}
{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content -%}
{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% elif part.type == 'text' %}{{ part.text }}{% endif %}
{%- endfor %}{% endif %}<|im_end|>
{% endfor -%}
{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


def main() -> int:
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        sys.stderr.write("usage: python examples/make_tiny.py OUT\n")
        return 2
    out = Path(sys.argv[1])
    for name in ("tiny-qwen2.5-vl", "tiny-llama"):
        write_tokenizer(out / name)
        write_model(out / name, json.loads((PRESETS / f"{name}.json").read_text())["config"])
    write_image_processor(out / "tiny-qwen2.5-vl")
    write_data(out / "data")
    sys.stdout.write(f"{out / 'tiny-qwen2.5-vl'}\n{out / 'tiny-llama'}\n{out / 'data'}\n")
    return 0


def write_tokenizer(folder: Path) -> None:
    """A byte-level BPE of 1010 tokens and Qwen's special tokens. Its merges are chosen, not learnt: always the same."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = {piece: number for number, piece in enumerate(alphabet)}
    merges: list[tuple[str, str]] = []
    for word in _chained(alphabet):
        for end in range(2, len(word) + 1):
            if word[:end] not in pieces and len(pieces) < VOCABULARY - len(SPECIAL_TOKENS):
                merges.append((word[: end - 1], word[end - 1]))
                pieces[word[:end]] = len(pieces)
    tokenizer = Tokenizer(models.BPE(vocab=pieces, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    if tokenizer.get_vocab_size() != VOCABULARY:
        raise SystemExit(f"the tokenizer has {tokenizer.get_vocab_size()} entries, not the presets' {VOCABULARY}")
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "additional_special_tokens": [token for token in SPECIAL_TOKENS if token not in ("<|im_end|>", "<|endoftext|>")],
        "model_max_length": 32768,
        "padding_side": "right",
    }
    _write_json(folder / "tokenizer_config.json", settings)
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)


def _chained(alphabet: list[str]) -> list[str]:
    """Words whose prefixes become tokens, most important first; pairs of bytes fill the rest of the vocabulary."""
    words = [*FILLER, *COLOURS, *SHAPES, *ROLES, "colour", "assistant"]
    letters = [letter for letter in alphabet if letter.isascii() and letter.islower()]
    return [*(f"Ġ{word}" for word in words), *words, *(first + second for first in letters for second in letters)]


def write_model(folder: Path, config: dict[str, Any]) -> None:
    """The preset's model with weights from seed 0.

    `config.json` is the preset as it stands: what one version of transformers adds to it, another may not know.
    """
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(0)
    model_class = getattr(transformers, config["architectures"][0])
    model_class(model_class.config_class(**copy.deepcopy(config))).save_pretrained(folder)
    _write_json(folder / "config.json", config)
    _write_json(folder / "generation_config.json", {"eos_token_id": 1012, "pad_token_id": 1010})


def write_image_processor(folder: Path) -> None:
    """The processor's settings as files: the classes that could write them need torchvision in some versions."""
    common: dict[str, Any] = {
        "processor_class": "Qwen2_5_VLProcessor",
        "patch_size": 14,
        "merge_size": 2,
        "temporal_patch_size": 2,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "size": {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 1280},
    }
    _write_json(folder / "preprocessor_config.json", {"image_processor_type": "Qwen2VLImageProcessor", **common})
    _write_json(folder / "video_preprocessor_config.json", {"video_processor_type": "Qwen2VLVideoProcessor", **common})


def write_data(folder: Path) -> None:
    """Coloured shapes with a caption, and short text; the largest exceed the tiny space's `max_pixels`: they get resized."""
    from PIL import Image, ImageDraw

    (folder / "images").mkdir(parents=True, exist_ok=True)
    draw_from = random.Random(0)  # noqa: S311 - no secret
    with_images, text = [], []
    for number in range(SAMPLES):
        size, colour, shape = draw_from.choice(IMAGE_SIZES), draw_from.choice(COLOURS), draw_from.choice(SHAPES)
        image = Image.new("RGB", size, "white")
        outline = (size[0] // 4, size[1] // 4, 3 * size[0] // 4, 3 * size[1] // 4)
        (ImageDraw.Draw(image).ellipse if shape == "circle" else ImageDraw.Draw(image).rectangle)(outline, fill=colour)
        image.save(folder / "images" / f"{number:02}.png")
        rest = " ".join(draw_from.choices(FILLER, k=draw_from.randint(2, 20)))
        with_images.append(
            {
                "messages": [
                    {"role": "user", "content": "<image>what colour is the shape"},
                    {"role": "assistant", "content": f"the {shape} is {colour} {rest}"},
                ],
                "images": [f"images/{number:02}.png"],
            }
        )
        question, answer = (" ".join(draw_from.choices(FILLER, k=draw_from.randint(4, most))) for most in (8, 60))
        text.append({"instruction": question, "input": "", "output": answer})
    _write_json(folder / "tiny_vl.json", with_images)
    _write_json(folder / "tiny_text.json", text)
    described = {"tiny_vl": _SHAREGPT | {"file_name": "tiny_vl.json"}, "tiny_text": {"file_name": "tiny_text.json"}}
    _write_json(folder / "dataset_info.json", described)


_SHAREGPT = {
    "formatting": "sharegpt",
    "columns": {"messages": "messages", "images": "images"},
    "tags": {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"},
}


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n")


if __name__ == "__main__":
    raise SystemExit(main())
