"""Which samples a trial sees: the worst batch on every rank, first and again, and the training's own order otherwise."""

import json
from pathlib import Path
from typing import Any

import pytest
from worker_orders import write_spec

pytest.importorskip("torch")

from autofit.worker.order import Order, read_order
from autofit.worker.sampling import WithSample, filled, longest, planned


def order(folder: Path, worst: list[int] | None = None, **fields: Any) -> Order:
    path = write_spec(folder, **fields)
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "worst_batch": worst}))
    return read_order(path)


def test_the_worst_batch_comes_first_and_again_on_every_rank(tmp_path: Path) -> None:
    wanted = order(tmp_path, [90, 91], micro_batch_size=2, gradient_accumulation_steps=3)  # 1 warm-up, 2 timed, worst again
    places = list(planned(wanted, range(50), [90, 91]))
    assert len(places) == 4 * 3 * 2 * 2
    steps = [places[start : start + 12] for start in range(0, 48, 12)]
    batches_of = [[step[start : start + 2] for start in range(0, 12, 2)] for step in steps]
    for step in (0, 3):
        assert batches_of[step][:2] == batches_of[step][4:] == [[90, 91], [90, 91]]  # first and last micro-batch, both ranks
    normal = [place for place in places if place < 50]
    assert normal == list(range(len(normal)))
    assert 90 not in steps[1] + steps[2]


def test_timed_steps_take_what_is_ordered(tmp_path: Path) -> None:
    path = write_spec(tmp_path, num_gpus=1, steps=2, micro_batch_size=1, gradient_accumulation_steps=2)
    path.write_text(json.dumps({**json.loads(path.read_text()), "worst_batch": [99], "timed_batches": [[40, 41], [42, 43]]}))
    places = list(planned(read_order(path), range(10), [99]))
    assert places[2:6] == [40, 41, 42, 43]  # after one step of warm-up
    assert places[:2] == places[6:] == [99, 99]


def test_a_small_dataset_is_gone_through_again(tmp_path: Path) -> None:
    wanted = order(tmp_path, num_gpus=1, steps=4)
    assert list(planned(wanted, [3, 1, 2], None)) == [3, 1, 2, 3, 1]


def test_the_longest_sample_is_filled_with_its_own_answer() -> None:
    data = [
        {"input_ids": [1, 2], "labels": [-100, 2], "attention_mask": [1, 1], "images": None},
        {"input_ids": [5, 6, 7], "labels": [-100, 6, 7], "attention_mask": [1, 1, 1], "images": ["a.png"]},
    ]
    assert filled(data, 6) == {
        "input_ids": [5, 6, 7, 6, 7, 6],
        "labels": [-100, 6, 7, 6, 7, 6],
        "attention_mask": [1] * 6,
        "images": ["a.png"],
    }
    assert filled(data, 2)["input_ids"] == [5, 6, 7]
    assert longest(data, 3) == [1, 0, 1]


def test_a_collator_may_take_samples_apart() -> None:
    dataset = WithSample([{"images": [0]}], {"images": [1]})
    dataset[1].pop("images")
    assert [dataset[place]["images"] for place in range(len(dataset))] == [[0], [1]]
