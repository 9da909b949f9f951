"""Networks compiled from programs compute these programs, in any basis; and what of a trace depends on the basis."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import ground_truth as truth  # noqa: E402

from gradtrace.experiments.study_analysis import between  # noqa: E402

pytest.importorskip("tracr", reason="pip install --no-deps tracr-pypi")


@pytest.fixture(scope="module")
def tracr():
    with truth.tracr() as t:
        yield t


def network(t, pair, read, rotation=None):
    programs = [truth.compiled(t, name) for name in truth.PAIRS[pair]]
    model = truth.Compiled(t, programs, read, rotation)
    return model, truth.batch_of(model, programs[read], 12)


def test_jax_is_not_imported(tracr):
    assert tracr.rasp is not None
    assert "jax" not in sys.modules


@pytest.mark.parametrize("pair", range(len(truth.PAIRS)))
def test_as_hard_as_they_are_compiled_they_compute_their_programs(tracr, monkeypatch, pair):
    for name, value in ("SOFTNESS", 1.0), ("EXACTNESS", 100), ("KINK", 1000.0):
        monkeypatch.setattr(truth, name, value)
    for read in (0, 1):
        model, batch = network(tracr, pair, read)
        score = truth.Reading().evaluate(model, batch).score
        # A difference of two fractions may be nearest to a value that another sequence has.
        assert score >= (0.85 if truth.PAIRS[pair][read] == "balance" else 1.0)


def test_there_are_pairs_enough_and_each_has_both_kinds_of_layers(tracr):
    assert len(truth.PAIRS) >= 6
    assert truth.ROTATIONS >= 5
    for pair in range(len(truth.PAIRS)):
        circuits = [network(tracr, pair, read)[0].circuit for read in (0, 1)]
        assert (circuits[0] != circuits[1]).all()
        assert circuits[0].any()
        assert circuits[1].any()


@pytest.mark.parametrize(("pair", "read"), [(2, 0), (2, 1), (5, 0)])
def test_what_depends_on_the_basis_and_what_does_not(tracr, pair, read):
    plain, batch = network(tracr, pair, read)
    turned, _ = network(tracr, pair, read, rotation=1)
    torch.testing.assert_close(turned(batch.inputs), plain(batch.inputs), rtol=1e-4, atol=1e-4)
    found = [truth.predictors(model, truth.Reading(), batch, batch) for model in (plain, turned)]
    same = ("through", "activation_gradient", "output_gradient", "parameter_gradient", "conductance", "switch_off")
    for name in same:
        # The rotation is orthogonal: an embedding's row turns, and its norm does not change.
        assert found[1][name] == pytest.approx(found[0][name], rel=2e-3, abs=1e-5), name
    assert found[1]["through_abs"] != pytest.approx(found[0]["through_abs"], rel=0.01)
    unread = ~plain.circuit
    for name in ("best", "greedy", "through"):
        assert np.abs(np.array(found[0][name])[unread]).max() < 1e-6, name
    # Strongest paths now lead through what nothing reads; greedy ones and parts of the gradient do not.
    assert np.array(found[1]["best"])[unread].max() > 0.02
    assert np.array(found[1]["greedy"])[unread].max() < 1e-6
    assert np.array(found[1]["through"])[unread].max() < 1e-4 * max(found[1]["through"])


def test_areas_and_their_table(tracr):
    found = [truth.judge(tracr, pair, read, r) for pair in (2, 4) for read in (0, 1) for r in (None, 1)]
    assert all(j.area["greedy"] == j.area["through"] == 1 for j in found)
    assert all(j.area["best"] == 1 for j in found if j.rotation is None)
    assert np.mean([j.area["best"] for j in found if j.rotation]) < 0.9
    text = truth.tables(found)
    assert "| best | 1.00 [" in text
    assert text.startswith("2 pairs of programs, each read both ways, 1 rotations")


@pytest.mark.skipif("GRADTRACE_RECOMPUTE" not in os.environ, reason="trains anew, and rounds as its machine does")
def test_the_page_has_these_numbers():
    page = ROOT / "docs/study.md"
    text = truth.tables(truth.judge_all())
    assert between(page, text, truth.MARKS) == page.read_text(encoding="utf-8")
