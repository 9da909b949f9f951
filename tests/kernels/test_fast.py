"""The compiled kernels of every structure against loops over a Jacobian written out from the definition.

Weights and values are small integers, zeros and ties among them, so that values and winners are exact: of equal
ones the smallest flat position of the result has won.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numeric_jacobians import LAYOUTS, contractions, integers, jacobian, low_rank_factors, seeds, strongest
from planes import drawn, plane, read

from gradtrace.errors import NotANumber
from gradtrace.jacobians.structure import (
    Chain,
    Closed,
    ClosedRows,
    Constant,
    Contraction,
    Convolved,
    Gather,
    LowRank,
    Placed,
    Scatter,
    Sliding,
    Sparse,
    Strided,
    Structure,
    diagonal,
    reduction,
)
from gradtrace.kernels import maps, native
from gradtrace.kernels.fast import pull
from gradtrace.kernels.shared_exponent import OutOfRange, Plane, Pulled, Spikes
from gradtrace.recording.layouts import Layout

pytestmark = pytest.mark.skipif(native.lib is None, reason="no compiled kernels")
DTYPES = (torch.float64, torch.float32)


def check(s: Structure, y_shape: tuple[int, ...], x_numel: int, seed: int, dtypes: tuple[Any, ...] = DTYPES) -> None:
    """Compare values and winners, for one batch entry and several, in both precisions and orders of memory."""
    j = sorted((at, w) for at, w in jacobian(s).items() if w != 0)
    for dtype in dtypes:
        for batch, permuted in ((1, False), (1, True), (3, False), (3, True)):
            g = drawn(batch, y_shape, seed, dtype, permuted=permuted)
            values, winners = read(pull(s, plane(g)), x_numel, batch)
            for b in range(batch):
                given_ = g[b].flatten().tolist()
                expected = [strongest([(abs(w * given_[i]), i) for (i, k), w in j if k == x]) for x in range(x_numel)]
                assert values[b].tolist() == [v for v, _ in expected]
                assert winners[b].tolist() == [i if v else -1 for v, i in expected]


# ---------------------------------------------------------------- structures


def test_merged_axes_that_lie_apart_are_read_in_place(monkeypatch):
    """What a channel's β gets from all examples and pixels: no copy of the values, and one more case for the oracle."""
    seen = []
    reduce_max = native.reduce_max
    monkeypatch.setattr(native, "reduce_max", lambda g, *rest: (seen.append(g.data_ptr()), reduce_max(g, *rest))[1])
    g, weight = drawn(1, (3, 2, 4, 5), 0, torch.float32), integers((3, 2, 4, 5), 1).float()
    for w in ("", "bchw"):
        s = Contraction("bchw", "c", (3, 2, 4, 5), (2,), w, (lambda: weight) if w else None)
        pull(s, plane(g))
        check(s, (3, 2, 4, 5), 2, 0)
    assert seen[0] == g.data_ptr()
    assert g.data_ptr() in seen[1:]


@given(contractions(), seeds)
@settings(deadline=None, max_examples=150)
def test_contractions(s, seed):
    check(s, s.y_shape, torch.Size(s.x_shape).numel(), seed)


def test_a_pointwise_weight_of_many_axes():
    shape = (2, 1, 2, 1, 2, 3, 1, 2, 2)
    weight = integers((2, 2, 3, 2, 2, 2), 0)[..., None, None, None].permute(0, 6, 1, 7, 3, 2, 8, 4, 5)
    check(diagonal(shape, shape, lambda: weight), shape, weight.numel(), 1)


EINSUMS = ["ik,kj->ij", "bik,bkj->bij", "ik,k->i", "k,k->", "i,j->ij", "bik,bkj->ij", "bhqd,bhkd->bhqk"]


@pytest.mark.parametrize("weights", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("equation", EINSUMS)
def test_both_arguments_of_a_product(equation, weights):
    sizes = dict(zip("bhijkdq", (2, 2, 2, 3, 4, 2, 3), strict=True))
    (a, b), y = equation.split("->")[0].split(","), equation.split("->")[1]
    shapes = {ls: tuple(sizes[c] for c in ls) for ls in (a, b, y)}
    for x, w in ((a, b), (b, a)):
        weight = integers(shapes[w], 1).to(weights)
        s = Contraction(y, x, shapes[y], shapes[x], w, lambda weight=weight: weight)
        check(s, shapes[y], torch.Size(shapes[x]).numel(), 2)


@given(
    st.sampled_from([((2, 3), (2, 3)), ((2, 3), (3,)), ((2, 3), (1, 3)), ((2, 3), (2, 1)), ((2, 3), ()), ((), ())]),
    seeds,
)
@settings(deadline=None, max_examples=40)
def test_diagonals_with_broadcasting(shapes, seed):
    y, x = shapes
    weights = [lambda: integers(y, seed), None, Constant(-3.0, y, torch.float64, torch.device("cpu"))]
    for weight in weights:
        check(diagonal(y, x, weight), y, torch.Size(x).numel(), seed)


@pytest.mark.parametrize("form", ["relu", "tanh", "sigmoid"])
@pytest.mark.parametrize("weights", DTYPES)
def test_weights_in_closed_form(form, weights):
    weight = Closed(form, lambda: integers((2, 3), 4).to(weights))  # exact, of small integers
    check(diagonal((2, 3), (2, 3), weight), (2, 3), 6, 5)
    check(diagonal((2, 3), (3,), weight), (2, 3), 3, 6)


@pytest.mark.parametrize("dims", [(), (0,), (1,), (0, 2), (0, 1, 2)])
def test_reductions(dims):
    shape = (2, 3, 2)
    kept = tuple(n for d, n in enumerate(shape) if d not in dims)
    check(reduction(shape, dims, lambda: integers(shape, 3)), kept, 12, 4)
    check(reduction(shape, dims, None), kept, 12, 4)


@pytest.mark.parametrize("name", LAYOUTS)
def test_strided(name):
    check(Strided(LAYOUTS[name], (3, 4)), LAYOUTS[name].size, 12, 5)


@pytest.mark.parametrize("name", [n for n in LAYOUTS if n not in ("expanded", "repeated-and-kept", "overlapping")])
def test_placed_and_hidden(name):
    layout = LAYOUTS[name]
    for hidden in ((), (Layout((4,), (1,), 4),), (Layout((3,), (4,), 2), Layout((), (), 0))):
        check(Placed(layout, (3, 4), hidden), (3, 4), torch.Size(layout.size).numel(), 6)


def test_what_shows_part_of_an_argument_is_a_window_of_it():
    part = pull(Strided(Layout((3,), (4,), 2), (3, 4)), plane(torch.ones(1, 3)))
    assert isinstance(part, Pulled)
    assert part.window == Layout((3,), (4,), 2)
    assert part.plane.data.shape == (1, 3)


@given(st.lists(st.integers(-1, 5), min_size=8, max_size=8), seeds)
@settings(deadline=None, max_examples=40)
def test_gathers_merge_what_was_read_twice(index, seed):
    check(Gather(lambda: torch.tensor(index).reshape(2, 4), (2, 4), (3, 2)), (2, 4), 6, seed)


@given(st.lists(st.integers(-1, 3), min_size=3, max_size=3), seeds)
@settings(deadline=None, max_examples=40)
def test_gathers_of_rows(index, seed):
    check(Gather(lambda: torch.tensor(index), (3, 2), (4, 2), 2), (3, 2), 8, seed)


@given(st.lists(st.integers(-1, 3) | st.integers(0, 39), max_size=5), st.sampled_from([(40, 2), (4, 10, 2)]), seeds)
@settings(deadline=None, max_examples=60)
def test_gathers_of_few_rows_are_kept_by_themselves(index, x_shape, seed):
    s = Gather(lambda: torch.tensor(index, dtype=torch.int64), (len(index), 2), x_shape, 2)
    check(s, (len(index), 2), 80, seed)
    read_ = sorted({i for i in index if i >= 0})
    part = pull(s, plane(torch.ones(1, len(index), 2)))
    assert isinstance(part, Pulled)
    if read_:
        assert (part.rows is not None) == (4 * len(read_) < 40)
        assert part.rows is None or part.rows.tolist() == read_


@given(st.permutations(range(-2, 6)), seeds)
@settings(deadline=None, max_examples=40)
def test_scatters_leave_out_what_goes_nowhere(index, seed):
    at = torch.tensor(index).clamp(min=-1).reshape(4, 2)
    check(Scatter(lambda: at, (2, 3), (4, 2)), (2, 3), 8, seed)


ROWS = [
    ((3,), (0,)),
    ((2, 3), (1,)),
    ((2, 3), (0,)),
    ((2, 2, 3), (0, 2)),
    ((2, 3), (0, 1)),
    ((2, 3, 2), (1,)),
    ((), ()),
]


@given(st.sampled_from([*ROWS, ((), ())]), st.integers(1, 3), seeds)
@settings(deadline=None, max_examples=60)
def test_low_rank(where, rank, seed):
    shape, dims = where
    factors = low_rank_factors(shape, rank, seed)
    check(LowRank(shape, dims, lambda: factors), shape, torch.Size(shape).numel(), seed)


@pytest.mark.parametrize(("shape", "dims"), ROWS)
@pytest.mark.parametrize("form", ["softmax", "log_softmax", "standard"])
@pytest.mark.parametrize("weights", DTYPES)
def test_low_rank_in_closed_form(shape, dims, form, weights):
    def of() -> tuple[Any, ...]:  # dyadic, so that products are exact, and no Jacobian entry of a norm is 0
        p = integers(shape, 7).abs().to(weights) / 4
        if form != "standard":
            return (p,)
        count = 2 ** math.ceil(math.log2(torch.Size([shape[d] for d in dims]).numel()))
        return integers(shape, 8).to(weights) + 4, None, torch.full(shape, 0.5, dtype=weights), count

    check(LowRank(shape, dims, ClosedRows(form, of)), shape, torch.Size(shape).numel(), 9)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), max_size=8, unique=True), st.booleans(), seeds)
@settings(deadline=None, max_examples=30)
def test_sparse(pairs, weighted, seed):
    i, j = (torch.tensor([p[k] for p in pairs], dtype=torch.int64) for k in range(2))
    w = integers((len(pairs),), seed) if weighted else None
    check(Sparse(lambda: (i, j, w), (2, 4, 2), (2, 3, 2)), (2, 4, 2), 12, seed)
    with pytest.MonkeyPatch.context() as patch:  # more of them than are written out
        patch.setattr(maps, "EDGES", 1)
        check(Sparse(lambda: (i, j, w), (2, 4, 2), (2, 3, 2)), (2, 4, 2), 12, seed)


def test_chains_of_two_index_maps_and_a_weight():
    read_ = Gather(lambda: torch.tensor([2, 0, -1, 2]), (4,), (3,))
    scale = diagonal((4,), (4,), lambda: torch.tensor([2.0, 0.0, 5.0, -3.0], dtype=torch.float64))
    check(Chain(scale, read_), (4,), 3, 7)
    check(Chain(scale, Chain(Strided(Layout((4,), (1,), 0), (4,)), read_)), (4,), 3, 8)
    spread = Strided(Layout((3, 4), (0, 1), 0), (4,))
    check(Chain(spread, read_), (3, 4), 3, 9)
    check(Chain(Strided(Layout((2,), (1,), 1), (4,)), read_), (2,), 3, 10)


@pytest.mark.parametrize("to_input", [True, False])
@pytest.mark.parametrize(("stride", "padding", "dilation", "groups"), [(1, 0, 1, 1), (2, 1, 1, 2), (1, 2, 2, 1)])
def test_convolutions(to_input, stride, padding, dilation, groups):
    x, w = (2, 2, 5, 4), (4, 2 // groups, 3, 2)
    y = [(n + 2 * padding - dilation * (k - 1) - 1) // stride + 1 for n, k in zip(x[2:], w[2:], strict=True)]
    sizes = Sliding(x, w, (2, 4, *y), (stride,) * 2, (padding,) * 2, (dilation,) * 2, groups, False)
    other = integers(w if to_input else x, 3)
    s = Convolved(sizes, to_input, lambda: other, tuple)
    check(s, sizes.output, torch.Size(s.x_shape).numel(), 4)


# ---------------------------------------------------------------- values at a few places


def test_what_reads_one_scalar_a_row_is_laid_out_only_when_asked():
    g = plane(torch.tensor([[2.0, 3.0]]))
    found = pull(Gather(lambda: torch.tensor([4, 1]), (2,), (2, 3)), g)
    assert isinstance(found, Pulled)
    assert isinstance(found.plane, Spikes)
    assert (found.plane.places.tolist(), found.plane.values.tolist()) == ([1, 4], [3.0, 2.0])
    assert found.plane.data.tolist() == [[[0.0, 3.0, 0.0], [0.0, 2.0, 0.0]]]


@pytest.mark.parametrize("index", [[1, 3], [4], [0, 2], []])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_log_softmax_of_a_few_places_is_that_of_all(index, dtype):
    y = torch.tensor([[0.25, 0.5, 0.25], [0.5, 0.125, 0.375]], dtype=dtype).log()
    s = LowRank((2, 3), (1,), ClosedRows("log_softmax", lambda: (y.exp(),), lambda: y))
    values = torch.tensor([3.0, 2.0], dtype=dtype)[: len(index)]
    few = Spikes(torch.tensor(index, dtype=torch.int64), values, (1, 2, 3), plane(values))
    assert few.shape == (1, 2, 3)
    assert few.dtype is dtype
    expected = read(pull(s, plane(few.data)), 6, 1)
    found = read(pull(s, few), 6, 1)
    torch.testing.assert_close(found[0], expected[0], rtol=4 * torch.finfo(dtype).eps, atol=0)
    assert torch.equal(found[1], expected[1])


# ---------------------------------------------------------------- range


def _scale(weight: float, dtype: torch.dtype) -> Structure:
    return diagonal((2,), (2,), lambda: torch.full((2,), weight, dtype=dtype))


@pytest.mark.parametrize(("weight", "values"), [(2.0**-100, (2.0**-100, 1.0)), (2.0**120, (2.0**-20, 2.0**20))])
def test_what_float32_loses_is_computed_in_float64(weight, values):
    g = plane(torch.tensor([values]))
    found = pull(_scale(weight, torch.float32), g)
    assert isinstance(found, Pulled)
    assert found.plane.dtype is torch.float64
    assert (found.plane.data * 2.0**found.plane.exponent).tolist() == (g.data.double() * weight).tolist()


TINY = torch.full((2,), 2.0**-600, dtype=torch.float64)
LOSING: dict[str, Structure] = {
    "pointwise": diagonal((2,), (2,), lambda: TINY),
    "product": Contraction("i", "j", (2,), (3,), "ij", lambda: TINY[:, None].expand(2, 3)),
    "reduction": Contraction("i", "", (2,), (), "i", lambda: TINY),
    "rows": LowRank((2,), (0,), lambda: (TINY, (TINY,), (TINY,))),
    "no kernel of its own": Sparse(lambda: (torch.arange(2), torch.arange(2), TINY), (1, 2, 1), (1, 2, 1)),
}


@pytest.mark.parametrize("kind", LOSING)
def test_what_float64_loses_is_out_of_range(kind):
    g = plane(torch.tensor([[1.0, 2.0**-600]], dtype=torch.float64))
    if kind == "no kernel of its own":
        g = plane(torch.tensor([1.0, 2.0**-1010], dtype=torch.float64).reshape(1, 1, 2, 1))
    if kind in ("product", "reduction"):  # where the larger scalar would win
        g = Plane(torch.full((1, 2), 2.0**-600, dtype=torch.float64), 0, 1.0, 2.0**-600)
    with pytest.raises(OutOfRange):
        read(pull(LOSING[kind], g), 0, 1)


def test_an_infinite_weight_is_out_of_range_unless_values_are_infinite_already():
    with pytest.raises(OutOfRange):
        pull(_scale(math.inf, torch.float64), plane(torch.ones(1, 2)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["diagonal", "product", "reduce", "rows"])
def test_a_weight_that_is_nan_raises(kind, dtype):
    bad = torch.tensor([[1.0, math.nan, 2.0], [1.0, 2.0, 3.0]], dtype=dtype)
    s: Structure = {
        "diagonal": diagonal((2, 3), (2, 3), lambda: bad),
        "product": Contraction("ij", "kj", (2, 3), (2, 3), "ik", lambda: bad[:, :2]),
        "reduce": Contraction("ij", "i", (2, 3), (2,), "ij", lambda: bad),
        "rows": LowRank((2, 3), (1,), lambda: (bad, (bad,), (bad,))),
    }[kind]
    with pytest.raises(NotANumber):
        read(pull(s, plane(torch.ones(1, 2, 3, dtype=dtype))), 0, 1)
