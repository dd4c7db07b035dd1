"""Writes the events of a deep model from the trace of a shallow one.

Everything that is recorded has a *tag*: the block instance (stack and place in it) that was running, or none. A row of tags is
cut into *passes*: stretches in which the places of one stack only rise or only fall (a forward, a backward, a list of
gradients). What has no tag between two blocks of a pass belongs to the block before it. A pass over the deep model is its
blocks in the same direction, each with the stretch of its template; what a stretch refers to (a storage, a module, a
parameter) is its own, its neighbour's, one of a block that exists once, or nobody's, and is renamed accordingly.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

STRIDE = 1 << 12
"""Tags are `stack * STRIDE + place`; -1 is no block."""

_REACH = 2
"""Blocks as far apart as this are neighbours: a stack's variable holds a block's input until the block has returned."""

Ints = npt.NDArray[np.int64]


class NotExpandable(ValueError):  # noqa: N818 - reads better where it is raised
    """What was recorded is not made of passes over blocks; says where."""


@dataclass(frozen=True)
class Layout:
    """Depths of a shallow model's stacks, and for every block of the deep model the place of its template.

    What follows the last block in the module that runs them is a block more, in both models.
    """

    depths: tuple[int, ...]
    templates: tuple[tuple[int, ...], ...]

    def copies(self, tag: int) -> int:
        """How often the deep model has this block; 1 for what belongs to none."""
        return 1 if tag < 0 else self.templates[tag // STRIDE].count(tag % STRIDE)

    def first(self, tag: int) -> int:
        """Tag of the template of a block of a model that is as deep as the shallow one."""
        return tag // STRIDE * STRIDE + self.templates[tag // STRIDE][tag % STRIDE]

    def only(self, tag: int) -> int | None:
        """The block of the deep model that has this template, if there is exactly one (0 for what belongs to none)."""
        if tag < 0:
            return 0
        stack = self.templates[tag // STRIDE]
        return stack.index(tag % STRIDE) if stack.count(tag % STRIDE) == 1 else None


@dataclass(frozen=True)
class Stretch:
    """Items `start:stop` of the shallow row, and the places at which they appear in the deep one."""

    start: int
    stop: int
    number: int
    """Of its pass; 0: outside all of them."""
    tag: int
    blocks: Ints
    """Places in the deep model's stack of the copies; `[0]` outside passes."""
    pieces: Ints
    """Which pieces of the deep row, in its order, the copies are."""


class Row:
    """A row of tags cut into passes, and the deep row that it stands for.

    Args:
        tags: of every item.
        cuts: no pass goes on where this number changes.

    Raises:
        NotExpandable: a pass over a single block of which the deep model has several: nothing tells its direction.
    """

    def __init__(self, tags: npt.ArrayLike, layout: Layout, cuts: npt.ArrayLike | None = None) -> None:
        self.layout = layout
        tags = np.asarray(tags, dtype=np.int64)
        self.length = len(tags)
        self.passes = 0
        self.stretches: list[Stretch] = []
        self._pieces = 0
        self._cut(tags, np.zeros(self.length) if cuts is None else np.asarray(cuts))
        self.sizes = np.zeros(self._pieces, dtype=np.int64)
        """Items of each piece of the deep row."""
        for stretch in self.stretches:
            self.sizes[stretch.pieces] = stretch.stop - stretch.start
        self._starts = np.cumsum(self.sizes) - self.sizes

    def _cut(self, tags: Ints, cuts: npt.NDArray[Any]) -> None:
        if not len(tags):
            return
        starts = np.flatnonzero(np.r_[True, (tags[1:] != tags[:-1]) | (cuts[1:] != cuts[:-1])])
        order: list[list[int]] = []  # of the open pass: [tag, start, stop]
        cut, direction, written = -1, 0, 0
        for start, stop in zip(starts.tolist(), [*starts[1:].tolist(), len(tags)], strict=True):
            tag = int(tags[start])
            if tag < 0:
                continue
            here = int(cuts[start])
            same = bool(order) and cut == here and tag // STRIDE == order[-1][0] // STRIDE
            change = tag - order[-1][0] if same else 0
            if same and change == 0:
                order[-1][2] = stop
                continue
            if same and direction * change >= 0:
                direction = 1 if change > 0 else -1
                order[-1][2] = start  # what has no tag in between belongs to the block before
            else:
                written = self._close(order, direction, written)
                self._free(written, start)
                order, direction, cut = [], 0, here
            order.append([tag, start, stop])
        written = self._close(order, direction, written)
        self._free(written, len(tags))

    def _free(self, start: int, stop: int) -> None:
        if stop > start:
            self.stretches.append(Stretch(start, stop, 0, -1, np.zeros(1, dtype=np.int64), np.array([self._pieces])))
            self._pieces += 1

    def _close(self, order: list[list[int]], direction: int, written: int) -> int:
        """Writes a pass; returns the item up to which everything is written."""
        if not order:
            return written
        if direction == 0 and self.layout.copies(order[0][0]) != 1:
            raise NotExpandable(f"a pass over one block (tag {order[0][0]}) that the deep model has several times")
        self.passes += 1
        there = {tag % STRIDE: (start, stop) for tag, start, stop in order}
        first = order[0][0] // STRIDE * STRIDE
        templates = np.asarray(self.layout.templates[first // STRIDE])
        blocks = np.flatnonzero(np.isin(templates, list(there)))
        pieces = self._pieces + np.arange(len(blocks))
        if direction < 0:
            pieces = pieces[::-1]
        self._pieces += len(blocks)
        for place, (start, stop) in there.items():
            copies = templates[blocks] == place
            self.stretches.append(Stretch(start, stop, self.passes, first + place, blocks[copies], pieces[copies]))
        return order[-1][2]

    def deep(self, shallow: Ints) -> Ints:
        """A column of the deep row: of every item, its shallow one's value."""
        return self.write(lambda stretch: np.broadcast_to(shallow[stretch.start : stretch.stop], _shape(stretch)))

    def write(self, values: Callable[[Stretch], Ints]) -> Ints:
        """A column of the deep row from the values [copies, items] of each stretch."""
        result = np.empty(int(self.sizes.sum()), dtype=np.int64)
        for stretch in self.stretches:
            result[self._starts[stretch.pieces][:, None] + np.arange(stretch.stop - stretch.start)] = values(stretch)
        return result


def _shape(stretch: Stretch) -> tuple[int, int]:
    return len(stretch.blocks), stretch.stop - stretch.start


class Names:
    """Things that are referred to (storages, modules, parameters): numbers in the shallow trace -> numbers in the deep one.

    Args:
        row: in which each thing is made.
        made_at: the item of `row` that makes it, by its shallow number; they rise with it.
    """

    def __init__(self, row: Row, made_at: Ints) -> None:
        self.layout = row.layout
        makes = np.full(row.length, -1, dtype=np.int64)
        makes[made_at] = np.arange(len(made_at))
        self._number = np.zeros(len(made_at), dtype=np.int64)
        self._tag = np.full(len(made_at), -1, dtype=np.int64)
        self._ordinal = np.zeros(len(made_at), dtype=np.int64)
        of_stretch = []
        counts = np.zeros(len(row.sizes), dtype=np.int64)
        for stretch in row.stretches:
            here = makes[stretch.start : stretch.stop]
            here = here[here >= 0]
            of_stretch.append(here)
            counts[stretch.pieces] = len(here)
            self._number[here], self._tag[here], self._ordinal[here] = stretch.number, stretch.tag, np.arange(len(here))
        first = np.cumsum(counts) - counts
        self.template: Ints = np.empty(int(counts.sum()), dtype=np.int64)
        """Shallow number of every deep thing."""
        deepest = max((len(stack) for stack in row.layout.templates), default=1)
        self._first = np.full((row.passes + 1, deepest), -1, dtype=np.int64)
        self._first[0] = 0
        for stretch, here in zip(row.stretches, of_stretch, strict=True):
            begins = first[stretch.pieces]
            self.template[begins[:, None] + np.arange(len(here))] = here
            if stretch.number:
                self._first[stretch.number, stretch.blocks] = begins
            else:
                self._ordinal[here] += begins[0]

    def deep(self, row: Row, things: Ints) -> Ints:
        """A column of the deep row of what its items refer to; `things` are the shallow row's, -1 for none.

        Raises:
            NotExpandable: something of a block that is neither the item's own, nor a neighbour, nor there only once.
        """
        return row.write(lambda stretch: self._refer(stretch, things[stretch.start : stretch.stop]))

    def _refer(self, stretch: Stretch, things: Ints) -> Ints:
        some = things >= 0
        known = things[some]
        tag = self._tag[known]
        away = tag - stretch.tag
        near = (tag >= 0) & (stretch.tag >= 0) & (tag // STRIDE == stretch.tag // STRIDE) & (np.abs(away) <= _REACH)
        if self.layout.copies(stretch.tag) == 1:
            once = [other for other in np.unique(tag).tolist() if self.layout.only(other) is not None]
            near &= (np.abs(away) <= 1) | ~np.isin(tag, once)
        base = np.where(near, away, 0)
        for other in np.unique(tag[(tag >= 0) & ~near]).tolist():
            only = self.layout.only(other)
            if only is None:
                raise NotExpandable(f"block {stretch.tag} refers to block {other}, of which the deep model has several")
            base[(tag == other) & ~near] = only
        block = base + near * stretch.blocks[:, None]
        if block.size and (block.min() < 0 or block.max() >= self._first.shape[1]):
            raise NotExpandable(f"block {stretch.tag} refers to a neighbour beyond the stack")
        first = self._first[self._number[known], block]
        if first.size and first.min() < 0:
            raise NotExpandable(f"block {stretch.tag} refers to a neighbour that makes no such thing")
        result = np.full(_shape(stretch), -1, dtype=np.int64)
        result[:, some] = first + self._ordinal[known]
        return result


def require_lifetimes(kinds: Ints, storages: Ints, mortal: npt.NDArray[np.bool_]) -> None:
    """Raises NotExpandable unless every storage is made once, and freed at most once and later.

    Args:
        mortal: whether the template of each storage is freed; copies have to be, too.
    """
    count = len(mortal)
    made, freed = np.full(count, -1, dtype=np.int64), np.full(count, len(kinds), dtype=np.int64)
    births, deaths = np.flatnonzero(kinds > 0), np.flatnonzero(kinds < 0)
    made[storages[births]] = births
    freed[storages[deaths]] = deaths
    if len(births) != count or made.min(initial=0) < 0:
        raise NotExpandable("a storage is made twice or never")
    if len(np.unique(storages[deaths])) != len(deaths):
        raise NotExpandable("a storage is freed twice")
    if np.any((freed < len(kinds)) != mortal):
        raise NotExpandable("of blocks that should be alike one frees a storage and another does not")
    if np.any(freed < made):
        raise NotExpandable("a storage is freed before it is made")


def first_difference(one: Any, other: Any) -> int | None:
    """Index at which two arrays begin to differ; None when they are equal."""
    one, other = np.asarray(one), np.asarray(other)
    length = min(len(one), len(other))
    differing = np.flatnonzero(one[:length] != other[:length])
    if len(differing):
        return int(differing[0])
    return None if len(one) == len(other) else length
