"""What both engines do to a Hugging Face Trainer (LLaMA-Factory's is one): callbacks and a subclass that only looks on.

The subclass changes which samples come, not what is done with them; evaluation and checkpoint are Trainer's own, asked for
through its control object.
"""

import errno
import itertools
from collections.abc import Callable
from typing import Any

import torch
from transformers import TrainerCallback

from autofit.worker.models import parameter_counts
from autofit.worker.observer import Observer
from autofit.worker.order import Order
from autofit.worker.outcomes import DataError
from autofit.worker.report import RankReport
from autofit.worker.sampling import WithSample, longest, planned

EVAL_BATCHES = 2
"""Batches a rank evaluates: the second finds what the first has left behind."""
_NOT_THE_DATA = {errno.ENOSPC, errno.EDQUOT, errno.ENOMEM, errno.EMFILE}


class Watcher(TrainerCallback):
    """Passes Trainer's events on, and asks for evaluation and checkpoint when their step has come."""

    def __init__(self, order: Order, observer: Observer, report: RankReport) -> None:
        self._order, self._observer, self._report = order, observer, report

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """The model is ready, DeepSpeed included."""
        self._report.trainable_parameters, self._report.total_parameters = parameter_counts(model)
        self._observer.watch(model)

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """First micro-batch of an optimizer step."""
        self._observer.step_begins()

    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
        """After gradient clipping; not called under DeepSpeed."""
        self._observer.enter("optimizer_step")

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        """The optimizer has stepped."""
        self._observer.step_ends()
        if state.global_step == self._order.checkpoint_step:
            control.should_evaluate |= self._order.evaluate
            control.should_save |= self._order.save
        return control

    def on_train_end(self, *_: Any, **__: Any) -> None:
        """No step follows."""
        self._observer.leave()


class GuardedCollator:
    """A collator whose failures are told as those of the data."""

    def __init__(self, collator: Any) -> None:
        self.collator = collator

    def __call__(self, samples: Any) -> Any:
        return guarded(self.collator, samples)


def guarded(function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """Calls what reads the user's data.

    Raises:
        DataError: it failed, and not for want of room.
    """
    try:
        return function(*arguments, **named)
    except Exception as error:
        if getattr(error, "errno", None) in _NOT_THE_DATA or isinstance(error, MemoryError | DataError):
            raise
        raise DataError(f"{type(error).__name__}: {error}") from error


def observed(
    base: Any, order: Order, observer: Observer, report: RankReport, make_worst: Callable[[Any], Any] | None = None
) -> Any:
    """A subclass of Trainer class `base` that runs a trial.

    `make_worst` makes the worst sample out of the training set, for orders that name none.
    """

    class Observed(base):
        """See `observed`."""

        train_dataset: Any
        data_collator: Any

        def get_train_dataloader(self) -> Any:
            """With the worst sample behind the last one, if there has to be one."""
            self._autofit_guard()
            whole = self.train_dataset
            self._autofit_worst = order.worst_batch
            if order.worst_batch is None and make_worst is not None:
                self.train_dataset = WithSample(whole, guarded(make_worst, whole))
                self._autofit_worst = [len(whole)] * int(order.trial["micro_batch_size"])
            named = {*(order.worst_batch or ()), *itertools.chain.from_iterable(order.timed_batches or ())}
            if any(not 0 <= place < len(whole) for place in named):
                raise DataError(
                    f"batches name sample {max(named, key=abs)}: the tokenised training set has {len(whole)} samples"
                )
            try:
                self._autofit_whole = whole
                return super().get_train_dataloader()
            finally:
                self.train_dataset = whole

        def _get_train_sampler(self, *_: Any, **__: Any) -> Any:
            """Trainer's own order (of the user's samples), as its seed alone decides it."""
            extended, self.train_dataset = self.train_dataset, self._autofit_whole
            own = super()._get_train_sampler()
            self.train_dataset = extended
            if getattr(own, "generator", self) is None:
                own.generator = torch.Generator().manual_seed(int(self.args.data_seed or self.args.seed))
            return planned(order, own, self._autofit_worst)

        def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
            """Over the longest samples of the evaluation set, or of the training set where there is none."""
            self._autofit_guard()
            chosen = self.eval_dataset[eval_dataset] if isinstance(eval_dataset, str) else eval_dataset
            chosen = next(each for each in (chosen, self.eval_dataset, self.train_dataset) if each is not None)
            count = EVAL_BATCHES * int(self.args.per_device_eval_batch_size) * order.num_ranks
            return super().get_eval_dataloader(torch.utils.data.Subset(chosen, longest(chosen, count)))

        def training_step(self, model: Any, inputs: Any, *rest: Any, **named: Any) -> torch.Tensor:
            """With every micro-batch and its loss handed to the observer."""
            observer.add_batch(inputs)
            loss: torch.Tensor = super().training_step(model, inputs, *rest, **named)
            observer.add_loss(loss)
            return loss

        def evaluate(self, *arguments: Any, **named: Any) -> Any:
            """As phase `eval`."""
            with observer.during("eval"):
                return super().evaluate(*arguments, **named)

        def _save_checkpoint(self, *arguments: Any, **named: Any) -> Any:
            """As phase `save`."""
            with observer.during("save"):
                return super()._save_checkpoint(*arguments, **named)

        def save_model(self, *arguments: Any, **named: Any) -> Any:
            """As phase `save`; LLaMA-Factory also saves at the end of each run, which a trial without a save leaves out."""
            if not order.save:
                return None
            with observer.during("save"):
                return super().save_model(*arguments, **named)

        def _issue_warnings_after_load(self, load_result: Any) -> None:
            """Trainer only warns when a checkpoint's names are not the model's, and goes on with the initial weights."""
            super()._issue_warnings_after_load(load_result)
            tied = {
                name
                for attribute in ("_keys_to_ignore_on_save", "_tied_weights_keys", "all_tied_weights_keys")
                for name in getattr(self.model, attribute, None) or ()
            }
            if missing := sorted(set(load_result.missing_keys) - tied):
                report.resume_problem = (
                    f"resuming leaves {len(missing)} of the model's weights as they were before the training: the checkpoint"
                    f" has no {missing[0]}"
                )

        def _autofit_guard(self) -> None:
            if not isinstance(self.data_collator, GuardedCollator):
                self.data_collator = GuardedCollator(self.data_collator)

    return Observed
