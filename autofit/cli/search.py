"""`autofit search`: the main job."""

import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from autofit.cli.context import database_url

if TYPE_CHECKING:
    from autofit.tuning.driver import SearchReport


def search(  # noqa: PLR0917 - one parameter a flag
    context: typer.Context,
    gpu_mem: Annotated[str, typer.Option(help="Memory of the card, for example 80GB (80 x 1024^3 bytes).")],
    space: Annotated[str | None, typer.Option(help="Search space: a YAML file, or the name of one that ships.")] = None,
    from_file: Annotated[
        str | None, typer.Option("--from", metavar="FILE", help="Your LLaMA-Factory YAML: the first trial and the reference.")
    ] = None,
    free: Annotated[str, typer.Option(help="With --from: more knobs to search, comma-separated.")] = "",
    keep: Annotated[str, typer.Option(help="With --from: knobs to leave as the file has them.")] = "",
    model: Annotated[str | None, typer.Option(help="Preset, Hugging Face folder or hub id; overrides the space.")] = None,
    dataset: Annotated[str | None, typer.Option(help="Data FILE, listed in the dataset_info.json beside it, or NAME.")] = None,
    num_gpus: Annotated[int | None, typer.Option(min=1, help="Devices, one rank each; default: all that are visible.")] = None,
    global_batch_size: Annotated[int | None, typer.Option(min=1, help="Samples per optimizer step, held constant.")] = None,
    objective: Annotated[
        Literal["samples_per_second", "tokens_per_second", "effective_tokens_per_second", "epoch_seconds", "cost_per_epoch"]
        | None,
        typer.Option(help="What is sought; default samples_per_second. An epoch's time and cost are minimised."),
    ] = None,
    gpu_hour_price: Annotated[
        float | None, typer.Option(help="Price of one device for one hour, in your currency: gives the cost of an epoch.")
    ] = None,
    samples_per_epoch: Annotated[
        int | None, typer.Option(min=1, help="Samples in the dataset; default: what its profile counts.")
    ] = None,
    max_truncated_share: Annotated[
        float | None, typer.Option(help="Accept any cutoff_len that truncates at most this share (0..1) of the samples.")
    ] = None,
    min_cutoff_len: Annotated[int | None, typer.Option(help="Accept any cutoff_len from this one on.")] = None,
    allow_freezing: Annotated[
        str | None, typer.Option(help="Parts that the winner may freeze: vision_tower, multi_modal_projector, language_model.")
    ] = None,
    allow_precision: Annotated[
        str | None,
        typer.Option(help="Precisions that the winner may use: bf16, pure_bf16, fp16, fp32."),
    ] = None,
    device: Annotated[
        Literal["auto", "cuda", "cpu", "none"],
        typer.Option(help="auto: CUDA if there is any, else none. cpu really trains (tiny models). none only predicts."),
    ] = "auto",
    card: Annotated[str | None, typer.Option(help="With --device none: the card to plan for, for example a100-80gb.")] = None,
    engine: Annotated[
        Literal["auto", "llamafactory", "transformers"],
        typer.Option(help="Training loop of the trials. auto: LLaMA-Factory where --python has it."),
    ] = "auto",
    python: Annotated[str | None, typer.Option(help="Interpreter of your training environment; default: this one.")] = None,
    trials: Annotated[int | None, typer.Option(min=1, help="Search trials of the study in all; default 24.")] = None,
    time_limit: Annotated[str | None, typer.Option(help="No trial starts that would end later, for example 30m.")] = None,
    trial_timeout: Annotated[str, typer.Option(help="Longest that one trial may take.")] = "30m",
    sampler: Annotated[Literal["guided", "tpe", "gp", "random", "grid"] | None, typer.Option(help="Default guided.")] = None,
    no_reuse: Annotated[
        bool, typer.Option("--no-reuse", help="Run every trial, also those that an earlier study has run (guided).")
    ] = False,
    seed: Annotated[int | None, typer.Option(help="Default 0.")] = None,
    study: Annotated[str | None, typer.Option(help="Name of the study; default: space and time.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with --study, or with the newest one.")] = False,
    runs: Annotated[Path, typer.Option(help="Folder for the trials' files and logs.")] = Path("autofit-runs"),
    fresh_processes: Annotated[
        bool, typer.Option("--fresh-processes", help="Start new interpreters for every trial instead of forking warm ones.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Find the fastest configuration that stays inside the memory budget: by short trials, or without a GPU by prediction."""
    from autofit.cli import output
    from autofit.config.model import ModelRef
    from autofit.store.store import Store
    from autofit.tuning.plan import SearchRequest, plan_study
    from autofit.tuning.replan import replan, stored_study
    from autofit.units import parse_bytes, parse_seconds

    signal.signal(signal.SIGTERM, _interrupt)
    most = parse_seconds(time_limit) if time_limit else None
    longest = parse_seconds(trial_timeout)
    memory = parse_bytes(gpu_mem)
    demands = {
        "max_truncated_share": max_truncated_share,
        "min_cutoff_len": min_cutoff_len,
        "allow_freezing": _names(allow_freezing) if allow_freezing is not None else None,
        "precision": _names(allow_precision) if allow_precision is not None else None,
    }
    with Store.open(database_url(context)) as store:
        if resume:
            given = {
                "gpu-mem": memory,
                "space": space,
                "model": ModelRef.from_text(model) if model else None,
                "num-gpus": num_gpus,
                "global-batch-size": global_batch_size,
                "device": None if device == "auto" else device,
                "card": card,
                "engine": None if engine == "auto" else engine,
                "sampler": sampler,
                "seed": seed,
                "from": str(Path(from_file).resolve()) if from_file else None,
                "objective": objective,
                "gpu-hour-price": gpu_hour_price,
                "samples-per-epoch": samples_per_epoch,
                "max-truncated-share": max_truncated_share,
                "min-cutoff-len": min_cutoff_len,
                "allow-freezing": demands["allow_freezing"],
                "allow-precision": demands["precision"],
            }
            plan = replan(stored_study(store, study), given, output.rows_profiled())
        else:
            request = SearchRequest(
                gpu_mem_bytes=memory,
                space=space,
                model=model,
                dataset=dataset,
                num_gpus=num_gpus,
                global_batch_size=global_batch_size,
                device=device,
                card=card,
                engine=engine,
                python=python,
                sampler=sampler or "guided",
                seed=seed or 0,
                study=study,
                from_file=from_file,
                free=_names(free),
                keep=_names(keep),
                objective=objective,
                gpu_hour_price=gpu_hour_price,
                samples_per_epoch=samples_per_epoch,
                quality={name: value for name, value in demands.items() if value is not None},
            )
            plan = plan_study(request, output.rows_profiled())
            store.create_study(plan.study)
        if plan.study.hardware.device == "none":
            from autofit.cli import survey_view

            survey_view.run(store, plan, as_json=as_json)
            return
        from autofit.cli import search_view  # what runs trials loads Optuna; a ranking needs none of it
        from autofit.launch.local import Limits
        from autofit.tuning.driver import StopRule, run_search
        from autofit.tuning.foresight import Foresight

        stop, limits = StopRule(trials or 24, most), Limits(trial=longest)
        with search_view.progress(plan, stop) as listener:
            foresight = Foresight.of(plan, listener.said)
            report = run_search(
                store,
                plan,
                runs_dir=runs.resolve(),
                stop=stop,
                listener=listener,
                limits=limits,
                foresight=foresight,
                reuse=not no_reuse and not resume,
                fresh_processes=fresh_processes,
            )
    _finish(report, as_json)


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _finish(report: "SearchReport", as_json: bool) -> None:
    from autofit.cli import output, search_view

    if as_json:
        output.print_json(search_view.as_document(report))
    else:
        search_view.show(report)
    if report.winner is None:
        from autofit.errors import AutofitError

        raise AutofitError(search_view.why_none(report))


def _interrupt(number: int, frame: object) -> None:
    """SIGTERM stops a search as Ctrl-C does: what is finished is kept."""
    raise KeyboardInterrupt
