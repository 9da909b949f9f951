"""A step's forward pass, recorded or not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Protocol, TypeAlias

from torch import Tensor, nn

from ..api import Tape, watch
from .clock import Clock

Examples: TypeAlias = "Tensor | Sequence[Tensor] | Mapping[str, Tensor] | None"


class Watcher(Protocol):
    """The part of a monitor that a step needs."""

    model: nn.Module
    clock: Clock

    def take(self, taped: Tape | Exception, loss: Tensor | None, number: int, forward: float) -> None:
        """Trace a recorded step, or note why it could not be recorded."""
        ...

    def left(self, number: int, error: BaseException | None) -> None:
        """Note that a step was left before its end."""
        ...


class Step:
    """A step's forward pass, to be entered once; `Monitor.step` makes it.

    Args:
        watcher: is given the recording.
        number: of the step.
        examples: what enumerates the examples in its first dimension.
        traced: whether the step is recorded.
    """

    def __init__(self, watcher: Watcher, number: int, examples: Examples = None, *, traced: bool = False) -> None:
        self._watcher, self._number, self._examples, self._traced = watcher, number, examples, traced
        self._loss: Tensor | None = None
        self._taped: Tape | Exception | None = None
        self._recording: ExitStack | None = None
        self._began = 0.0

    @property
    def loss(self) -> Tensor | None:
        """The loss, to be set where the monitor cannot tell which tensor it is; kept while it is needed."""
        return self._loss

    @loss.setter
    def loss(self, loss: Tensor) -> None:
        if self._traced:
            self._loss = loss

    def __enter__(self) -> Step:
        self._began = self._watcher.clock.now()
        if self._traced:
            self._recording = ExitStack()
            try:
                self._taped = self._recording.enter_context(watch(self._watcher.model, self._examples))
            except Exception as error:
                self._taped = error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        ended, taped, loss = self._watcher.clock.now(), self._taped, self._loss
        forward = ended - self._began
        self._taped = self._loss = self._examples = None
        if self._recording is not None:
            try:
                self._recording.close()
            except Exception as failure:
                taped = failure
        if taped is None:
            if kind is None:
                self._watcher.clock.plain(forward)
                self._watcher.clock.own(ended)
        elif kind is not None:
            self._watcher.left(self._number, error)
        else:
            self._watcher.take(taped, loss, self._number, forward)

    def abandon(self) -> None:
        """Leave the step without tracing it."""
        self.__exit__(RuntimeError, None, None)
