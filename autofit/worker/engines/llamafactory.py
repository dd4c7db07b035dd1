"""Engine `llamafactory`: the function that `llamafactory-cli train` calls, with the arguments of the user's YAML file.

Its model, data, collator, trainer and life cycle are LLaMA-Factory's own. Ours are what makes a run a trial (`_arguments`),
callbacks, and three names in its workflow module, replaced while it runs: `get_dataset` and `load_model` are called as they are
with a note of where the run is, the trainer class is a subclass that looks on (`trainers.observed`).
Written against LLaMA-Factory 0.9.4 and 0.9.5.
"""

import copy
import importlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch

from autofit.worker.heartbeat import Heartbeat
from autofit.worker.meter import Meter
from autofit.worker.models import load_config
from autofit.worker.observer import Observer
from autofit.worker.order import Order
from autofit.worker.precision import dtypes
from autofit.worker.report import RankReport
from autofit.worker.sampling import filled
from autofit.worker.startup import (
    bucket_elements,
    know_cpu_by_number,
    launched_alike,
    load_libraries,
    meter_backend,
    prepare_deepspeed,
    start_helpers,
)
from autofit.worker.trainers import Watcher, guarded, observed

TRAINERS = {"sft": "CustomSeq2SeqTrainer", "pt": "CustomTrainer"}
"""Stage -> the trainer class in `llamafactory.train.<stage>.workflow`."""
_BUCKETS = ("reduce_bucket_size", "allgather_bucket_size")


def run(order: Order, report: RankReport, heartbeat: Heartbeat) -> None:
    """Trains `order.total_steps` optimizer steps and fills the report, also when it raises."""
    meter = Meter(meter_backend(order))
    observer = Observer(order, report.rank, heartbeat, meter)
    try:
        _train(order, report, heartbeat, meter, observer)
    finally:
        meter.finish(report)
        observer.fill(report)


def _train(order: Order, report: RankReport, heartbeat: Heartbeat, meter: Meter, observer: Observer) -> None:
    started = time.perf_counter()
    launched_alike(order)
    if order.trial["zero_stage"]:
        prepare_deepspeed(order)
    from llamafactory.train.tuner import run_exp

    load_libraries(order.trial)
    if order.device == "cpu":
        know_cpu_by_number()
    report.precision_mode = dtypes(order.trial).words
    report.timings["import"] += time.perf_counter() - started
    with _instrumented(order, report, heartbeat, meter, observer):
        run_exp(args=_arguments(order), callbacks=[Watcher(order, observer, report)])


def _arguments(order: Order) -> dict[str, Any]:
    """The user's keys, and what makes their run a trial: a folder of its own, so many steps, nothing reported or pushed.

    Evaluation and checkpoint are asked for by `trainers.Watcher`, at their step.
    """
    arguments = copy.deepcopy(order.arguments)
    arguments |= {
        "output_dir": str(order.output_dir),
        "max_steps": order.total_steps,
        "seed": order.seed,
        "report_to": "none",
        "save_strategy": "no",
        "eval_strategy": "no",
        "do_eval": False,
        "do_predict": False,
        "load_best_model_at_end": False,
        "push_to_hub": False,
        "plot_loss": False,
        "use_swanlab": False,
        "disable_tqdm": True,
    }
    if order.resumed_from is not None:
        arguments["resume_from_checkpoint"] = str(order.resumed_from)
    zero = arguments["deepspeed"].get("zero_optimization", {}) if isinstance(arguments.get("deepspeed"), dict) else {}
    if order.device == "cpu" and any(isinstance(zero.get(name), int | float) for name in _BUCKETS):
        most = bucket_elements(order, load_config(order.model))
        zero |= {name: min(int(zero[name]), most) for name in _BUCKETS if isinstance(zero.get(name), int | float)}
    return arguments


@contextmanager
def _instrumented(order: Order, report: RankReport, heartbeat: Heartbeat, meter: Meter, observer: Observer) -> Iterator[None]:
    stage = order.arguments.get("stage", "sft")
    if stage not in TRAINERS:
        raise ValueError(f"stage '{stage}' cannot be tried; stages that can: {', '.join(TRAINERS)}")
    workflow = importlib.import_module(f"llamafactory.train.{stage}.workflow")
    get_dataset, load_model, trainer = (vars(workflow)[name] for name in ("get_dataset", "load_model", TRAINERS[stage]))

    def read_data(*arguments: Any, **named: Any) -> Any:
        started = time.perf_counter()
        heartbeat.beat("data")
        with heartbeat.working():
            module = guarded(get_dataset, *arguments, **named)
        report.timings["data"] = time.perf_counter() - started
        return module

    def build_model(tokenizer: Any, model_args: Any, *arguments: Any, **named: Any) -> Any:
        started = time.perf_counter()
        start_helpers(torch.device(model_args.device_map[""]), dtypes(order.trial).autocast or dtypes(order.trial).base)
        heartbeat.beat("load")
        meter.start(order.memory_budget_bytes)
        model = load_model(tokenizer, model_args, *arguments, **named)
        report.timings["load"] = time.perf_counter() - started
        return model

    def make_worst(dataset: Any) -> Any:
        return filled(dataset, int(order.arguments.get("cutoff_len", order.trial["cutoff_len"])))

    if order.worst_batch is None and order.arguments.get("streaming"):
        raise ValueError("streaming: the order of a streamed dataset cannot be planned; trials need it as a whole")
    replaced = {
        "get_dataset": read_data,
        "load_model": build_model,
        TRAINERS[stage]: observed(trainer, order, observer, report, make_worst),
    }
    with patch.multiple(workflow, **replaced):
        yield
