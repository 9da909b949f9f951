"""Record as a guest: the program must not notice.

Its operators run as they would without the recording, so that every number stays what it is to the last bit; and what
goes wrong while recording ends the recording, not the program. What PyTorch runs as one fused attention runs like that,
and is recorded as the product, softmax and product that it stands for, which are computed besides.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import enable_reentrant_dispatch

from ..errors import Unsupported
from .dispatch import Capture, Event
from .operators import Operator, operator
from .process_state import pushed
from .record import Slot, flat_tensors
from .storage import version_of

FUSED = {
    f"_scaled_dot_product_{kernel}_attention{place}"
    for kernel, place in (("flash", ""), ("flash", "_for_cpu"), ("efficient", ""), ("cudnn", ""))
}


class Guest(Capture):
    """A `Capture` that changes no number and raises no error: `refused` says why it has stopped, if it has."""

    changes = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator, whatever becomes of the recording."""
        kwargs = kwargs or {}
        if not self.values.open:
            return func(*args, **kwargs)
        event = self._tried(self._before_guest, func, args, kwargs)
        try:
            result = func(*args, **kwargs)
        except Exception as error:
            if event is None or not is_out_of_memory(error):
                raise
            self._stop(error)  # what was kept may be what is missing
            return func(*args, **kwargs)
        if event is not None:
            self._tried(self._after, event, result)
        return result

    def _before_guest(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Event | None:
        known = operator(func)
        if known.eager:
            raise Unsupported(f"{func} is lazy, and a recording would have to make it solid, which the program may see")
        return None if known.asks else self._before(known, args, kwargs)

    def _tried(self, act: Callable[..., Any], *given: Any) -> Any:
        """Do something for the recording, which ends if that fails."""
        try:
            return act(*given)
        except Exception as error:
            self._stop(error)

    def _stop(self, error: Exception) -> None:
        """Record no more, and let go of what was kept."""
        self.refused, self.values.open = error.with_traceback(None), False
        self._saving.close()
        for held in self.record.calls, self.record.constants, self.record.leaves:
            held.clear()

    def _after(self, event: Event, result: Any) -> None:
        if event.known.base not in FUSED:
            super()._after(event, result)
        elif event.inputs or event.marks:
            self._record_in_parts(event, next(t for t in flat_tensors(result) if t is not None))

    def _record_in_parts(self, event: Event, out: Tensor) -> None:
        """Record fused attention as its parts: they are computed besides, and what they give stands for its result."""
        node = self.values.last_node()
        given = _arguments(event.known, event)
        if given.get("dropout_p"):
            raise Unsupported(f"{event.known.name} draws its own dropout, which nobody can see: use attention in parts")
        mask = given.get("attn_mask", given.get("attn_bias"))
        parts = torch.ops.aten._scaled_dot_product_attention_math.default
        with enable_reentrant_dispatch(), torch.autocast(out.device.type, enabled=False), pushed(self):
            q, k, v = (given[name] for name in ("query", "key", "value"))
            made = parts(q, k, v, mask, 0.0, given.get("is_causal", False), scale=given.get("scale"))[0]
        value = self.values.lookup(made)
        if value is not None:
            value.seq, value.number = node, 0
            self.values.place(out, value, writes=True, version=version_of(out))
        elif self.constants is not None and (constant := self.constants.constant(made)) is not None:
            self.constants.note(out, constant, writes=True, version=version_of(out))


def _arguments(known: Operator, event: Event) -> dict[str, Any]:
    """Give a call's arguments by name."""
    names = [a.name for a in known.func._schema.arguments]
    given = dict(zip(names, event.args, strict=False)) | event.kwargs
    return {n: event.tensors[a.position] if isinstance(a, Slot) else a for n, a in given.items()}


def is_out_of_memory(error: Exception) -> bool:
    """Tell whether an error says that there is not enough memory."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error)
