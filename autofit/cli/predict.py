"""`autofit predict` and `autofit explain`: memory and time without running anything."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from autofit.cli import output
from autofit.cli.context import database_url

if TYPE_CHECKING:
    from autofit.predict.predictor import Predictor
    from autofit.tuning.forecast import Explanation, Question

Spec = Annotated[Path, typer.Option(help="One spec (YAML or JSON), or JSONL of many.")]
Python = Annotated[str | None, typer.Option(help="Interpreter of your training environment; default: this one.")]
Card = Annotated[str | None, typer.Option("--card", help="Device whose rates the time rests on, for example a100-80gb.")]
_LIMITS = {"traffic": "memory traffic", "launches": "kernel launches", "host": "host (offloading)"}
"""What limits a step, in words where the name says too little."""
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON; `predict` prints one object a line.")]


def predict(
    spec: Spec,
    gpu_mem: Annotated[str | None, typer.Option(help="Budget; decides `fits`.")] = None,
    card: Card = None,
    python: Python = None,
    as_json: AsJson = False,
) -> None:
    """Predict peak memory and step time of configurations without running them."""
    from autofit.tuning.forecast import predict_file
    from autofit.units import format_bytes, format_seconds, parse_bytes

    budget = parse_bytes(gpu_mem) if gpu_mem else None
    rows, failed = [], 0
    for answer in predict_file(spec, _predictor(python, card), budget):
        found = answer.prediction
        failed += found is None
        if as_json:
            document: Any = found.model_dump() if found else {"error": answer.error}
            sys.stdout.write(json.dumps(document) + "\n")
        elif found is None:
            output.remark(f"error: {answer.error}")
        else:
            fits = {True: "yes", False: "no", None: output.NOTHING}[found.fits]
            sizes = (
                found.peak_allocated_bytes,
                found.peak_reserved_bytes,
                found.peak_device_bytes,
                found.peak_device_bytes_high,
            )
            speed = [format_seconds(found.step_time_seconds), f"{found.samples_per_second:.3g}"]
            rows.append([str(answer.line), *map(format_bytes, sizes), *speed, fits, found.phase])
    if rows:
        headers = ["line", "allocated", "reserved", "device", "device high", "step", "samples/s", "fits", "peak in"]
        output.print_table(headers, rows)
        output.remark("predicted, not measured")
    if failed:
        raise typer.Exit(1)


def explain(  # noqa: PLR0917 - the flags
    context: typer.Context,
    spec: Annotated[Path | None, typer.Option(help="One spec (YAML or JSON).")] = None,
    study: Annotated[str | None, typer.Option(help="Instead of --spec: a trial of this study.")] = None,
    trial: Annotated[int | None, typer.Option(min=0, help="Its number; default: the study's winner.")] = None,
    gpu_mem: Annotated[str | None, typer.Option(help="Budget, for example 24GB; default: the study's.")] = None,
    card: Card = None,
    python: Python = None,
    picture: Annotated[
        Path | None, typer.Option(help="Draw memory over the step into this file: .png, .svg or .html.", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Explain a configuration's memory: terms, verdict, and what makes it fit; exit 1 when it does not."""
    from autofit.report import picture as drawing
    from autofit.tuning import forecast

    if picture:
        drawing.check_target(picture)
    asked = _question(context, spec, study, trial, gpu_mem)
    budget = asked.memory_budget_bytes
    predictor = _predictor(python or asked.python, card or asked.card)
    found = forecast.explain(asked.spec, predictor, budget, output.remark, asked.model)
    if picture:
        step = drawing.Step(found.spec.model.label, found.spec, found.prediction, found.timeline, budget)
        drawing.write(step, picture)
        output.remark(f"drew {picture}")
    if as_json:
        output.print_json(_document(found, budget))
    else:
        _show(found, budget)
    if found.shortfall_bytes > 0:
        raise typer.Exit(1)


def _question(
    context: typer.Context, spec: Path | None, study: str | None, trial: int | None, gpu_mem: str | None
) -> "Question":
    """What is to be explained: a spec under a budget, or a trial of a study under the study's."""
    from autofit.errors import UsageError
    from autofit.store import Store
    from autofit.tuning import forecast
    from autofit.units import parse_bytes

    budget = parse_bytes(gpu_mem) if gpu_mem else None
    if spec is not None and study is None:
        if budget is None:
            raise UsageError("explain --spec needs --gpu-mem, for example --gpu-mem 24GB")
        return forecast.Question(forecast.read_spec(spec), budget)
    if study is None or spec is not None:
        raise UsageError("explain takes either --spec FILE or --study NAME")
    with Store.open(database_url(context), read_only=True) as store:
        return forecast.question_of(store.study(study), store.trials(study), trial, budget)


def _predictor(python: str | None, card: str | None) -> "Predictor":
    from autofit.launch.environment import probe
    from autofit.predict.devices import device_model
    from autofit.predict.predictor import Predictor

    environment = probe(python or sys.executable)
    return Predictor(environment.python, environment.versions, device=device_model(card) if card else None)


def _show(found: "Explanation", budget: int) -> None:
    from autofit.units import format_bytes, format_seconds

    prediction = found.prediction
    terms = sorted(prediction.terms.items(), key=lambda item: -item[1])
    share = sum(prediction.terms.values())
    output.print_table(["term", "bytes", "share"], [[name, format_bytes(size), f"{size / share:.0%}"] for name, size in terms])
    sys.stdout.write("\n")
    phases = found.timeline.phases
    parts = sorted(prediction.step_terms.items(), key=lambda item: -item[1])
    limits = [f"{_LIMITS.get(name, name)} {seconds / prediction.step_time_seconds:.0%}" for name, seconds in parts]
    output.print_table(["phase", "allocated at most"], [[name, format_bytes(size)] for name, size in phases.items()])
    output.print_section(
        "predicted (nothing was run)",
        [
            f"device: {format_bytes(prediction.peak_device_bytes)}, at most {format_bytes(prediction.peak_device_bytes_high)},"
            f" in {prediction.phase}",
            f"reserved {format_bytes(prediction.peak_reserved_bytes)},"
            f" allocated {format_bytes(prediction.peak_allocated_bytes)}",
            f"step: {format_seconds(prediction.step_time_seconds)}, {prediction.samples_per_second:.3g} samples/s"
            f" on a {prediction.device_model}",
            f"limited by: {', '.join(limits)}",
            f"precision: {prediction.precision_mode}",
        ],
    )
    output.print_section("assumed", prediction.assumptions)
    output.print_section("not modelled", prediction.not_modelled)
    if found.shortfall_bytes <= 0:
        output.print_section("verdict", [f"fits {format_bytes(budget)}, {format_bytes(-found.shortfall_bytes)} to spare"])
        return
    output.print_section("verdict", [f"does not fit {format_bytes(budget)}: {format_bytes(found.shortfall_bytes)} too much"])
    sys.stdout.write("\nsingle changes after which it fits\n" if found.remedies else "\nno single change makes it fit\n")
    if found.remedies:
        rows = [
            [
                item.change,
                format_bytes(item.prediction.peak_device_bytes_high),
                f"{'<= ' * item.moves_to_host}{item.price:.2f}x{' *' if item.not_modelled else ''}",
                "; ".join(item.training) or "same",
            ]
            for item in found.remedies
        ]
        output.print_table(["change", "device at most", "speed", "training"], rows)
        left_out = dict.fromkeys(item for remedy in found.remedies for item in remedy.not_modelled)
        if left_out:
            sys.stdout.write(f"* not modelled there: {'; '.join(left_out)}\n")


def _document(found: "Explanation", budget: int) -> dict[str, Any]:
    return {
        "fits": found.shortfall_bytes <= 0,
        "memory_budget_bytes": budget,
        "shortfall_bytes": max(0, found.shortfall_bytes),
        "prediction": found.prediction.model_dump(),
        "phases": found.timeline.phases,
        "remedies": [item.document() for item in found.remedies],
    }
