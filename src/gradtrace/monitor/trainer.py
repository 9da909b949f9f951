"""A callback for transformers' `Trainer`: it traces the batch and the loss that the Trainer itself computes.

The Trainer tells its callbacks neither, so this one stands around `trainer.compute_loss` while it trains.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..queries.arguments import batch_tensors
from .host import Host
from .monitor import Monitor


class TraceCallback(Host, TrainerCallback):
    """Trace every so many of the Trainer's steps; of several batches that make one step, the first.

    >>> trainer.add_callback(TraceCallback(trainer, every=100, of="*query*"))

    The numbers of each trace go to the Trainer's own reporters. A training that goes on from a checkpoint goes on with
    its history; one that begins begins a new one.

    Args:
        trainer: that it is added to.
        options: of `Monitor`; `folder` is by default "gradtrace" in the Trainer's output folder.

    Attributes:
        monitor: once training has begun.
    """

    def __init__(self, trainer: Trainer, **options: Any) -> None:
        self.monitor: Monitor | None = None
        self._trainer, self._options = trainer, options
        self._waiting: list[dict[str, float]] = []  # numbers that the Trainer has not been told yet
        self._compute_loss: Any = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._end()
        model = self._trainer.model
        assert isinstance(model, nn.Module)
        self.monitor = self.watching(model, str(args.output_dir), self._options, anew=not state.global_step)
        self.monitor.go_to(state.global_step)
        self._compute_loss = self._trainer.compute_loss
        self._trainer.compute_loss = self._traced_loss

    def _traced_loss(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Compute the loss as the Trainer does; in training, as a step of the monitor."""
        if self.monitor is None or not model.training:
            return self._compute_loss(model, inputs, *args, **kwargs)
        with self.monitor.step(batch_tensors(inputs), number=self._trainer.state.global_step) as step:
            found = self._compute_loss(model, inputs, *args, **kwargs)
            step.loss = found[0] if isinstance(found, tuple) else found
        return found

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        due = control.should_log  # which logging sets back, as if the Trainer's own numbers had been told
        while self._waiting:
            self._trainer.log(self._waiting.pop(0))
        control.should_log = due

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._end()

    def _end(self) -> None:
        """Leave the Trainer as it was."""
        if self._compute_loss is not None:
            self._trainer.compute_loss, self._compute_loss = self._compute_loss, None
        if self.monitor is not None:
            self.monitor.close()

    def scalars(self, step: int, numbers: Mapping[str, float]) -> None:
        """Keep a trace's numbers until the step ends: as a sink of the monitor."""
        self._waiting.append(dict(numbers))
