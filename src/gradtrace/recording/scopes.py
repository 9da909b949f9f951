"""Where operators run: module calls, `component` blocks, and the user's source line."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from .record import Scope

_PACKAGE = Path(__file__).parent.parent
_INTERNAL = (str(Path(torch.__file__).parent), str(_PACKAGE))
_EXPERIMENTS = str(_PACKAGE / "experiments")  # models like a user's
_blocks: ContextVar[tuple[str, ...]] = ContextVar("gradtrace_blocks", default=())
_active: ContextVar[Scopes | None] = ContextVar("gradtrace_scopes", default=None)


@contextmanager
def component(name: str) -> Iterator[None]:
    """Name the operator calls made inside the block, as if they were a module's.

    >>> with component("gate"):
    ...     pass
    """
    scopes = _active.get()
    token = _blocks.set((*_blocks.get(), name))
    if scopes is not None:
        scopes.enter(name)
    try:
        yield
    finally:
        _blocks.reset(token)
        if scopes is not None:
            scopes.leave()


def source_line() -> str:
    """Give "file:line" of the innermost frame outside torch and gradtrace."""
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if not is_internal(name):
            return f"{name}:{frame.f_lineno}"
        frame = frame.f_back
    return ""


@cache  # some ten frames are asked about at every recorded call
def is_internal(file: str) -> bool:
    """Tell whether a file is torch's or gradtrace's own, or Python's import system."""
    return file.startswith((*_INTERNAL, "<")) and not file.startswith(_EXPERIMENTS)


class Scopes:
    """The stack of module calls and blocks, kept by forward hooks on all modules while it is watched.

    Args:
        model: gives modules their qualified names; others go by their class's name.

    Attributes:
        instances: how often each was entered, by name.
    """

    def __init__(self, model: nn.Module | None) -> None:
        self.names = {id(m): n for n, m in model.named_modules()} if model is not None else {}
        self._stack: list[Scope] = []
        self._here: tuple[Scope, ...] | None = ()  # what `here` gives, until the stack changes
        self.instances: dict[str, int] = {}

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Follow module calls inside the block; the hooks are gone after it, however it ends."""
        with ExitStack() as stack:
            stack.callback(register_module_forward_pre_hook(self._before).remove)
            stack.callback(register_module_forward_hook(self._after, always_call=True).remove)
            stack.callback(_active.reset, _active.set(self))
            stack.callback(self._clear)
            for name in _blocks.get():
                self.enter(name)
            yield

    def _before(self, module: nn.Module, inputs: Any) -> None:
        del inputs
        self.enter(self.names.get(id(module), type(module).__name__))

    def _after(self, module: nn.Module, inputs: Any, output: Any) -> None:
        del module, inputs, output
        self.leave()

    def enter(self, name: str) -> None:
        """Begin a module call or a block."""
        self.instances[name] = self.instances.get(name, 0) + 1
        self._stack.append(Scope(name, self.instances[name]))
        self._here = None

    def leave(self) -> None:
        """End the innermost one."""
        if self._stack:
            self._stack.pop()
            self._here = None

    def _clear(self) -> None:
        self._stack.clear()
        self._here = ()

    def here(self) -> tuple[Scope, ...]:
        """Give the stack, outermost first, without the model itself."""
        if self._here is None:
            self._here = tuple([s for s in self._stack if s.name])
        return self._here
