"""The closed set of structures that a local Jacobian can have.

A structure says which scalars of a result depend on which scalars of one argument, and with what
derivative. It mentions neither an operator nor a semiring: rules turn operators into structures, kernels
say what a semiring does to a structure.

    Contraction   a labelled product, as in einsum: diagonal, sum, matrix product, dense Jacobian
    Strided       each result scalar is one argument scalar, at a strided position (views)
    Placed        each argument scalar is one result scalar, at a strided position (cat, copies into a slice)
    Gather        each result scalar reads one argument scalar, by an index tensor
    Scatter       each argument scalar goes to one result scalar, by an index tensor
    LowRank       a product of rank r and a diagonal of its own, along a group of axes (softmax, layer norm)
    Sparse        a list of edges (i, j, w), the same for every row (pooling, interpolation, scatter_reduce)
    Chain         two structures one after the other, through virtual scalars
    Convolved     a convolution, towards its input or its kernel

Weights are thunks, taken when a kernel needs them, so that a structure costs nothing until then.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias

import torch
from torch import Tensor

from ..recording.layouts import Layout, Shape

Weight: TypeAlias = Callable[[], Tensor]

FORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": lambda y: (1 - y) * (1 + y),  # 1 - y², without what cancels where y is near 1
    "sigmoid": lambda y: (1 - y) * y,
    "relu": lambda y: (y > 0).to(y.dtype),
}

# the same with all terms added, as they are before they cancel
UNCANCELLED: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": lambda y: 1 + y * y,
    "sigmoid": lambda y: y + y * y,
    "relu": FORMS["relu"],
}


@dataclass(eq=False, slots=True)
class Closed:
    """A weight that is a closed form of a tensor, so that a kernel may work it out as it goes."""

    form: str
    of: Weight

    def __call__(self) -> Tensor:
        return FORMS[self.form](self.of())


@dataclass(eq=False, slots=True)
class Constant:
    """One weight for all edges."""

    value: float
    shape: Shape
    dtype: torch.dtype
    device: torch.device

    def __call__(self) -> Tensor:
        return torch.full((), self.value, dtype=self.dtype, device=self.device).expand(self.shape)


@dataclass(eq=False, slots=True)
class Contraction:
    """∂y/∂x has the entries `weight`, placed by letters: y[Y] depends on x[X] with weight[W].

    A letter of X that is not in Y is summed by the operator; a letter of Y that is not in X is where x
    is used many times. Every letter of W is in Y or in X. For a matrix product y = a @ b, the structure
    towards a is Y="ij", X="ik", W="kj" with weight b.

    Attributes:
        y, x: letters; `y_shape`, `x_shape`: their sizes (the tensors are viewed in these shapes).
        w: letters of the weight; None as `weight` stands for ones.
    """

    y: str
    x: str
    y_shape: Shape
    x_shape: Shape
    w: str = ""
    weight: Weight | None = None


@dataclass(eq=False, slots=True)
class Strided:
    """y = x.contiguous().as_strided(layout): an index map given by strides; derivative 1."""

    layout: Layout
    x_shape: Shape


@dataclass(eq=False, slots=True)
class Placed:
    """y, seen flat, holds x at `layout`, except where a layout of `hidden` has overwritten it."""

    layout: Layout
    y_shape: Shape
    hidden: tuple[Layout, ...] = ()


@dataclass(eq=False, slots=True)
class Gather:
    """y.flat[i] reads x.flat[index.flat[i]] with derivative 1, and nothing where the index is -1.

    With `width` > 1 rows are read, not scalars: y and x are seen as rows of that many scalars.
    """

    index: Weight
    y_shape: Shape
    x_shape: Shape
    width: int = 1

    def scalars(self) -> Tensor:
        """Give the index of every scalar, in y's shape."""
        index = self.index()
        if self.width == 1:
            return index
        rows = index.reshape(-1, 1)
        flat = rows * self.width + torch.arange(self.width, device=rows.device)
        return flat.masked_fill(rows < 0, -1).reshape(self.y_shape)


@dataclass(eq=False, slots=True)
class Scatter:
    """x.flat[j] goes to y.flat[index.flat[j]] with derivative 1, and nowhere where the index is -1."""

    index: Weight
    y_shape: Shape
    x_shape: Shape


Factors: TypeAlias = tuple[Tensor, tuple[Tensor, ...], tuple[Tensor, ...]]


def softmax_factors(p: Tensor) -> Factors:
    """∂p_i/∂x_j = p_i (δ_ij - p_j)."""
    return p * (1 - p), (p,), (-p,)


def log_softmax_factors(p: Tensor) -> Factors:
    """∂y_i/∂x_j = δ_ij - p_j."""
    return 1 - p, (p.new_full((), -1).expand(p.shape),), (p,)


def standard_factors(hat: Tensor, gamma: Tensor | None, scale: Tensor, count: int) -> Factors:
    """∂y_i/∂x_j = γ_i/σ (δ_ij - 1/n - x̂_i x̂_j/n), with 1/σ as `scale`."""
    own = (scale if gamma is None else gamma * scale).expand(hat.shape)
    left = -own / count, -own * hat / count
    return own * (1 - (1 + hat * hat) / count), left, (hat.new_ones(()).expand(hat.shape), hat)


ROWS: dict[str, Callable[..., Factors]] = {
    "softmax": softmax_factors,
    "log_softmax": log_softmax_factors,
    "standard": standard_factors,
}


def _softmax_sizes(g: Tensor, dims: tuple[int, ...], p: Tensor) -> Tensor:
    own = p * g
    return own + p * own.sum(dims, keepdim=True)


def _log_softmax_sizes(g: Tensor, dims: tuple[int, ...], p: Tensor) -> Tensor:
    return g + p * g.sum(dims, keepdim=True)


def _standard_sizes(
    g: Tensor,
    dims: tuple[int, ...],
    hat: Tensor,
    gamma: Tensor | None,
    scale: Tensor,
    count: int,
    mean: Tensor | None = None,
) -> Tensor:
    """Give them; where x̂ is what is left of x/σ without `mean`, either one's x̂ is counted with that once more."""
    own, size = g * (scale if gamma is None else gamma.abs() * scale), hat.abs()
    every, sized = own.sum(dims, keepdim=True), (size * own).sum(dims, keepdim=True)
    met = every + size * sized if mean is None else every + size * sized + mean * (size * every + sized)
    return own + met / count


# Σ_i |∂y_i/∂x_j| g_i of absolute numbers g along the axes `dims`, with all terms added before they cancel
UNCANCELLED_ROWS: dict[str, Callable[..., Tensor]] = {
    "softmax": _softmax_sizes,
    "log_softmax": _log_softmax_sizes,
    "standard": _standard_sizes,
}


@dataclass(eq=False, slots=True)
class ClosedRows:
    """Factors in a closed form, so that a kernel may work them out as it goes.

    Attributes:
        of: gives the form's arguments.
        log: gives the logarithm of the only argument, where that is what is at hand.
        sizes: gives what `UNCANCELLED_ROWS` takes, where that is more than the form's arguments.
    """

    form: str
    of: Callable[[], tuple[Any, ...]]
    log: Weight | None = None
    sizes: Callable[[], tuple[Any, ...]] | None = None

    def __call__(self) -> Factors:
        return ROWS[self.form](*self.of())


@dataclass(eq=False, slots=True)
class LowRank:
    """∂y_i/∂x_j = Σ_r left_r,i right_r,j for i ≠ j, and own_i for i = j, along the axes `dims`.

    The diagonal is given whole, because own minus a product would round differently from what it is.

    Attributes:
        shape: of y and of x.
        dims: the axes along which scalars are connected.
        factors: thunk for (own, (left_1, …), (right_1, …)), each of `shape` (expanded where it is constant).
    """

    shape: Shape
    dims: tuple[int, ...]
    factors: Callable[[], Factors]


Edges: TypeAlias = tuple[Tensor, Tensor, Tensor | None]


@dataclass(eq=False, slots=True)
class Sparse:
    """y[o, i, s] depends on x[o, j, s] with weight w, for every edge (i, j, w), every o and every s.

    No pair (i, j) may occur twice: two edges are two paths. `sparse` merges duplicates.

    Attributes:
        edges: thunk for (i, j, w), three tensors of one length; None as w stands for ones.
        y_shape, x_shape: (outer, m, inner) and (outer, n, inner), the shapes in which y and x are viewed.
    """

    edges: Callable[[], Edges]
    y_shape: tuple[int, int, int]
    x_shape: tuple[int, int, int]


@dataclass(eq=False, slots=True)
class Chain:
    """y depends on virtual scalars by `first`, they depend on x by `second`.

    Exact where every y and every x meet in at most one virtual scalar, which the rule has to see to: an
    edge's weight is then the product along that one way.
    """

    first: Structure
    second: Structure


@dataclass(frozen=True)
class Sliding:
    """The sizes of a convolution, as PyTorch's operator takes them (batch and channels first)."""

    input: Shape
    kernel: Shape
    output: Shape
    stride: Shape
    padding: Shape
    dilation: Shape
    groups: int
    transposed: bool


@dataclass(eq=False, slots=True)
class Convolved:
    """The dependence of a convolution's result on its input, or on its kernel.

    Attributes:
        to_input: on which; `other` is the other one's data.
        parts: the same as other structures, between which the edges are shared out.
    """

    sizes: Sliding
    to_input: bool
    other: Weight
    parts: Callable[[], tuple[Structure, ...]]

    @property
    def y_shape(self) -> Shape:
        return self.sizes.output

    @property
    def x_shape(self) -> Shape:
        return self.sizes.input if self.to_input else self.sizes.kernel


Structure: TypeAlias = Contraction | Strided | Placed | Gather | Scatter | LowRank | Sparse | Chain | Convolved


def result_shape(structure: Structure) -> Shape:
    """Give the shape in which a structure views the result."""
    match structure:
        case Chain():
            return result_shape(structure.first)
        case Strided():
            return structure.layout.size
        case LowRank():
            return structure.shape
        case _:
            return structure.y_shape


LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


def letters(ndim: int) -> str:
    """Name the axes of a tensor, one letter each."""
    return LETTERS[:ndim]


def diagonal(y_shape: Shape, x_shape: Shape, weight: Weight | None) -> Contraction:
    """Structure of a pointwise operator with broadcasting; the weight has y's shape.

    >>> diagonal((5, 3), (3,), None).x
    'b'
    """
    y, x, sizes = _broadcast(y_shape, x_shape)
    return Contraction(y, x, y_shape, sizes, "" if weight is None else y, weight)


@lru_cache(maxsize=4096)
def _broadcast(y_shape: Shape, x_shape: Shape) -> tuple[str, str, Shape]:
    """Give letters of y, those of x, and their sizes."""
    y = letters(len(y_shape))
    skip = len(y_shape) - len(x_shape)
    kept = [d for d in range(skip, len(y_shape)) if x_shape[d - skip] == y_shape[d]]
    return y, "".join(y[d] for d in kept), tuple(y_shape[d] for d in kept)


def reduction(x_shape: Shape, dims: tuple[int, ...], weight: Weight | None) -> Contraction:
    """Structure of an operator that merges the axes `dims` of x; the weight has x's shape.

    >>> reduction((5, 3), (1,), None).y
    'a'
    """
    x = letters(len(x_shape))
    kept = [d for d in range(len(x_shape)) if d not in dims]
    w = x if weight is not None else ""
    return Contraction("".join(x[d] for d in kept), x, tuple(x_shape[d] for d in kept), x_shape, w, weight)


def sparse(edges: Callable[[], Edges], y_shape: tuple[int, int, int], x_shape: tuple[int, int, int]) -> Sparse:
    """Make a `Sparse` of edges among which a pair (i, j) may occur several times: their weights are added.

    >>> twice = torch.zeros(2, dtype=torch.int64)
    >>> sparse(lambda: (twice, twice, torch.ones(2)), (1, 1, 1), (1, 1, 1)).edges()[2].tolist()
    [2.0]
    """

    def merged() -> Edges:
        i, j, w = edges()
        pairs, slot = torch.unique(i * x_shape[1] + j, return_inverse=True)
        values = torch.ones_like(i, dtype=torch.float64) if w is None else w
        added = values.new_zeros(len(pairs)).index_add(0, slot, values)
        return pairs // x_shape[1], pairs % x_shape[1], added

    return Sparse(merged, y_shape, x_shape)


def dense(y_numel: int, x_numel: int, weight: Weight) -> Contraction:
    """Structure of any operator; the weight is its whole Jacobian, y.numel() × x.numel()."""
    return Contraction("a", "b", (y_numel,), (x_numel,), "ab", weight)
