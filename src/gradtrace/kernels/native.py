"""The compiled kernels, called on tensors: every function is one of the (max, ×) semiring's, with the winners.

Values are non-negative float32 or float64, winners are int32 (or int16), -1 where the result is 0; of equals the
smallest index wins. Each function gives its results and a `Range`: what it tells of overflow, underflow and NaN lets
the engine choose another precision before anything is wrong. Without the compiled module (`MISSING` says why: no
compiler when gradtrace was installed, say) `available()` is False, and the reference kernels serve every pass.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..jacobians.structure import Sliding
from .memory import empty

try:
    lib: Any = import_module("gradtrace._native")
    MISSING = ""
except ImportError as error:
    lib, MISSING = None, str(error)

NAN, LOST = 1, 2
MAX_DIMS = 8  # of a pointwise kernel's operands
SHORT, MANY = 1 << 15, 1 << 16  # candidates that 16 bits can number; winners from which on it pays
FORMS = {"one": 0, "given": 1, "tanh": 2, "sigmoid": 3, "relu": 4, "constant": 5, "exp": 6}
_state = {"on": os.environ.get("GRADTRACE_KERNELS", "native") != "reference", "said": False}


class Range(NamedTuple):
    """The largest and the smallest non-zero result, and flags: NAN seen, values LOST to underflow."""

    high: float
    low: float
    flags: int


def together(found: Sequence[Range]) -> Range:
    """Give the range of several results."""
    flags = 0
    for one in found:
        flags |= one.flags
    return Range(max(r.high for r in found), min(r.low for r in found), flags)


def available() -> bool:
    """Tell whether the compiled kernels are there and switched on; say once where they are missing."""
    if lib is None and _state["on"] and not _state["said"]:
        _state["said"] = True
        warnings.warn(
            f"gradtrace runs without its compiled kernels ({MISSING}): traces are exact, but slow; "
            "set GRADTRACE_KERNELS=reference to silence this",
            RuntimeWarning,
            stacklevel=2,
        )
    return lib is not None and _state["on"]


@contextmanager
def using(kind: str) -> Iterator[None]:
    """Use the "native" or the "reference" kernels inside the block."""
    if kind not in ("native", "reference"):
        raise ValueError(f"unknown kernels {kind!r}; there are native, reference")
    before = _state["on"]
    _state["on"] = kind == "native"
    try:
        yield
    finally:
        _state["on"] = before


def _pointers(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _like(shape: Sequence[int], tensor: Tensor, *, small: bool = False) -> tuple[Tensor, Tensor]:
    """Make room for values and winners."""
    return empty(tensor.dtype, *shape), empty(torch.int16 if small else torch.int32, *shape)


def max_product(a: Tensor, w: Tensor, prepared: Any = None) -> tuple[Tensor, Tensor, Range]:
    """Give max_k a[b,i,k]·|w[b,j,k]| and the k that reaches it, where they are many in 16 bits: b × i × j each.

    Args:
        a: b × i × k, non-negative, any strides.
        w: b × j × k of the same dtype, any strides.
        prepared: what `prepare(w)` gave, where w is used again and again.
    """
    (batch, m, k), n = a.shape, w.shape[1]
    out, arg = _like((batch, m, n), a, small=k <= SHORT and batch * m * n >= MANY)
    found = lib.max_product(
        a.dtype is torch.float64,
        batch,
        m,
        n,
        k,
        a.data_ptr(),
        *a.stride(),
        w.data_ptr(),
        *w.stride(),
        out.data_ptr(),
        arg.data_ptr(),
        prepared,
        torch.get_num_threads(),
        arg.dtype is torch.int16,
    )
    return out, arg, Range(*found)


def prepare(w: Tensor) -> Any:
    """Pack |w| (b × j × k) once for many products; valid as long as w does not change."""
    return lib.prepare(w.dtype is torch.float64, *w.shape, w.data_ptr(), *w.stride())


def scale(
    g: Tensor,
    shape: Sequence[int],
    form: str = "one",
    w: Tensor | None = None,
    constant: float = 1.0,
    f: float = 1.0,
) -> tuple[Tensor, Range]:
    """Give |w|·g·f of a shape that both broadcast to; `form` says what w is a form of (see `structure.FORMS`)."""
    out = empty(g.dtype, *shape)
    if len(shape) > MAX_DIMS:
        g, w, shape = g.expand(shape).flatten(), w if w is None else w.expand(shape).flatten(), [out.numel()]
    of_g = _strides(g, shape)
    of_w = of_g if w is None else _strides(w, shape)
    double, threads = g.dtype is torch.float64, torch.get_num_threads()
    pointer = 0 if w is None else w.data_ptr()
    found = lib.scale(
        double, FORMS[form], shape, g.data_ptr(), of_g, pointer, of_w, constant, f, out.data_ptr(), threads
    )
    return out, Range(*found)


def _strides(t: Tensor, shape: Sequence[int]) -> Sequence[int]:
    if t.shape == shape:
        return t.stride()
    return (0, *t.stride()) if t.shape == shape[1:] else t.expand(shape).stride()


def merge(
    a: Tensor, fa: float, b: Tensor, fb: float, indices: tuple[Tensor, Tensor] | None, choice: Tensor | None, mark: int
) -> Range:
    """Let b·fb into a·fa wherever it is not smaller (and not 0), with its index and `mark` as the choice; in place."""
    mine, theirs = (0, 0) if indices is None else (indices[0].data_ptr(), indices[1].data_ptr())
    wide = choice is not None and choice.dtype is torch.int32
    double, threads = a.dtype is torch.float64, torch.get_num_threads()
    where = a.data_ptr(), fa, b.data_ptr(), fb, mine, theirs, _pointers(choice)
    return Range(*lib.merge(double, a.numel(), *where, mark, wide, threads))


def reduce_max(g: Tensor, w: Tensor | None = None, f: float = 1.0) -> tuple[Tensor, Tensor, Range]:
    """Give max_n |w[o,n,i]|·g[o,n,i]·f and the n that reaches it: o × i each; n may be two axes."""
    outer, *n, inner = g.shape
    out, arg = _like((outer, inner), g)
    strides = g.stride() if w is None else w.stride()
    found = lib.reduce_max(
        g.dtype is torch.float64,
        outer,
        n if len(n) > 1 else n[0],
        inner,
        g.data_ptr(),
        list(g.stride()),
        _pointers(w),
        list(strides),
        f,
        out.data_ptr(),
        arg.data_ptr(),
        torch.get_num_threads(),
    )
    return out, arg, Range(*found)


def segment_max(g: Tensor, index: Tensor, size: int, f: float = 1.0) -> tuple[Tensor, Tensor, Range]:
    """Give, for g of batch × rows × width, the largest of the rows of each index: batch × size × width each."""
    g = g.contiguous()
    batch, rows, width = g.shape
    out, arg = _like((batch, size, width), g)
    found = lib.segment_max(
        g.dtype is torch.float64,
        batch,
        rows,
        width,
        size,
        g.data_ptr(),
        index.data_ptr(),
        f,
        out.data_ptr(),
        arg.data_ptr(),
        True,
        0,
        0,
        False,
        torch.get_num_threads(),
    )
    return out, arg, Range(*found)


KINDS = {"softmax": 1, "log_softmax": 2}


def low_rank(form: str, g: Tensor, factors: Sequence[Any], count: int, out: Tensor, arg: Tensor, f: float) -> Range:
    """Write out_j = max(|own_j| g_j, max over i≠j of |Σ_r left_r,i right_r,j| g_i)·f, all of rows × n1 × n2.

    Args:
        form: what the factors are. "one": own, left, right; "two": own, left_1, left_2, right_2, with right_1 = 1;
            "softmax", "log_softmax": p; "standard": x̂, γ or None, scale, which may be float32 where g is float64.
        count: of "standard", how many scalars share a mean.
        out, arg: written; the winner is a position in the row, n1·n2 of them. Those of "standard" may be int16.
    """
    double, threads = g.dtype is torch.float64, torch.get_num_threads()
    where = *g.shape, g.data_ptr(), list(g.stride())
    to = f, out.data_ptr(), list(out.stride()), arg.data_ptr(), threads
    given = lying(*factors)
    if form == "one":
        return Range(*lib.rank_one(double, 0, *where, *given, *to))
    if form in KINDS:
        nothing = 0, [0, 0, 0]
        return Range(*lib.rank_one(double, KINDS[form], *where, *nothing, *nothing, *given, *to))
    if form == "standard":
        wide = double and factors[0].dtype is torch.float64
        kinds, small = (double, wide), arg.dtype is torch.int16
        return Range(*lib.standard(*kinds, *where, *given, float(count), *to[:-1], small, threads))
    return Range(*lib.rank_two(double, *where, *given, *to))


def lying(*arrays: Tensor | None) -> list[Any]:
    """Say where arrays of three axes lie: address (0: nowhere) and strides, of one after the other."""
    return [x for t in arrays for x in ((0, [0, 0, 0]) if t is None else (t.data_ptr(), list(t.stride())))]


MEET, ABSENT = 2, 4


def meeting(left: Sequence[Tensor], right: Sequence[Tensor]) -> int:
    """Say which left_0,i right_0,j + left_1,i right_1,j (rows × n1 × n2 each) are 0 for some i and j of a row: flags.

    NAN; MEET: some may be, though neither side is; ABSENT: some left_i or right_j is 0.
    """
    double, threads = left[0].dtype is torch.float64, torch.get_num_threads()
    return lib.meeting(double, *left[0].shape, *lying(*left, *right), threads)


def tally(bits: Tensor, weight: Tensor) -> list[tuple[int, int, float]] | None:
    """Count the distinct sets of bits where the weight is not 0: (the set, how many, the sum of weights).

    None where there are too many of them.
    """
    bits, weight = bits.contiguous(), weight.contiguous()
    double, threads = weight.dtype is torch.float64, torch.get_num_threads()
    return lib.tally(double, bits.data_ptr(), weight.data_ptr(), len(bits), threads)


def convolved(g: Tensor, other: Tensor, sizes: Sliding, f: float, *, to_input: bool) -> tuple[Tensor, Tensor, Range]:
    """Give a convolution's strongest edges into its input (`other` is the kernel) or its kernel (`other` is the input).

    The winner is a position of the result: within one example towards the input, among all towards the kernel.
    """
    g, other = g.contiguous(), other.contiguous()
    out, arg = _like(sizes.input if to_input else sizes.kernel, g)
    shapes = list(sizes.input), list(sizes.kernel), list(sizes.output), sizes.groups
    moves = list(sizes.stride), list(sizes.padding), list(sizes.dilation)
    call = lib.conv_input if to_input else lib.conv_weight
    where = other.data_ptr(), g.data_ptr(), f, out.data_ptr(), arg.data_ptr(), torch.get_num_threads()
    return out, arg, Range(*call(g.dtype is torch.float64, sizes.transposed, *shapes, *moves, *where))


class Source(NamedTuple):
    """Where sets of components are read: bits[offset + Σ coordinate·stride + stored·step] | also, or also alone.

    Instead of stored·step, table[stored] where there is a table.
    """

    bits: Tensor | None
    also: int
    offset: int
    step: int
    table: Tensor | None
    stride: list[int]


class Walk(NamedTuple):
    """Winners of one row of a value, and the sources that they choose among: by `terms`, or else by `choice`."""

    shape: list[int]
    raw: Tensor | None
    choice: Tensor | None
    terms: tuple[Tensor, Tensor] | None
    sources: list[Source]


def inherit(w: Walk, begin: int, end: int, word: torch.dtype = torch.int64, *, widen: bool = False) -> Tensor:
    """Give the sets that some scalars, by flat position, read from the sources they chose.

    Args:
        word: of the sources' sets, and of the result; or, with `widen`, the result is in int64.
    """
    out = empty(torch.int64 if widen else word, end - begin)
    given = []
    for s in w.sources:
        size = 0 if s.bits is None else s.bits.numel()
        given.append((_pointers(s.bits), size, s.also, s.offset, s.step, _pointers(s.table), s.stride))
    strides = [list(t.stride()) if t is not None else [] for t in (w.raw, w.choice)]
    wide = w.choice is not None and w.choice.dtype is torch.int32
    ordinal, local = w.terms if w.terms is not None else (None, None)
    lib.inherit(
        w.shape,
        _pointers(w.raw),
        strides[0],
        w.raw is not None and w.raw.dtype is torch.int16,
        _pointers(w.choice),
        strides[1],
        wide,
        _pointers(ordinal),
        _pointers(local),
        given,
        begin,
        end,
        word.itemsize,
        widen,
        out.data_ptr(),
        torch.get_num_threads(),
    )
    return out


def plane(stored: Tensor | None) -> tuple[int, int, list[int]]:
    """Say where integers of batch × shape lie: address (0: nowhere), their bytes, strides (0 along a batch of one)."""
    if stored is None:
        return 0, 0, []
    batch, *strides = stored.stride()
    return stored.data_ptr(), stored.dtype.itemsize, [batch if len(stored) > 1 else 0, *strides]


def absolute(numbers: Tensor) -> Range:
    """Write absolute values over numbers (contiguous), and give what they span. Memory of zeros is not written to."""
    double, threads = numbers.dtype is torch.float64, torch.get_num_threads()
    return Range(*lib.absolute(double, numbers.data_ptr(), numbers.numel(), threads))


def any_nan(tensors: Sequence[Tensor]) -> bool:
    """Tell whether one of some tensors, all float32 or all float64, holds a NaN.

    Memory that several share is read once.
    """
    given: dict[int, int] = {}
    kept = []  # copies live until they have been read
    for t in tensors:
        if not t.is_contiguous() and _reach(t) != t.numel():
            kept.append(t := t.contiguous())
        pointer = t.data_ptr()
        given[pointer] = max(t.numel(), given.get(pointer, 0))
    double = bool(tensors) and tensors[0].dtype is torch.float64
    return lib.any_nan(double, list(given.items()), torch.get_num_threads())


def _reach(t: Tensor) -> int:
    """Count the numbers from a tensor's first to its last: where they are no more than it has, it is all of them."""
    return 1 + sum([(n - 1) * step for n, step in zip(t.shape, t.stride(), strict=True)])


# Several path weights a scalar, in planes: the s-th largest of every scalar, 0 where there are fewer. All planes of an
# element have one shape and one layout; `out` has them in front. All numbers of a call are float32, or all float64.
# Flags are those of a `Range`, and TOO_LARGE: a result is infinite.
TOO_LARGE = 4
Planes = Sequence[Tensor]


def _addresses(planes: Planes) -> list[int]:
    return [p.data_ptr() for p in planes]


def _double(tensor: Tensor) -> bool:
    return tensor.dtype is torch.float64


def top_product(a: Planes, w: Tensor, out: Tensor, rows: int = 1) -> int:
    """Write the largest a[b,i,k]·|w[b,j,k]| over k and the entries of a, entries × b × i × j. Gives flags.

    Args:
        rows: how many axes of `a` behind the first are i; the others are k.
    """
    batch, *axes = zip(a[0].shape, a[0].stride(), strict=True)
    where = _addresses(a), batch[1], axes[:rows], axes[rows:], w.data_ptr(), list(w.stride()), len(out), out.data_ptr()
    return lib.top_product(_double(out), batch[0], out.shape[-1], *where, torch.get_num_threads())


def top_low_rank(g: Planes, factors: Sequence[Tensor], out: Tensor) -> int:
    """Carry batch × rows × n back by Jacobians of one row each. Gives flags.

    Args:
        factors: own, then the left and the right ones, one or two each, rows × n.
    """
    keep, batch, rows, n = out.shape
    strides = [[0, *t.stride()] for t in factors]
    given = _addresses(g), list(g[0].stride()), _addresses(factors), strides
    return lib.top_low_rank(_double(out), batch, rows, n, *given, keep, out.data_ptr(), torch.get_num_threads())


def top_weigh(w: Tensor, g: Planes, out: Tensor) -> int:
    """Write |w|·g, all contiguous and of one shape. Gives flags."""
    where = _addresses(g), w.data_ptr(), out.data_ptr()
    return lib.top_weigh(_double(out), w.numel(), *where, torch.get_num_threads())


def top_merge(a: Planes, b: Planes, out: Planes) -> None:
    """Write the largest of a's and b's weights, scalar by scalar; all contiguous. `out` may be a itself."""
    lib.top_merge(_double(a[0]), a[0].numel(), _addresses(a), _addresses(b), _addresses(out), torch.get_num_threads())


def top_reduce(g: Planes, out: Tensor) -> None:
    """Write the largest of every row of rows × n, of which one axis goes on along memory: entries × rows."""
    where = _addresses(g), *g[0].stride(), len(out), out.data_ptr()
    lib.top_reduce(_double(out), *g[0].shape, *where, torch.get_num_threads())


def top_segment(g: Planes, index: Tensor, out: Tensor) -> int:
    """Merge rows × n into zeros, entries × rows × size, by the index (n, or rows × n): how many entries are in use."""
    keep, rows, size = out.shape
    index = index.contiguous()
    where = _addresses(g), [0, *g[0].stride()], index.data_ptr(), index.shape[-1] if index.dim() > 1 else 0
    return lib.top_segment(_double(out), rows, g[0].shape[1], *where, size, keep, out.data_ptr())


def top_depth(g: Planes, keep: int, rows: int = 1) -> int:
    """Give the largest number of weights other than 0 in any row of batch × rows × n, at most `keep`.

    Args:
        rows: how many axes of `g` behind the first are rows.
    """
    batch, *axes = zip(g[0].shape, g[0].stride(), strict=True)
    return lib.top_depth(_double(g[0]), batch[0], _addresses(g), batch[1], axes[:rows], axes[rows:], keep)
