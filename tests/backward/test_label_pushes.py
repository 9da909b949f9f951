"""Labels that are pushed along the axes on which they depend, against those of all scalars, one by one."""

from __future__ import annotations

from math import prod

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gradtrace.backward.label_pushes import FREE, NOTHING, SEVERAL, everywhere, push, refit
from gradtrace.jacobians.structure import Convolved, Gather, Placed, Sliding, Sparse, Strided
from gradtrace.recording.layouts import Layout, box, contiguous

SHAPES = st.lists(st.integers(1, 4), min_size=1, max_size=4).map(tuple)
EXAMPLES = st.sampled_from([FREE, NOTHING, 0, 1, 2, SEVERAL])


@st.composite
def labels(draw: st.DrawFn, shape: tuple[int, ...]) -> Tensor:
    """A label of a tensor: along every axis it has as many entries as that, or one."""
    sizes = [draw(st.sampled_from([1, n])) for n in shape]
    values = draw(st.lists(EXAMPLES, min_size=prod(sizes), max_size=prod(sizes)))
    return torch.tensor(values, dtype=torch.int32).reshape(sizes)


@st.composite
def regrouped(draw: st.DrawFn, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Another shape with as many scalars: axes put together, taken apart, or added."""
    primes = [p for n in shape for p in ([2, 2] if n == 4 else [n])]
    out: list[int] = []
    for p in primes:
        if out and draw(st.booleans()):
            out[-1] *= p
        else:
            out += [1] * draw(st.integers(0, 1)) + [p]
    return tuple(out)


@st.composite
def views(draw: st.DrawFn, shape: tuple[int, ...]) -> Layout:
    """A window onto a tensor of a shape: some of each axis, in another order, perhaps unfolded, joined or repeated."""
    x = torch.empty(shape)
    for d in range(x.dim()):
        start = draw(st.integers(0, x.shape[d] - 1))
        x = x.narrow(d, start, draw(st.integers(1, x.shape[d] - start)))
    x = x.permute(draw(st.permutations(range(x.dim()))))
    kind = draw(st.sampled_from(["box", "unfold", "diagonal", "expand", "reshape"]))
    if kind == "unfold" and x.shape[0] > 1:
        x = x.unfold(0, 2, 1)
    if kind == "diagonal" and x.dim() > 1:
        x = x.diagonal()
    if kind == "expand":
        x = x.unsqueeze(0).expand(3, *x.shape)
    if kind == "reshape" and x.is_contiguous():
        x = x.view(draw(regrouped(tuple(x.shape))))
    return Layout(tuple(x.shape), x.stride(), int(x.storage_offset()))


@given(st.data())
def test_a_label_is_seen_in_another_shape(data):
    shape = data.draw(SHAPES)
    label, target = data.draw(labels(shape)), data.draw(regrouped(shape))
    found = refit(label, shape, target)
    assert torch.equal(found.expand(target), label.expand(shape).reshape(target))


@given(st.data())
def test_a_box_shows_what_its_window_does(data):
    shape = data.draw(SHAPES)
    at = data.draw(views(shape))
    sides = box(at, shape)
    if sides is None:
        return
    x = torch.arange(prod(shape)).reshape(shape)
    for d, side in enumerate(sides):
        x = x.narrow(d, side.start, side.size)
    assert sorted(x.flatten().tolist()) == sorted(torch.arange(prod(shape)).as_strided(*at).flatten().tolist())


@settings(max_examples=300)
@given(st.data())
def test_a_window_reads_the_labels_of_what_it_shows(data):
    shape = data.draw(SHAPES)
    label, at = data.draw(labels(shape)), data.draw(views(shape))
    found, connected = push(Strided(at, shape), label, shape, at.size)
    assert not connected
    assert torch.equal(everywhere(found).expand(at.size), label.expand(shape).contiguous().as_strided(*at))


@settings(max_examples=300)
@given(st.data())
def test_what_is_written_into_a_tensor_keeps_its_labels(data):
    shape = data.draw(SHAPES)
    at = data.draw(views(shape).filter(lambda a: 0 not in a.stride and len(a.size) <= len(shape)))
    label = data.draw(labels(at.size))
    hidden = tuple(data.draw(st.lists(views(shape), max_size=2)))
    found, _ = push(Placed(at, shape, hidden), label, at.size, shape)
    expected = torch.full((prod(shape),), NOTHING, dtype=torch.int32)
    expected.as_strided(*at).copy_(label.expand(at.size))
    for over in hidden:
        expected[torch.arange(prod(shape)).as_strided(*over).flatten()] = NOTHING
    assert torch.equal(everywhere(found).expand(shape), expected.reshape(shape))


@given(st.data())
def test_what_an_index_reads_has_its_label(data):
    shape, y = data.draw(SHAPES), data.draw(SHAPES)
    label = data.draw(labels(shape))
    index = st.lists(st.integers(-1, prod(shape) - 1), min_size=prod(y), max_size=prod(y))
    read = torch.tensor(data.draw(index)).reshape(y)
    found, _ = push(Gather(lambda: read, y, shape), label, shape, y)
    flat = label.expand(shape).reshape(-1)
    expected = [NOTHING if i < 0 else int(flat[i]) for i in read.flatten().tolist()]
    assert everywhere(found).expand(y).flatten().tolist() == expected


@given(st.data())
def test_edges_bring_the_one_example_that_they_come_from(data):
    outer, m, n, inner = (data.draw(st.integers(1, 3)) for _ in range(4))
    pairs = sorted(data.draw(st.sets(st.tuples(st.integers(0, m - 1), st.integers(0, n - 1)), min_size=1)))
    i, j = (torch.tensor(t) for t in zip(*pairs, strict=True))
    y, x = (outer, m, inner), (outer, n, inner)
    label = data.draw(labels(x))
    found, _ = push(Sparse(lambda: (i, j, None), y, x), label, x, y)
    full, expected = label.expand(x), torch.full(y, NOTHING, dtype=torch.int32)
    for o in range(outer):
        for s in range(inner):
            for row in range(m):
                given = {int(full[o, b, s]) for a, b in pairs if a == row}
                several = len({g for g in given if g >= 0}) > 1
                expected[o, row, s] = SEVERAL if several else max(given, default=NOTHING)
    assert torch.equal(everywhere(found).expand(y), expected)


def test_a_convolution_keeps_rows_apart_without_its_parts():
    def parts():
        raise AssertionError("they say the same")

    x, y = (3, 2, 5, 5), (3, 4, 3, 3)
    sizes = Sliding(x, (4, 2, 3, 3), y, (1, 1), (0, 0), (1, 1), 1, False)
    rows = torch.arange(3, dtype=torch.int32).reshape(3, 1, 1, 1)
    found, connected = push(Convolved(sizes, True, lambda: torch.zeros(4, 2, 3, 3), parts), rows, x, y)
    assert isinstance(found, Tensor)
    assert found.flatten().tolist() == [0, 1, 2]
    assert not connected


def test_no_scalar_is_looked_at_where_strides_say_whose_it_is():
    # as of the scores of a language model: a label that were written out would be 40 TB
    shape = (20, 35, 10**10)
    rows = torch.arange(20, dtype=torch.int32).reshape(20, 1, 1)
    flat, _ = push(Strided(Layout((700, 10**10), (10**10, 1), 0), shape), rows, shape, (700, 10**10))
    assert isinstance(flat, Tensor)
    assert flat.shape == (700, 1)
    assert torch.equal(flat.reshape(20, 35), rows.reshape(20, 1).expand(20, 35))
    turned = Layout((35, 20, 10**10), (10**10, 35 * 10**10, 1), 0)
    seen, _ = push(Strided(turned, shape), rows, shape, turned.size)
    assert isinstance(seen, Tensor)
    assert seen.shape == (1, 20, 1)
    stacked = (35, 20, 10**10)
    slot = Layout((20, 10**10), contiguous(stacked)[1:], 7 * contiguous(stacked)[0])
    found, _ = push(Placed(slot, stacked), rows[:, 0], (20, 10**10), stacked)
    assert isinstance(found, Tensor)
    assert found.shape == (35, 20, 1)
    assert found[7].flatten().tolist() == list(range(20))
