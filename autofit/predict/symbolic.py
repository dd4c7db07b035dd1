"""A trace made symbolic: peak memory, its parts, its events and its operations at any batch shape, without tracing again.

The order of a step's events does not change with the shape of its batch, only sizes do. So the memory in use after each
event is a polynomial of the shape, the peak is the largest of them, and all but the few hundred that can be largest at some
shape are dropped. A variant is whatever changes the events: model, method, freezing, types, checkpointing, optimizer,
attention, accumulation (1 or more). Within a variant a *regime* is a set of shapes with the same events: batches of one and
larger ones, and for a sliding window sequences on either side of it.
"""

import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from autofit.errors import AutofitError
from autofit.predict.allocator import Events
from autofit.predict.fitting import fit_regime, read_document
from autofit.predict.polynomials import FEATURES, Float64, features
from autofit.predict.regime import Regime, moments_of
from autofit.predict.roofline import Operations
from autofit.predict.zero_moments import Moment, Parameter

FORMAT = 6
_CHUNK = 8192

__all__ = ["FORMAT", "Peak", "Regime", "SymbolicTrace", "read_document"]


class Peak(NamedTuple):
    """The largest use within two steps of one shape."""

    peak_bytes: int
    phase: str
    step: int
    """0: the first step, which makes the optimizer's state; 1: every later one."""
    terms: dict[str, int]
    """Category -> bytes at the peak; they add up to it."""


@dataclass(frozen=True)
class SymbolicTrace:
    """All regimes of a variant.

    Attributes:
        window: sliding window in tokens that changes the events, or None.
        metadata: what the trace says of itself (parameters, versions, precision mode, what is not modelled).
    """

    categories: tuple[str, ...]
    phases: tuple[str, ...]
    regimes: dict[str, Regime]
    parameters: list[Parameter]
    metadata: dict[str, Any]
    window: int | None = None

    # ---- making -------------------------------------------------------------------------------------------------------

    @classmethod
    def from_document(
        cls, document: Mapping[str, Any], window: int | None = None, micro_steps: int | None = None
    ) -> "SymbolicTrace":
        """Fits the trace that `autofit.worker trace` wrote.

        Args:
            micro_steps: which of its groups, by the micro-batches of a traced step; None: those of the trial.

        Raises:
            AutofitError: another format.
        """
        if document.get("format") != FORMAT:
            raise AutofitError(
                f"trace of format {document.get('format')!r}, this autofit reads {FORMAT}; trace the model again"
            )
        categories, phases = tuple(document["categories"]), tuple(document["phases"])
        metadata = dict(document["metadata"])
        if micro_steps is not None:
            metadata["micro_steps_traced"] = micro_steps
        chosen = [group for group in document["groups"] if group["micro_steps"] == metadata["micro_steps_traced"]]
        regimes = {group["regime"]: fit_regime(group, len(categories), phases) for group in chosen}
        parameters = [Parameter(**value) for value in document.get("parameters", [])]
        return cls(categories, phases, regimes, parameters, metadata, window)

    # ---- asking -------------------------------------------------------------------------------------------------------

    def peaks(
        self, batch: npt.ArrayLike, length: npt.ArrayLike, patches: npt.ArrayLike = 0, accumulation: npt.ArrayLike | None = None
    ) -> Float64:
        """Peak allocated bytes at many shapes; the arguments broadcast.

        Args:
            batch: samples in a micro-batch.
            length: tokens of each.
            patches: image patches in the whole micro-batch.
            accumulation: micro-batches per optimizer step; None: what was traced.

        Raises:
            AutofitError: a shape whose regime was not traced.
        """
        given = [np.asarray(value, dtype=np.float64) for value in (batch, length, patches)]
        extra = np.asarray(0 if accumulation is None else np.asarray(accumulation) - self._traced_micro_steps())
        b, s, p, e = (np.atleast_1d(value) for value in np.broadcast_arrays(*given, np.maximum(extra, 0)))
        names = self._regimes_of(b, s)
        result = np.empty(b.shape)
        for name in np.unique(names):
            where = names == name
            result[where] = self._peaks_within(self._regime(str(name)), features(b[where], s[where], p[where], 0), e[where])
        return result

    def peak(self, batch: int, length: int, patches: int = 0, accumulation: int | None = None) -> Peak:
        """The peak of one shape with its phase and its parts."""
        regime = self._regime(self.regime_of(batch, length))
        at = features(batch, length, patches, 0)[0]
        row = int(np.argmax(regime.rows @ at))
        event = int(regime.row_event[row])
        terms = {name: round(float(value)) for name, value in zip(self.categories, regime.row_terms[row] @ at, strict=True)}
        more = 0 if accumulation is None else max(0, accumulation - self._traced_micro_steps())
        terms["inputs"] += round(more * float(self._inputs(regime) @ at))
        kept = {name: value for name, value in terms.items() if value}
        return Peak(sum(kept.values()), self.phases[regime.phase[event]], int(regime.step[event]), kept)

    def events(self, batch: int, length: int, patches: int = 0) -> tuple[Events, Events]:
        """(load and first step, a steady step) for the allocator; frees carry the size that they free."""
        regime = self._regime(self.regime_of(batch, length))
        size = np.rint(regime.storage_sizes(features(batch, length, patches, 0)[0])).astype(np.int64)
        ids = regime.storage.astype(np.int64)
        signed = size[ids] * regime.kind
        steady = regime.step > 0
        return Events(ids[~steady], signed[~steady]), Events(ids[steady], signed[steady])

    def operations(self, batch: int, length: int, patches: int = 0, images: int = 1) -> tuple[Operations, Operations]:
        """(forward and backward of one micro-batch, clipping and optimizer) for the roofline.

        Args:
            images: images that the patches belong to, taken as equal; attention stays inside an image.
        """
        regime = self._regime(self.regime_of(batch, length))
        at = features(batch, length, patches, patches**2 / max(images, 1))[0]
        width = len(FEATURES)
        flops, moved = regime.operations[:, :width] @ at, regime.operations[:, width:] @ at
        optimizer = regime.operation_phase == self.phases.index("optimizer")
        model, rest = ~optimizer, optimizer
        share = 1.0 / self._traced_micro_steps()
        return (
            Operations(flops[model], moved[model], regime.operation_count[model] * share),
            Operations(flops[rest], moved[rest], regime.operation_count[rest]),
        )

    def moments(self, batch: int, length: int, patches: int = 0) -> list[Moment]:
        """Forward and backward of the last micro-batch of the steady step, for the ZeRO replay."""
        regime = self._regime(self.regime_of(batch, length))
        size = regime.storage_sizes(features(batch, length, patches, 0)[0])
        return moments_of(regime, size, self.categories, self.phases)

    def regime_of(self, batch: int, length: int) -> str:
        """Name of the regime that a shape belongs to."""
        return str(self._regimes_of(np.array([batch]), np.array([length]))[0])

    # ---- keeping ------------------------------------------------------------------------------------------------------

    def save(self, path: Path) -> None:
        """Writes one compressed file, under a temporary name first."""
        arrays: dict[str, npt.NDArray[Any]] = {}
        plain: dict[str, dict[str, Any]] = {}
        for name, regime in self.regimes.items():
            fields = dict(vars(regime))
            arrays |= {f"{name}/{key}": value for key, value in fields.items() if isinstance(value, np.ndarray)}
            plain[name] = {key: value for key, value in fields.items() if not isinstance(value, np.ndarray)}
        header = {
            "format": FORMAT,
            "categories": self.categories,
            "phases": self.phases,
            "regimes": plain,
            "parameters": [vars(parameter) for parameter in self.parameters],
            "metadata": self.metadata,
            "window": self.window,
        }
        temporary = path.with_name(path.name + ".part")
        with temporary.open("wb") as file:
            np.savez_compressed(
                file, allow_pickle=False, header=np.frombuffer(json.dumps(header).encode(), dtype=np.uint8), **arrays
            )
        temporary.replace(path)

    @classmethod
    def load(cls, path: Path) -> "SymbolicTrace":
        """Reads what `save` wrote.

        Raises:
            AutofitError: not such a file, or of another format.
        """
        try:
            with np.load(path, allow_pickle=False) as content:
                header = json.loads(content["header"].tobytes())
                arrays = {key: content[key] for key in content.files if key != "header"}
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise AutofitError(f"{path}: is no symbolic trace ({error}); delete it, it will be made again") from error
        if header.get("format") != FORMAT:
            raise AutofitError(f"{path}: symbolic trace of format {header.get('format')!r}; delete it, it will be made again")
        regimes = {
            name: Regime(
                **plain, **{key.split("/", 1)[1]: value for key, value in arrays.items() if key.split("/", 1)[0] == name}
            )
            for name, plain in header["regimes"].items()
        }
        parameters = [Parameter(**value) for value in header["parameters"]]
        return cls(
            tuple(header["categories"]), tuple(header["phases"]), regimes, parameters, header["metadata"], header["window"]
        )

    # ---- inside -------------------------------------------------------------------------------------------------------

    def _regimes_of(self, batch: npt.NDArray[Any], length: npt.NDArray[Any]) -> npt.NDArray[np.str_]:
        names = np.where(batch == 1, "one", "many").astype("<U16")
        if self.window is not None:
            names = np.where(length >= self.window, np.char.add(names, "+window"), names)
        return names

    def _regime(self, name: str) -> Regime:
        regime = self.regimes.get(name)
        if regime is None:
            raise AutofitError(
                f"this trace has no shapes of regime '{name}' (it has {', '.join(self.regimes)}); trace them too"
            )
        return regime

    def _traced_micro_steps(self) -> int:
        return int(self.metadata["micro_steps_traced"])

    def _inputs(self, regime: Regime) -> Float64:
        """Coefficients of one micro-batch's resident inputs."""
        first = regime.storage[(regime.step == 0) & (regime.phase == self.phases.index("batch")) & (regime.kind > 0)]
        total: Float64 = regime.sizes[regime.template[first]].sum(axis=0) / self._traced_micro_steps()
        return total

    def _peaks_within(self, regime: Regime, at: Float64, extra: Float64) -> Float64:
        parts = [(at[start : start + _CHUNK] @ regime.rows.T).max(axis=1) for start in range(0, len(at), _CHUNK)]
        peaks: Float64 = np.concatenate(parts) + extra * (at @ self._inputs(regime))
        return peaks
