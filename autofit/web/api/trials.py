"""Trials: filtered, sorted, paged; one whole; best, Pareto front, compromises."""

from typing import Annotated, Any

from fastapi import APIRouter, Query, Response

from autofit.launch.logs import last_lines
from autofit.store.reader import Reader
from autofit.web import questions, tradeoffs
from autofit.web.context import Here
from autofit.web.problems import RESPONSES, Refused
from autofit.web.questions import answer
from autofit.web.schemas import Compromises, Front, Limit, Offset, Study, Trial, TrialNumber, Trials

router = APIRouter(prefix="/api", tags=["trials"], responses=RESPONSES)
Where = Annotated[
    str | None, Query(max_length=2000, description="A condition, such as: peak_device_gib < 70 and zero_stage = 3")
]
Sort = Annotated[str | None, Query(max_length=64, description="A column; empty values come last.")]
LOG_LINES = 40


@router.get("/trials", response_model=Trials)
def all_trials(  # noqa: PLR0917 - the parameters of the query
    here: Here, where: Where = None, sort: Sort = None, descending: bool = False, limit: Limit = 100, offset: Offset = 0
) -> Response:
    """The trials of all studies."""
    with here.readers.open() as reader:
        return answer(_page(reader, None, where, sort, descending, limit, offset))


@router.get("/studies/{study}/trials", response_model=Trials)
def trials(  # noqa: PLR0917 - the parameters of the query
    study: Study,
    here: Here,
    where: Where = None,
    sort: Sort = None,
    descending: bool = False,
    limit: Limit = 100,
    offset: Offset = 0,
) -> Response:
    """The trials of one study."""
    with here.readers.open() as reader:
        return answer(_page(reader, study, where, sort, descending, limit, offset))


@router.get("/studies/{study}/trials/{trial_number}", response_model=Trial)
def one_trial(study: Study, trial_number: TrialNumber, here: Here) -> Response:
    """One trial whole: configuration, prediction, result, ends of its logs."""
    with here.readers.open() as reader:
        return answer(whole(reader, study, trial_number))


@router.get("/studies/{study}/best", response_model=Trial)
def best(study: Study, here: Here) -> Response:
    """The winner, or as long as there is none the fastest trial that fits and trains what was asked for."""
    with here.readers.open() as reader:
        number = questions.trial_number_of(reader, study)
        if number is None:
            raise Refused(404, f"study '{study}' has no trial yet that fits and trains what was asked for")
        return answer(whole(reader, study, number))


@router.get("/studies/{study}/pareto", response_model=Front)
def front(study: Study, here: Here) -> Response:
    """The trials than which none is both faster and smaller, and the others."""
    return answer(here.answers.json(tradeoffs.pareto, study))


@router.get("/studies/{study}/compromises", response_model=Compromises)
def what_changes_buy(study: Study, here: Here) -> Response:
    """What each change of the training would buy."""
    return answer(here.answers.json(tradeoffs.compromises, study))


def whole(reader: Reader, study: str, trial_number: int) -> dict[str, Any]:
    """A trial with the ends of its logs."""
    document = reader.trial_document(trial_number, study)
    names = ("stdout.log", "stderr.log")
    return {**document, "logs": {name: last_lines(document["run_dir"], name, LOG_LINES) for name in names}}


def _page(  # noqa: PLR0917
    reader: Reader, study: str | None, where: str | None, sort: str | None, descending: bool, limit: int, offset: int
) -> dict[str, Any]:
    found = reader.trial_rows(study, where, sort, descending=descending, limit=limit, offset=offset)
    return {"trials": found.as_dicts(), "next_offset": offset + limit if found.truncated else None}
