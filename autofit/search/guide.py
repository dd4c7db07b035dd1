"""Which configuration is worth the next trial: expected improvement x probability of fitting / expected cost of the trial.

Only configurations that run the reference's training can improve on the best. When none of them is likely to be more than
`WORTH` faster, the search is over but for a few trials that price a compromise: another training, which is measured only where
it surely fits and promises to be faster. Nothing here is random: the same trials lead to the same choice.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from autofit.config.prediction import Prediction
from autofit.config.space import LegalSpace
from autofit.config.trial import TrialSpec
from autofit.search.expectation import Earlier, Expectation
from autofit.search.kinds import irreducible, kind_of
from autofit.search.models import Candidate, Floats, Observation, above, expected_excess, learn
from autofit.search.points import may_fit
from autofit.units import format_bytes

WORTH = 0.02
"""Relative gain below which no further trial is made for speed."""
BOUND = 1.96
"""Deviations above its mean at which a configuration's speed is bounded: exceeded by one in forty."""
SAFE = 0.8
"""Probability of fitting from which a trial is no gamble on memory."""
EVEN = 0.5
"""Probability of fitting from which the reference is run first."""
HOPELESS = 0.15
"""Probability of fitting below which a configuration is not tried."""
DESPERATE = 0.02
"""The same while nothing is known to fit; the first trial is made whatever is predicted, since predictions can be wrong."""
GAMBLE = 0.02
"""Expected improvement, times the probability of fitting, that a trial must promise that is not `SAFE`."""
BLIND_GAMBLE = 0.005
"""The same where nothing is predicted: few trials are safe then, and only trials tell which are."""
CAUTION = 4
"""Power of the probability of fitting in the score: what may run out of memory is left until more is known of it."""
SURE = 0.95
"""Probability of fitting that a compromise must have to be measured."""
STARTUP_SECONDS = 20.0
"""Of a trial, before one has run."""


@dataclass(frozen=True)
class Seen:
    """What one trial of the study told."""

    spec: TrialSpec
    speed: float | None = None
    """Its objective; None: it was not measured."""
    peak_bytes: int | None = None
    at_least_bytes: int | None = None
    """Memory ended it: its peak is above this."""
    step_seconds: float | None = None
    startup_seconds: float | None = None

    @property
    def failed(self) -> bool:
        """Whether it ended for a reason that says nothing of memory or speed."""
        return self.peak_bytes is None and self.at_least_bytes is None


@dataclass(frozen=True)
class Choice:
    """The next configuration and why."""

    spec: TrialSpec
    reason: str


@dataclass(frozen=True)
class Halt:
    """No further trial is worth its time, and why."""

    reason: str


@dataclass(frozen=True)
class Nearest:
    """The configuration that runs the reference's training in the least memory."""

    spec: TrialSpec
    peak_bytes: int
    high_bytes: int
    """The peak with its uncertainty on top; the peak itself where it was measured."""
    measured: bool


@dataclass(frozen=True)
class _Outlook:
    """Candidates with what is believed of them; arrays have one entry a candidate."""

    specs: Sequence[TrialSpec]
    fits: Floats
    log_peak: Floats
    log_speed: Floats
    deviation: Floats
    """Of the log speed."""
    doubt: Floats
    """Deviation of the log peak."""

    @property
    def bound(self) -> Floats:
        return self.log_speed + BOUND * self.deviation


@dataclass(frozen=True)
class Guide:
    """Decides from what was predicted, what earlier studies measured, and what this one has seen."""

    space: LegalSpace
    budget_bytes: int
    objective: str
    forecasts: Mapping[TrialSpec, Prediction]
    earlier: Sequence[Earlier] = ()
    steps: int = 7
    """Optimizer steps of a trial."""
    compromises: int = 3
    """Trials at most that measure another training."""
    reference_first: bool = False
    """Run the reference first even where it is predicted not to fit: it is the user's own file."""

    def decide(self, seen: Sequence[Seen]) -> Choice | Halt:
        """The next trial, or why there should be none."""
        tried = {one.spec for one in seen}
        failed = [one.spec for one in seen if one.at_least_bytes is not None]
        left = may_fit([spec for spec in self.space.points if spec not in tried], failed)
        own = [spec for spec in left if not self.space.breaches(spec)]
        expected = Expectation(self.forecasts, self.space.reference, self.budget_bytes, self.objective)
        outlook = self._outlook(expected, own, seen)
        if self.space.reference in own and (first := self._reference(expected, outlook, seen)):
            return first
        best = self._best(seen)
        found = self._improve(outlook, seen, best) if own else Halt("every configuration that may fit was tried")
        if isinstance(found, Choice):
            return found
        others = [spec for spec in left if self.space.breaches(spec)]
        return self._compromise(expected, others, seen, best) or found

    def nearest(self, seen: Sequence[Seen]) -> Nearest:
        """What comes nearest to the budget when nothing fits."""
        own = [spec for spec in self.space.points if not self.space.breaches(spec)]
        expected = Expectation(self.forecasts, self.space.reference, self.budget_bytes, self.objective)
        outlook = self._outlook(expected, own, seen)
        known = {one.spec: one.peak_bytes for one in seen if one.peak_bytes is not None}
        peaks = [known.get(spec, round(math.exp(peak))) for spec, peak in zip(own, outlook.log_peak, strict=True)]
        place = peaks.index(min(peaks))
        high = round(math.exp(outlook.log_peak[place] + BOUND * outlook.doubt[place]))
        measured = own[place] in known
        return Nearest(own[place], peaks[place], peaks[place] if measured else high, measured)

    def _best(self, seen: Sequence[Seen]) -> Seen | None:
        """The fastest so far that fits and runs the reference's training."""
        fitting = [
            one
            for one in seen
            if one.peak_bytes is not None
            and one.peak_bytes <= self.budget_bytes
            and one.speed is not None
            and not self.space.breaches(one.spec)
        ]
        return max(fitting, key=lambda one: one.speed or 0.0, default=None)

    def _outlook(self, expected: Expectation, specs: Sequence[TrialSpec], seen: Sequence[Seen]) -> _Outlook:
        log_peak = np.array([expected.log_peak(spec) for spec in specs])
        log_speed = np.array([expected.log_speed(spec) for spec in specs])
        whole = [Candidate(spec) for spec in specs]
        parted = [Candidate(spec, expected.step_parts(spec)) for spec in specs]
        memory = learn([*expected.memory_of(self.earlier), *_peaks(seen, expected)], whole, expected.memory)
        speed = learn([*expected.speed_of(self.earlier), *_speeds(seen, expected)], parted, expected.speed)
        peak = log_peak + memory.mean
        fits = 1 - above(math.log(self.budget_bytes), peak, memory.deviation)
        return _Outlook(specs, fits, peak, log_speed + speed.mean, speed.deviation, memory.deviation)

    def _reference(self, expected: Expectation, outlook: _Outlook, seen: Sequence[Seen]) -> Choice | None:
        """The reference comes first, unless it is predicted not to fit: then it is a configuration like any other."""
        fits = float(outlook.fits[outlook.specs.index(self.space.reference)])
        unlikely = expected.predicted and fits < EVEN
        if seen or (unlikely and not self.reference_first):
            return None
        said = f"{fits:.0%} likely to fit" if expected.predicted else "nothing is predicted"
        return Choice(self.space.reference, f"the reference: the recommended start, {said}")

    def _improve(self, outlook: _Outlook, seen: Sequence[Seen], best: Seen | None) -> Choice | Halt:
        """The configuration with the highest score, or why none is worth it."""
        hopeful = outlook.fits >= (HOPELESS if best else DESPERATE)
        if seen and not hopeful.any():
            nearest = int(outlook.fits.argmax())
            needs = format_bytes(math.exp(outlook.log_peak[nearest]))
            return Halt(
                f"no untried configuration is expected to fit: the nearest needs about {needs} of"
                f" {format_bytes(self.budget_bytes)} ({outlook.fits[nearest]:.0%} likely to fit)"
            )
        if best is None or best.speed is None:
            score = outlook.fits * np.where(outlook.fits >= SAFE, 1 + _rank(outlook.log_speed), 1.0)
            return self._choice(outlook, int(score.argmax()), "nothing fits so far")
        goal = math.log(best.speed)
        gain = expected_excess(goal, outlook.log_speed, outlook.deviation)
        worth = (outlook.bound > goal + math.log1p(WORTH)) & (
            (outlook.fits >= SAFE) | (hopeful & (gain * outlook.fits > (GAMBLE if self.forecasts else BLIND_GAMBLE)))
        )
        if not worth.any():
            top = int(np.where(outlook.fits >= SAFE, outlook.bound, -np.inf).argmax())
            return Halt(
                f"no untried configuration is likely to be {WORTH:.0%} faster than the best ({best.speed:.4g}/s): the highest"
                f" bound is {math.exp(outlook.bound[top]):.4g}/s"
            )
        score = (
            gain
            * outlook.fits**CAUTION
            / self._seconds(outlook, seen)
            * _unlike(outlook.specs, [s.spec for s in seen if s.failed])
        )
        top = int(np.where(worth, score, -np.inf).argmax())
        change = math.exp(outlook.log_speed[top] - goal) - 1
        return self._choice(outlook, top, f"{change:+.0%} against the best expected, {gain[top]:.1%} improvement on average")

    def _compromise(
        self, expected: Expectation, others: Sequence[TrialSpec], seen: Sequence[Seen], best: Seen | None
    ) -> Choice | None:
        """A trial that prices another training: each kind once, single changes first; irreducible ones where something fits.

        Of what is predicted at all: a rule of thumb makes nothing sure to fit.
        """
        priced = {kind_of(one.spec, self.space) for one in seen if self.space.breaches(one.spec)}
        kinds = irreducible(others, self.space) if best else others
        kinds = [spec for spec in kinds if kind_of(spec, self.space) not in priced]
        kinds = [spec for spec in kinds if spec in self.forecasts] if self.forecasts else kinds
        if not kinds or len(priced) >= self.compromises:
            return None
        outlook = self._outlook(expected, kinds, seen)
        promise = outlook.log_speed - (math.log(best.speed) if best and best.speed else -np.inf)
        able = (outlook.fits >= SURE) & (promise > math.log1p(WORTH))
        if not able.any():
            return None
        fewest = np.array([len(kind_of(spec, self.space)) for spec in kinds], dtype=float)
        fewest[~able] = np.inf
        top = int(np.where(fewest == fewest.min(), outlook.log_speed, -np.inf).argmax())
        return self._choice(outlook, top, f"prices a compromise: {'; '.join(kind_of(kinds[top], self.space))}")

    def _seconds(self, outlook: _Outlook, seen: Sequence[Seen]) -> Floats:
        """Expected wall time of each candidate's trial, in proportion to its step where one was measured."""
        timed = [one for one in seen if one.step_seconds and one.speed]
        if not timed:
            return np.ones(len(outlook.specs))
        starts = sorted(one.startup_seconds or STARTUP_SECONDS for one in timed)
        last = timed[-1]
        work = (last.step_seconds or 0.0) * (last.speed or 0.0) * self.steps
        return np.asarray(starts[len(starts) // 2] + work / np.exp(outlook.log_speed))

    def _choice(self, outlook: _Outlook, place: int, why: str) -> Choice:
        speed, spread = outlook.log_speed[place], BOUND * outlook.deviation[place]
        return Choice(
            outlook.specs[place],
            f"{why}; {math.exp(speed):.4g}/s ({math.exp(speed - spread):.4g} to {math.exp(speed + spread):.4g}),"
            f" {outlook.fits[place]:.0%} likely to fit: {format_bytes(math.exp(outlook.log_peak[place]))} of"
            f" {format_bytes(self.budget_bytes)}",
        )


def _peaks(seen: Sequence[Seen], expected: Expectation) -> list[Observation]:
    found = []
    for one in seen:
        known = one.peak_bytes if one.peak_bytes is not None else one.at_least_bytes
        if known:
            residual = math.log(known) - expected.log_peak(one.spec)
            found.append(Observation(one.spec, residual, censored=one.peak_bytes is None))
    return found


def _speeds(seen: Sequence[Seen], expected: Expectation) -> list[Observation]:
    return [
        Observation(one.spec, math.log(one.speed) - expected.log_speed(one.spec), parts=expected.step_parts(one.spec))
        for one in seen
        if one.speed
    ]


def _rank(values: Floats) -> Floats:
    """Values stretched to 0 .. 1."""
    spread = float(np.ptp(values))
    return (values - values.min()) / spread if spread else np.zeros_like(values)


def _unlike(specs: Sequence[TrialSpec], failed: Sequence[TrialSpec]) -> Floats:
    """1, less the closer a spec is to one that crashed: half for each knob in which they agree but one."""
    found = np.ones(len(specs))
    for place, spec in enumerate(specs):
        for other in failed:
            here, there = spec.model_dump(), other.model_dump()
            found[place] = min(found[place], 1 - 0.5 ** sum(here[name] != there[name] for name in here))
    return found
