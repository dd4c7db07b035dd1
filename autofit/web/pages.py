"""The pages: rendered here with what is known at once; pictures and live parts are filled in by small modules in `static/`."""

import json
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from autofit.config.model import preset_names
from autofit.config.trial import TrialSpec
from autofit.errors import AutofitError
from autofit.predict.devices import DEVICES
from autofit.report import study_words, words
from autofit.units import GIB, format_bytes, format_seconds
from autofit.web import questions, tradeoffs
from autofit.web.api.trials import whole
from autofit.web.confine import shipped_spaces
from autofit.web.context import Context, Here
from autofit.web.gate import LOCAL
from autofit.web.gate import STATIC as STATIC_PATH
from autofit.web.problems import status_of
from autofit.web.schemas import MAX_INT, Study, TrialNumber

STATIC = Path(__file__).parent / "static"
PAGE_TRIALS = 50
router = APIRouter(include_in_schema=False)
Number = Annotated[int | None, Query(ge=0, le=MAX_INT)]


@router.get("/")
def home(request: Request, here: Here) -> Response:
    """The studies."""
    return _page(request, "studies.html", studies=json.loads(here.answers.json(questions.studies)))


@router.get("/studies/{study}")
def study_page(  # noqa: PLR0917 - the parameters of the query
    request: Request,
    study: Study,
    here: Here,
    where: Annotated[str, Query(max_length=2000)] = "",
    sort: Annotated[str, Query(max_length=64)] = "",
    descending: bool = False,
    offset: Annotated[int, Query(ge=0, le=MAX_INT)] = 0,
) -> Response:
    """A study: live while it runs."""
    found = _study(here, study)
    rows, more, fault, changes = [], False, None, []
    if found["status"] != "WAITING":
        changes = json.loads(here.answers.json(tradeoffs.compromises, study))["compromises"]
        with here.readers.open() as reader:
            try:
                page = reader.trial_rows(
                    study, where or None, sort or None, descending=descending, limit=PAGE_TRIALS, offset=offset
                )
                rows, more = page.as_dicts(), page.truncated
            except AutofitError as error:
                if status_of(error) != 422:
                    raise
                fault = str(error)
    asked = {"where": where, "sort": sort, "descending": descending, "offset": offset}
    return _page(
        request, "study.html", study=found, rows=rows, more=more, fault=fault, asked=asked, changes=changes, size=PAGE_TRIALS
    )


@router.get("/studies/{study}/trials/{trial_number}")
def trial_page(request: Request, study: Study, trial_number: TrialNumber, here: Here) -> Response:
    """A trial whole."""
    with here.readers.open() as reader:
        document = whole(reader, study, trial_number)
    record = _study(here, study)
    spec = TrialSpec.model_validate(document["spec"])
    return _page(request, "trial.html", study=record, trial=document, words=words.knobs(spec))


@router.get("/studies/{study}/compare")
def compare_page(request: Request, study: Study, here: Here, a: Number = None, b: Number = None) -> Response:
    """Two trials side by side; by default the reference and the winner."""
    with here.readers.open() as reader:
        record = _study(here, study)
        best = questions.trial_number_of(reader, study)
        numbers = (0 if a is None else a, (best or 0) if b is None else b)
        pair = [whole(reader, study, number) for number in numbers] if record["trials"] else []
    rows = _differences(*pair) if pair else []
    return _page(request, "compare.html", study=record, pair=pair, numbers=numbers, rows=rows)


@router.get("/plan")
def plan_page(request: Request) -> Response:
    """Memory by term and the fit, at once."""
    cards = [{"name": card.name, "label": format_bytes(card.memory_bytes)} for card in DEVICES.values()]
    presets = [name for name in preset_names() if not name.startswith("tiny")]
    tiny = [name for name in preset_names() if name.startswith("tiny")]
    return _page(request, "plan.html", presets=presets + tiny, cards=cards)


@router.get("/new")
def new_page(request: Request, here: Here) -> Response:
    """A search for the queue."""
    return _page(
        request,
        "new.html",
        presets=preset_names(),
        spaces=shipped_spaces(),
        cards=list(DEVICES),
        pythons=list(here.settings.pythons),
        roots=[str(root) for root in here.settings.roots],
    )


@router.get("/ask")
def ask_page(request: Request) -> Response:
    """SQL."""
    return _page(request, "ask.html")


@router.get("/login")
def login_page(request: Request, next: Annotated[str, Query(max_length=500)] = "/") -> Response:
    """Where a browser gives its token."""
    inside = next if next.startswith("/") and not next.startswith(("//", "/\\")) else "/"
    return _page(request, "login.html", next=inside)


@router.get("/api/docs")
def docs_page(request: Request) -> Response:
    """The OpenAPI document, to read and to try."""
    return _page(request, "docs.html")


def fault_page(request: Request, status: int, message: str) -> Response:
    """An error for people."""
    return _page(request, "fault.html", status=status, message=message, code=status)


def _study(here: Context, study: str) -> dict[str, Any]:
    return dict(json.loads(here.answers.json(questions.study, study)))


def _differences(left: dict[str, Any], right: dict[str, Any]) -> list[tuple[str, str, str, bool]]:
    """Knob, its two values, whether they differ; those that do come first."""
    a, b = _flat(left["spec"]), _flat(right["spec"])
    rows = [(name, _said(a.get(name)), _said(b.get(name)), a.get(name) != b.get(name)) for name in {**a, **b}]
    return sorted(rows, key=lambda row: not row[3])


def _said(value: Any) -> str:
    return "–" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _flat(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, item in value.items():
        if isinstance(item, dict) and name != "config":
            found |= _flat(item, f"{prefix}{name}.")
        elif item is not None:
            found[prefix + name] = "inline" if name == "config" else item
    return found


def _page(request: Request, template: str, *, code: int = 200, **values: Any) -> Response:
    caller = getattr(request.state, "caller", None) or LOCAL
    text = (
        _templates()
        .get_template(template)
        .render(caller=caller, signed_in=caller is not LOCAL, path=request.url.path, static=STATIC_PATH, **values)
    )
    return Response(text, code, media_type="text/html; charset=utf-8")


_environment: list[Environment] = []


def _templates() -> Environment:
    """Made at the first page, kept for the process: templates do not change."""
    if not _environment:
        made = Environment(
            loader=FileSystemLoader(Path(__file__).parent / "templates"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        made.filters |= {
            "bytes": lambda size: "–" if size is None else format_bytes(size),
            "seconds": lambda value: "–" if value is None else format_seconds(value),
            "breakable": breakable,
            "figure": figure,
            "gib": gib,
            "signed": study_words.signed_bytes,
            "knobs": knobs,
            "when": when,
        }
        _environment.append(made)
    return _environment[0]


def breakable(name: str) -> Markup:
    """A field's name that may go on in a new line after each of its words."""
    return Markup("_<wbr>").join(name.split("_"))


def figure(value: float | None) -> str:
    """A speed, to three places that count."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if value >= 1000 else f"{value:.2f}" if value >= 1 else f"{value:.3g}"


def gib(value: float | None) -> str:
    """Bytes as GiB without the unit."""
    return "–" if value is None else f"{value / GIB:.2f}"


def when(text: str | None) -> str:
    """A stored time, to the minute, in UTC."""
    return "–" if text is None else f"{text[:16].replace('T', ' ')} UTC"


def knobs(row: dict[str, Any]) -> str:
    """The knobs of a row of trials in a few words, as `autofit search` prints them."""
    parts = [
        row["method"] if row["lora_rank"] is None else f"lora {row['lora_rank']}",
        f"zero {row['zero_stage']}",
        f"{row['micro_batch_size']} × {row['gradient_accumulation_steps']}",
        f"{row['cutoff_len']} tokens",
        "ckpt" if row["gradient_checkpointing"] else "no ckpt",
    ]
    return " · ".join(parts)
