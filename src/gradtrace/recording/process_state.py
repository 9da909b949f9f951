"""What all threads of a process share: flags and hooks, held while somebody records and put back after the last one.

Recordings overlap: two threads record at once, two blocks are left in the wrong order, a generator is suspended inside
a block. Whoever saved a flag when entering would put the other's value back; so users are counted instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import RLock
from typing import Any, Generic, TypeVar

import torch
from torch.utils import _python_dispatch as modes

T = TypeVar("T")


class Held(Generic[T]):
    """A state of the process, changed while it has users.

    Args:
        change: called for the first user; gives what `restore` needs.
        restore: called with that when the last user leaves.

    >>> held = Held(lambda: print("changed"), lambda was: print("as before"))
    >>> with held(), held():
    ...     pass
    changed
    as before
    """

    def __init__(self, change: Callable[[], T], restore: Callable[[T], None]) -> None:
        self._change, self._restore = change, restore
        self._lock, self._users, self._was = RLock(), 0, None

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Hold the state inside the block."""
        with self._lock:
            if not self._users:
                self._was = self._change()
            self._users += 1
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                if not self._users:
                    self._restore(self._was)  # type: ignore[arg-type]


def _attention_in_parts() -> tuple[bool, ...]:
    """Let attention run as matmul, softmax and matmul; give which of its fused kernels were allowed."""
    cuda, mha = torch.backends.cuda, torch.backends.mha
    was = cuda.flash_sdp_enabled(), cuda.mem_efficient_sdp_enabled(), cuda.cudnn_sdp_enabled()
    was += cuda.math_sdp_enabled(), mha.get_fastpath_enabled()
    _set_attention(False, False, False, True, False)
    return was


def _set_attention(flash: bool, efficient: bool, cudnn: bool, math: bool, fastpath: bool) -> None:
    cuda = torch.backends.cuda
    cuda.enable_flash_sdp(flash)
    cuda.enable_mem_efficient_sdp(efficient)
    cuda.enable_cudnn_sdp(cudnn)
    cuda.enable_math_sdp(math)
    torch.backends.mha.set_fastpath_enabled(fastpath)


def _cudnn_off() -> bool:
    # torch.backends' own setter warns, touches more than this flag, or refuses under some test suites
    was = torch._C._get_cudnn_enabled()
    torch._C._set_cudnn_enabled(False)
    return was


attention_in_parts = Held(_attention_in_parts, lambda was: _set_attention(*was))
# held by the modules that cuDNN would run in another form; a convolution may keep it
cudnn_off = Held(_cudnn_off, lambda was: torch._C._set_cudnn_enabled(was))

_FLAGS = ("_is_in_torch_dispatch_mode", "_is_in_non_infra_torch_dispatch_mode")
_LAST = "_is_in_any_mode_without_ignore_compile_internals"  # of PyTorch 2.7 and later


def _flags(*values: bool) -> tuple[bool, ...]:
    """Set PyTorch's notes that a dispatch mode is on, by which its compiler goes; give what they were."""
    names = [name for name in (*_FLAGS, _LAST) if hasattr(modes, name)]
    was = tuple(getattr(modes, name) for name in names)
    for name, value in zip(names, values or [True] * len(names), strict=True):
        setattr(modes, name, value)
    tell: Any = getattr(modes, "set_is_in_mode_without_ignore_compile_internals", None)
    if tell is not None:
        tell(getattr(modes, _LAST))
    return was


def _restore_flags(was: tuple[bool, ...]) -> None:
    _flags(*was)


_noted = Held(_flags, _restore_flags)


@contextmanager
def pushed(mode: modes.TorchDispatchMode) -> Iterator[None]:
    """Put a dispatch mode on this thread's stack, and take it out wherever it is by then.

    PyTorch's own `with mode:` pops whatever is on top, and keeps its notes in globals that threads overwrite.
    """
    with _noted():
        modes._push_mode(mode)
        try:
            yield
        finally:
            _take_out(mode)


def _take_out(mode: modes.TorchDispatchMode) -> None:
    """Remove a mode from the stack; a block that ends in another thread finds nothing there."""
    stack = modes._get_current_dispatch_mode_stack()
    if not any(m is mode for m in stack):
        return
    above = []
    while (top := modes._pop_mode()) is not mode:
        above.append(top)
    for other in reversed(above):
        modes._push_mode(other)
