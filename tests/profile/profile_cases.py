"""Profiles and datasets for the tests of the data room."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np

from autofit.data.profile import DataProfile, DatasetFacts, ProfileFacts
from autofit.data.truncation import Turns

SHAREGPT = {
    "formatting": "sharegpt",
    "columns": {"messages": "messages", "images": "images"},
    "tags": {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"},
}
WORDS = ["the", "a", "is", "on", "left", "right", "image", "picture", "shows", "what", "where", "small", "large", "near", "far"]

Turn = tuple[int, int, int, int]
"""(source, target, source_need, target_need)"""


def make_facts(**changes: Any) -> ProfileFacts:
    fields: dict[str, Any] = {
        "format": 1,
        "model": "m",
        "datasets": (DatasetFacts(name="mine", rows=0),),
        "engine": "llamafactory",
        "template": "qwen2_vl",
        "mask_history": False,
        "train_on_prompt": False,
        "efficient_eos": False,
        "image_max_pixels": 589_824,
        "image_min_pixels": 1024,
        "dummy_tokens": 6,
        "dummy_patches": 16,
        "dropped": (),
        "faults": (),
        "faulty_rows": 0,
        "notes": (),
        "cannot": (),
        "versions": {},
    }
    return ProfileFacts.model_validate(fields | changes)


def make_profile(samples: list[list[Turn]], patches: list[int] | None = None, **facts: Any) -> DataProfile:
    """A profile of samples given by their turns; one with patches has an image."""
    count = len(samples)
    zeros = np.zeros(count, dtype=np.int64)
    flat = np.array([turn for turns in samples for turn in turns], dtype=np.int64).reshape(-1, 4)
    number = np.repeat(np.arange(count), [len(turns) for turns in samples])
    before = [sum(turn[0] + turn[1] for turn in turns[:place]) for turns in samples for place in range(len(turns))]
    spots = np.array(patches or zeros, dtype=np.int64)
    return DataProfile(
        facts=make_facts(**facts),
        dataset=zeros,
        row=np.arange(count),
        reserve=zeros,
        images=(spots > 0).astype(np.int64),
        image_tokens=spots // 4,
        patches=spots,
        empty_answer=zeros,
        turns=Turns(number, np.array(before, dtype=np.int64), *flat.T),
    )


def random_samples(random_: random.Random, count: int, longest: int = 30) -> list[list[Turn]]:
    """Samples of one to three turns, some with image tokens in prompt or answer."""
    samples = []
    for _ in range(count):
        turns = []
        for _ in range(random_.randint(1, 3)):
            source, target = random_.randint(1, longest), random_.randint(0, longest)
            need_source = random_.randint(0, source) if random_.random() < 0.5 else 0
            need_target = random_.randint(0, target) if random_.random() < 0.2 else 0
            turns.append((source, target, need_source, need_target))
        samples.append(turns)
    return samples


def write_mixed_data(folder: Path, rows: int = 40) -> None:
    """Three datasets: conversations with and without images, alpaca with history and system, and the format openai."""
    from PIL import Image

    draw = random.Random(7)

    def words(most: int) -> str:
        return " ".join(draw.choices(WORDS, k=draw.randint(1, most)))

    (folder / "images").mkdir(parents=True, exist_ok=True)
    talks, alpaca, openai = [], [], []
    for number in range(rows):
        images = []
        messages = []
        for turn in range(draw.randint(1, 3)):
            question, answer = words(40), words(60)
            if draw.random() < 0.5:
                name = f"images/{number}-{turn}.png"
                Image.new("RGB", (draw.randint(20, 500), draw.randint(20, 500)), "red").save(folder / name)
                images.append(name)
                question = draw.choice([f"<image>{question}", f"{question}<image>", f"{words(9)}<image>{question}"])
            messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        talks.append({"messages": messages, "images": images})
        alpaca.append(
            {
                "instruction": words(9),
                "input": draw.choice(["", words(30)]),
                "output": draw.choice(["", words(80), words(80)]),
                "system": draw.choice(["", words(10)]),
                "history": [[words(9), words(9)] for _ in range(draw.randint(0, 2))],
            }
        )
        openai.append({"messages": [{"role": "user", "content": words(9)}, {"role": "assistant", "content": words(9)}]})
    write_json(folder / "talks.json", talks)
    write_json(folder / "alpaca.json", alpaca)
    (folder / "openai.jsonl").write_text("".join(json.dumps(row) + "\n" for row in openai))
    columns = {"prompt": "instruction", "query": "input", "response": "output", "system": "system", "history": "history"}
    info = {
        "talks": SHAREGPT | {"file_name": "talks.json"},
        "alpaca": {"file_name": "alpaca.json", "columns": columns},
        "openai": SHAREGPT | {"file_name": "openai.jsonl", "formatting": "openai", "columns": {"messages": "messages"}},
    }
    write_json(folder / "dataset_info.json", info)


def write_json(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))
