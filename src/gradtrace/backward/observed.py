"""What autograd's own backward pass gives, at every value of a tape that it has a node for.

A value is known by the node that made it and the number among the node's results. Where a recurrent layer was taken
apart after it ran, or a storage was read after writes, there is no node that stands for the value, and what
autograd has is not seen. Two numbers are seen of a value: what its consumers add up to, and what hooks make of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from ..errors import CertificateError
from ..jacobians.rules.indexing import is_view
from ..recording.autograd_functions import CustomFunction
from ..recording.record import HERE, Call, Record, Value, as_real
from ..recording.replay import solid

MOST = 8192  # calls of a tape whose nodes are looked at


@dataclass
class Observed:
    """Gradients by value id, as autograd has them; None where nothing came.

    Attributes:
        arrived: what consumers add up to.
        passed: what the node works on, where hooks had a chance to change it.
    """

    arrived: dict[int, Tensor | None] = field(default_factory=dict)
    passed: dict[int, Tensor | None] = field(default_factory=dict)

    def changed(self, value: Value) -> bool:
        """Tell whether a hook replaced the gradient of a value on its way."""
        if value.id not in self.passed:
            return False
        before, after = self.arrived.get(value.id), self.passed[value.id]
        if before is None or after is None or before is after:
            return before is not after
        one, other = self.gradient(value), plain(after)
        return not torch.equal(one.nan_to_num(), other.nan_to_num())

    def gradient(self, value: Value) -> Tensor:
        """Give what consumers add up to, as the tape has it."""
        found = self.arrived[value.id]
        return torch.zeros(value.shape, dtype=value.dtype) if found is None else plain(found)


def observe(record: Record, loss: Tensor, leaves: Sequence[tuple[Tensor, Value]]) -> Observed:
    """Run one ordinary backward pass, hooks included, and look on.

    Raises:
        CertificateError: the pass fails; most often the graph is gone.
    """
    edges = dict(_edges(record, loss))
    inputs: Any = [tensor for tensor, _ in leaves] + [GradientEdge(node, number) for node, number in edges.values()]
    seen = Observed()
    with _watching(edges, seen):
        try:
            found = torch.autograd.grad(loss, inputs, retain_graph=True, allow_unused=True)
        except RuntimeError as error:
            hint = " (trace before backward())" if "second time" in str(error) else ""
            raise CertificateError(f"no autograd graph to compare with{hint}: {error}") from None
    ids = [value.id for _, value in leaves] + list(edges)
    seen.arrived = dict(zip(ids, found, strict=True))
    return seen


def plain(g: Tensor) -> Tensor:
    """Give a gradient as the tape has it: dense, and complex numbers as pairs."""
    g = as_real(solid(g.detach())).resolve_neg().to(HERE)
    return g.float() if g.dtype.itemsize < 2 else g  # few operators know numbers of eight bits


@contextmanager
def _watching(edges: dict[int, tuple[Any, int]], seen: Observed) -> Iterator[None]:
    """Note what nodes work on; hooks run in the order in which they were set, so these are the last."""
    places: dict[Any, list[tuple[int, int]]] = {}
    for value, (node, number) in edges.items():
        places.setdefault(node, []).append((value, number))

    def note(at: list[tuple[int, int]], grads: tuple[Tensor | None, ...]) -> None:
        seen.passed.update((value, grads[number]) for value, number in at)

    with ExitStack() as stack:
        for node, at in places.items():
            handle = node.register_prehook(lambda grads, at=at: note(at, grads))
            stack.callback(handle.remove)
        yield


def _edges(record: Record, loss: Tensor) -> Iterator[tuple[int, tuple[Any, int]]]:
    """Find the node of every value that one stands for; none of a long tape.

    A node that Python has looked at is freed by recursion when its graph goes, and some ten thousand of them in a row
    would end the process.
    """
    if len(record.calls) > MOST:
        return
    nodes: dict[int, list[Any]] = {}
    for node in _graph(loss):
        nodes.setdefault(node._sequence_nr(), []).append(node)
    hidden = _rewritten(record)
    for call in record.calls:
        for value in call.outputs:
            if value is None or not value.differentiable or value.id in hidden:
                continue
            for node, number in _candidates(call, value, nodes):
                if stands_for(node, number, value):
                    yield value.id, (node, number)
                    break


def _candidates(call: Call, value: Value, nodes: dict[int, list[Any]]) -> Iterator[tuple[Any, int]]:
    if isinstance(call.op, CustomFunction):
        if any(call.op.node is node for node in nodes.get(call.op.node._sequence_nr(), ())):
            yield call.op.node, call.outputs.index(value)
        return
    for node in nodes.get(value.seq, ()):
        if _made_by(node.name(), call.base):
            yield node, value.number


@cache
def _made_by(node: str, base: str) -> bool:
    """Tell whether a node's name is that of an operator's derivative."""
    made = re.sub(r"Backward\d*$", "", node).lower()
    return bool(made) and base.replace("_", "").lower().startswith(made)


def stands_for(node: Any, number: int, value: Value) -> bool:
    """Tell whether a node's result has a value's shape and type."""
    if number >= len(node._input_metadata):
        return False
    about = node._input_metadata[number]
    shape, dtype = tuple(about.shape), about.dtype
    return (((*shape, 2), dtype.to_real()) if dtype.is_complex else (shape, dtype)) == (value.shape, value.dtype)


def _graph(loss: Tensor) -> Iterator[Any]:
    """Give every node from which the loss can be reached."""
    seen, waiting = set(), [loss.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        yield node
        waiting += [fn for fn, _ in node.next_functions]


def _rewritten(record: Record) -> set[int]:
    """Give the views through which something was written: autograd sends their gradients around them, to the base."""
    found: set[int] = set()
    for call in reversed(record.calls):
        view = is_view(call.op, call.base)
        passes = view and any(v is not None and v.id in found for v in call.outputs)
        for position, given in enumerate(call.inputs):
            if given.value is not None and (passes or position in call.written):
                found.add(given.value.id)
    return {v.id for call in record.calls if is_view(call.op, call.base) for v in call.outputs if v} & found
