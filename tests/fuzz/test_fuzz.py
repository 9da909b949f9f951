"""Some random programs with a fresh seed, every program that ever failed, and what the oracle itself rests on."""

from __future__ import annotations

import random
import warnings
from itertools import islice

import pytest
import torch
from fuzz import compare, hunt
from fuzz.generate import UNDEFINED, Generator
from fuzz.honest import root_of, sums_are_autograds
from fuzz.program import Part, Program, Step

PROGRAMS = 150
KINDS = 40


@pytest.fixture
def seed() -> int:
    drawn = random.SystemRandom().randrange(10**9)
    print(f"seed {drawn}")
    return drawn


def test_programs_drawn_from_one_seed() -> None:
    seed, failures = 160419300, list[hunt.Failure]()  # fresh seeds are for `make fuzz`, which CI runs
    kinds = hunt.fuzz(seed, PROGRAMS, failures.append)
    print(f"{len(kinds)} kinds of operator: {', '.join(sorted(kinds))}")
    assert not failures, f"{len(failures)} of {PROGRAMS} programs:\n" + "\n".join(map(str, failures))
    assert len(kinds) >= KINDS


@pytest.mark.parametrize("program", hunt.kept().values(), ids=hunt.kept().keys())
def test_programs_that_failed_once(program: Program) -> None:
    found = hunt.failure(program, hunt.oracle_of(program))
    assert found is None, f"{found[1]}\n{program.listing()}"


def test_the_oracles_sums_are_autograds(seed: int) -> None:
    compared = 0
    for number in range(seed, seed + PROGRAMS):
        drawn = Generator(number).program()
        root = root_of(*drawn) if drawn is not None else None
        if drawn is not None and root is not None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                sums_are_autograds(*drawn, root)
            compared += 1
    assert compared > PROGRAMS / 2
    assert len(UNDEFINED) < PROGRAMS / 10


def test_a_replayed_program_is_the_same_graph(seed: int) -> None:
    for number in range(seed, seed + 20):
        drawn = Generator(number).program()
        if drawn is not None:
            program, oracle = drawn
            again = hunt.oracle_of(program)
            root, other = root_of(program, oracle), root_of(program, again)
            assert (root is None) == (other is None)
            if root is not None and other is not None:
                assert oracle.graph.sums(root)[root] == again.graph.sums(other)[other]
                assert len(oracle.leaves) == len(again.leaves)


def _step(text: str, *parts: Part) -> Step:
    return Step("by hand", text, parts)


def by_hand(*steps: Step, loss: str) -> Program:
    """ℓ is the sum of one tensor; w is (2, 3)."""
    w = "torch.tensor([2.0, 3.0], dtype=torch.float64).requires_grad_()"
    made = _step(f"loss = {loss}.sum()", Part("call", ("y0",), f"{loss}.sum()"))
    return Program((("w0", w),), ("w0",), (), steps, made, "free")


def numbers(program: Program) -> list[list[float]]:
    """Give the sums, absolute sums, maxima and counts of w, by the oracle."""
    oracle = hunt.oracle_of(program)
    root, graph = root_of(program, oracle), oracle.graph
    assert root is not None
    answers = [graph.sums(root), graph.absolute(root), graph.best(root), graph.counts(root)]
    return [[g.get(v, 0.0) for v in oracle.leaves["w0"]] for g in answers]


def test_a_square_has_two_edges() -> None:
    square = _step("h1 = w0 * w0", Part("call", ("h1",), "w0 * w0"))
    assert numbers(by_hand(square, loss="h1")) == [[4, 6], [4, 6], [2, 3], [2, 2]]


def test_a_write_through_a_view_of_a_view() -> None:
    """h = 2w; its second scalar becomes h₁ · w₁ = 2 · 9."""
    steps = (
        _step("h1 = w0 * 2", Part("call", ("h1",), "w0 * 2")),
        _step("h2 = h1.view(2, 1)", Part("call", ("h2",), "h1.view(2, 1)")),
        _step("h3 = h2[1:]", Part("call", ("h3",), "h2[1:]")),
        _step("h4 = w0[1]", Part("call", ("h4",), "w0[1]")),
        _step("h3.mul_(h4)", Part("write", ("h3",), "h3 * h4")),
    )
    assert numbers(by_hand(*steps, loss="h1")) == [[2, 12], [2, 12], [2, 6], [1, 2]]


def test_a_write_under_no_grad_keeps_the_history() -> None:
    """The numbers become −w / 2, the derivative stays 1 / 2; the square's is 2 · (−w / 2)."""
    steps = (
        _step("h1 = w0 * 0.5", Part("call", ("h1",), "w0 * 0.5")),
        _step("with torch.no_grad(): h1.neg_()", Part("quiet write", ("h1",), "-h1")),
        _step("h2 = h1.pow(2)", Part("call", ("h2",), "h1.pow(2)")),
    )
    assert numbers(by_hand(*steps, loss="h2"))[0] == [-1, -1.5]


def test_wrong_numbers_are_noticed(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The maximum of one leaf is off by a millionth: among ten programs that shows."""
    right = compare.gradients

    def wrong(*args):
        found = [list(g) for g in right(*args)]
        found[2] = [g if g is None else g * (1 + 1e-6) for g in found[2]]
        return found

    monkeypatch.setattr(compare, "gradients", wrong)
    failures: list[hunt.Failure] = []
    monkeypatch.setattr(hunt, "PATIENCE", 0.0)
    hunt.fuzz(seed, 10, failures.append)
    assert any("max of" in f.said.lower() for f in failures)


def test_shrinking_keeps_what_fails(seed: int) -> None:
    """Say that a program fails where something is softmaxed: one such step is left, and what it needs."""

    def failing(program: Program, oracle) -> hunt.Found | None:
        del oracle
        return ("softmax", "") if any(s.kind == "softmax" for s in program.steps) else None

    drawn = (Generator(number).program() for number in range(seed, seed + 1500))
    long = (program for program, oracle in filter(None, drawn) if failing(program, oracle) and len(program.steps) > 6)
    shorter = []
    for program in islice(long, 3):  # of one alone, each step may feed the next
        short = hunt.shrink(program, "softmax", failing)
        assert failing(short, None)
        shorter.append(len(short.steps) < len(program.steps))
    assert any(shorter)


def test_listings_run() -> None:
    program = by_hand(_step("h1 = w0 * w0", Part("call", ("h1",), "w0 * w0")), loss="h1")
    space: dict = {}
    exec(program.listing(), space)
    assert torch.equal(space["tape"].grad(space["loss"], "w0")[0], 2 * space["w0"])
