"""DuSell's Algorithm 1: greedily along the gradient, against the strongest path by another semiring.

Algorithm 1 steps from a parameter to the consumer with the largest |w·g|, g the ordinary gradient, which is a sum over
paths: where paths cancel it is small, and the algorithm walks past them. His slides run the same reverse pass under
(max, argmax) instead, as Viterbi's algorithm does beside the forward algorithm; its paths are the strongest ones, and
one pass has them for all parameters, where Algorithm 1 walks once for each.

    python examples/greedy_and_best.py [PICTURE]
"""

from __future__ import annotations

import math
import sys
from itertools import product

import networkx
import torch
from torch import nn

import gradtrace
from gradtrace.scalar import backpropagate, best_path, draw, from_tape, greedy_path, path_table, steps


def small() -> networkx.MultiDiGraph:
    """Give a graph in which the strongest path hides behind one that it cancels with."""
    graph = networkx.MultiDiGraph()
    graph.add_weighted_edges_from([("θ", "a", 1), ("a", "loss", 3), ("θ", "b", 1)])
    graph.add_weighted_edges_from([("b", "c", 5), ("c", "loss", 1), ("b", "d", -4), ("d", "loss", 1)])
    return graph


def main(picture: str | None = None) -> None:
    """Trace a small graph, and a network."""
    graph = small()
    print(path_table(graph, "θ", "loss"))
    best, greedy = best_path(graph, "θ", "loss"), greedy_path(graph, "θ", "loss")
    assert best is not None
    assert greedy is not None
    assert (greedy.vertices, best.vertices) == (("θ", "a", "loss"), ("θ", "b", "c", "loss"))
    print(
        f"greedy: {' -> '.join(map(str, greedy.vertices))}, {greedy.weight}; at b it sees 5 - 4 = 1, and goes past it"
    )
    print(f"best:   {' -> '.join(map(str, best.vertices))}, {best.weight}")
    if picture:
        draw(graph, picture, notes=backpropagate(graph, "loss"), path=best, title="∂loss in blue; the strongest path")

    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 1)).double()
    with gradtrace.record(model) as tape:
        loss = model(torch.randn(3, 4, dtype=torch.float64)).square().sum()
    graph = from_tape(tape, loss, names=True)
    end = graph.graph["loss"]
    parameters = [v for v, leaf in graph.nodes(data="leaf") if leaf]
    strongest = backpropagate(graph, end, "max")
    same, lost = 0, []
    for v in parameters:
        best, greedy = best_path(graph, v, end), greedy_path(graph, v, end)
        assert best is not None
        assert greedy is not None
        assert math.isclose(abs(best.weight), strongest[v])
        assert abs(greedy.weight) <= abs(best.weight) * (1 + 1e-12)
        same += greedy.vertices == best.vertices
        lost.append(abs(greedy.weight) / abs(best.weight))
    assert same < len(parameters)
    print(f"a network of {len(parameters)} parameters: greedy finds {same} of the strongest paths,", end=" ")
    print(f"and at worst one of {min(lost):.0%} of its weight")
    theirs = {(name, *index): path for name, index, path in _traced(tape, loss, model)}
    assert len(theirs) == len(parameters)
    assert all(math.isclose(abs(w), strongest[_name(*key)], rel_tol=1e-9) for key, w in theirs.items())
    edges = sum(len(step.edges) for step in steps(graph, end, "max"))
    assert edges == graph.number_of_edges()
    print(f"one pass over {edges:,} edges has the strongest paths of all; Algorithm 1 walks {len(parameters)} times")


def _name(name: str, *index: int) -> str:
    return f"{name}[{','.join(map(str, index))}]"


def _traced(tape: gradtrace.Tape, loss: torch.Tensor, model: nn.Module) -> list[tuple[str, tuple[int, ...], float]]:
    """Give the weights of the strongest paths as the tensor engine finds them."""
    trace = tape.trace(loss)
    places = [(name, i) for name, p in model.named_parameters() for i in product(*map(range, p.shape))]
    return [(name, i, trace.paths(name, i, k=1)[0].weight) for name, i in places]


if __name__ == "__main__":
    main(*sys.argv[1:])
