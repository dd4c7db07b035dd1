"""`autofit profile`: how long the training data is, what a cutoff_len takes from it, and what it forbids."""

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from autofit.cli import output

if TYPE_CHECKING:
    from autofit.data.profile import DataProfile

_BAR = 40


def profile(  # noqa: PLR0917 - one parameter a flag
    model: Annotated[str, typer.Option(metavar="DIR", help="Model folder with its tokenizer, or a hub id in the local cache.")],
    dataset: Annotated[str, typer.Option(metavar="NAME|FILE", help="Names in dataset_info.json (a,b), or a file it lists.")],
    dataset_dir: Annotated[
        str | None, typer.Option(metavar="DIR", help="Folder of dataset_info.json; default: data, or the FILE's.")
    ] = None,
    media_dir: Annotated[str | None, typer.Option(metavar="DIR", help="Folder of the images; default: the dataset's.")] = None,
    template: Annotated[str | None, typer.Option(help="LLaMA-Factory template; default: the model's.")] = None,
    python: Annotated[str | None, typer.Option(help="Interpreter of your training environment; default: this one.")] = None,
    cutoff_len: Annotated[str, typer.Option(metavar="N,N", help="Values of cutoff_len to judge.")] = "1024,2048,4096,8192",
    image_max_pixels: Annotated[int, typer.Option(min=28 * 28, help="Pixels that an image is shrunk to.")] = 589_824,
    processes: Annotated[int | None, typer.Option(min=1, help="Processes; default: one a core.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Profile training data: lengths, truncation, the cutoff_len it needs; exit 1 if a row would end the training."""
    from autofit.data.profile import summary
    from autofit.tuning.profiling import ProfileQuestion, profile_data

    cutoffs = _cutoffs(cutoff_len)
    question = ProfileQuestion(
        model, dataset, dataset_dir, media_dir, template, python, image_max_pixels=image_max_pixels, processes=processes
    )
    found = profile_data(question, output.rows_profiled())
    document = summary(found, cutoffs)
    if as_json:
        output.print_json(document)
    else:
        _show(found, document)
    if found.complaint is not None:
        output.remark(f"error: {found.complaint}")
        raise typer.Exit(1)


def _cutoffs(text: str) -> tuple[int, ...]:
    from autofit.errors import UsageError

    try:
        values = tuple(int(part) for part in text.split(","))
    except ValueError:
        values = ()
    if not values or min(values) < 1:
        raise UsageError(f"--cutoff-len {text}: write positive whole numbers, for example 1024,2048")
    return values


def _show(found: "DataProfile", document: dict[str, Any]) -> None:
    facts = found.facts
    engine = f"LLaMA-Factory {facts.versions.get('llamafactory')}" if facts.engine == "llamafactory" else "transformers alone"
    output.print_fields(
        {
            "datasets": ", ".join(f"{dataset.name} ({dataset.rows} rows)" for dataset in facts.datasets),
            "tokens by": f"{engine}, template {facts.template or 'of the tokenizer'}",
            "samples": f"{len(found)}, {document['samples_with_images']} with images, {document['empty_answers']} with an"
            " empty answer (trained on all the same)",
            "longest": document["longest_sample"] or output.NOTHING,
            "most patches": document["most_patches_sample"] or output.NOTHING,
            "cutoff floor": _floor(found),
        }
    )
    _spreads(document)
    _histograms(document)
    _truncation(document)
    for title, lines in (
        ("left out by training", [f"{d.rows} row(s) of {d.dataset}: {d.reason}" for d in facts.dropped]),
        ("notes", list(facts.notes)),
        ("not known", list(facts.cannot)),
    ):
        if lines:
            output.print_section(title, lines)


def _floor(found: "DataProfile") -> str:
    floor = found.floor
    if not floor.cuts:
        return "none: no sample has image tokens"
    return f"{floor.cutoff_len}; below it image tokens of {floor.cuts[-1].sample} would be cut, which ends a run"


def _spreads(document: dict[str, Any]) -> None:
    columns = ("total", "mean", "p50", "p90", "p99", "max")
    names = [name for name in ("tokens", "label_tokens", "image_tokens", "patches") if document[name]["total"]]
    if names:
        rows = [[name.replace("_", " "), *(f"{document[name][column]:,}" for column in columns)] for name in names]
        sys.stdout.write("\n")
        output.print_table(["a sample", *columns], rows)


def _histograms(document: dict[str, Any]) -> None:
    for name, title in (("length_histogram", "tokens"), ("image_token_histogram", "image tokens")):
        bins = document[name]
        if not bins:
            continue
        most = max(entry["samples"] for entry in bins)
        rows = [
            [f"{entry['low']}-{entry['high']}", str(entry["samples"]), "#" * -(-_BAR * entry["samples"] // most)]
            for entry in bins
        ]
        sys.stdout.write("\n")
        output.print_table([title, "samples", ""], rows)


def _truncation(document: dict[str, Any]) -> None:
    rows = [
        [
            str(entry["cutoff_len"]),
            str(entry["samples_truncated"]),
            f"{entry['samples_truncated_share']:.1%}",
            f"{entry['tokens_lost_share']:.1%}",
            f"{entry['label_tokens_lost_share']:.1%}",
            entry["cuts_images"] or "no",
        ]
        for entry in document["truncation"]
    ]
    sys.stdout.write("\n")
    output.print_table(["cutoff_len", "truncated", "of samples", "of tokens", "of labels", "cuts image tokens"], rows)
