"""A survey with a made-up predictor: what it stores, whom it chooses, how it goes on. The command itself: tests/cli."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from autofit.config.legality import training_changes
from autofit.config.model import Model
from autofit.config.prediction import Prediction
from autofit.config.trial import TrialSpec
from autofit.errors import AutofitError, UsageError
from autofit.predict.many import Answers, Forecaster
from autofit.store.store import Store
from autofit.tuning.plan import Plan, SearchRequest, plan_study
from autofit.tuning.replan import replan
from autofit.tuning.survey import run_survey

GIB = 1024**3


class MadeUp(Forecaster):
    """Bytes and seconds that follow simple rules; refuses one kind of spec."""

    def __init__(self, scale: float = 1.0, refuses: Callable[[TrialSpec], bool] = lambda spec: False) -> None:
        self.scale, self.refuses, self.asked = scale, refuses, 0

    def prepare(self, specs: Sequence[tuple[TrialSpec, Model]], progress: Callable[[int, int], None]) -> None:
        progress(len(specs), len(specs))

    def many(self, specs: Sequence[TrialSpec], model: Model, gpu_mem_bytes: int | None) -> Iterator[Answers]:
        for spec in specs:
            try:
                yield {spec: self.predict(spec, model, gpu_mem_bytes)}
            except AutofitError as error:
                yield {spec: str(error)}

    def predict(self, spec: TrialSpec, model: Model, gpu_mem_bytes: int | None = None) -> Prediction:
        self.asked += 1
        if self.refuses(spec):
            raise AutofitError("made up: cannot be modelled")
        peak = int(
            self.scale * GIB * (1 + spec.micro_batch_size * (1 if spec.gradient_checkpointing else 3) * spec.cutoff_len / 192)
        )
        seconds = 1 / spec.micro_batch_size + 0.1 * spec.zero_stage + 0.3 * spec.gradient_checkpointing
        named = {
            f"peak_{name}_bytes{end}": peak for name in ("allocated", "reserved", "device") for end in ("", "_low", "_high")
        }
        return Prediction(
            **named,
            step_time_seconds=seconds,
            samples_per_second=spec.global_batch_size / seconds,
            tokens_per_second=spec.global_batch_size * spec.cutoff_len / seconds,
            fits=gpu_mem_bytes is None or peak <= gpu_mem_bytes,
            terms={"weights": peak},
            phase="forward",
            precision_mode="fp32 throughout",
            device_model="made-up",
            assumptions=[],
            not_modelled=[],
            versions={"torch": "0"},
        )


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(f"sqlite:///{tmp_path}/autofit.db")


@pytest.fixture
def plan(stub_python: str, store: Store) -> Plan:
    request = SearchRequest(
        gpu_mem_bytes=6 * GIB, space="tiny_qwen2_5_vl", device="none", card="a100-80gb", python=stub_python, study="s"
    )
    found = plan_study(request)
    store.create_study(found.study)
    return found


def quiet(what: str, done: int, of: int) -> None: ...


def test_every_legal_configuration_becomes_a_row_that_says_it_was_not_run(store: Store, plan: Plan) -> None:
    report = run_survey(store, plan, MadeUp(), quiet)  # type: ignore[arg-type]
    assert {trial.spec for trial in report.trials} == set(plan.legal.points)
    assert [trial.trial_number for trial in report.trials] == list(range(len(plan.legal.points)))
    outcomes = Counter(trial.result.outcome for trial in report.trials if trial.result)
    assert set(outcomes) == {"PREDICTED", "SKIPPED"} and min(outcomes.values()) > 10
    rows = store.query("SELECT outcome, predicted_peak_bytes, peak_device_bytes, samples_per_second, message FROM trials").rows
    assert all(row[2] is None and row[3] is None and row[1] > 0 for row in rows)
    assert all(("not to fit" in row[4]) if row[0] == "SKIPPED" else row[4] is None for row in rows)
    assert store.study("s").status == "FINISHED"


def test_the_winner_is_the_fastest_that_trains_what_the_reference_trains(store: Store, plan: Plan) -> None:
    report = run_survey(store, plan, MadeUp(), quiet)  # type: ignore[arg-type]
    wanted = plan.legal.reference
    assert report.winner is not None and report.winner.prediction is not None
    same = [t for t in report.trials if not training_changes(t.spec, wanted) and t.result and t.result.outcome == "PREDICTED"]
    assert report.winner.prediction.samples_per_second == max(t.prediction.samples_per_second for t in same if t.prediction)
    assert report.winner.spec.global_batch_size == wanted.global_batch_size
    assert store.study("s").winner_trial_number == report.winner.trial_number
    faster = [row for row in report.settings if row.changes and row.speedup is not None and row.speedup > 1]
    assert faster, "a shorter cutoff_len is faster here, and must be listed and not chosen"


def test_a_smaller_budget_has_another_answer(store: Store, plan: Plan, stub_python: str) -> None:
    wide = run_survey(store, plan, MadeUp(), quiet)  # type: ignore[arg-type]
    small = plan_study(
        SearchRequest(gpu_mem_bytes=3 * GIB, space="tiny_qwen2_5_vl", device="none", python=stub_python, study="small")
    )
    store.create_study(small.study)
    tight = run_survey(store, small, MadeUp(), quiet)  # type: ignore[arg-type]
    assert wide.winner is not None and tight.winner is not None
    assert wide.winner.spec != tight.winner.spec


def test_what_cannot_be_predicted_is_named_and_the_rest_answered(store: Store, plan: Plan) -> None:
    report = run_survey(store, plan, MadeUp(refuses=lambda spec: spec.method == "lora"), quiet)  # type: ignore[arg-type]
    assert report.winner is not None
    count = sum(spec.method == "lora" for spec in plan.legal.points)
    assert report.unpredictable == {"cannot be predicted: made up: cannot be modelled": count}
    with pytest.raises(AutofitError, match=r"no configuration of .* can be predicted: made up"):
        other = plan.study.model_copy(update={"name": "other"})
        store.create_study(other)
        run_survey(store, Plan(other, plan.legal), MadeUp(refuses=lambda spec: True), quiet)  # type: ignore[arg-type]
    assert store.trials("other") == []


def test_nothing_fits(store: Store, plan: Plan) -> None:
    report = run_survey(store, plan, MadeUp(scale=100), quiet)  # type: ignore[arg-type]
    assert report.winner is None and store.study("s").winner_trial_number is None
    assert report.settings[0].changes == () and report.settings[0].speedup is None


def test_a_survey_cut_off_leaves_nothing_and_a_finished_one_is_read(store: Store, plan: Plan) -> None:
    def killed(what: str, done: int, of: int) -> None:
        if what == "predicting" and done == 50:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_survey(store, plan, MadeUp(), killed)
    assert store.trials("s") == []
    first = run_survey(store, plan, MadeUp(), quiet)  # type: ignore[arg-type]
    again = replan(store.study("s"), {"device": "none", "card": "a100-80gb"})
    unused = MadeUp()
    second = run_survey(store, again, unused, quiet)
    assert unused.asked == 0
    assert second.trials == first.trials and second.winner == first.winner


def test_a_card_is_only_planned_for_where_nothing_runs(stub_python: str) -> None:
    request = SearchRequest(gpu_mem_bytes=GIB, space="tiny_qwen2_5_vl", device="cpu", card="l4", python=stub_python)
    with pytest.raises(UsageError, match="only --device none"):
        plan_study(request)
    with pytest.raises(UsageError, match="no device model 'b9000'"):
        plan_study(SearchRequest(gpu_mem_bytes=GIB * 80, device="none", card="b9000", python=stub_python))
