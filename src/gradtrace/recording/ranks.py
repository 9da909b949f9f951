"""What `torch.distributed` does in a forward pass: parts of parameters, its own functions, and exchanges of ranks.

FSDP keeps a part of every parameter on each rank, and puts the whole in place while its module runs: there it is named,
and copied, since its memory is freed before a trace can read it. DDP's and FSDP's own functions hand on what they are
given, and wait for the program's backward pass. What comes from other ranks is followed as far as this rank's own
numbers go, and said.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, UntypedStorage, nn

from ..errors import Unsupported
from .autograd_functions import CustomNode
from .record import Record
from .scopes import is_internal

# torch.autograd.Functions that hand on their tensors: of DDP and FSDP, and what waits for a collective
HANDING_ON = {"_DDPSink", "RegisterPostBackwardFunction", "RegisterPreBackwardFunction", "_FromTorchTensor"}
HANDING_ON |= {
    f"GeneratedBackwardFor__c10d_functional_{name}_default" for name in ("wait_tensor", "_wrap_tensor_autograd")
}
# parts of torch that exchange for the program's sake, and not as a part of its computation
_KEEPERS = ("/distributed/fsdp/", "/nn/parallel/distributed.py", "/distributed/utils.py")
FROM_ONE = {"send", "recv", "recv_any_source"}  # between two ranks: a pipeline
INSIDE_DTENSOR = (
    "belongs to a model that is split over ranks by tensors (DTensor: parallelize_module, distribute_tensor): this "
    "rank has a part of every path only. Trace the model as it was before it was split, with the weights that "
    "full_tensor() or torch.distributed.checkpoint.state_dict give; DDP and fully_shard are followed"
)


def is_sharded(tensor: Tensor) -> bool:
    """Tell whether a tensor is a DTensor, of which this rank has a part."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def is_fully_sharded(model: nn.Module | None) -> bool:
    """Tell whether FSDP keeps a part of a model's parameters on this rank, and the whole only while it is used.

    Raises:
        Unsupported: FSDP does so by its older wrapper, which makes one parameter of many.
    """
    module: Any = sys.modules.get("torch.distributed.fsdp")
    if module is None or model is None:
        return False
    if any(isinstance(m, module.FullyShardedDataParallel) for m in model.modules()):
        raise Unsupported(
            "FullyShardedDataParallel makes one parameter of many, and frees it after use: gradtrace follows its "
            "successor, torch.distributed.fsdp.fully_shard"
        )
    return any(isinstance(m, module.FSDPModule) for m in model.modules())


def waited(tensor: Tensor) -> Tensor:
    """Give what a collective has left in a tensor, if it is one that waits for that; else the tensor itself."""
    module: Any = sys.modules.get("torch.distributed._functional_collectives")
    if module is None or not isinstance(tensor, module.AsyncCollectiveTensor):
        return tensor
    with torch.no_grad():
        return tensor.trigger_wait()  # type: ignore[attr-defined]


def unwrapped(model: Any) -> Any:
    """Give the model inside DDP, whose names are those that it has in one process."""
    return model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model


def handed_on(node: Any, number: int) -> tuple[Any, int]:
    """Go from a result of DDP's and FSDP's own functions to what they were given: (autograd's node, its output)."""
    while isinstance(node, CustomNode) and _hands_on(node):
        followed = [pair for pair in node.next_functions if pair[0] is not None]
        node, number = followed[sum(node.needs_input_grad[1 : 1 + number])]
    return node, number


def _hands_on(node: Any) -> bool:
    made: Any = type(node)._forward_cls  # type: ignore[attr-defined]
    return made.__name__ in HANDING_ON and made.__module__.startswith("torch.") and "tensor._api" not in made.__module__


class Parts:
    """Parameters of which this rank has a part, by name, until the whole is seen in their place.

    Args:
        model: that has them.
    """

    def __init__(self, model: nn.Module | None) -> None:
        self._model = model
        self.order = [name for name, _ in model.named_parameters()] if model is not None else []
        self.waiting: dict[str, Tensor] = {}
        self.names: dict[int, str] = {}  # of all of them, by the part's identity

    def __bool__(self) -> bool:
        """Tell whether there are any."""
        return bool(self.names)

    def wait(self, name: str, part: Tensor) -> str | None:
        """Wait for a parameter; give the first name of one that has several."""
        first = self.names.setdefault(id(part), name)
        if first != name:
            return first
        self.waiting[name] = part
        return None

    def in_place(self) -> Iterator[tuple[str, Tensor]]:
        """Give the whole parameters that are in the place of their parts by now, and wait for them no longer."""
        if self._model is None or not self.waiting:
            return
        for name, tensor in self._model.named_parameters(remove_duplicate=False):
            if name in self.waiting and tensor.requires_grad and not is_sharded(tensor):
                del self.waiting[name]
                yield name, tensor


class Exchanges:
    """Tensors that hold what came from other ranks, by storage, with the line at which it came."""

    def __init__(self) -> None:
        self._from: dict[int, tuple[weakref.ref[UntypedStorage], str]] = {}

    def __bool__(self) -> bool:
        """Tell whether there are any."""
        return bool(self._from)

    def found(self, tensors: Iterable[Tensor]) -> str | None:
        """Say where what one of some tensors holds came from other ranks."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            known = self._from.get(storage._cdata)
            if known is not None and known[0]() is storage:
                return known[1]
        return None

    def note(self, where: str, tensors: Iterable[Tensor]) -> None:
        """Note that tensors hold what came from other ranks."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            self._from[storage._cdata] = weakref.ref(storage), where


def is_the_programs() -> bool:
    """Tell whether the program itself exchanges, and not DDP or FSDP for it."""
    frame = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if any(part in file for part in _KEEPERS):
            return False
        if not is_internal(file):
            return True
        frame = frame.f_back
    return True


def refuse_pipeline(record: Record) -> None:
    """Refuse a recording of one stage of several: paths go on in other ranks.

    Raises:
        Unsupported: says what to do.
    """
    if record.pipelined:
        raise Unsupported(
            f"this rank sends to one other, or receives from it, at {record.pipelined}, as a stage of a pipeline does: "
            "its paths go on there, where this tape does not see them. Trace the whole model in one process, or with "
            "DDP or fully_shard"
        )


def refuse_check(record: Record) -> None:
    """Refuse a certificate where a backward pass would not be the tape's own affair.

    Raises:
        Unsupported: says what to do.
    """
    if record.reduces:
        raise Unsupported(
            "check=True runs a backward pass, which fully_shard, and DDP with static_graph, take for the program's "
            "own: they would exchange gradients. Prove the model once without them"
        )


def reduces(node: Any) -> bool:
    """Tell whether a node has DDP exchange gradients after the backward pass that it is in."""
    ddp = getattr(node, "ddp_weakref", None)
    return ddp is not None and bool(ddp().static_graph)
