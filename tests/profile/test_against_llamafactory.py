"""The profile against LLaMA-Factory itself: its plugin's image tokens, its tokenised lengths, and its runs at the floor."""

import json
import random
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from profile_cases import SHAREGPT, WORDS, write_json, write_mixed_data

from autofit.config.legality import refusal
from autofit.config.model import ModelRef, resolve_model
from autofit.config.trial import TrialSpec
from autofit.data.profile import DataProfile
from autofit.data.truncation import cutting_ranges
from autofit.data.worst import batch_shape
from autofit.errors import AutofitError
from autofit.tuning.profiling import ProfileQuestion, profile_data
from autofit.worker.profile_images import ImageError, ImageRule

pytestmark = pytest.mark.llamafactory

Ask = Callable[[str, dict[str, Any]], Any]
ROOT = Path(__file__).parents[2]
MAX_PIXELS = 50_176
CUTOFFS = [*range(8, 200, 12), 250, 300, 400, 600, 2048]


def random_sizes(count: int) -> list[tuple[int, int, int]]:
    """(width, height, image_max_pixels): photographs, icons, strips, at several limits."""
    draw = random.Random(0)
    found = []
    for _ in range(count):
        small, wide = (draw.randint(1, 60), draw.randint(1, 60)), (draw.randint(20, 2500), draw.randint(20, 2500))
        strip = (draw.randint(1, 40), draw.randint(300, 6000))
        width, height = draw.choice([small, wide, wide, strip, strip[::-1]])
        found.append((width, height, draw.choice([3136, 65_536, 262_144, 768 * 768, 1 << 21])))
    return found


def test_image_tokens_of_a_thousand_sizes(ask_llamafactory: Ask, tiny_folder: Path) -> None:
    compare(ask_llamafactory, tiny_folder, "qwen2_vl", random_sizes(1000), (14, 56 * 56, 28 * 28 * 1280))


def test_image_tokens_with_the_patches_of_qwen3_vl(ask_llamafactory: Ask, tiny_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "qwen3-vl"
    shutil.copytree(tiny_folder, folder)
    file = folder / "preprocessor_config.json"
    size = {"shortest_edge": 65_536, "longest_edge": 16_777_216}
    file.write_text(json.dumps(json.loads(file.read_text()) | {"patch_size": 16, "size": size}))
    compare(ask_llamafactory, folder, "qwen3_vl", random_sizes(150), (16, *size.values()))


def compare(
    ask_llamafactory: Ask, model: Path, plugin: str, sizes: list[tuple[int, int, int]], limits: tuple[int, int, int]
) -> None:
    real = ask_llamafactory("sizes", {"model": str(model), "plugin": plugin, "sizes": sizes})
    patch, shortest, longest = limits
    ours: list[int | str] = []
    for width, height, most in sizes:
        rule = ImageRule(most, 1024, patch, 2, shortest, longest)
        try:
            ours.append(rule.tokens(width, height))
        except ImageError:
            ours.append("refused")
    refused = [value for value in real if isinstance(value, str)]
    assert len(refused) < len(sizes) / 20
    assert [value if isinstance(value, int) else "refused" for value in real] == ours


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mixed")
    write_mixed_data(folder)
    return folder


@pytest.fixture(scope="module")
def profile(mixed: Path, tiny_folder: Path, llamafactory_python: str, tmp_path_factory: pytest.TempPathFactory) -> DataProfile:
    return profiled(mixed, tiny_folder, llamafactory_python, tmp_path_factory.mktemp("cache"))


def profiled(data: Path, model: Path, python: str, cache: Path, dataset: str = "talks,alpaca,openai") -> DataProfile:
    question = ProfileQuestion(
        str(model), dataset, str(data), python=python, image_max_pixels=MAX_PIXELS, processes=2, template="qwen2_vl"
    )
    return profile_data(question, cache=cache)


def test_lengths_labels_and_cuts_are_its_own(
    profile: DataProfile, mixed: Path, tiny_folder: Path, ask_llamafactory: Ask
) -> None:
    """Every sample at many values of cutoff_len, through LLaMA-Factory's loader and processor with the images opened."""
    order = {
        "model": str(tiny_folder),
        "template": "qwen2_vl",
        "dataset": "talks,alpaca,openai",
        "dataset_dir": str(mixed),
        "image_max_pixels": MAX_PIXELS,
        "cutoffs": CUTOFFS,
    }
    real = {int(cutoff): np.array(rows) for cutoff, rows in ask_llamafactory("encode", order).items()}
    whole = real[2048][:, 2]
    assert 0 < (whole > 0).sum() < len(whole), "rows with images and rows without"
    assert profile.image_tokens.tolist() == whole.tolist()
    assert np.bincount(profile.turns.sample).max() > 1, "conversations of several turns"
    cut_somewhere = 0
    for cutoff, rows in real.items():
        assert profile.kept_tokens(cutoff).tolist() == rows[:, 0].tolist(), cutoff
        assert profile.label_tokens(cutoff).tolist() == rows[:, 1].tolist(), cutoff
        cut = {int(sample) for sample in np.flatnonzero(rows[:, 2] < whole)}
        ranges = cutting_ranges(profile.turns)
        ours = {int(s) for low, high, s in zip(*ranges, strict=True) if low <= cutoff <= high}
        assert ours == cut, cutoff
        assert (profile.floor.at(cutoff) is not None) == bool(cut)
        cut_somewhere += bool(cut)
        tokens = profile.truncation(cutoff)
        assert tokens.samples_truncated == int((rows[:, 0] < real[2048][:, 0]).sum())
        assert tokens.tokens_lost_share == pytest.approx(1 - rows[:, 0].sum() / real[2048][:, 0].sum())
    assert 0 < cut_somewhere < len(CUTOFFS)


def test_batches_have_the_shape_that_its_collator_gives(
    profile: DataProfile, mixed: Path, tiny_folder: Path, ask_llamafactory: Ask
) -> None:
    """Padding, the longest sample, the patches of all images, and the dummy image of a batch without any."""
    draw = random.Random(2)
    texts = np.flatnonzero(profile.images == 0).tolist()
    pools = (range(len(profile)), texts, [*np.flatnonzero(profile.images).tolist(), *texts[:5]])
    batches = [draw.sample(draw.choice(pools), 3) for _ in range(60)]
    order = {
        "model": str(tiny_folder),
        "template": "qwen2_vl",
        "dataset": "talks,alpaca,openai",
        "dataset_dir": str(mixed),
        "image_max_pixels": MAX_PIXELS,
        "cutoffs": [60, 2048],
        "batches": batches,
    }
    for cutoff, shapes in ask_llamafactory("collate", order).items():
        ours = zip(*batch_shape(profile, np.array(batches), int(cutoff)), strict=True)
        assert [[int(length), int(patches)] for length, patches in ours] == shapes
    assert any(not profile.images[batch].any() for batch in batches)


@pytest.mark.parametrize(
    ("template", "dataset", "options"),
    [
        ("qwen2_vl", "alpaca,talks", {"mask_history": True}),
        ("qwen2_vl", "talks,openai", {"train_on_prompt": True}),
        ("falcon", "alpaca,openai", {"mask_history": True}),  # ends samples with one token of its own
        ("falcon", "openai,alpaca", {}),
        ("qwen3", "alpaca", {"enable_thinking": False}),
    ],
)
def test_labels_follow_template_and_options(
    template: str,
    dataset: str,
    options: dict[str, bool],
    mixed: Path,
    tiny_folder: Path,
    llamafactory_python: str,
    tmp_path: Path,
    ask_llamafactory: Ask,
) -> None:
    from autofit.data.collect import ProfileOptions

    question = ProfileQuestion(
        str(tiny_folder),
        dataset,
        str(mixed),
        python=llamafactory_python,
        image_max_pixels=MAX_PIXELS,
        template=template,
        options=ProfileOptions(**options),
    )
    found = profile_data(question, cache=tmp_path)
    order = {
        "model": str(tiny_folder),
        "template": template,
        "dataset": dataset,
        "dataset_dir": str(mixed),
        "image_max_pixels": MAX_PIXELS,
        "cutoffs": [*range(5, 200, 13), 2048],
        "options": options,
    }
    for cutoff, rows in ask_llamafactory("encode", order).items():
        assert found.kept_tokens(int(cutoff)).tolist() == [row[0] for row in rows]
        assert found.label_tokens(int(cutoff)).tolist() == [row[1] for row in rows]


def test_without_it_the_lengths_differ_by_the_template_only(
    profile: DataProfile, mixed: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    """transformers alone: the tiny chat template has no system text of its own, LLaMA-Factory's has one in the first turn."""
    import sys

    plain = profiled(mixed, tiny_folder, sys.executable, tmp_path)
    assert plain.facts.engine == "transformers"
    assert any("lengths are those of the tokenizer's own chat template" in line for line in plain.facts.cannot)
    assert plain.image_tokens.tolist() == profile.image_tokens.tolist()
    assert plain.patches.tolist() == profile.patches.tolist()
    assert plain.turns.target.tolist() == profile.turns.target.tolist()
    extra = set((profile.turns.source - plain.turns.source).tolist())
    assert extra == {0, max(extra)}


def one_long_answer(folder: Path) -> None:
    """Three short samples and, in row 2, one whose image tokens a short cutoff_len cuts."""
    from PIL import Image

    (folder / "images").mkdir(parents=True)
    rows = []
    for number in range(4):
        side = 220 if number == 2 else 60
        Image.new("RGB", (side, side), "blue").save(folder / "images" / f"{number}.png")
        answer = " ".join(random.Random(number).choices(WORDS, k=90 if number == 2 else 5))
        messages = [{"role": "user", "content": "<image>what is it"}, {"role": "assistant", "content": answer}]
        rows.append({"messages": messages, "images": [f"images/{number}.png"]})
    write_json(folder / "few.json", rows)
    write_json(folder / "dataset_info.json", {"few": SHAREGPT | {"file_name": "few.json"}})


def test_a_run_fails_below_the_floor_and_passes_at_it(llamafactory_python: str, tmp_path: Path, ask_llamafactory: Ask) -> None:
    data = tmp_path / "data"
    one_long_answer(data)
    subprocess.run(
        [llamafactory_python, ROOT / "examples" / "make_tiny.py", tmp_path / "tiny"],
        check=True,
        capture_output=True,
        timeout=300,
    )
    model = tmp_path / "tiny" / "tiny-qwen2.5-vl"
    found = profiled(data, model, llamafactory_python, tmp_path / "cache", "few")
    floor = found.floor.cutoff_len
    assert floor < found.tokens.max(), "at the floor something is truncated: it is not merely everything kept"
    assert found.floor.cuts[-1].sample == "row 2 of few"
    spec = {"model": ModelRef(path=str(model)), "images": {"per_sample": 1, "max_pixels": MAX_PIXELS}}
    reasons = {
        cutoff: refusal(TrialSpec.model_validate(spec | {"cutoff_len": cutoff}), resolve_model(spec["model"]), found.floor)
        for cutoff in (floor - 1, floor)
    }
    assert reasons[floor] is None
    assert "row 2 of few" in str(reasons[floor - 1])
    train = {
        "model_name_or_path": str(model),
        "stage": "sft",
        "do_train": True,
        "finetuning_type": "full",
        "dataset": "few",
        "dataset_dir": str(data),
        "template": "qwen2_vl",
        "image_max_pixels": MAX_PIXELS,
        "per_device_train_batch_size": 1,
        "num_train_epochs": 1,
        "use_cpu": True,
        "report_to": "none",
        "save_strategy": "no",
        "overwrite_cache": True,
    }
    order = {"train": train, "cutoffs": [floor, floor - 1], "output_dir": str(tmp_path / "out")}
    passed, failed = ask_llamafactory("train", order)
    assert passed == "trained"
    # transformers says one or the other: the positions are made first, where the collator makes them
    assert "shape mismatch" in failed or "Image features and image tokens do not match" in failed, failed


def test_bad_rows_by_its_own_code(tiny_folder: Path, llamafactory_python: str, tmp_path: Path) -> None:
    """What it drops is counted, what it would stop at is named with its row; a wrong template is told its nearest."""
    from PIL import Image

    data = tmp_path / "data"
    (data / "images").mkdir(parents=True)
    rows = []
    for number in range(8):
        Image.effect_noise((80, 80), 50).save(data / "images" / f"{number}.png")
        messages = [{"role": "user", "content": "<image>what"}, {"role": "assistant", "content": "red"}]
        rows.append({"messages": messages, "images": [f"images/{number}.png"]})
    (data / "images" / "1.png").unlink()
    whole = (data / "images" / "2.png").read_bytes()
    (data / "images" / "2.png").write_bytes(whole[: len(whole) // 2])
    rows[3]["images"] = []
    rows[4]["messages"] = rows[4]["messages"][:1]
    rows[5]["messages"][1]["content"] = ""
    rows[6]["messages"][1]["content"] = " large" * 20_000
    write_json(data / "few.json", rows)
    write_json(data / "dataset_info.json", {"few": SHAREGPT | {"file_name": "few.json"}})
    found = profiled(data, tiny_folder, llamafactory_python, tmp_path / "cache", "few")
    assert [(fault.row, fault.what.split(" (")[0].replace(str(data), "")) for fault in found.facts.faults] == [
        (1, "images/1.png does not exist"),
        (2, "/images/2.png is no whole image"),
        (3, "The number of images does not match the number of <image> placeholders in the text"),
    ]
    assert found.row.tolist() == [0, 5, 6, 7]
    assert found.empty_answer.tolist() == [0, 1, 0, 0]
    assert [(dropped.reason, dropped.rows) for dropped in found.facts.dropped] == [
        ("roles out of order or an odd number of messages", 1)
    ]
    assert found.tokens[2] > 20_000
    assert found.name(2) == "row 6 of few"
    question = ProfileQuestion(str(tiny_folder), "few", str(data), python=llamafactory_python, template="qwen2vl")
    with pytest.raises(AutofitError, match=r"template 'qwen2vl' is none .* did you mean 'qwen2_vl'"):
        profile_data(question, cache=tmp_path / "cache")


def test_parquet_and_csv_and_a_file_that_is_no_json(tiny_folder: Path, llamafactory_python: str, tmp_path: Path) -> None:
    data = tmp_path / "data"
    rows = [{"instruction": f"what is {n}", "input": None, "output": "large " * (n + 1)} for n in range(70)]
    write_json(data / "rows.json", rows)
    code = "import json, sys, datasets as d; t = d.Dataset.from_list(json.load(open(sys.argv[1])))"
    code += "; t.to_parquet(sys.argv[2]); t.to_csv(sys.argv[3])"
    subprocess.run(
        [llamafactory_python, "-c", code, data / "rows.json", data / "rows.parquet", data / "rows.csv"], check=True, timeout=120
    )
    (data / "broken.json").write_text('[{"instruction": "a"},\n {"output" "b"}]')
    names = {"j": "rows.json", "p": "rows.parquet", "c": "rows.csv", "broken": "broken.json"}
    write_json(data / "dataset_info.json", {name: {"file_name": file} for name, file in names.items()})
    found = profiled(data, tiny_folder, llamafactory_python, tmp_path / "cache", "j,p,c")
    assert len(found) == 210
    assert found.tokens[:70].tolist() == found.tokens[70:140].tolist() == found.tokens[140:].tolist()
    assert found.name(150) == "row 10 of c"
    with pytest.raises(AutofitError, match=r"broken\.json: is not JSON \(line 2: Expecting ':' delimiter\)"):
        profiled(data, tiny_folder, llamafactory_python, tmp_path / "cache", "broken")
