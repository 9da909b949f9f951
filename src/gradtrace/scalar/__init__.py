"""The explicit scalar graph: every definition of gradtrace written out on single numbers.

A graph is a `networkx.MultiDiGraph`. An edge runs in the direction of the data, from the producer v to
the consumer u, and its attribute `weight` is the local derivative ∂u/∂v, a number. Parallel edges are
distinct; an edge of weight exactly 0 is absent. Graphs come from a tape (`from_tape`), from node functions
(`Graph`), or from your hands:

    >>> graph = networkx.MultiDiGraph()
    >>> _ = graph.add_edge("x", "y", weight=3.0)  # y = x·x at x = 3, first argument
    >>> _ = graph.add_edge("x", "y", weight=3.0)  # second argument
    >>> backpropagate(graph, "y", Sum)["x"]
    6.0

Ties between the edges that leave a vertex go to the smallest `order`, an optional edge attribute; edges
without one come last, in the order in which networkx lists them (consumer by consumer as first joined,
parallel edges together).

This is the reference that the tensor engine is tested against, and it is for small graphs: it holds one
Python object for each edge. Nothing here is fast. Plain `Sum`, `AbsSum` and `Max` numbers are Python floats,
which underflow below 1e-308; paths carry their weight as a log2 as well, which does not. Where no weight is a float,
whole numbers, Fractions and sympy expressions stay exact.

    graph        vertices, edges, errors           builder      Graph: node functions
    tapes        from_tape                         arithmetic   exact semirings; MaxPlus, MinPlus
    passes       backpropagate, steps, forward, all_pairs, levels
    gradings     Graded and Through                paths        all of them, the strongest, the longest
    layout       where a drawing has things        drawing      draw, to_dot, plain
"""

from ..semirings.base import Sum
from .arithmetic import Lengths, MaxPlus, MinPlus
from .builder import Graph, Node
from .drawing import draw, plain, to_dot
from .graph import BadGraph, CycleError, ScalarEdge, TooLarge, Vertex, vertex
from .passes import Step, Steps, all_pairs, backpropagate, forward, levels, steps
from .paths import PathTable, ScalarPath, best_path, crossing, greedy_path, path_table, paths, pathwise_sum
from .tapes import from_tape

__all__ = [
    "BadGraph",
    "CycleError",
    "Graph",
    "Lengths",
    "MaxPlus",
    "MinPlus",
    "Node",
    "PathTable",
    "ScalarEdge",
    "ScalarPath",
    "Step",
    "Steps",
    "Sum",
    "TooLarge",
    "Vertex",
    "all_pairs",
    "backpropagate",
    "best_path",
    "crossing",
    "draw",
    "forward",
    "from_tape",
    "greedy_path",
    "levels",
    "path_table",
    "paths",
    "pathwise_sum",
    "plain",
    "steps",
    "to_dot",
    "vertex",
]
