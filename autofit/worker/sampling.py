"""Which samples a trial sees, in which order: the training's own order, with the worst batch put in."""

import copy
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch

from autofit.worker.order import Order

FILLED_COLUMNS = ("input_ids", "labels", "attention_mask", "position_ids", "token_type_ids")
IGNORED_LABEL = -100


class PlannedSampler(torch.utils.data.Sampler[int]):
    """A fixed sequence of places in the dataset; the same on all ranks, each of which takes every n-th batch of it."""

    def __init__(self, places: Sequence[int]) -> None:
        self._places = places

    def __iter__(self) -> Iterator[int]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


class WithSample(torch.utils.data.Dataset[Any]):
    """A dataset with one more sample behind its last."""

    def __init__(self, dataset: Any, sample: Any) -> None:
        self._dataset, self._sample = dataset, sample

    def __len__(self) -> int:
        return len(self._dataset) + 1

    def __getitem__(self, place: int) -> Any:
        if place < len(self._dataset):
            return self._dataset[place]
        return copy.deepcopy(self._sample)  # collators take samples apart


def planned(order: Order, own: Iterable[int], worst: Sequence[int] | None) -> PlannedSampler:
    """All places of a trial: those of `own` (repeated where it ends), in worst steps `worst`, in timed ones what is ordered.

    There the first and the last micro-batch of every rank are the worst batch: the last finds the gradients of the others in
    memory already. A sequence that covers the whole trial also keeps it within one epoch, however small the dataset is.
    """
    normal = itertools.chain.from_iterable(iter(lambda: list(own), []))
    size, accumulation = int(order.trial["micro_batch_size"]), int(order.trial["gradient_accumulation_steps"])
    places: list[int] = []
    for step in range(order.total_steps):
        timed = step - order.warmup_steps
        if order.timed_batches is not None and 0 <= timed < order.steps:
            places += order.timed_batches[timed]
            continue
        for micro in range(accumulation):
            is_worst = worst is not None and step in order.worst_steps and micro in {0, accumulation - 1}
            for _rank in range(order.num_ranks):
                places += worst if is_worst and worst is not None else itertools.islice(normal, size)
    return PlannedSampler(places)


def filled(dataset: Any, cutoff_len: int) -> dict[str, Any]:
    """The longest sample of a tokenised dataset, filled up to `cutoff_len` tokens by repeating its own answer.

    Images stay what they are, so that it can go through the launcher's own collator.
    """
    sample = dict(dataset[longest(dataset, 1)[0]])
    ids, labels = list(sample["input_ids"]), list(sample["labels"])
    answer = [place for place, label in enumerate(labels) if label != IGNORED_LABEL] or [len(ids) - 1]
    missing = max(0, cutoff_len - len(ids))
    for name in FILLED_COLUMNS:
        column = sample.get(name)
        if column is not None and len(column) == len(ids):
            sample[name] = [*column, *(column[answer[number % len(answer)]] for number in range(missing))]
    return sample


def longest(dataset: Any, count: int) -> list[int]:
    """Places of the `count` longest samples, longest first; repeated where there are fewer. Equal ones in their order."""
    lengths = _lengths(dataset)
    places = sorted(range(len(lengths)), key=lambda place: -lengths[place])[:count]
    return [places[number % len(places)] for number in range(count)]


def _lengths(dataset: Any) -> list[int]:
    """Tokens of each sample; from Arrow's offsets where that is possible, without touching the tokens."""
    table = getattr(dataset, "data", None)
    if table is not None and getattr(dataset, "_indices", None) is None:
        return [length for chunk in table.column("input_ids").chunks for length in chunk.value_lengths().to_pylist()]
    return [len(dataset[place]["input_ids"]) for place in range(len(dataset))]
