"""A traced regime as the columns of its document; a shallow one's as the deep model's.

A shallow trace is written deep only after it has passed a check on itself: written from the first occurrence of each of its
own contexts it must give itself back, record by record (kinds, phases, sizes, categories, which storage is freed, modules,
gradients, operations). So what is copied some thirty times has been seen to be a copy at least once, in this variant and
regime. The deep model's parameters are compared one by one besides. A variant that fails is traced at full depth.
"""

from typing import Any

import numpy as np

from autofit.worker.trace_expand import Ints, Layout, Names, NotExpandable, Row, first_difference, require_lifetimes
from autofit.worker.trace_operations import Recorded
from autofit.worker.trace_parts import owner_modules
from autofit.worker.trace_session import Session
from autofit.worker.trace_tracer import StorageTracer


class Written:
    """The records of a tracer as columns; with a layout, those of the deep model."""

    def __init__(self, session: Session, tracer: StorageTracer, layout: Layout | None) -> None:
        self.tracer = tracer
        self.layout = layout
        kind = np.asarray(tracer.event_kind, dtype=np.int64)
        at = np.asarray([event for event, *_ in tracer.moments], dtype=np.int64)
        self._order = np.argsort(np.r_[2 * np.arange(len(kind)) + 1, 2 * at], kind="stable")
        self._is_event = self._order < len(kind)
        storage = np.asarray([*tracer.event_storage, *(storage for *_, storage in tracer.moments)], dtype=np.int64)
        self._storage = storage[self._order]
        self._source = np.arange(len(self._order))
        self._things: dict[str, Ints] = {}
        if layout is None:
            return
        cuts = np.asarray([*tracer.event_cut, *tracer.moment_cut], dtype=np.int64)[self._order]
        row = Row(np.asarray([*tracer.event_tag, *tracer.moment_tag], dtype=np.int64)[self._order], layout, cuts)
        made = np.flatnonzero(self._is_event & (np.r_[kind, np.zeros(len(at), dtype=np.int64)][self._order] > 0))
        names = Names(row, made)
        self.template = names.template
        self._source = row.deep(self._source)
        freed = self._storage
        self._storage = names.deep(row, freed)
        self._require_same_storages(row.deep(freed))
        for name, tags in _owners(session).items():
            things = np.full(len(self._order), -1, dtype=np.int64)
            moments = np.flatnonzero(~self._is_event)
            mine = np.asarray([(kind == "grad") == (name == "grad") for _, kind, _, _ in tracer.moments], dtype=bool)
            index = np.asarray([index for _, _, index, _ in tracer.moments], dtype=np.int64)
            things[moments[mine]] = index[mine]
            numbered = Row(tags, layout)
            self._things[name] = Names(numbered, np.arange(len(tags))).deep(row, things)

    def _require_same_storages(self, wanted: Ints) -> None:
        """What a block frees of its neighbour must be what its template freed there."""
        bytes_ = np.asarray(self.tracer.storage_bytes)
        some = wanted >= 0
        found = self.template[self._storage[some]]
        if np.any(bytes_[found] != bytes_[wanted[some]]):
            raise NotExpandable("blocks with equal neighbours leave them different storages")
        events = self._is_event[self._source]
        kinds = np.asarray(self.tracer.event_kind)[self._order[self._source[events]]]
        mortal = np.isin(np.arange(len(bytes_)), np.asarray(self.tracer.event_storage)[np.asarray(self.tracer.event_kind) < 0])
        require_lifetimes(kinds, self._storage[events], mortal[self.template])

    def events(self) -> dict[str, list[int]]:
        chosen = self._is_event[self._source]
        at = self._order[self._source[chosen]]
        tracer = self.tracer
        return {
            "kind": np.asarray(tracer.event_kind)[at].tolist(),
            "storage": self._storage[chosen].tolist(),
            "phase": np.asarray(tracer.event_phase)[at].tolist(),
            "step": np.asarray(tracer.event_step)[at].tolist(),
        }

    def storages(self, sizes: list[list[int]]) -> dict[str, Any]:
        """Sizes a shape of what was traced; `template` says for each storage of the events which of them it is."""
        tracer = self.tracer
        written = {"category": tracer.storage_category, "source": _indexed(tracer.storage_source), "bytes": sizes}
        if self.layout is None:
            return written
        spread = {storage: self._deep_sum(parts) for storage, parts in tracer.storage_spread.items()}
        written["bytes"] = [[spread.get(at, size) for at, size in enumerate(row)] if spread else row for row in sizes]
        return written | {"template": self.template.tolist()}

    def moments(self) -> dict[str, list[Any]]:
        before = np.cumsum(self._is_event[self._source])
        chosen = np.flatnonzero(~self._is_event[self._source])
        source = self._order[self._source[chosen]] - len(self.tracer.event_kind)
        kinds = [self.tracer.moments[at][1] for at in source]
        if self.layout is None:
            index = [self.tracer.moments[at][2] for at in source]
        else:
            parts = (self._things["grad" if kind == "grad" else "module"][at] for kind, at in zip(kinds, chosen, strict=True))
            index = [int(part) for part in parts]
        return {"event": before[chosen].tolist(), "kind": kinds, "index": index, "storage": self._storage[chosen].tolist()}

    def operations(self, shapes: list[list[Recorded]]) -> dict[str, Any]:
        """Figures a shape of what was traced; `count` says how often each of them is run."""
        first = shapes[0]
        written = {
            "name": _indexed([row.name for row in first]),
            "phase": [row.phase for row in first],
            "flops": [[row.flops for row in rows] for rows in shapes],
            "bytes_read": [[self._traffic(row, 0) for row in rows] for rows in shapes],
            "bytes_written": [[self._traffic(row, 1) for row in rows] for rows in shapes],
        }
        if self.layout is None:
            return written
        count = {tag: self.layout.copies(tag) for tag in {row.tag for row in first}}
        return written | {"count": [count[row.tag] for row in first]}

    def _traffic(self, row: Recorded, which: int) -> float:
        if self.layout is None or row.spread is None:
            return row.bytes_written if which else row.bytes_read
        return float(self._deep_sum(row.spread[which]))

    def _deep_sum(self, parts: dict[int, int]) -> int:
        assert self.layout is not None
        return sum(part * self.layout.copies(tag) for tag, part in parts.items())


def _owners(session: Session) -> dict[str, list[int]]:
    """Tags of the parameters and of the modules that own some, in the order of their numbers."""
    if not session.watches_modules:
        return {}
    return {
        "grad": [session.tag_of(name) for name, _ in session.model.named_parameters()],
        "module": [session.tag_of(name) for name in owner_modules(session.model)],
    }


def require_itself(session: Session, tracer: StorageTracer, check: Layout) -> None:
    """Raises NotExpandable unless the trace, written from the first of its blocks that are alike, is the trace itself."""
    if tracer.orphans:
        raise NotExpandable(f"the optimizer makes {len(tracer.orphans)} storages that belong to no parameter")
    there, here = Written(session, tracer, check), Written(session, tracer, None)
    events, own = there.events(), here.events()
    sizes, template = np.asarray(tracer.storage_bytes), there.template
    categories = np.asarray(tracer.storage_category)
    pairs = [(name, events[name], own[name]) for name in ("kind", "phase", "step")]
    born, own_born = (np.asarray(column["storage"])[np.asarray(column["kind"]) > 0] for column in (events, own))
    if (at := first_difference(sizes[template[born]], sizes[own_born])) is not None:
        raise NotExpandable(f"storage {at} of blocks that should be alike differs in size")
    pairs.append(("category", categories[template[born]], categories[own_born]))
    renamed = np.argsort(born), np.argsort(own_born)
    pairs.append(("storage", renamed[0][np.asarray(events["storage"])], renamed[1][np.asarray(own["storage"])]))
    moments, own_moments = there.moments(), here.moments()
    pairs += [(f"moment {name}", moments[name], own_moments[name]) for name in ("event", "kind", "index")]
    for name, one, other in pairs:
        if (at := first_difference(one, other)) is not None:
            raise NotExpandable(f"{name} {at} of blocks that should be alike differs")
    _require_alike_operations(tracer, check)


def _require_alike_operations(tracer: StorageTracer, check: Layout) -> None:
    """Operations of alike blocks move the same bytes in the same order; arithmetic may differ (kinds of attention)."""
    by_tag: dict[int, list[Any]] = {}
    for row in tracer.operations:
        by_tag.setdefault(row.tag, []).append((row.name, row.phase, row.bytes_read, row.bytes_written))
    for tag, rows in by_tag.items():
        if tag >= 0:
            first = check.first(tag)
            if rows != by_tag.get(first):
                raise NotExpandable(f"operations of block {tag} are not those of block {first}, which it should be like")


def _indexed(names: list[str]) -> dict[str, Any]:
    table = sorted(set(names))
    index = {name: number for number, name in enumerate(table)}
    return {"names": table, "index": [index[name] for name in names]}
