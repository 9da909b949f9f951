"""A user's own model: what a batch's examples are, and how batches are put together."""

import math

import pytest
import torch
from torch import nn

from gradtrace.experiments.user_model import Question, Subject, batch_tensors, default_components, trace_subject


def test_examples_are_the_tensors_with_the_first_ones_length():
    x, y, weights, scale = torch.zeros(8, 3), torch.zeros(8), torch.zeros(3), torch.tensor(2.0)
    assert [t is x for t in batch_tensors(x)] == [True]
    assert [id(t) for t in batch_tensors((x, [y, weights], scale, "name"))] == [id(x), id(y)]
    assert [id(t) for t in batch_tensors({"scale": scale, "y": y, "x": {"x": x}})] == [id(y), id(x)]
    assert batch_tensors("text") == []


def test_default_components_are_the_outermost_modules():
    model = nn.Module()
    model.embedding = nn.Embedding(3, 2)
    model.blocks = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    model.heads = nn.ModuleDict({"a": nn.Linear(2, 1)})
    assert default_components(model) == ("embedding", "blocks.0", "blocks.1", "heads.a")


class Unchanged(nn.Module):
    """A component with one operator, unlike `nn.Identity`, which has none for a path to cross."""

    def forward(self, x):
        return x * 1.0


class Gate(nn.Module):
    """Two branches of one weight each: which is stronger depends on the example."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(1.0))
        self.left, self.right = Unchanged(), Unchanged()

    def forward(self, x):
        # x: examples × 2, the local derivatives of the two branches
        return (self.left(self.w * x[:, 0]) + self.right(self.w * x[:, 1])).sum()


def ask(batches, **question):
    subject = Subject(Gate(), [torch.tensor(b) for b in batches], lambda model, x: model(x))
    return trace_subject("test", subject, Question(batches=9, **question))


def shares(results, key="share"):
    return {r["component"]: r[key] for r in results["influence"]}


def test_batches_are_averaged_over_pairs_with_a_path():
    # Stronger branch of each example: left, left, left | right. One more example has no path at all.
    results = ask([[[3.0, 1.0], [2.0, 1.0], [5.0, 0.5]], [[0.5, 4.0], [0.0, 0.0]]])
    assert shares(results) == {"left": 3 / 4, "right": 1 / 4}
    assert shares(results, "dead_share") == {"left": pytest.approx(1 / 5), "right": pytest.approx(1 / 5)}
    assert shares(results, "examples") == {"left": 5, "right": 5}
    assert results["traced_batches"] == 2


def test_weighted_shares_are_averaged_with_the_same_weights():
    # 3/(3+1) of the weight goes left in the first batch, none in the second; two live pairs and one.
    results = ask([[[3.0, 0.0], [0.0, 1.0]], [[0.0, 9.0]]])
    assert shares(results, "weighted_share")["left"] == pytest.approx((2 * 0.75 + 1 * 0.0) / 3)


def test_most_influential_first_and_undefined_last():
    assert [r["component"] for r in ask([[[1.0, 2.0]]])["influence"]] == ["right", "left"]
    nothing = ask([[[0.0, 0.0]]], paths=0)["influence"]
    assert all(math.isnan(r["share"]) and r["dead_share"] == 1 for r in nothing)


def test_paths_are_the_strongest_of_all_batches():
    paths = ask([[[1.0, 2.0]], [[8.0, 1.0]], [[4.0, 1.0]]], paths=2)["paths"]
    assert [(p["batch"], p["parameter"], p["log2_weight"]) for p in paths] == [(1, "w", 3.0), (2, "w", 2.0)]
    assert paths[0]["steps"][-1]["log2_weight"] == 3.0
