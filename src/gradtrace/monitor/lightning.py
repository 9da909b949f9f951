"""A callback for Lightning: it traces the program's own training step, from a batch's start to its backward pass."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from ..queries.arguments import batch_tensors
from .host import Host
from .monitor import Monitor
from .step import Step


class TraceCallback(Host, Callback):
    """Trace every so many of the Trainer's steps; of several backward passes of one step, the first.

    >>> trainer = Trainer(callbacks=[TraceCallback(every=100, of="encoder*")])

    The numbers of each trace go to the Trainer's own loggers. A training that goes on from a checkpoint goes on with
    its history; one that begins begins a new one.

    Args:
        options: of `Monitor`; `folder` is by default "gradtrace" in the Trainer's default folder.

    Attributes:
        monitor: once training has begun.
    """

    def __init__(self, **options: Any) -> None:
        self.monitor: Monitor | None = None
        self._options = options
        self._state: dict[str, Any] = {}
        self._step: Step | None = None
        self._trainer: Trainer | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._trainer = trainer
        self.monitor = self.watching(pl_module, trainer.default_root_dir, self._options, anew=not trainer.global_step)
        self.monitor.load_state_dict(self._state | {"step": trainer.global_step})

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self.monitor is not None:
            self._step = self.monitor.step(batch_tensors(batch) or None, number=trainer.global_step).__enter__()

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        step, self._step = self._step, None
        if step is not None:
            step.loss = loss
            step.__exit__(None, None, None)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._abandon()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._abandon()

    def _abandon(self) -> None:
        """Leave a step that had no backward pass."""
        step, self._step = self._step, None
        if step is not None:
            step.abandon()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.monitor is not None:
            self.monitor.close()

    def state_dict(self) -> dict[str, Any]:
        return self.monitor.state_dict() if self.monitor is not None else dict(self._state)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._state = state_dict

    def scalars(self, step: int, numbers: Mapping[str, float]) -> None:
        """Give a trace's numbers to the Trainer's loggers: as a sink of the monitor."""
        assert self._trainer is not None
        for logger in self._trainer.loggers:
            logger.log_metrics(dict(numbers), step=step)
