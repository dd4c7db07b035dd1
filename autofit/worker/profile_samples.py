"""What is kept of one row of training data, and of many: lengths before any truncation, as arrays."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol


class ProfileError(Exception):
    """The data cannot be profiled as it is; one line says what, where and what to do."""


class RowError(Exception):
    """One row that training would stop at; the message does not name the row."""


@dataclass(frozen=True)
class Turn:
    """One prompt and its answer, in the order in which truncation sees them.

    Attributes:
        source, target: their tokens.
        source_need, target_need: tokens of each that must be kept so that no image token is cut: the place of the last one.
    """

    source: int
    target: int
    source_need: int = 0
    target_need: int = 0


@dataclass(frozen=True)
class Sample:
    """One row as it is trained on.

    Attributes:
        reserve: tokens outside the turns, which truncation never touches.
        empty_answer: no text in the last answer; it is trained on all the same.
        media: the files that it names.
    """

    turns: tuple[Turn, ...]
    reserve: int = 0
    images: int = 0
    image_tokens: int = 0
    patches: int = 0
    empty_answer: bool = False
    media: tuple[str, ...] = ()


@dataclass(frozen=True)
class Dropped:
    """A row that training leaves out."""

    reason: str


class Rows(Protocol):
    """The rows of one dataset, in the order of its file."""

    name: str

    def __len__(self) -> int: ...

    def between(self, start: int, end: int) -> Iterable[dict[str, Any]]:
        """Rows `start` to `end`, the latter not included."""
        ...


class Backend(Protocol):
    """What reads rows and makes tokens of them: LLaMA-Factory itself, or transformers alone."""

    @property
    def datasets(self) -> Sequence[Rows]: ...

    def sample(self, dataset: int, row: dict[str, Any]) -> "Sample | Dropped":
        """One row of dataset number `dataset`.

        Raises:
            RowError: training would stop at it.
        """
        ...

    def facts(self) -> dict[str, Any]:
        """What holds for every sample: the keys of `autofit.data.profile.ProfileFacts` that a backend knows."""
        ...


INTEGERS = ("dataset", "row", "reserve", "images", "image_tokens", "patches", "empty_answer", "turns")
"""One entry a sample; `turns` counts those that it has in the columns below."""
TURN_INTEGERS = ("source", "target", "source_need", "target_need")


@dataclass
class Chunk:
    """Rows of one dataset, worked through. Lists of plain integers: it travels between processes."""

    columns: dict[str, list[int]] = field(default_factory=lambda: {name: [] for name in (*INTEGERS, *TURN_INTEGERS)})
    dropped: Counter[tuple[int, str]] = field(default_factory=Counter)
    """(dataset, reason) -> rows."""
    faults: list[tuple[int, int, str]] = field(default_factory=list)
    """(dataset, row, what is wrong)."""
    media: set[str] = field(default_factory=set)
    rows: int = 0

    def add(self, dataset: int, row: int, sample: Sample) -> None:
        """Appends one sample."""
        values = (dataset, row, sample.reserve, sample.images, sample.image_tokens, sample.patches, int(sample.empty_answer))
        for name, value in zip(INTEGERS, (*values, len(sample.turns)), strict=True):
            self.columns[name].append(value)
        for turn in sample.turns:
            for name in TURN_INTEGERS:
                self.columns[name].append(getattr(turn, name))
        self.media.update(sample.media)

    def extend(self, later: "Chunk") -> None:
        """Appends what follows."""
        for name, values in later.columns.items():
            self.columns[name] += values
        self.dropped += later.dropped
        self.faults += later.faults
        self.media |= later.media
        self.rows += later.rows


def last_place(ids: Sequence[int], wanted: frozenset[int]) -> int:
    """Place of the last of `wanted` in `ids`, counted from 1; 0 where there is none."""
    return next((place for place in range(len(ids), 0, -1) if ids[place - 1] in wanted), 0) if wanted else 0


def nearest(name: str, known: Iterable[str], limit: int = 8) -> str:
    """`did you mean 'x'?`, or a list of what there is."""
    import difflib

    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
    if near:
        return f"did you mean '{near[0]}'?"
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return f"it has {', '.join(names[:limit])}{more}"


def one_line(error: BaseException, limit: int = 240) -> str:
    """An exception's message in one line of bounded length; its type where it has none."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 3] + "..."
