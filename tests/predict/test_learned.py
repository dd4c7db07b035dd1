"""What measured trials teach: corrections from the trials that they hold for, and from no other."""

from dataclasses import replace

import numpy as np
import pytest
from store_records import completed, out_of_memory, prediction, trial_record

from autofit.config.model import Model
from autofit.config.result import RankResult
from autofit.predict.calibrate import calibrate
from autofit.predict.devices import device_model
from autofit.predict.learned import Basis, Learned, Measured, learn
from autofit.predict.roofline import Constants, Job, Operations, Timing, step_time
from autofit.units import GIB

CARD = device_model("a100-80gb")
LLAMA = Model(label="some-llama", config={"model_type": "llama", "hidden_size": 64})
STACK = {"torch": "2.13.0", "transformers": "5.23.0"}
BASIS = Basis.of(LLAMA, CARD.name, STACK | {"optuna": "5.0"})


def timing(measured):
    size = measured.trial.trial_number + 1
    row = np.array([size * 1e13]), np.array([size * 1e10]), np.array([20.0])
    return Timing(Operations(*row), Operations(np.zeros(1), np.array([1e10]), np.ones(1)), Job())


def trial(number, allocated=51.0, *, model=LLAMA, device=CARD.name, versions=STACK, said=None, **changes):
    """Predicted 45 GiB allocated, 47 reserved, 48 device; measured 6 GiB more each unless told otherwise."""
    truth = replace(Constants(), flop_share=0.45)
    record = trial_record(number)
    seconds = step_time(CARD, *timing(Measured(model, device, record)), truth).seconds
    result = completed(peak_gib=allocated + 3, versions=versions, step_time_seconds=seconds, **changes)
    finished = {"prediction": said or prediction(48.0, 50.0), "result": result, "finished_at": record.started_at}
    return Measured(model, device, record.model_copy(update=finished))


def test_nothing_measured_teaches_nothing():
    found = learn([], BASIS, CARD, timing)
    assert found.calibrations == {name: calibrate([], name) for name in ("allocated", "reserved", "device")}
    assert found.constants == Constants()
    assert str(BASIS) == "llama on a100-80gb, torch 2.13.0, transformers 5.23.0"


def test_trials_of_the_basis_correct_memory_and_time():
    found = learn([trial(number) for number in range(4)], BASIS, CARD, timing)
    assert found.calibrations["allocated"].factor == pytest.approx(51 / 45)
    assert found.calibrations["reserved"].factor == pytest.approx(53 / 47)
    assert found.calibrations["device"].factor == pytest.approx(54 / 48)
    assert {calibration.residuals for calibration in found.calibrations.values()} == {4}
    assert found.constants.flop_share == pytest.approx(0.45, rel=0.02)
    assert (found.constants.measured_steps, found.constants.versions) == (4, str(BASIS))
    assert Learned.model_validate_json(found.model_dump_json()) == found


@pytest.mark.parametrize(
    "other",
    [
        {"model": Model(label="other", config={"model_type": "mistral"})},
        {"device": "h100-80gb"},
        {"versions": STACK | {"transformers": "4.45.2"}},
        {"versions": STACK | {"deepspeed": "0.19.8"}},
    ],
)
def test_other_families_devices_and_versions_teach_nothing(other):
    found = learn([trial(number, **other) for number in range(4)], BASIS, CARD, timing)
    assert found.calibrations["device"].residuals == found.constants.measured_steps == 0


def test_what_failed_or_was_not_predicted_teaches_nothing():
    failed = trial(0)
    failed = failed._replace(trial=failed.trial.model_copy(update={"result": out_of_memory(versions=STACK)}))
    silent = trial(1)
    silent = silent._replace(trial=silent.trial.model_copy(update={"prediction": None}))
    found = learn([failed, silent], BASIS, CARD, timing)
    assert found.calibrations["device"].residuals == 0
    assert found.constants.measured_steps == 1  # a speed needs no prediction of memory


def test_a_card_that_had_to_give_blocks_back_teaches_the_allocated_figure_only():
    foreseen = trial(0, said=prediction(48.0, 50.0, alloc_retries=2))
    ranks = [RankResult(rank=0, outcome="COMPLETED"), RankResult(rank=1, outcome="COMPLETED", num_alloc_retries=1)]
    found = learn([foreseen, trial(1, ranks=ranks), trial(2)], BASIS, CARD, timing)
    assert found.calibrations["allocated"].residuals == 3
    assert found.calibrations["reserved"].residuals == found.calibrations["device"].residuals == 1


def test_corrections_are_learnt_from_what_was_not_corrected():
    """A prediction that was corrected already must not be corrected twice."""
    raw = {name: int(gib * GIB) for name, gib in (("allocated", 40.8), ("reserved", 42.4), ("device", 43.2))}
    found = learn(
        [trial(number, said=prediction(54.0, 56.0, uncorrected_bytes=raw)) for number in range(4)], BASIS, CARD, timing
    )
    assert found.calibrations["device"].factor == pytest.approx(54 / 43.2)
