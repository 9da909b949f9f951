"""The grammar, and the computed size of the scalar graph against the graph itself."""

from collections import Counter

import pytest
import torch

import gradtrace
from gradtrace.experiments.random_architectures import Architecture, RandomNetwork, Step, grow

SMALL = (2, 5)


def test_a_seed_decides_everything():
    assert grow(3) == grow(3)
    assert len({grow(seed) for seed in range(20)}) == 20
    x = torch.ones(2, grow(3).inputs)
    assert torch.equal(RandomNetwork(grow(3))(x), RandomNetwork(grow(3))(x))


def test_without_replacement_there_is_one_layer():
    found = grow(0, first=0)
    assert [step.sources for step in found.steps] == [(0,)]


def test_a_diamond_joins_two_results_of_one_source():
    # the first vertex always, its two (p = 1/2) and theirs (1/4) sometimes
    for seed in range(50):
        steps = grow(seed, first=1).steps
        joins = [step for step in steps if step.join]
        layers = [step for step in steps if not step.join]
        assert steps[-1].join
        assert len(layers) == len(joins) + 1
        assert all(step.sources == (0,) for step in layers)  # a split passes its source on
        used = Counter(source for step in joins for source in step.sources)
        assert used == Counter(range(1, len(steps)))  # every result but the last goes into one join


def test_probabilities_are_halved():
    # without further replacement a diamond has 3 steps: probability 0.99 · (1 - 0.495)²
    sizes = Counter(len(grow(seed).steps) for seed in range(4000))
    assert sizes[1] / 4000 == pytest.approx(0.01, abs=0.01)
    assert sizes[3] / 4000 == pytest.approx(0.99 * 0.505**2, abs=0.03)


def test_widths_are_uniform():
    drawn = [w for seed in range(400) for w in grow(seed).widths]
    assert min(drawn) >= 10
    assert max(drawn) <= 500
    assert sum(drawn) / len(drawn) == pytest.approx(255, abs=10)


def test_size_of_a_join_by_hand():
    found = Architecture(0, 2, (Step((0,), 3), Step((0,), 4), Step((1, 2), 5)))
    weights, results = 2 * 3 + 2 * 4 + 3 * 5 + 4 * 5, 2 * 3 + 2 * 4 + 3 * 5
    # towards the weights; towards the two layers' results, through tanh, and through the sum
    assert found.size(1) == (weights + results, weights + (3 + 4) * 5 + (3 + 4) + 2 * 5)


@pytest.mark.parametrize("seed", range(6))
def test_size_is_that_of_the_scalar_graph(seed):
    architecture = grow(seed, widths=SMALL)
    model, batch = RandomNetwork(architecture), 3
    x = torch.randn(batch, architecture.inputs, generator=torch.Generator().manual_seed(seed))
    with gradtrace.record(model) as tape:
        loss = model(x).sum()
    graph = gradtrace.scalar.from_tape(tape, loss)
    vertices, edges = architecture.size(batch)
    assert graph.number_of_nodes() == vertices + 1
    assert graph.number_of_edges() == edges + batch * architecture.steps[-1].width
