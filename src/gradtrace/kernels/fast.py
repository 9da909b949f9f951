"""What (max, ×) does to each structure, by the compiled kernels.

The same contract as `reference.pull`, for one semiring: values of a result go in, values and winners of an argument
come out. Values of one tensor share one exponent (`Plane`). A structure without a kernel of its own is left to the
reference kernels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..jacobians.index_maps import Composed
from ..jacobians.structure import Chain, Contraction, Convolved, Gather, LowRank, Placed, Scatter, Sparse, Strided
from .contraction import contraction
from .maps import gather, placed, scatter, sparse, strided
from .norms_and_convolutions import convolved, low_rank
from .product import Product
from .shared_exponent import Plane, Pulled, by_reference


def pull(structure: object, g: Plane) -> Pulled | Product:
    """Carry the values of a result (batch × y, any strides) back to one argument, along a structure."""
    return KERNELS.get(type(structure), by_reference)(structure, g)


def _chain(s: Chain, g: Plane) -> Pulled:
    first = pull(s.first, g)
    first = first.realise() if isinstance(first, Product) else first
    if first.window is not None or first.rows is not None:
        return by_reference(s, g)
    second = pull(s.second, first.plane)
    second = second.realise() if isinstance(second, Product) else second
    return Pulled(second.plane, second.raw, Composed(second.way, first.way, first.raw), second.window, second.rows)


KERNELS: dict[type, Callable[[Any, Plane], Pulled | Product]] = {
    Contraction: contraction,
    Strided: strided,
    Placed: placed,
    Gather: gather,
    Scatter: scatter,
    LowRank: low_rank,
    Convolved: convolved,
    Sparse: sparse,
    Chain: _chain,
}
