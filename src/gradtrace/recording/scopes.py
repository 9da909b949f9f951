"""Where operators run: module calls, `component` blocks, and the user's source line."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from .process_state import Held, cudnn_off
from .record import Scope

# what cuDNN runs in a form of its own: a whole recurrent layer as one operator, a batch norm with notes of its own
WITHOUT_CUDNN = (nn.RNNBase, nn.modules.batchnorm._BatchNorm)
_PACKAGE = Path(__file__).parent.parent
_INTERNAL = (str(Path(torch.__file__).parent), str(_PACKAGE))
_EXPERIMENTS = str(_PACKAGE / "experiments")  # models like a user's


@dataclass(eq=False, slots=True)
class _Block:
    """A `component` block; a generator that is closed in another context than it was begun in leaves its there."""

    name: str
    open: bool = True


_blocks: ContextVar[tuple[_Block, ...]] = ContextVar("gradtrace_blocks", default=())


class _Watching(threading.local):
    """Who follows module calls in this thread, by the order in which they began; each with its innermost calls last."""

    def __init__(self) -> None:
        self.scopes: list[Scopes] = []


_here = _Watching()


def _before(module: nn.Module, inputs: Any) -> None:
    del inputs
    for scopes in _here.scopes:
        scopes.begin(module)


def _after(module: nn.Module, inputs: Any, output: Any) -> None:
    del inputs, output
    for scopes in _here.scopes:
        scopes.end(module)


def _hook() -> tuple[Any, Any]:
    return register_module_forward_pre_hook(_before), register_module_forward_hook(_after, always_call=True)


def _unhook(hooks: tuple[Any, Any]) -> None:
    for hook in hooks:
        hook.remove()


# PyTorch's hooks on all modules run in all threads, so there is one pair of them, which looks at its thread
hooks_on_modules = Held(_hook, _unhook)


@contextmanager
def component(name: str) -> Iterator[None]:
    """Name the operator calls made inside the block, as if they were a module's.

    >>> with component("gate"):
    ...     pass
    """
    block = _Block(name)
    token = _blocks.set((*(b for b in _blocks.get() if b.open), block))
    entered = list(_here.scopes)
    for scopes in entered:
        scopes.enter(name)
    try:
        yield
    finally:
        block.open = False
        with suppress(ValueError):  # in another context
            _blocks.reset(token)
        for scopes in entered:
            scopes.leave()


def source_line() -> str:
    """Give "file:line" of the innermost frame outside torch and gradtrace."""
    frame, known = sys._getframe(1), _internal
    while frame is not None:
        name = frame.f_code.co_filename
        if not (known[name] if name in known else is_internal(name)):
            return f"{name}:{frame.f_lineno}"
        frame = frame.f_back
    return ""


_internal: dict[str, bool] = {}  # some ten frames are asked about at every recorded call


def is_internal(file: str) -> bool:
    """Tell whether a file is torch's or gradtrace's own, or Python's import system."""
    if file not in _internal:
        _internal[file] = file.startswith((*_INTERNAL, "<")) and not file.startswith(_EXPERIMENTS)
    return _internal[file]


class Scopes:
    """The stack of module calls and blocks, kept by forward hooks on all modules while this thread is watched.

    Args:
        model: gives modules their qualified names; others go by their class's name.
        without_cudnn: run what cuDNN has forms of its own for in PyTorch's.

    Attributes:
        instances: how often each was entered, by name.
    """

    def __init__(self, model: nn.Module | None, *, without_cudnn: bool = True) -> None:
        self._without_cudnn = WITHOUT_CUDNN if without_cudnn else ()
        self.names = {id(m): n for n, m in model.named_modules()} if model is not None else {}
        self._stack: list[Scope] = []
        self._here: tuple[Scope, ...] | None = ()  # what `here` gives, until the stack changes
        self.instances: dict[str, int] = {}
        self._held = ExitStack()  # what a module's call holds until it ends

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Follow this thread's module calls inside the block, and no longer, however it ends."""
        with ExitStack() as stack:
            stack.enter_context(hooks_on_modules())
            stack.callback(self._close, _here.scopes)
            _here.scopes.append(self)
            for block in _blocks.get():
                if block.open:
                    self.enter(block.name)
            yield

    def begin(self, module: nn.Module) -> None:
        """Note that a module is called."""
        name = self.names.get(id(module))
        if name is None:  # DDP stands around a model, which has its names without it
            name = "" if isinstance(module, nn.parallel.DistributedDataParallel) else type(module).__name__
        self.enter(name)
        if isinstance(module, self._without_cudnn):
            self._held.enter_context(cudnn_off())

    def end(self, module: nn.Module) -> None:
        """Note that a module's call is over."""
        self.leave()
        if isinstance(module, self._without_cudnn):
            self._held.close()

    def _close(self, watching: list[Scopes]) -> None:
        watching.remove(self)
        self._held.close()
        self._stack.clear()
        self._here = ()

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

    def here(self) -> tuple[Scope, ...]:
        """Give the stack, outermost first, without the model itself."""
        if self._here is None:
            self._here = tuple([s for s in self._stack if s.name])
        return self._here
