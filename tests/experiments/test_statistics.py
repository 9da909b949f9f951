"""Statistics on simulated studies whose answers are known."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from gradtrace.experiments.statistics import (
    by_architecture,
    ceiling,
    estimate,
    holm,
    in_turn,
    of_kind,
    ranks,
    roc_area,
    shapley,
    spearman,
    without_kind,
)

ARCHITECTURES, SEEDS, K = 40, 2, 4
ARCHITECTURE = np.repeat(np.arange(ARCHITECTURES), SEEDS)


def simulated(seed, share=0.5):
    """Damages of all units, and a part of them that an architecture's seeds have in common."""
    rng = np.random.default_rng(seed)
    common = np.repeat(rng.standard_normal((ARCHITECTURES, K)), SEEDS, 0)
    return rng, share * common + (1 - share) * rng.standard_normal(common.shape)


def test_the_damage_itself_predicts_itself():
    _, damage = simulated(0)
    found = estimate(by_architecture(spearman(np.exp(damage), damage), ARCHITECTURE))
    assert (found.mean, found.low, found.high, found.count) == pytest.approx((1, 1, 1, ARCHITECTURES))
    assert found.p < 1e-6
    assert estimate(by_architecture(spearman(-damage, damage), ARCHITECTURE)).mean == pytest.approx(-1)


def test_the_interval_of_a_predictor_that_is_noise_covers_0_as_often_as_it_says():
    # The noise is the same for both seeds of an architecture, and half of the damage too: units are not independent.
    covered, rejected, times = 0, 0, 300
    for seed in range(times):
        rng, damage = simulated(seed)
        noise = np.repeat(rng.standard_normal((ARCHITECTURES, K)), SEEDS, 0)
        found = estimate(by_architecture(spearman(noise, damage), ARCHITECTURE), resamples=500)
        covered += found.low <= 0 <= found.high
        rejected += found.p < 0.05
    assert 0.90 <= covered / times <= 0.98
    assert 0.02 <= rejected / times <= 0.09


def test_a_predictor_of_known_quality_is_found_to_have_it():
    # Ranks of two numbers correlated by r: Spearman's mean for four at a time is known by simulation here.
    rng = np.random.default_rng(3)
    a = rng.standard_normal((20_000, K))
    b = 0.6 * a + 0.8 * rng.standard_normal(a.shape)
    expected = np.mean([spearmanr(x, y).statistic for x, y in zip(a[:5000], b[:5000], strict=True)])
    found = estimate(by_architecture(spearman(a[:2000], b[:2000]), np.arange(2000)), resamples=1000)
    assert found.low <= expected <= found.high
    assert found.high - found.low < 0.08


@given(st.lists(st.lists(st.integers(0, 3), min_size=8, max_size=8), min_size=1, max_size=6))
@settings(max_examples=60, deadline=None)
def test_ties_are_as_scipy_has_them(rows):
    values = np.array(rows, float)
    a, b = values[:, :4], values[:, 4:]
    for x, y, found in zip(a, b, spearman(a, b), strict=True):
        if np.ptp(x) == 0 or np.ptp(y) == 0:
            assert math.isnan(found)
        else:
            assert found == pytest.approx(spearmanr(x, y).statistic)


def test_censored_runs_rank_behind_the_others_and_tie():
    assert ranks(np.array([[100.0, math.inf, 50.0, math.inf]])).tolist() == [[2, 3.5, 1, 3.5]]
    damage = np.array([[100.0, math.inf, 50.0, math.inf], [math.inf] * 4])
    rho = spearman(np.array([[2.0, 3.0, 1.0, 3.0]] * 2), damage)
    assert rho[0] == pytest.approx(1)
    assert math.isnan(rho[1])  # nothing was solved: there is no order


def test_units_without_a_value_are_left_out_and_counted():
    values = by_architecture(np.array([0.5, math.nan, math.nan, math.nan, 1.0, 0.0]), np.array([1, 1, 2, 2, 7, 7]))
    assert values.tolist()[0] == 0.5
    assert math.isnan(values[1])
    assert values[2] == 0.5
    assert estimate(values).count == 2
    assert math.isnan(estimate(np.array([math.nan])).mean)


def test_few_architectures_have_no_interval():
    few = estimate(np.array([0.2, 0.4, 0.9]))
    assert (few.mean, few.count, few.p) == (pytest.approx(0.5), 3, 0.25)  # 2 of 8 signs are as far from 0
    assert math.isnan(few.low)
    assert math.isnan(estimate(np.array([0.5, 0.5])).high)
    assert estimate(np.array([0.5] * 6)).p == 2 / 64
    assert estimate(np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])).low < 0.35


def test_holm_by_its_definition():
    rng = np.random.default_rng(0)
    for _ in range(20):
        p = rng.random(7) ** 3
        order = np.argsort(p)
        expected = [max(min(1, p[order[j]] * (7 - j)) for j in range(i + 1)) for i in range(7)]
        assert [holm(list(p))[i] for i in order] == pytest.approx(expected)
    assert holm([math.nan, 0.01]) == [1.0, 0.02]


@given(st.lists(st.floats(-5, 5), min_size=16, max_size=16))
@settings(max_examples=40, deadline=None)
def test_shapley_is_the_mean_over_orders(values):
    expected = np.zeros(4)
    for order in itertools.permutations(range(4)):
        there = 0
        for player in order:
            expected[player] += values[there | 1 << player] - values[there]
            there |= 1 << player
    found = shapley(values.__getitem__, 4)
    assert found == pytest.approx(expected / 24, abs=1e-9)
    assert sum(found) == pytest.approx(values[15] - values[0], abs=1e-9)


def test_what_only_knows_the_kind_has_nothing_left_without_it():
    rng = np.random.default_rng(5)
    kinds = np.array([rng.permutation(6)[:K] for _ in range(300)])
    architecture = np.arange(300)
    by_kind = np.array([0.0, 5, 1, 4, 2, 3])[kinds]
    damage = by_kind + 0.5 * rng.standard_normal(kinds.shape)
    predictor = by_kind + 0.5 * rng.standard_normal(kinds.shape)
    assert estimate(spearman(predictor, damage), 500).low > 0.7
    left = estimate(without_kind(predictor, damage, kinds, architecture), 500)
    assert left.low < 0 < left.high
    truth = damage + 0.1 * rng.standard_normal(kinds.shape)  # knows more than the kind
    assert without_kind(truth, damage, kinds, architecture).mean() > 0.6
    assert spearman(of_kind(damage, kinds, architecture), damage).mean() > 0.7


def test_the_kind_is_learned_from_other_architectures_alone():
    values = np.array([[1.0, 2, 3], [3.0, 2, 1]])
    kinds = np.array([["a", "b", "c"], ["a", "b", "d"]])
    apart = of_kind(values, kinds, np.array([0, 1]))
    assert apart[0, 0] > apart[0, 1]  # as in the second
    assert apart[1, 0] < apart[1, 1]  # as in the first
    assert of_kind(values, kinds, np.array([0, 0])) == pytest.approx(np.full((2, 3), 2.0))  # two seeds of one
    assert apart.sum(1) == pytest.approx([6, 6])


def test_a_kind_that_only_met_weak_rivals_is_not_taken_for_strong():
    kinds = np.array([["a", "b"], ["b", "c"], ["c", "d"]] * 20 + [["b", "d"]])
    values = np.array([[1.0, 2], [1, 2], [1, 2]] * 20 + [[0, 0]])
    assert of_kind(values, kinds, np.arange(len(kinds)))[-1] == pytest.approx([1, 2], abs=0.1)


def test_the_ceiling_is_what_seeds_share():
    _, same = simulated(0, share=1)
    assert ceiling(same, ARCHITECTURE) == pytest.approx(1)
    _, apart = simulated(0, share=0)
    assert abs(np.nanmean(ceiling(apart, ARCHITECTURE))) < 0.25
    assert np.isnan(ceiling(same[:1], ARCHITECTURE[:1])).all()


def test_leaving_out_in_turn_by_hand():
    # Losses of the sets of a, b, c (bits 1, 2, 4), with all 0: a matters most, c least.
    loss = {7: 0.0, 6: 3.0, 5: 2.0, 3: 1.0, 1: 3.0, 2: 4.0, 4: 5.0}
    # a first, then b: (3 + 5) / 2; c first, then b: (1 + 3) / 2. No order has a larger difference.
    assert in_turn([3, 2, 1], loss.__getitem__) == 1
    assert in_turn([1, 2, 3], loss.__getitem__) == -1
    assert in_turn([1, 1, 1], loss.__getitem__) == pytest.approx(0)
    # b first, then a: (2 + 5) / 2; c first, then a: (1 + 4) / 2
    assert in_turn([2, 3, 1], loss.__getitem__) == pytest.approx((3.5 - 2.5) / 2)
    tied = (in_turn([2, 3, 1], loss.__getitem__) + in_turn([3, 2, 1], loss.__getitem__)) / 2
    assert in_turn([2, 2, 1], loss.__getitem__) == pytest.approx(tied)
    assert math.isnan(in_turn([1, 2, 3], lambda there: 1.0))


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=2, max_size=8))
@settings(max_examples=60, deadline=None)
def test_roc_area_by_its_definition(pairs):
    score, true = np.array([p[0] for p in pairs], float), np.array([p[1] for p in pairs])
    found = roc_area(score, true)
    wins = [(a > b) + (a == b) / 2 for a in score[true] for b in score[~true]]
    assert (math.isnan(found) and not wins) or found == pytest.approx(np.mean(wins))
