"""The profile of a dataset: every sample's length before truncation, and what follows from it at any `cutoff_len`."""

import json
import zipfile
import zlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from autofit.config.base import Frozen
from autofit.config.floor import Cut, DataFloor
from autofit.data.truncation import Int, Turns, cover, cutting_ranges, kept
from autofit.errors import AutofitError

FORMAT = 1
_COLUMNS = ("dataset", "row", "reserve", "images", "image_tokens", "patches", "empty_answer")
FACTS_FILE, SAMPLES_FILE = "facts.json", "samples.npz"


class DatasetFacts(Frozen):
    """One dataset as it was read."""

    name: str
    rows: int


class DroppedRows(Frozen):
    """Rows that training leaves out."""

    dataset: str
    reason: str
    rows: int


class Fault(Frozen):
    """A row that training would stop at."""

    dataset: str
    row: int
    """Counted from 0."""
    what: str


class ProfileFacts(Frozen):
    """What holds for the whole profile. Written by the worker."""

    format: Literal[1]
    model: str
    """Folder of tokenizer and image processor."""
    datasets: tuple[DatasetFacts, ...]
    engine: Literal["llamafactory", "transformers"]
    """What made the tokens: LLaMA-Factory's own code, or the tokenizer's chat template."""
    template: str | None
    """LLaMA-Factory's template; None where it is not installed."""
    mask_history: bool
    train_on_prompt: bool
    efficient_eos: bool
    """The template adds one token at the end of a sample."""
    image_max_pixels: int
    image_min_pixels: int
    dummy_tokens: int
    """Tokens that the collator adds to a batch without images, for a model with a vision tower; 0 for others."""
    dummy_patches: int
    dropped: tuple[DroppedRows, ...]
    faults: tuple[Fault, ...]
    """The first 1000."""
    faulty_rows: int
    notes: tuple[str, ...]
    cannot: tuple[str, ...]
    """What this profile does not say, and why."""
    versions: dict[str, str]


class Truncation(Frozen):
    """What one `cutoff_len` takes from the data. Shares are 0..1 of the whole."""

    cutoff_len: int
    samples_truncated: int
    samples_truncated_share: float
    tokens_lost_share: float
    label_tokens_lost_share: float
    samples_without_labels: int
    """Nothing is left to learn from: the sample's loss is not a number when it is alone in a batch."""
    cuts_images: str | None
    """A sample whose image tokens it cuts, which ends the run when it is drawn; None: none."""


@dataclass(frozen=True)
class DataProfile:
    """Arrays of one entry a sample, int64; `turns` is ragged, see `Turns`.

    Samples are in the order of the datasets and their rows, without those that training drops: a sample's number is its place
    in the training set that LLaMA-Factory makes of the datasets (concatenated, none kept back for evaluation).
    """

    facts: ProfileFacts
    dataset: Int
    """Number of the dataset in `facts.datasets`."""
    row: Int
    """Row in its file, counted from 0."""
    reserve: Int
    """Tokens that truncation never touches."""
    images: Int
    image_tokens: Int
    patches: Int
    empty_answer: Int
    """1: the answer has no text; it is trained on all the same."""
    turns: Turns

    @classmethod
    def load(cls, folder: Path) -> "DataProfile":
        """Reads what the worker wrote.

        Raises:
            AutofitError: it is not there, or torn, or of another format.
        """
        try:
            facts = ProfileFacts.model_validate(json.loads((folder / FACTS_FILE).read_text(encoding="utf-8")))
            with np.load(folder / SAMPLES_FILE, allow_pickle=False) as content:
                arrays = {name: content[name].astype(np.int64) for name in content.files if name != "media"}
            counts = arrays.pop("turns")
            sample = np.repeat(np.arange(len(counts)), counts)
            columns = {name: arrays.pop(name) for name in ("source", "target", "source_need", "target_need")}
            before = arrays["reserve"][sample] + _earlier(columns["source"] + columns["target"], counts)
            return cls(facts, turns=Turns(sample, before, **columns), **arrays)
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
            raise AutofitError(f"{folder}: is no profile of this version; delete it, it will be made again") from error

    def __len__(self) -> int:
        return len(self.row)

    def head(self, rows: int) -> "DataProfile":
        """Of the first `rows` rows of each dataset alone, as LLaMA-Factory's `max_samples` keeps them."""
        kept_samples = self.row < rows
        if kept_samples.all():
            return self
        number = np.cumsum(kept_samples) - 1
        of_turns = kept_samples[self.turns.sample]
        turns = Turns(*(column[of_turns] for column in self.turns))
        columns = {name: getattr(self, name)[kept_samples] for name in _COLUMNS}
        return DataProfile(self.facts, turns=turns._replace(sample=number[turns.sample]), **columns)

    @cached_property
    def tokens(self) -> Int:
        """Of each sample, before truncation."""
        of_turns = np.bincount(self.turns.sample, weights=self.turns.source + self.turns.target, minlength=len(self))
        return self.reserve + of_turns.astype(np.int64)

    def kept_tokens(self, cutoff_len: int) -> Int:
        """Of each sample, after truncation."""
        return np.minimum(self.tokens, np.maximum(cutoff_len, self.reserve))

    def label_tokens(self, cutoff_len: int | None = None) -> Int:
        """Tokens of each sample that the loss is taken over; None: before truncation."""
        turns = self.turns
        left = turns.source + turns.target if cutoff_len is None else np.maximum(cutoff_len - turns.before, 0)
        source, target = kept(turns.source, turns.target, left)
        target[left == 0], source[left == 0] = 0, 0
        first = np.diff(turns.sample, prepend=-1) > 0
        labels = source + target if self.facts.train_on_prompt else target
        if self.facts.mask_history:
            labels = np.where(first, labels, 0)
        if self.facts.efficient_eos and not self.facts.train_on_prompt:
            labels = labels + ((left > 0) & ~first)
        total = np.bincount(turns.sample, weights=labels, minlength=len(self)).astype(np.int64)
        return total + int(self.facts.efficient_eos)

    def truncation(self, cutoff_len: int) -> Truncation:
        """What a `cutoff_len` takes from the data."""
        tokens, kept_tokens = self.tokens, self.kept_tokens(cutoff_len)
        labels, kept_labels = self.label_tokens(), self.label_tokens(cutoff_len)
        truncated = int((kept_tokens < tokens).sum())
        cut = self.floor.at(cutoff_len)
        return Truncation(
            cutoff_len=cutoff_len,
            samples_truncated=truncated,
            samples_truncated_share=_share(truncated, len(self)),
            tokens_lost_share=_share(int((tokens - kept_tokens).sum()), int(tokens.sum())),
            label_tokens_lost_share=_share(int((labels - kept_labels).sum()), int(labels.sum())),
            samples_without_labels=int((kept_labels == 0).sum()),
            cuts_images=cut.sample if cut else None,
        )

    @cached_property
    def floor(self) -> DataFloor:
        """What every `cutoff_len` takes: where a sample would lose image tokens, and how many lose any."""
        found = cover(cutting_ranges(self.turns))
        cuts = tuple(Cut(low=low, high=high, sample=self.name(sample)) for low, high, sample in found)
        # what is reserved is never cut, so that a sample of nothing else loses no token at any cutoff_len
        lengths, counts = np.unique(np.where(self.tokens > self.reserve, self.tokens, 0), return_counts=True)
        longer = np.cumsum(counts[::-1])[::-1]
        return DataFloor(
            image_max_pixels=self.facts.image_max_pixels,
            cuts=cuts,
            lengths=tuple(lengths.tolist()),
            longer=tuple(longer.tolist()),
        )

    @property
    def complaint(self) -> str | None:
        """One line on the rows that training would stop at, the first three by name; None where there are none."""
        faults = self.facts.faults
        if not faults:
            return None
        first = "; ".join(f"row {fault.row} of {fault.dataset}: {fault.what}" for fault in faults[:3])
        more = f" (and {self.facts.faulty_rows - 3} more)" if self.facts.faulty_rows > 3 else ""
        return f"{self.facts.faulty_rows} row(s) would end the training before it starts: {first}{more}"

    def name(self, sample: int) -> str:
        """`row 900 of my_data`, the row counted from 0."""
        return f"row {int(self.row[sample])} of {self.facts.datasets[int(self.dataset[sample])].name}"


def media_files(folder: Path) -> list[str]:
    """The images, videos and sounds that a profile's rows name, sorted."""
    with np.load(folder / SAMPLES_FILE, allow_pickle=False) as content:
        text = zlib.decompress(content["media"].tobytes()).decode()
    return text.split("\0") if text else []


def _earlier(lengths: Int, counts: Int) -> Int:
    """Sum of the lengths of a sample's earlier turns, for every turn."""
    total = np.cumsum(lengths) - lengths
    starts = np.cumsum(counts) - counts
    has = counts > 0
    result: Int = total - np.repeat(total[starts[has]], counts[has])
    return result


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def histogram(values: Int, bins: int = 12) -> list[tuple[int, int, int]]:
    """(low, high, count) over bins of one round width, both ends included; the last one holds the largest value."""
    if not len(values):
        return []
    width = _round_up(int(values.max()) / bins + 1)
    counts = np.bincount(values // width)
    return [(number * width, (number + 1) * width - 1, int(count)) for number, count in enumerate(counts.tolist())]


def _round_up(value: float) -> int:
    """The next of 1, 2, 5, 10, 20, 50, ..."""
    power = 10 ** max(0, int(np.floor(np.log10(max(value, 1.0)))))
    return int(next(step * power for step in (1, 2, 5, 10) if step * power >= value))


def summary(profile: DataProfile, cutoffs: tuple[int, ...]) -> dict[str, Any]:
    """The profile as one JSON document: counts, histograms, the floor, and what each `cutoff_len` takes."""
    facts, tokens = profile.facts, profile.tokens
    longest, widest = (int(np.argmax(values)) if len(profile) else None for values in (tokens, profile.patches))
    return {
        "samples": len(profile),
        **facts.model_dump(mode="json", exclude={"format"}),
        "empty_answers": int(profile.empty_answer.sum()),
        "samples_with_images": int((profile.images > 0).sum()),
        "tokens": _spread(tokens),
        "label_tokens": _spread(profile.label_tokens()),
        "image_tokens": _spread(profile.image_tokens),
        "patches": _spread(profile.patches),
        "longest_sample": None if longest is None else profile.name(longest),
        "most_patches_sample": None if widest is None or not profile.patches.any() else profile.name(widest),
        "length_histogram": _bins(histogram(tokens)),
        "image_token_histogram": _bins(histogram(profile.image_tokens[profile.images > 0])),
        "cutoff_floor": profile.floor.cutoff_len,
        "cutoffs_that_cut_images": [cut.model_dump() for cut in profile.floor.cuts],
        "truncation": [profile.truncation(cutoff).model_dump() for cutoff in cutoffs],
    }


def _bins(found: list[tuple[int, int, int]]) -> list[dict[str, int]]:
    return [{"low": low, "high": high, "samples": count} for low, high, count in found]


def _spread(values: Int) -> dict[str, int | float]:
    if not len(values):
        return {"total": 0}
    p50, p90, p99 = (int(value) for value in np.quantile(values, (0.5, 0.9, 0.99), method="higher"))
    total = int(values.sum())
    return {"total": total, "mean": round(total / len(values), 1), "p50": p50, "p90": p90, "p99": p99, "max": int(values.max())}
