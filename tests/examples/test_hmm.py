"""The HMM example against textbook dynamic programs in plain Python, and against all state sequences."""

from __future__ import annotations

import math
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loading import example

hmm = example("hmm")


def viterbi(model, symbols: list[int]) -> tuple[list[int], float]:
    """The most probable state sequence, and its log-probability together with the symbols."""
    a, b = model.transition.log().tolist(), model.emission.log().tolist()
    score = [p + b[i][symbols[0]] for i, p in enumerate(model.initial.log().tolist())]
    back: list[list[int]] = []
    for symbol in symbols[1:]:
        origin = [max(range(len(a)), key=lambda i: score[i] + a[i][j]) for j in range(len(a))]
        score = [score[i] + a[i][j] + b[j][symbol] for j, i in enumerate(origin)]
        back.append(origin)
    states = [max(range(len(a)), key=lambda i: score[i])]
    for origin in reversed(back):
        states.append(origin[states[-1]])
    return states[::-1], max(score)


def forward_backward(model, symbols: list[int]) -> tuple[list[list[float]], float]:
    """Posterior marginals by two passes, and log p(x)."""
    a, b, n = model.transition.tolist(), model.emission.tolist(), len(model.initial)
    alpha = [[p * b[i][symbols[0]] for i, p in enumerate(model.initial.tolist())]]
    for symbol in symbols[1:]:
        alpha.append([sum(alpha[-1][i] * a[i][j] for i in range(n)) * b[j][symbol] for j in range(n)])
    beta = [[1.0] * n]
    for symbol in symbols[:0:-1]:
        beta.append([sum(a[i][j] * b[j][symbol] * beta[-1][j] for j in range(n)) for i in range(n)])
    total = sum(alpha[-1])
    pairs = zip(alpha, beta[::-1], strict=True)
    return [[x * y / total for x, y in zip(p, q, strict=True)] for p, q in pairs], math.log(total)


def joint(model, symbols: list[int], states: tuple[int, ...]) -> float:
    p = float(model.initial[states[0]] * model.emission[states[0], symbols[0]])
    for t in range(1, len(symbols)):
        p *= float(model.transition[states[t - 1], states[t]] * model.emission[states[t], symbols[t]])
    return p


models = st.tuples(st.integers(1, 4), st.integers(2, 4), st.integers(0, 10_000))


@given(models, st.lists(st.integers(0, 1), min_size=1, max_size=40))
@settings(deadline=None, max_examples=40)
def test_the_trace_is_the_viterbi_path_and_sum_gives_the_marginals(drawn, symbols):
    model = hmm.random_model(*drawn)
    found = hmm.decode(model, symbols, k=2)
    states, log_probability = viterbi(model, symbols)
    marginals, log_total = forward_backward(model, symbols)
    if len(found.sequences) == 1 or found.sequences[1][1] < found.viterbi * (1 - 1e-9):  # no tie
        assert found.sequences[0][0] == states
    assert math.log(found.viterbi) == pytest.approx(log_probability - log_total, abs=1e-9)
    assert found.sequences[0][1] == pytest.approx(found.viterbi, rel=1e-9)
    for ours, expected in zip(found.marginals.tolist(), marginals, strict=True):
        assert ours == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert found.count == drawn[0] ** len(symbols) or found.count > 2**53


@given(models, st.lists(st.integers(0, 1), min_size=1, max_size=5), st.integers(1, 6))
@settings(deadline=None, max_examples=40)
def test_the_best_sequences_and_the_posterior_entropy(drawn, symbols, k):
    model = hmm.random_model(*drawn)
    found = hmm.decode(model, symbols, k)
    every = {s: joint(model, symbols, s) for s in product(range(drawn[0]), repeat=len(symbols))}
    total = sum(every.values())
    best = sorted(every.values(), reverse=True)[:k]
    assert [p for _, p in found.sequences] == pytest.approx([p / total for p in best], rel=1e-9)
    assert len({tuple(s) for s, _ in found.sequences}) == len(best)
    for states, probability in found.sequences:
        assert probability == pytest.approx(every[tuple(states)] / total, rel=1e-9)
    assert found.entropy == pytest.approx(-sum(p / total * math.log2(p / total) for p in every.values()), abs=1e-9)


def test_it_runs(capsys):
    hmm.main()
    out = capsys.readouterr().out
    assert "entropy" in out
    assert "over 59049 sequences" in out
