"""Passes run alone: whatever modes the program is in, they are not recorded, not cast, and free to take gradients."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch._C import _len_torch_dispatch_stack
from torch._ops import _len_torch_dispatch_stack_pre_dispatch
from torch.utils._python_dispatch import _disable_current_modes

from .record import HERE


@contextmanager
def uncollected() -> Iterator[None]:
    """Pause the garbage collector."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@contextmanager
def alone() -> Iterator[None]:
    """Suspend dispatch modes, autocast, inference mode, grad mode and a default device inside the block.

    So is the garbage collector: a pass makes many objects at a time, and none that hold each other. Also decorates
    functions.
    """
    with ExitStack() as stack:  # only of what is on: to see that nothing is takes a tenth of the time
        if _len_torch_dispatch_stack() or _len_torch_dispatch_stack_pre_dispatch():
            stack.enter_context(_disable_current_modes())
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(mode=False))
        if torch.is_grad_enabled():
            stack.enter_context(torch.no_grad())
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if torch.get_default_device() != HERE:  # which would be asked at every call
            stack.enter_context(HERE)
        stack.enter_context(uncollected())
        yield
