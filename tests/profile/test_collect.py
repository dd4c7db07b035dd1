"""From files to a profile with transformers alone: formats, cache, and what is wrong with data, in one line each."""

import csv
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from profile_cases import SHAREGPT, write_json

from autofit.data.profile import DataProfile
from autofit.data.sources import find_sources
from autofit.data.worst import worst_batch
from autofit.errors import AutofitError, UsageError
from autofit.tuning.profiling import ProfileQuestion, profile_data

Profiled = Callable[..., DataProfile]
MANY = 20_000


@pytest.fixture
def profiled(tiny_folder: Path, tmp_path: Path) -> Profiled:
    """Profiles a dataset of tmp_path/data with this interpreter, which has no LLaMA-Factory."""

    def run(dataset: str, progress: Any = None, **changes: Any) -> DataProfile:
        question = ProfileQuestion(str(tiny_folder), dataset, str(tmp_path / "data"), python=sys.executable, processes=2)
        return profile_data(ProfileQuestion(**{**vars(question), **changes}), progress, tmp_path / "cache")

    return run


def write(folder: Path, rows: Any, entry: dict[str, Any] | None = None, name: str = "mine.json") -> None:
    write_json(folder / "data" / name, rows)
    write_json(folder / "data" / "dataset_info.json", {"mine": {"file_name": name} | (entry or {})})


ALPACA = [{"instruction": f"what is {n}", "input": "", "output": "it is " + "large " * n} for n in range(130)]


def test_alpaca_in_every_kind_of_file(tmp_path: Path, profiled: Profiled) -> None:
    write(tmp_path, ALPACA)
    whole = profiled("mine")
    assert len(whole) == 130
    assert whole.tokens.tolist() == sorted(whole.tokens.tolist())
    data = tmp_path / "data"
    (data / "mine.jsonl").write_text("".join(json.dumps(row) + "\n\n" for row in ALPACA))
    with (data / "mine.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ALPACA[0])
        writer.writeheader()
        writer.writerows(ALPACA)
    for name in ("mine.jsonl", "mine.csv"):
        write_json(data / "dataset_info.json", {"mine": {"file_name": name}})
        assert profiled("mine").tokens.tolist() == whole.tokens.tolist()
        assert profiled(str(data / name), dataset_dir=None).tokens.tolist() == whole.tokens.tolist()


def test_a_row_without_an_answer_is_left_out_and_one_with_an_empty_answer_kept(tmp_path: Path, profiled: Profiled) -> None:
    write(tmp_path, [*ALPACA[:3], {"instruction": "a", "input": "", "output": ""}, {"instruction": "a", "input": ""}])
    found = profiled("mine")
    assert found.row.tolist() == [0, 1, 2, 3]
    assert found.empty_answer.tolist() == [0, 0, 0, 1]
    assert found.label_tokens()[3] == 2  # the template's end
    assert [(dropped.reason, dropped.rows) for dropped in found.facts.dropped] == [("no answer", 1)]


def test_roles_out_of_order_are_left_out(tmp_path: Path, profiled: Profiled) -> None:
    def talk(*roles: str) -> dict[str, Any]:
        return {"messages": [{"role": role, "content": "the image"} for role in roles]}

    rows = [talk("user", "assistant"), talk("system", "user", "assistant"), talk("user", "user"), talk("user")]
    tags = SHAREGPT["tags"] | {"system_tag": "system"}  # type: ignore[operator]
    write(tmp_path, rows, SHAREGPT | {"columns": {"messages": "messages"}, "tags": tags})
    found = profiled("mine")
    assert found.row.tolist() == [0, 1]
    assert found.tokens[1] > found.tokens[0]
    assert [(dropped.reason.split()[0], dropped.rows) for dropped in found.facts.dropped] == [("roles", 2)]


def test_a_row_of_twenty_thousand_tokens(tmp_path: Path, profiled: Profiled) -> None:
    rows = [*ALPACA, {"instruction": "say it", "input": "", "output": " large" * MANY}]
    write(tmp_path, rows)
    found = profiled("mine")
    assert found.tokens.max() > MANY
    assert found.name(int(found.tokens.argmax())) == "row 130 of mine"
    assert found.truncation(2048).samples_truncated == 1
    assert found.truncation(2048).tokens_lost_share == (found.tokens[-1] - 2048) / found.tokens.sum()


def test_a_row_ten_times_longer_at_900_of_1000_is_in_the_worst_batch(tmp_path: Path, profiled: Profiled) -> None:
    rows = [{"instruction": "what is it", "input": "", "output": "large " * (20 + n % 17)} for n in range(1000)]
    rows[900]["output"] = "large " * 360
    write(tmp_path, rows)
    found = profiled("mine")
    worst = worst_batch(found, 2048, 4, peaks)
    assert found.name(worst.samples[0]) == "row 900 of mine"
    write(tmp_path, rows[:100])
    start = profiled("mine")
    missed = worst_batch(start, 2048, 4, peaks)
    assert worst.length > 5 * missed.length, "a profile of the first 100 rows does not see it"
    assert worst.peak_bytes > 5 * missed.peak_bytes


def peaks(batch: npt.ArrayLike, length: npt.ArrayLike, patches: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Bytes in proportion to the tokens of the batch."""
    return np.asarray(batch) * np.asarray(length, dtype=np.float64) + np.asarray(patches)


def with_images(folder: Path) -> list[dict[str, Any]]:
    rows = []
    for number in range(6):
        path = folder / "data" / "images" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((100, 100), 50).save(path)
        messages = [{"role": "user", "content": "<image>what"}, {"role": "assistant", "content": "red"}]
        rows.append({"messages": messages, "images": [f"images/{number}.png"]})
    return rows


def test_text_and_image_rows_together(tmp_path: Path, profiled: Profiled) -> None:
    rows = with_images(tmp_path)
    rows.insert(2, {"messages": [{"role": "user", "content": "what"}, {"role": "assistant", "content": "red"}]})
    write(tmp_path, rows, SHAREGPT)
    found = profiled("mine")
    assert found.images.tolist() == [1, 1, 0, 1, 1, 1, 1]
    assert found.patches.tolist() == [64, 64, 0, 64, 64, 64, 64]
    assert found.facts.dummy_tokens == 6


def test_images_that_training_would_stop_at_are_named(tmp_path: Path, profiled: Profiled) -> None:
    rows = with_images(tmp_path)
    images = tmp_path / "data" / "images"
    (images / "1.png").unlink()
    whole = (images / "2.png").read_bytes()
    (images / "2.png").write_bytes(whole[: len(whole) // 2])
    (images / "3.png").write_text("no image")
    rows[4]["images"] = []
    write(tmp_path, rows, SHAREGPT)
    found = profiled("mine")
    assert [(fault.row, fault.what.split(" (")[0].split("/")[-1]) for fault in found.facts.faults] == [
        (1, "1.png does not exist"),
        (2, "2.png is no whole image"),
        (3, "3.png is no whole image"),
        (4, "has 0 images and 1 <image> placeholders in the text"),
    ]
    assert found.row.tolist() == [0, 5]
    assert found.complaint is not None
    assert "row 1 of mine: images/1.png does not exist" in found.complaint
    assert found.complaint.endswith("(and 1 more)")
    for number in (1, 2, 3):
        Image.new("RGB", (100, 100)).save(images / f"{number}.png")
    assert [fault.row for fault in profiled("mine").facts.faults] == [4], "a profile with faults is not kept"
    rows[4]["images"] = ["images/4.png"]
    write(tmp_path, rows, SHAREGPT)
    assert profiled("mine").complaint is None


def test_the_cache_holds_while_nothing_changes(tmp_path: Path, profiled: Profiled) -> None:
    write(tmp_path, with_images(tmp_path), SHAREGPT)
    calls: list[tuple[int, int]] = []

    def counted(done: int, rows: int) -> None:
        calls.append((done, rows))

    def made(**changes: Any) -> bool:
        calls.clear()
        profiled("mine", counted, **changes)
        return bool(calls)

    assert made()
    assert calls[-1] == (6, 6)
    assert not made()
    assert made(image_max_pixels=50_176)
    assert not made(image_max_pixels=50_176)
    assert not made()
    Image.new("RGB", (300, 300)).save(tmp_path / "data" / "images" / "3.png")
    assert made(), "an image changed"
    data = tmp_path / "data" / "mine.json"
    data.write_text(data.read_text().replace("red", "orange", 1))
    assert made(), "the data changed"
    stale = data.stat()
    os.utime(data, ns=(stale.st_atime_ns, stale.st_mtime_ns + 10**9))
    assert not made(), "only the time of the data file changed"
    for entry in (tmp_path / "cache").iterdir():
        (entry / "samples.npz").write_bytes(b"torn")
    assert made(), "a torn entry"


def one_line(call: Callable[[], object]) -> str:
    with pytest.raises(AutofitError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_what_is_no_table(tmp_path: Path, profiled: Profiled) -> None:
    write(tmp_path, ALPACA)
    file = tmp_path / "data" / "mine.json"
    file.write_text('[{"instruction": "a",\n "output": }]')
    assert one_line(lambda: profiled("mine")) == f"{file}: is not JSON (line 2: Expecting value)"
    file.write_text('{"instruction": "a", "output": "b"}\n{"instruction"}\n')
    assert one_line(lambda: profiled("mine")).startswith(f"{file}: is not JSON (line 2: Expecting")
    file.write_text("[1, 2]")
    assert one_line(lambda: profiled("mine")) == f"{file}: row 0 is a int, not an object with columns"
    file.write_bytes(b"\xff\xfe\x00")
    assert "cannot be read" in one_line(lambda: profiled("mine"))


def test_a_column_that_is_not_there(tmp_path: Path, profiled: Profiled) -> None:
    write(tmp_path, ALPACA, {"columns": {"prompt": "question", "response": "output"}})
    complaint = profiled("mine").complaint
    assert complaint is not None
    assert "row 0 of mine: has no column 'question', which dataset_info.json names; it has instruction" in complaint


@pytest.mark.parametrize(
    ("entry", "wanted"),
    [
        ({"hf_hub_url": "org/data"}, "comes from elsewhere (hf_hub_url: org/data), so it cannot be profiled offline"),
        ({"script_url": "x"}, "cannot be profiled offline"),
        ({"file_name": "gone.json"}, "gone.json, which"),
        ({"file_name": "mine.json", "formatting": "alpacca"}, "the formatting 'alpacca'; LLaMA-Factory knows alpaca"),
        ({"file_name": "mine.json", "ranking": True}, "only supervised fine-tuning is profiled"),
        ({"formatting": "alpaca"}, "has no file_name"),
    ],
)
def test_entries_that_cannot_be_profiled(tmp_path: Path, entry: dict[str, Any], wanted: str) -> None:
    write(tmp_path, ALPACA)
    write_json(tmp_path / "data" / "dataset_info.json", {"mine": entry})
    assert wanted in one_line(lambda: find_sources("mine", str(tmp_path / "data")))


def test_names_files_and_folders_that_are_not_there(tmp_path: Path) -> None:
    write(tmp_path, ALPACA)
    folder = tmp_path / "data"
    assert "lists no dataset 'mien'; did you mean 'mine'?" in one_line(lambda: find_sources("mine,mien", str(folder)))
    assert "name the folder with --dataset-dir" in one_line(lambda: find_sources("mine", str(tmp_path / "nowhere")))
    assert "no such file" in one_line(lambda: find_sources(str(folder / "none.json"), None))
    (folder / "other.json").write_text("[]")
    assert "does not list it" in one_line(lambda: find_sources(str(folder / "other.json"), None))
    (folder / "dataset_info.json").write_text("{")
    assert "is not JSON" in one_line(lambda: find_sources("mine", str(folder)))


def test_models_that_cannot_be_read(tmp_path: Path, profiled: Profiled) -> None:
    write(tmp_path, ALPACA)
    assert "no tokenizer on this machine" in one_line(lambda: profiled("mine", model="qwen2.5-vl-7b"))
    bare = tmp_path / "bare"
    write_json(bare / "config.json", {"model_type": "qwen2"})
    assert "has no tokenizer" in one_line(lambda: profiled("mine", model=str(bare)))
    write_json(bare / "config.json", {"model_type": "unheard-of"})
    assert "name LLaMA-Factory's template with --template" in one_line(lambda: profiled("mine", model=str(bare)))
    (bare / "tokenizer.json").write_text("{}")
    assert "tokenizer cannot be loaded" in one_line(lambda: profiled("mine", model=str(bare), template="qwen"))


def test_a_hub_id_is_found_in_the_local_cache(
    tmp_path: Path, tiny_folder: Path, profiled: Profiled, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, ALPACA)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    kept = tmp_path / "hub" / "models--org--tiny-vl"
    (kept / "snapshots").mkdir(parents=True)
    (kept / "refs").mkdir()
    (kept / "refs" / "main").write_text("abc")
    (kept / "snapshots" / "abc").symlink_to(tiny_folder)
    assert len(profiled("mine", model="org/tiny-vl", template="qwen2_vl")) == 130


def test_an_interpreter_without_anything(tmp_path: Path, profiled: Profiled) -> None:
    write(tmp_path, ALPACA)
    bare = tmp_path / "bin" / "python"
    bare.parent.mkdir()
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S "$@"\n')
    bare.chmod(0o755)
    message = one_line(lambda: profiled("mine", python=str(bare)))
    assert message.startswith("this interpreter has neither LLaMA-Factory nor transformers")


def test_usage_errors_are_usage_errors(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        find_sources(" , ", str(tmp_path))


def test_what_a_profile_does_not_follow_is_noted(tmp_path: Path, profiled: Profiled) -> None:
    write(tmp_path, ALPACA, {"num_samples": 10, "split": "train[:50]"})
    notes = profiled("mine").facts.notes
    assert any("draws 10 of its rows anew" in note for note in notes)
    assert any("not the split" in note for note in notes)


def test_a_broken_llamafactory_is_one_line(tmp_path: Path, profiled: Profiled) -> None:
    write(tmp_path, ALPACA)
    package = tmp_path / "site" / "llamafactory"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('transformers 9 is required')\n")
    python = tmp_path / "python"
    code = f"import sys, runpy; sys.path.append({str(tmp_path / 'site')!r}); sys.argv = sys.argv[1:]"
    code += "; runpy.run_path(sys.argv[0], run_name='__main__')"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{code}" "$@"\n')
    python.chmod(0o755)
    message = one_line(lambda: profiled("mine", python=str(python)))
    assert message.startswith("LLaMA-Factory is installed in")
    assert message.endswith("cannot be used: transformers 9 is required")
