"""Which components are left out, and what that cost."""

from itertools import combinations

import numpy as np
import pytest

from gradtrace.experiments.ablation import ablation_table, mean_loss, planned_runs, said_of, samples_of
from gradtrace.queries.forest import FIRST

NAMES = ("a", "b", "c", "d")
SHARES = {1: {"a": 0.1, "b": 0.4, "c": 0.3, "d": 0.2}, 2: {"a": 0.5, "b": 0.1, "c": 0.15, "d": 0.25}}


def run(seed, absent=(), losses=(3.0, 2.0, 1.0), scores=None):
    scores = scores or [0.0] * len(losses)
    evaluations = [
        {"step": 10 * i, "samples": 80 * i, "loss": x, "perplexity": np.exp(x), "score": s}
        for i, (x, s) in enumerate(zip(losses, scores, strict=True))
    ]
    rows = [{"kind": FIRST, "component": n, "share": SHARES[seed][n], "weighted_share": 0.0} for n in NAMES]
    kept = [n for n in NAMES if n not in absent]
    said = {"seed": seed, "absent": list(absent), "components": kept, "parameters": 10 * len(kept)}
    return said | {"evaluations": evaluations, "traces": [] if absent else [{"step": 0, "influence": rows}]}


def options(**changed):
    return {"seed": 1, "seeds": 1, "ablate": "each"} | changed


def planned(runs=(), **changed):
    return [(p.seed, "".join(p.absent)) for p in planned_runs(options(**changed), NAMES, runs)]


def test_each_is_left_out_after_the_full_model():
    assert planned() == [(1, ""), (1, "a"), (1, "b"), (1, "c"), (1, "d")]
    assert planned(seeds=2)[5:] == [(2, ""), (2, "a"), (2, "b"), (2, "c"), (2, "d")]


def test_cumulative_follows_the_influence_of_each_seeds_full_model():
    both = planned([run(1), run(2)], seeds=2, ablate="cumulative")
    assert [absent for seed, absent in both if seed == 1] == ["", *"abcd", "ad", "bc", "acd", "bcd"]
    assert [absent for seed, absent in both if seed == 2] == ["", *"abcd", "bc", "ad", "bcd", "acd"]


def test_how_many_runs_there_are_is_known_before_the_order_is():
    assert len(planned(ablate="cumulative")) == len(planned([run(1)], ablate="cumulative"))


def test_all_is_every_set_but_the_whole():
    sets = ["".join(s) for size in (1, 2, 3) for s in combinations(NAMES, size)]
    assert [absent for _, absent in planned(ablate="all")] == ["", *sets]


def test_a_model_of_one_component_cannot_do_without_it():
    assert [(p.seed, p.absent) for p in planned_runs(options(ablate="all"), ("a",), [])] == [(1, ())]


def test_mean_loss_is_the_area_by_trapezia():
    one = run(1, losses=(3.0, 1.0, 2.0))
    one["evaluations"][2]["step"] = 14
    assert mean_loss(one) == pytest.approx(np.trapezoid([3.0, 1.0, 2.0], [0, 10, 14]) / 14)


def test_who_does_not_get_there_has_no_number():
    scored = run(1, scores=(0.1, 0.9, 0.8))
    assert samples_of(scored, None, 0.9) == 80
    assert samples_of(scored, None, 0.95) is None
    assert samples_of(run(1), 1.5, None) == 160
    assert samples_of(run(1), 0.5, None) is None


def losses(seed, absent):
    """A loss that rises with the influence left out, not quite evenly."""
    more = sum(SHARES[seed][n] for n in absent) * (1 + 0.1 * seed) + 0.01 * len(absent)
    return 3.0, 2.0 + more, 1.0 + 2 * more


@pytest.fixture
def table():
    runs = []
    for seed in (1, 2):
        runs.append(run(seed))
        sets = [p.absent for p in planned_runs(options(seed=seed, ablate="cumulative"), NAMES, runs)[1:]]
        runs += [run(seed, absent, losses(seed, absent)) for absent in sets]
    return ablation_table(runs, NAMES, "cumulative", None)


def dip(seed, absent):
    _, middle, end = losses(seed, absent)
    return (middle - 2.0) / 2 + (end - 1.0) / 4


def test_rows_are_means_over_seeds(table):
    assert [row["component"] for row in table["rows"]] == list(NAMES)
    for row in table["rows"]:
        each = [dip(seed, row["component"]) for seed in (1, 2)]
        assert row["dip"]["mean"] == pytest.approx(np.mean(each))
        assert row["dip"]["low"] < min(each) < max(each) < row["dip"]["high"]
        assert row["influence"]["mean"] == pytest.approx(np.mean([SHARES[s][row["component"]] for s in (1, 2)]))
        assert (row["seeds"], row["reached"], row["samples"]) == (2, 0, None)
    assert table["full"]["samples"] == 160
    assert table["reference_loss"] == 1.0


def test_sets_that_only_one_seed_left_out_have_no_interval(table):
    found = {"".join(row["absent"]): row["dip"] for row in table["sets"]}
    assert set(found) == {*"abcd", "ad", "bc", "acd", "bcd"}
    assert {absent: one["n"] for absent, one in found.items() if len(absent) > 1} == dict.fromkeys(
        ("ad", "bc", "acd", "bcd"), 2
    )


def test_both_orders_of_leaving_out_and_the_difference_between_them(table):
    cumulative = table["cumulative"]
    assert [o["order"] for o in cumulative["orders"]] == [list("adcb"), list("bcda")]
    for direction, firsts in (
        ("least", (["a", "ad", "acd"], ["b", "bc", "bcd"])),
        ("most", (["b", "bc", "bcd"], ["a", "ad", "acd"])),
    ):
        for size, row in enumerate(cumulative[direction]):
            each = [dip(seed, sets[size]) for seed, sets in zip((1, 2), firsts, strict=True)]
            assert row["removed"] == size + 1
            assert row["dip"]["mean"] == pytest.approx(np.mean(each))
    gaps = [
        np.mean([dip(seed, most) - dip(seed, least) for most, least in zip(mosts, leasts, strict=True)])
        for seed, leasts, mosts in (
            (1, ("a", "ad", "acd"), ("b", "bc", "bcd")),
            (2, ("b", "bc", "bcd"), ("a", "ad", "acd")),
        )
    ]
    assert cumulative["difference"]["mean"] == pytest.approx(np.mean(gaps))
    assert cumulative["difference"]["n"] == 2


def test_a_null_result_is_called_one():
    assert "a null result" in said_of({"mean": 0.1, "low": -0.1, "high": 0.3, "n": 3})
    assert said_of({"mean": 0.2, "low": 0.1, "high": 0.3, "n": 3}).endswith("influence foretold the dip.")
    assert "the contrary" in said_of({"mean": -0.2, "low": -0.3, "high": -0.1, "n": 3})
    assert "one seed: nothing is known of its error" in said_of({"mean": 0.2, "low": None, "high": None, "n": 1})


def test_without_influence_components_are_left_out_as_they_were_named():
    silent = run(1)
    silent["traces"] = []
    assert [absent for _, absent in planned([silent], ablate="cumulative")][5:] == ["ab", "cd", "abc", "bcd"]
