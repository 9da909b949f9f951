"""What is no tensor for a tape, and why a tensor with a history is not on it: a sentence for each way there is."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ..errors import GradtraceError, NotOnTape, Unsupported

_LOW = (torch.float16, torch.bfloat16)


def stranger(tensor: Tensor) -> GradtraceError:
    """Give the error that says why autograd follows a tensor and the tape doesn't know it, and what to do."""
    what = f"a tensor of shape {tuple(tensor.shape)}"
    made = type(tensor.grad_fn).__name__ if tensor.grad_fn is not None else "unknown"
    if in_forward_mode():
        return Unsupported(
            f"forward-mode AD (torch.func.jvp, jacfwd, hessian, dual numbers) inside record(…): {what} is computed by "
            "operators that autograd differentiates forwards, and paths run backwards. Leave it out of the block"
        )
    if tensor.dtype in _LOW and made == "ToCopyBackward0":
        return NotOnTape(
            f"{what} was cast to {tensor.dtype} before the block, by autocast, which keeps the casts of weights until "
            "it ends: put `with torch.autocast(…)` inside `with record(…)`, or call torch.clear_autocast_cache() first"
        )
    if made == "CppFunction" and "jit" in str(getattr(tensor.grad_fn, "name", str)()):
        return NotOnTape(
            f"{what} is inside a part of a scripted module that TorchScript, after some runs, differentiates as one: "
            "record the model that was scripted, or script it anew"
        )
    return NotOnTape(
        f"{what} has a history (grad_fn={made}) that was not recorded: "
        "compute it inside `with record(...)`, or detach() it to make it a constant"
    )


def in_forward_mode() -> bool:
    """Tell whether forward-mode AD is going on: a level of dual numbers is open, torch.func's included."""
    return forward_ad._current_level >= 0


_DENSE = torch.strided


def is_dense(tensor: Tensor) -> bool:
    """Tell whether a tensor's numbers lie in memory by strides."""
    return tensor.layout is _DENSE and not tensor.is_nested


@cache
def _wraps(kind: type) -> bool:
    """Tell whether a class has operators of its own, around tensors of which PyTorch's kernels see nothing."""
    return kind.__torch_dispatch__ is not Tensor.__torch_dispatch__  # type: ignore[attr-defined]


def is_plain(tensor: Tensor) -> bool:
    """Tell whether it is, and its operators are PyTorch's own."""
    return is_dense(tensor) and not _wraps(type(tensor))


def refuse_wrappers(tensors: Sequence[Tensor], what: str) -> None:
    """Refuse what is no ordinary dense tensor.

    Raises:
        Unsupported: names the class, and says what to do.
    """
    for tensor in tensors:
        if _wraps(type(tensor)):
            raise Unsupported(
                f"{what} is a {type(tensor).__name__}, a subclass of torch.Tensor with operators of its own: record "
                "the model on the plain tensors inside it (of a DTensor: full_tensor() or to_local())"
            )
        if not is_dense(tensor):
            raise Unsupported(f"{what} is sparse or nested: gradtrace follows dense tensors only")
        if tensor.is_meta:
            raise Unsupported(f"{what} is on the meta device, which has no numbers: move the model to a real one")


def refuse_transformed(tensor: Tensor) -> None:
    """Refuse what belongs to a transform of torch.func that is going on, and means nothing outside it.

    Raises:
        Unsupported: says what to do.
    """
    if torch._C._functorch.is_functorch_wrapped_tensor(tensor):  # type: ignore[attr-defined]
        raise Unsupported(
            f"a tensor of shape {tuple(tensor.shape)} inside a transform of torch.func (grad, vmap, jacrev, …): put "
            "the transform inside `with record(…)`, and trace what it returns"
        )
