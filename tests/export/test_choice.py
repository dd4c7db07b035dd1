"""Which trial is exported and which is the reference."""

from pathlib import Path

import pytest
from export_cases import make_case

from autofit.config.result import TrialResult
from autofit.errors import AutofitError, UsageError
from autofit.export.evidence import reference_trial
from autofit.export.report import export_from


def test_the_winner_unless_a_number_is_given(tmp_path: Path) -> None:
    case = make_case(micro_batch_size=4)
    trials = [case.reference, case.trial]
    assert export_from(case.study, trials, None, "llamafactory", tmp_path).trial_number == 7
    assert "2.00 x the reference (trial 0" in (tmp_path / "train.yaml").read_text()
    assert export_from(case.study, trials, 0, "llamafactory", tmp_path).trial_number == 0
    assert "this is the reference itself" in (tmp_path / "train.yaml").read_text()


def test_a_trial_that_did_not_fit_comes_with_a_warning(tmp_path: Path) -> None:
    case = make_case(micro_batch_size=4, result=TrialResult(outcome="OOM", phase="backward"))
    done = export_from(case.study, [case.reference, case.trial], 7, "llamafactory", tmp_path)
    assert done.warning == "NOT A FIT: this configuration ended OOM in backward; exported because its number was asked for"
    assert done.warning in done.files[0].read_text()
    assert export_from(case.study, [case.reference, case.trial], 0, "llamafactory", tmp_path).warning is None


def test_no_winner(tmp_path: Path) -> None:
    case = make_case(result=TrialResult(outcome="OOM", phase="load"))
    none = case.study.model_copy(update={"winner_trial_number": None})
    with pytest.raises(AutofitError, match=r"has no winner: of 1 trial\(s\) 0 ran to the end and 1 ran out of memory"):
        export_from(none, [case.trial], None, "llamafactory", tmp_path)
    stopped = none.model_copy(update={"status": "INTERRUPTED"})
    with pytest.raises(AutofitError, match=r"no winner yet: it is INTERRUPTED .* --resume --study s1"):
        export_from(stopped, [case.trial], None, "llamafactory", tmp_path)
    with pytest.raises(UsageError, match="has no trial 3; it has 0 to 7"):
        export_from(case.study, [case.reference, case.trial], 3, "llamafactory", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_reference_is_found_by_its_knobs() -> None:
    case = make_case(micro_batch_size=4)
    assert reference_trial(case.study, [case.trial, case.reference]) == case.reference
    assert reference_trial(case.study, [case.trial]) is None
    again = case.reference.model_copy(update={"trial_number": 9, "purpose": "confirm"})
    assert reference_trial(case.study, [again, case.reference]) == case.reference
