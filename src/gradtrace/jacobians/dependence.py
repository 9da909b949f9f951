"""What depends on what without a derivative: indices, masks, conditions, integer results, and choices.

Rules say how a result changes with an argument. Which example a result belongs to depends on more: an index says which
row is read, a comparison which of several scalars is passed on. A row here gives the structures of such dependences,
without weights; `chooses` are those in which scalars compete, so that one example's value can change another's edges.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import prod
from typing import TypeAlias

import torch
from torch import Tensor

from ..recording.layouts import Shape
from ..recording.operators import FACTORIES
from ..recording.record import Call, Input
from .rules.pointwise import ELEMENTWISE, is_pointwise
from .rules.reduction import axes
from .rules.scattering import at_index, at_index_select, grid
from .rules.table import Edge, argument, data, position
from .structure import LETTERS, Contraction, Gather, Scatter, Sparse

Row: TypeAlias = Callable[[Call], Iterator[Edge]]

TABLE: dict[str, Row] = {}
CHOICES: dict[str, Row] = {}
LINEAR = {"sum", "mean", "nll_loss_forward", "nll_loss2d_forward"}  # in their first argument
_ELEMENTWISE = set(ELEMENTWISE.split())


def depends(call: Call) -> list[Edge] | None:
    """Give what results depend on, derivatives aside; None where no row says."""
    row = TABLE.get(call.base) or (CHOICES.get(call.base))
    if row is None and (is_pointwise(call.op) or call.base in _ELEMENTWISE or draws_scalars(call)):
        row = elementwise
    return None if row is None else list(row(call))


def chooses(call: Call) -> list[Edge]:
    """Give along which scalars of its arguments a call compares and selects."""
    row = CHOICES.get(call.base)
    return [] if row is None else list(row(call))


def linear(call: Call, at: int) -> bool:
    """Tell whether derivatives surely do not depend on the numbers of an argument."""
    return call.base in LINEAR and at == 0


def everything(call: Call, at: int, number: int) -> Edge:
    """Give the structure in which every scalar of a result depends on every scalar of an argument."""
    y, x = _made(call, number), call.inputs[at].shape
    return at, number, aligned(y, x, {})


def _made(call: Call, number: int) -> Shape:
    value = call.outputs[number]
    assert value is not None
    return value.shape


def _numbers(call: Call) -> list[int]:
    return [number for number, y in enumerate(call.outputs) if y is not None]


def aligned(y: Shape, x: Shape, same: dict[int, int]) -> Contraction:
    """Give the structure in which axis `same[d]` of x runs along axis d of y; all other axes of x are merged.

    >>> aligned((5, 3), (5, 7), {0: 0})
    Contraction(y='ab', x='ac', y_shape=(5, 3), x_shape=(5, 7), w='', weight=None)
    """
    names = LETTERS[: len(y)]
    of = {there: names[here] for here, there in same.items() if y[here] == x[there]}
    rest = iter(LETTERS[len(y) :])
    return Contraction(names, "".join(of[d] if d in of else next(rest) for d in range(len(x))), y, x)


def elementwise(call: Call) -> Iterator[Edge]:
    """Each scalar of a result depends on the scalars at its place, with broadcasting."""
    for number in _numbers(call):
        y = _made(call, number)
        flat = len(y) - (1 if call.gives_complex else 0)  # axes other than that of a pair
        for at, given in enumerate(call.inputs):
            own = len(given.shape) - (1 if given.dtype.is_complex else 0)
            if own <= flat:
                yield at, number, aligned(y, given.shape, {d + flat - own: d for d in range(own)})


def quantised(call: Call) -> Iterator[Edge]:
    """Each number is rounded by itself; scales and zero points belong to all."""
    for number in _numbers(call):
        for at, given in enumerate(call.inputs):
            y, x = _made(call, number), given.shape
            yield at, number, aligned(y, x, {d: d for d in range(len(y))} if x == y and not at else {})


def draws_scalars(call: Call) -> bool:
    """Tell whether an operator draws each number by itself, its parameters having the result's shape."""
    if torch.Tag.nondeterministic_seeded not in getattr(call.op, "tags", ()):
        return False
    return all(given.shape == _made(call, n) for n in _numbers(call) for given in call.inputs)


def along(name: str = "dim", to: slice = slice(None)) -> Row:
    """Make the row of an operator that looks along one axis, or several: what it gives has them, or has lost them.

    Args:
        name: of the argument that names the axis; None among the arguments stands for all of them.
        to: which results.
    """

    def row(call: Call) -> Iterator[Edge]:
        x = call.inputs[0].shape
        merged = _merged(call, name)
        for number in _numbers(call)[to]:
            y = _made(call, number)
            kept = [d for d in range(len(x)) if d not in merged]
            places = kept if len(y) == len(x) else range(len(kept))
            yield 0, number, aligned(y, x, dict(zip(places, kept, strict=True)))

    return row


def _merged(call: Call, name: str) -> set[int]:
    rank = len(call.inputs[0].shape)
    names = [a.name for a in call.op._schema.arguments]  # type: ignore[attr-defined]
    dims = argument(call, name) if name in names else None
    if dims is None:
        return set(range(rank))
    if isinstance(dims, int):
        return {dims % rank} if rank else set()
    return set(axes(call))


def rows(call: Call) -> Iterator[Edge]:
    """The first axis runs along; everything else is merged."""
    for number in _numbers(call):
        for at in range(len(call.inputs)):
            y, x = _made(call, number), call.inputs[at].shape
            yield at, number, aligned(y, x, {0: 0} if x and y else {})


def planes(rank: int) -> Row:
    """Make the row of an operator on images, of so many axes; those in front of them run along."""

    def row(call: Call) -> Iterator[Edge]:
        for number in _numbers(call):
            y = _made(call, number)
            for at, given in enumerate(call.inputs):
                yield at, number, aligned(y, given.shape, {d: d for d in range(len(y) - rank)})

    return row


def alignments(call: Call) -> Iterator[Edge]:
    """ctc_loss: an example's loss depends on its own scores, targets and lengths; targets may lie end to end."""
    scores, targets = position(call, "log_probs"), position(call, "targets")
    for number in _numbers(call):
        y = _made(call, number)
        for at, given in enumerate(call.inputs):
            if at == scores:
                yield at, number, aligned(y, given.shape, {0: 1} if y else {})
            elif at == targets and len(given.shape) == 1 and y:
                yield at, number, _end_to_end(call, at, y)
            else:
                yield at, number, aligned(y, given.shape, {0: 0} if y and given.shape else {})


def _end_to_end(call: Call, at: int, y: Shape) -> Sparse:
    """Give the structure in which target after target belongs to row after row."""
    given, size = data(call, "target_lengths"), prod(y[1:])
    lengths = torch.tensor(argument(call, "target_lengths")) if given is None else given

    def edges() -> tuple[Tensor, Tensor, None]:
        owner = torch.arange(y[0]).repeat_interleave(lengths.reshape(-1).long())
        cells = owner[:, None] * size + torch.arange(size)
        return cells.flatten(), torch.arange(len(owner)).repeat_interleave(size), None

    return Sparse(edges, (1, prod(y), 1), (1, prod(call.inputs[at].shape), 1))


def whole(call: Call) -> Iterator[Edge]:
    """Everything depends on everything."""
    for number in _numbers(call):
        for at in range(len(call.inputs)):
            yield everything(call, at, number)


def places(call: Call) -> Iterator[Edge]:
    """Nonzero: each row of the result says where one scalar is."""
    x, y = call.inputs[0], _made(call, 0)

    def index() -> Tensor:
        found = x.tensor().flatten().nonzero().squeeze(-1)
        return found[:, None].expand(-1, y[1])

    yield 0, 0, Gather(index, y, x.shape)


def chosen_by(*names: str) -> Row:
    """Make the row of an operator whose arguments of these names have the result's shape, or broadcast to it."""

    def row(call: Call) -> Iterator[Edge]:
        for name in names:
            at = position(call, name)
            for number in _numbers(call):
                y = _made(call, number)
                if at is not None and len(call.inputs[at].shape) <= len(y):
                    x = call.inputs[at].shape
                    yield at, number, aligned(y, x, {d + len(y) - len(x): d for d in range(len(x))})

    return row


def selected_by_mask(call: Call) -> Iterator[Edge]:
    """masked_select: what is read belongs to whom the mask's scalar there does."""
    y, x, mask = _made(call, 0), call.inputs[0], call.inputs[1]

    def index() -> Tensor:
        both = torch.broadcast_shapes(x.shape, mask.shape)
        return grid(mask.shape).expand(both)[mask.tensor().expand(both)]

    yield 1, 0, Gather(index, y, mask.shape)


def selected_by_index(call: Call) -> Iterator[Edge]:
    """index_select: the index runs along its axis of the result."""
    at, y = position(call, "index"), _made(call, 0)
    if at is not None:
        x = call.inputs[at].shape
        yield at, 0, aligned(y, x, {argument(call, "dim") % len(y): 0} if y and x else {})


def indexed(call: Call) -> Iterator[Edge]:
    """index: tensors of integers are broadcast together, and stand where the first of them stood, or in front."""
    y, slots = _made(call, 0), argument(call, "indices")
    given = {place: call.inputs[s.position] for place, s in enumerate(slots) if s is not None}
    masks = any(i.dtype in (torch.bool, torch.uint8) for i in given.values())
    if masks:
        yield from _masked(call, given)
        return
    common = torch.broadcast_shapes(*(i.shape for i in given.values()))
    order = sorted(given)
    together = order == list(range(order[0], order[0] + len(order)))
    begin = order[0] if together else 0
    for place, index in given.items():
        skip = begin + len(common) - len(index.shape)
        yield slots[place].position, 0, aligned(y, index.shape, {d + skip: d for d in range(len(index.shape))})


def _masked(call: Call, given: dict[int, Input]) -> Iterator[Edge]:
    """A mask reads where it is true: what is read belongs to whom the mask's scalar there does."""
    y, slots = _made(call, 0), argument(call, "indices")
    for place, mask in given.items():
        at = slots[place].position
        if len(given) > 1 or mask.dtype not in (torch.bool, torch.uint8):
            yield at, 0, aligned(y, mask.shape, {})
            continue
        found = mask.tensor().flatten().nonzero().squeeze(-1)
        size = [1] * len(y)
        size[place] = len(found)
        yield at, 0, Gather(lambda f=found, s=tuple(size): f.reshape(s).expand(y), y, mask.shape)


def written_by_index(call: Call) -> Iterator[Edge]:
    """Scatter and its like: an index says which place its scalar of the source goes to."""
    at, y = position(call, "index"), _made(call, 0)
    if at is None or not y:
        return
    x, dim = call.inputs[at], argument(call, "dim")
    if "scatter" in call.base:
        yield at, 0, Scatter(lambda: grid(y).gather(dim, x.tensor()), y, x.shape)
    else:
        rest = prod(n for d, n in enumerate(y) if d != dim % len(y))
        target = lambda: at_index_select(call, grid(y)).movedim(dim, 0).reshape(-1)  # noqa: E731
        repeated = lambda: torch.arange(prod(x.shape)).repeat_interleave(rest)  # noqa: E731
        yield at, 0, Sparse(lambda: (target(), repeated(), None), (1, prod(y), 1), (1, prod(x.shape), 1))


def put_by_index(call: Call) -> Iterator[Edge]:
    """index_put: an index says where the values that stand at its place go."""
    y, slots = _made(call, 0), argument(call, "indices")
    given = [call.inputs[slot.position] for slot in slots if slot is not None]
    simple = len(given) == len(slots) and not any(x.dtype in (torch.bool, torch.uint8) for x in given)
    for slot in slots:
        if slot is None:
            continue
        x = call.inputs[slot.position]
        if x.dtype in (torch.bool, torch.uint8):
            yield slot.position, 0, aligned(y, x.shape, {d: d for d in range(len(x.shape))})
            continue

        def edges(x: Input = x) -> tuple[Tensor, Tensor, None]:
            target, common = at_index(call, grid(y)), torch.broadcast_shapes(*(i.shape for i in given))
            own = grid(x.shape).expand(common).reshape(*common, *[1] * (target.dim() - len(common)))
            return target.flatten(), own.expand(target.shape).flatten(), None

        spread = Sparse(edges, (1, prod(y), 1), (1, prod(x.shape), 1))
        yield slot.position, 0, spread if simple else aligned(y, x.shape, {})


def bagged(call: Call) -> Iterator[Edge]:
    """embedding_bag: a bag depends on the indices in it."""
    y, at = _made(call, 0), position(call, "indices")
    rows, offsets = data(call, "indices"), data(call, "offsets")
    if at is None or rows is None or offsets is None or len(rows.shape) != 1:
        return

    def edges() -> tuple[Tensor, Tensor, None]:
        place = torch.arange(len(rows))
        bag = torch.searchsorted(offsets.to(torch.int64), place, right=True) - 1
        cells = bag[:, None] * y[1] + torch.arange(y[1])
        return cells.flatten(), place.repeat_interleave(y[1]), None

    yield at, 0, Sparse(edges, (1, prod(y), 1), (1, len(rows), 1))


def sought(call: Call) -> Iterator[Edge]:
    """Searchsorted and bucketize: each value is sought by itself, in all of the boundaries."""
    for number in _numbers(call):
        for at, given in enumerate(call.inputs):
            y = _made(call, number)
            same = {d: d for d in range(len(y))} if given.shape == y else {}
            yield at, number, aligned(y, given.shape, same)


def targeted(call: Call) -> Iterator[Edge]:
    """Losses of classes: a row's target stands beside it."""
    at = position(call, "target")
    for number in _numbers(call):
        y = _made(call, number)
        if at is not None:
            x = call.inputs[at].shape
            yield at, number, aligned(y, x, {d: d for d in range(len(y))} if x == y else {})


def nothing(call: Call) -> Iterator[Edge]:
    """Only a shape is asked of the argument, or nothing."""
    del call
    yield from ()


def compared(call: Call) -> Iterator[Edge]:
    """Margin losses compare the numbers of one row; a single row has no axis of examples beside."""
    if len(call.inputs[0].shape) == 1:
        yield everything(call, 0, 0)


def packed(call: Call) -> Iterator[Edge]:
    """How many rows a step has depends on all lengths; the rows themselves are only moved."""
    if call.outputs[-1] is not None and len(call.inputs) > 1:
        yield everything(call, 1, len(call.outputs) - 1)


def _register(table: dict[str, Row], names: str, row: Row) -> None:
    for name in names.split():
        assert name not in table, name
        table[name] = row


_register(CHOICES, "max min median nanmedian kthvalue mode sort topk cummax cummin aminmax amax amin", along())
_register(CHOICES, "argmax argmin argsort", along())
_register(CHOICES, "multi_margin_loss multilabel_margin_loss_forward", compared)
_register(TABLE, " ".join(FACTORIES), nothing)
_register(TABLE, "any all count_nonzero", along())
_register(TABLE, "convolution_backward", nothing)  # beside what has a derivative
_register(TABLE, "nonzero", places)
_register(TABLE, "bincount histc _unique2 unique_dim unique_consecutive", whole)
_register(TABLE, "gather take", chosen_by("index"))
_register(TABLE, "masked_fill masked_scatter", chosen_by("mask"))
_register(TABLE, "masked_select", selected_by_mask)
_register(TABLE, "_ctc_loss", alignments)
_register(TABLE, "max_unpool2d max_pool2d_with_indices_backward adaptive_max_pool2d_backward", planes(2))
_register(TABLE, "fractional_max_pool2d_backward", planes(2))
_register(TABLE, "max_unpool3d max_pool3d_with_indices_backward adaptive_max_pool3d_backward", planes(3))
_register(TABLE, "fractional_max_pool3d_backward", planes(3))
_register(TABLE, "quantize_per_tensor quantize_per_channel dequantize", quantised)
_register(TABLE, "index_select", selected_by_index)
_register(TABLE, "index _unsafe_index", indexed)
_register(TABLE, "scatter scatter_add scatter_reduce index_add index_copy index_fill index_reduce", written_by_index)
_register(TABLE, "index_put _index_put_impl _unsafe_index_put", put_by_index)
_register(TABLE, "_embedding_bag", bagged)
_register(TABLE, "searchsorted bucketize", sought)
_register(TABLE, "nll_loss_forward nll_loss2d_forward multi_margin_loss", targeted)
_register(TABLE, "multinomial _sample_dirichlet", rows)
_register(TABLE, "_pack_padded_sequence", packed)
