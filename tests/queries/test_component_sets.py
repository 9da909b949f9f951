"""Sets of components by compiled winners against sets by the reference pass's backpointers."""

from __future__ import annotations

import pytest
import torch
from checks import F64, recorded, recorded_by_example
from hypothesis import example, given, settings
from programs import Program, programs
from torch import Tensor
from torch.nn import functional
from zoo import ZOO, build

from gradtrace import Slice, Tape, component, record
from gradtrace.kernels import native
from gradtrace.queries.component_sets import AT_ONCE, crossing
from gradtrace.queries.departures import given_by
from gradtrace.queries.forest import Forest
from gradtrace.recording.components import Component

pytestmark = pytest.mark.skipif(native.lib is None, reason="no compiled kernels")


def planted(tape: Tape, loss: Tensor, kernels: str, *, per_example: bool) -> Forest:
    with native.using(kernels):
        forest = tape.trace(loss).forest("best", per_example=per_example)
    assert (forest.compact is not None) == (kernels == "native")
    return forest


def sets(forest: Forest, components: list[Component]) -> dict[str, Tensor]:
    leaves = list(forest.record.leaves.values())
    return {c.leaf.name or str(c.leaf): c.whole() for c in crossing(forest, components, leaves)}


def assert_counted(forest: Forest, components: list[Component]) -> None:
    """Compare the sets that are counted from where traces arrive with those of all scalars, one by one."""
    for crossed in crossing(forest, components, list(forest.record.leaves.values())):
        traces = given_by(forest, crossed.leaf)
        if crossed.counted is None or traces is None:
            continue
        alive, weight = traces.alive(), traces.weight.double()
        own = crossed.whole().expand(len(alive), *crossed.leaf.shape).reshape(alive.shape)
        every = {(row, bits) for row in range(len(alive)) for bits in own[row][alive[row]].tolist()}
        found = {(row, bits | crossed.also): (n, amount) for row, bits, n, amount in crossed.counted()}
        assert found.keys() == every
        for (row, bits), (n, amount) in found.items():
            here = alive[row] & (own[row] == bits)
            assert n == int(here.sum())
            assert amount == pytest.approx(float(weight[row][here].sum()), rel=1e-12)


def assert_same(tape: Tape, loss: Tensor, components: list[Component], *, per_example: bool, exact: bool) -> int:
    """Compare the sets of all leaf scalars that have a trace, and give how many distinct ones there are.

    Where rounding may decide between paths, the compiled forest is read both ways: by its pointers too.
    """
    compiled = planted(tape, loss, "native", per_example=per_example)
    if exact:
        plain = planted(tape, loss, "reference", per_example=per_example)
    else:
        plain = Forest(compiled.record, compiled.loss, "best", compiled.labels, compiled.edges)
        plain.winners, plain.log2 = compiled.winners, compiled.log2
    assert_counted(compiled, components)
    assert_counted(tape.trace(loss).forest("greedy", per_example=per_example), components)
    ours, theirs, seen = sets(compiled, components), sets(plain, components), set()
    for value in tape.leaves.values():
        name = value.name or str(value)
        live = plain.log2[value.id] > -torch.inf
        expected = theirs[name].expand(live.shape)[live]
        assert torch.equal(ours[name].expand(live.shape)[live], expected), name
        seen |= set(expected.tolist())
    return len(seen)


HALVES: list[Component] = ["a", "b", "c", Slice("a", 0, 2, 0), Slice("b", 1, 2, 1), Slice("c", 0, 2, 1)]


# the window of a window: a row of a sum, stacked
@example(Program((("add", 0, 0, "a"), ("stack", 0, 2, "b"), ("add", 0, 3, "a")), (-2.0,) * 11, "sum"))
@given(programs(exact=True))
@settings(deadline=None, max_examples=100)
def test_exact_programs(program):
    tape, loss = recorded(lambda **p: program.run(p), program.leaves())
    assert_same(tape, loss, HALVES, per_example=False, exact=True)


@given(programs(exact=True))
@settings(deadline=None, max_examples=60)
def test_exact_programs_by_example(program):
    found = recorded_by_example(program)
    if found is None:
        return
    tape, loss = found
    assert_same(tape, loss, HALVES, per_example=True, exact=True)


@pytest.mark.parametrize("per_example", [False, True])
@pytest.mark.parametrize("name", ZOO)
def test_models_with_all_their_modules(name, per_example):
    subject = build(name)
    with record(subject.model, examples=subject.examples if per_example else None) as tape:
        loss = subject.loss()
    modules: list[Component] = [n for n, _ in subject.model.named_modules() if n][:AT_ONCE]
    assert_same(tape, loss, modules, per_example=per_example, exact=False)


@pytest.mark.parametrize("per_example", [False, True])
def test_heads_of_attention(per_example):
    subject = build("GPT-2")
    with record(subject.model, examples=subject.examples if per_example else None) as tape:
        loss = subject.loss()
    heads: list[Component] = [Slice(f"transformer.h.{i}.attn", "head", 2, h) for i in range(2) for h in range(2)]
    assert assert_same(tape, loss, [*heads, "transformer.h.1"], per_example=per_example, exact=False) > 2


def test_a_slice_of_a_view_that_a_product_went_through():
    """The view has no winners of its own: they are borrowed from where the product went."""
    x = torch.full((2, 2), -2.0, **F64).requires_grad_()
    weights = torch.tensor([[1.0, -2.0], [0.5, 1.0]], **F64)

    def program(x: Tensor) -> Tensor:
        with component("b"):
            y = torch.einsum("ij,kj->ik", x, x)
        return (y * weights).sum()

    tape, loss = recorded(program, {"x": x})
    for axis, index in ((0, 0), (0, 1), (1, 0), (1, 1)):
        assert_same(tape, loss, ["b", Slice("b", axis, 2, index)], per_example=False, exact=True)


def test_as_many_components_as_an_integer_has_bits():
    """The last bit is the sign of the integer that holds a set."""

    def program(x: Tensor) -> Tensor:
        total = x.new_zeros(())
        for i in range(AT_ONCE):
            with component(f"c{i}"):
                total = total + x[i] * 2 + (x * ((torch.arange(AT_ONCE) + i) % AT_ONCE)).sum()
        return total

    tape, loss = recorded(program, {"x": torch.ones(AT_ONCE, **F64).requires_grad_()})
    every: list[Component] = [f"c{i}" for i in range(AT_ONCE)]
    assert assert_same(tape, loss, every, per_example=False, exact=True) > 1


@pytest.mark.parametrize("rows", [4, 40_000])
def test_winners_in_16_bits_where_that_many_do(rows):
    words = torch.arange(rows) % 5 * 7

    def program(e: Tensor) -> Tensor:
        read = functional.embedding(words, e)
        with component("a"):
            scores = read[:4] @ e.t()
        with component("b"):
            return scores.square().sum() + (read * torch.arange(1.0, rows + 1).unsqueeze(1)).sum() * 4096

    generator = torch.Generator().manual_seed(0)
    tape, loss = recorded(
        program, {"e": torch.randint(-3, 4, (300, 256), generator=generator).float().requires_grad_()}
    )
    with native.using("native"):
        winners = tape.trace(loss).forest().compact.winners  # type: ignore[union-attr]
    assert torch.int16 in {w.index.dtype for w in winners.values() if w.index is not None} or rows > 4
    assert assert_same(tape, loss, ["a", "b"], per_example=False, exact=True) > 1


def test_a_leaf_that_reaches_nothing_is_in_no_set():
    x, y = torch.ones(2, **F64).requires_grad_(), torch.ones(2, **F64).requires_grad_()
    with record(names={"x": x, "y": y}) as tape:
        _ = y * 2
        loss = x.sum()
    forest = planted(tape, loss, "native", per_example=False)
    assert sets(forest, ["*"])["y"].tolist() == [[0, 0]]
