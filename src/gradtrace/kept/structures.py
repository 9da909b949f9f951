"""Local derivatives as structures: a product's towards its weight are its other factor, which is much smaller.

∂y/∂W of y = x Wᵀ has as many entries as W has scalars, and they are the numbers of x: what is kept is x, once for all
forests. Only contractions with a plain weight and convolutions are kept so; all else is a number for each scalar.
"""

from __future__ import annotations

from math import prod
from typing import Any, TypeAlias

import numpy as np
import torch

from ..jacobians.structure import Closed, Contraction, Convolved, Sliding, Structure
from ..recording.record import Value
from .blobs import Packer, Unpacker
from .record import count, shape, text

Step: TypeAlias = tuple[int, int, int]  # a call, the position of its argument, the number of its result
SLIDING = ("input", "kernel", "output", "stride", "padding", "dilation")


def weight_of(structure: Structure) -> torch.Tensor | None:
    """Give the numbers that a structure would be kept by; None where it is not kept."""
    if isinstance(structure, Convolved):
        return structure.other()
    weight = structure.weight if isinstance(structure, Contraction) else None
    return None if weight is None or isinstance(weight, Closed) or hasattr(weight, "row") else weight()


def packed(structures: dict[Step, Structure], most: int, pack: Packer) -> list[Any] | None:
    """Describe structures by the step that each is of; None where that takes more than `most` numbers."""
    out, left = [], most
    for step, structure in structures.items():
        weight = weight_of(structure)
        if weight is None or (left := left - weight.numel()) < 0:
            return None
        single = weight if weight.dtype in (torch.float32, torch.float64) else weight.to(torch.float64)
        out.append([*step, *_described(structure), pack.put(single.detach().contiguous())])
    return out


def _described(structure: Structure) -> list[Any]:
    if isinstance(structure, Convolved):
        s = structure.sizes
        return ["convolved", structure.to_input, [*(getattr(s, key) for key in SLIDING), s.groups, s.transposed]]
    assert isinstance(structure, Contraction)
    return ["contraction", structure.y, [structure.x, structure.y_shape, structure.x_shape, structure.w]]


def unpacked(given: list[Any], value: Value, read: Unpacker, targets: Any) -> dict[Step, Structure]:
    """Make structures of what `packed` gave.

    Args:
        value: from which the steps are.
        targets: gives the result to which a step leads.

    Raises:
        KeyError, TypeError, ValueError: it is nothing of that, or does not fit the values.
    """
    out: dict[Step, Structure] = {}
    for call, argument, output, kind, first, rest, ref in given:
        step = count(call), count(argument), count(output)
        make = {"contraction": _contraction, "convolved": _convolved}[kind]
        structure, size = make(first, *rest)
        numbers = read.get(ref, size).astype(np.float64)
        if np.isnan(numbers).any():
            raise ValueError("derivatives that are no numbers")
        if prod(structure.y_shape) != targets(step).numel or prod(structure.x_shape) != value.numel:
            raise ValueError("a structure of other values")
        out[step] = _with(structure, torch.from_numpy(numbers))
    return out


def _with(structure: Contraction | Convolved, numbers: torch.Tensor) -> Structure:
    if isinstance(structure, Convolved):
        sizes = structure.sizes
        other = numbers.reshape(sizes.kernel if structure.to_input else sizes.input)
        return Convolved(sizes, structure.to_input, lambda: other, structure.parts)
    return Contraction(structure.y, structure.x, structure.y_shape, structure.x_shape, structure.w, lambda: numbers)


def _contraction(y: Any, x: Any, y_shape: Any, x_shape: Any, w: Any) -> tuple[Contraction, int]:
    made = Contraction(text(y), text(x), shape(y_shape), shape(x_shape), text(w))
    sizes = [*zip(made.y, made.y_shape, strict=True), *zip(made.x, made.x_shape, strict=True)]
    known = dict(sizes)
    if any(known[letter] != n for letter, n in sizes) or any(len({*s}) != len(s) for s in (made.y, made.x, made.w)):
        raise ValueError("letters of several sizes")
    return made, prod(known[letter] for letter in made.w)


def _convolved(to_input: Any, *rest: Any) -> tuple[Convolved, int]:
    *axes, groups, transposed = rest
    given, kernel, output, stride, padding, dilation = map(shape, axes)
    sizes = Sliding(given, kernel, output, stride, padding, dilation, count(groups), bool(transposed))
    dims = len(sizes.input) - 2
    fits = dims >= 1 and len(sizes.kernel) == len(sizes.output) == dims + 2
    if not fits or any(len(axis) != dims for axis in (sizes.stride, sizes.padding, sizes.dilation)):
        raise ValueError("a convolution of several numbers of axes")
    if 0 in (*sizes.stride, *sizes.dilation, sizes.groups) or sizes.kernel[0] < sizes.groups:
        raise ValueError("a convolution without steps")
    made = Convolved(sizes, bool(to_input), lambda: torch.zeros(0), tuple)
    return made, prod(sizes.kernel if made.to_input else sizes.input)
