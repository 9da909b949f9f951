"""Student's t, beside scipy's."""

import math

import numpy as np
import pytest
from scipy import stats

from gradtrace.experiments.intervals import interval, t_quantile


@pytest.mark.parametrize("degrees", [1, 2, 3, 7, 30, 250])
@pytest.mark.parametrize("p", [0.5, 0.9, 0.975, 0.995])
def test_quantiles_are_scipys(degrees, p):
    assert t_quantile(p, degrees) == pytest.approx(stats.t.ppf(p, degrees), rel=1e-5, abs=1e-9)


def test_an_interval_is_scipys():
    values = [0.3, -1.2, 2.5, 0.1]
    low, high = stats.t.interval(0.95, 3, loc=np.mean(values), scale=stats.sem(values))
    found = interval(values)
    assert (found["mean"], found["n"]) == (pytest.approx(np.mean(values)), 4)
    assert (found["low"], found["high"]) == (pytest.approx(low), pytest.approx(high))


def test_an_interval_of_shares_ends_where_shares_do():
    found = interval([0.1, 0.9, 0.6], (0.0, 1.0))
    assert (found["low"], found["high"]) == (0.0, 1.0)


def test_nineteen_of_twenty_intervals_hold_the_mean():
    draw = np.random.default_rng(0)
    held = [
        abs(found["mean"]) <= found["high"] - found["mean"]
        for found in map(interval, draw.normal(size=(4000, 3)).tolist())
    ]
    assert np.mean(held) == pytest.approx(0.95, abs=0.012)


def test_one_value_says_nothing_of_its_error():
    assert interval([2.0]) == {"mean": 2.0, "low": None, "high": None, "n": 1}
    nothing = interval([math.nan, 1.0])
    assert math.isnan(nothing["mean"])
    assert (nothing["low"], nothing["high"]) == (None, None)
