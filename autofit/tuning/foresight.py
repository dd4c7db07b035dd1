"""What is said of a trial before it runs: its prediction, corrected by the study's trials that have run.

It is stored with the trial, so that the view `prediction_accuracy` can hold it against what was measured. A trial that cannot
be predicted runs all the same, without a prediction.
"""

from collections.abc import Callable, Sequence

from autofit.config.prediction import Prediction
from autofit.config.record import StudyRecord, TrialRecord
from autofit.config.trial import TrialSpec
from autofit.errors import AutofitError
from autofit.predict.devices import DeviceModel
from autofit.predict.learned import Basis, Measured, learn
from autofit.predict.many import Forecaster
from autofit.predict.predictor import Predictor
from autofit.tuning.data import StudyData
from autofit.tuning.forecast import explain
from autofit.tuning.fragmentation import foretell, words
from autofit.tuning.plan import Plan


class Foresight:
    """Predicts the trials of one study on the devices that run them."""

    def __init__(  # noqa: PLR0917 - its parts
        self,
        study: StudyRecord,
        predictor: Predictor,
        card: DeviceModel,
        said: Callable[[str], None],
        data: StudyData | None = None,
        forecaster: Forecaster | None = None,
    ) -> None:
        self._study = study
        self._data = data
        self._predictor = predictor
        self._card = card
        self._said = said
        self._forecaster = forecaster
        self._reasons: set[str] = set()
        self._basis = Basis.of(study.model, card.name, predictor.versions)
        self._untaught = predictor.calibrations, predictor.constants

    @classmethod
    def of(cls, plan: Plan, said: Callable[[str], None]) -> "Foresight | None":
        """For a study on the CPU, or on GPUs whose rates are known; None for any other."""
        predictor = plan.predictor
        if predictor is None or predictor.device is None:
            return None
        return cls(plan.study, predictor, predictor.device, said, plan.data, Forecaster(predictor))

    def survey(self, points: Sequence[TrialSpec]) -> dict[TrialSpec, Prediction]:
        """Predictions of all points that can be predicted, whenever it is asked without what the study's trials have taught.

        A search's own models learn what is wrong with them: a correction on top would be learnt twice.
        """
        if self._forecaster is None:
            return {}
        self._said(f"predicting {len(points)} configurations")
        taught = self._predictor.calibrations, self._predictor.constants
        self._predictor.calibrations, self._predictor.constants = self._untaught
        try:
            answers = self._forecaster.all_of(points, self._study.model, self._study.memory_budget_bytes)
        finally:
            self._predictor.calibrations, self._predictor.constants = taught
        return {spec: answer for spec, answer in answers.items() if isinstance(answer, Prediction)}

    def remedies(self, spec: TrialSpec) -> tuple[str, ...]:
        """Single changes after which `spec` is predicted to fit the budget, least loss of training first."""
        study = self._study
        try:
            found = explain(spec, self._predictor, study.memory_budget_bytes, lambda message: None, study.model)
        except AutofitError:
            return ()
        return tuple(remedy.change for remedy in found.remedies)

    def before(self, spec: TrialSpec, history: Sequence[TrialRecord]) -> Prediction | None:
        """The prediction of `spec`, or None where there is none; each reason is said once.

        Args:
            history: the study's finished trials; those that ran under the same versions correct the prediction.
        """
        measured = [Measured(self._study.model, self._card.name, trial) for trial in history]
        try:
            known = learn(measured, self._basis, self._card, lambda one: self._predictor.timing(one.trial.spec, one.model))
            self._predictor.calibrations, self._predictor.constants = known.calibrations, known.constants
            found = self._predictor.predict(spec, self._study.model, self._study.memory_budget_bytes)
            return self._with_fragmentation(spec, found)
        except AutofitError as error:
            if str(error) not in self._reasons:
                self._reasons.add(str(error))
                self._said(f"runs without a prediction: {error}")
            return None

    def _with_fragmentation(self, spec: TrialSpec, found: Prediction) -> Prediction:
        """What an epoch of the study's data does to the allocator goes with the prediction, or why that is not known."""
        study = self._study
        if self._data is None:
            return found
        try:
            told = foretell(self._predictor, spec, study.model, self._data.profile, study.seed, study.memory_budget_bytes)
        except AutofitError as error:
            return found.model_copy(update={"not_modelled": [*found.not_modelled, f"fragmentation over an epoch: {error}"]})
        if (line := words(told)) is not None:
            self._said(line)
        return found.model_copy(update={"fragmentation": told})
