"""Two orders, compared."""

import math

import pytest

from gradtrace.experiments.agreement import Ablation, compare, compare_seeds, ranks, sentence, spearman


def ablations(**found):
    """One ablation a component: samples or None, or (samples, final perplexity)."""
    pairs = {n: f if isinstance(f, tuple) else (f, 100.0) for n, f in found.items()}
    return [Ablation(name, samples, perplexity) for name, (samples, perplexity) in pairs.items()]


def test_same_order():
    damaged = ablations(rnn=100, lstm=300, gru=200)
    found = compare({"rnn": 0.1, "lstm": 0.6, "gru": 0.3}, damaged)
    assert (found.influence, found.damage) == ("lstm > gru > rnn", "lstm > gru > rnn")
    assert (found.verdict, found.spearman, found.n) == ("agree", pytest.approx(1), 3)
    assert "(lstm > gru > rnn) agreed with the order of ablation damage (lstm > gru > rnn)" in sentence(found, damaged)


def test_opposite_order():
    damaged = ablations(rnn=300, lstm=100, gru=200)
    found = compare({"rnn": 0.1, "lstm": 0.6, "gru": 0.3}, damaged)
    assert (found.verdict, found.spearman) == ("disagree", pytest.approx(-1))
    assert "did not agree with" in sentence(found, damaged)


def test_one_pair_swapped_is_disagreement():
    found = compare({"a": 3, "b": 2, "c": 1}, ablations(a=30, b=10, c=20))
    assert (found.verdict, found.spearman) == ("disagree", pytest.approx(0.5))


def test_not_reached_is_the_greatest_damage_and_perplexity_tells_such_models_apart():
    damaged = ablations(a=(None, 120.0), b=(None, 130.0), c=(10**9, 500.0))
    found = compare({"a": 0.2, "b": 0.7, "c": 0.1}, damaged)
    assert (found.damage, found.verdict) == ("b > a > c", "agree")
    assert "1 of 3 ablated models reached" in sentence(found, damaged)


def test_perplexity_tells_models_apart_that_need_equally_many_samples():
    assert compare({"a": 2, "b": 1}, ablations(a=(50, 9.0), b=(50, 8.0))).damage == "a > b"


def test_ties_on_one_side_are_not_called_agreement():
    found = compare({"a": 0.5, "b": 0.5, "c": 0.0}, ablations(a=3, b=2, c=1))
    assert (found.influence, found.verdict) == ("a = b > c", "undecided")
    assert found.spearman == pytest.approx(math.sqrt(3) / 2)


def test_ties_on_both_sides():
    assert compare({"a": 1, "b": 1, "c": 0}, ablations(a=2, b=2, c=1)).verdict == "agree"
    everywhere = compare({"a": 1, "b": 1}, ablations(a=2, b=2))
    assert everywhere.verdict == "undecided"
    assert math.isnan(everywhere.spearman)
    assert "Spearman undefined" in sentence(everywhere, ablations(a=2, b=2))


def test_tie_beside_a_swapped_pair_is_disagreement():
    assert compare({"a": 1, "b": 1, "c": 2}, ablations(a=2, b=3, c=1)).verdict == "disagree"


def test_one_component_leaves_nothing_to_compare():
    said = sentence(compare({"gru": 1.0}, []), [])
    assert said == "Influence and ablation damage cannot be compared, since only one component took part."


def test_influence_without_any_trace_is_not_ranked():
    damaged = ablations(a=1, b=2)
    assert "no trace reached" in sentence(compare({"a": math.nan, "b": math.nan}, damaged), damaged)


def test_sentence_is_one_sentence():
    damaged = ablations(a=None, b=None)
    said = sentence(compare({"a": 1, "b": 2}, damaged), damaged)
    assert said.endswith("no ablated model reached the full model's reference loss.")
    reached = ablations(a=1, b=2)
    assert "every ablated model reached" in sentence(compare({"a": 1, "b": 2}, reached), reached)


def test_ranks_share_their_mean():
    assert ranks([(5,), (1,), (5,), (0,)]) == [3.5, 2, 3.5, 1]


def test_spearman_by_its_formula_without_ties():
    # ρ = 1 − 6 Σ d² / (n (n² − 1))
    a, b = [1, 2, 3, 4, 5], [2, 1, 4, 5, 3]
    expected = 1 - 6 * (1 + 1 + 1 + 1 + 4) / (5 * 24)
    assert spearman(a, b) == pytest.approx(expected)


def test_over_seeds_ranks_are_averaged_and_correlations_have_an_interval():
    """Two seeds agree wholly, one in all but a pair: correlations 1, 1, 0.5."""
    damaged = ablations(a=1, b=2, c=3)
    seeds = [({"a": 1, "b": 2, "c": 3}, damaged)] * 2 + [({"a": 1, "b": 3, "c": 2}, damaged)]
    found = compare_seeds(seeds)
    assert (found.influence, found.damage, found.verdict, found.seeds) == ("c > b > a", "c > b > a", "agree", 3)
    assert found.spearman == pytest.approx(5 / 6)
    half = 4.302652729749462 * math.sqrt(1 / 12) / math.sqrt(3)  # scipy.stats.t.ppf(0.975, 2)
    assert (found.spearman_low, found.spearman_high) == (pytest.approx(5 / 6 - half), 1.0)
    said = sentence(found, damaged * 3, "solved the task")
    assert "Spearman 0.83 (95 % interval 0.12 to 1.00), n = 3 components, 3 seeds; every ablated model solved" in said
