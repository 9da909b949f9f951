"""Graphs of functions, written by hand: what a computation node is, and what a graph of them computes.

    >>> g = Graph()
    >>> x, w = g.inputs(x=2.0), g.parameters(w=3.0)
    >>> y = g.add("y", "*", *x, *w)
    >>> loss = g.add("loss", lambda y: (y - 5) ** 2, y)
    >>> loss.value, g.gradient(loss)["w"]
    (1.0, 4.0)

A node has a function, links to its inputs and its consumers, a value, and the derivatives of its value by each input:
autograd's, sympy's where values are symbols or Fractions, or given by hand. Values are numbers, vectors or matrices.
`Graph.scalars` writes the graph out with a vertex for each number, which is what everything else in
`gradtrace.scalar` works on; `Graph.vectors` keeps a vertex for each node, with Jacobians on its edges.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from functools import reduce
from itertools import product
from operator import add, matmul, mul
from typing import Any

import networkx
import torch
from torch import Tensor
from torch.nn import functional

from ..errors import BadArgument, GradtraceError, UnknownName
from ..recording.derivatives import dependence, jacobian
from ..recording.isolation import alone
from .graph import Number, Vertex, is_symbolic, some_of
from .tables import table, written

Function = Callable[..., Any]
FOLDED: dict[str, Function] = {"+": add, "*": mul, "@": matmul}


@dataclass(eq=False, repr=False)
class Node:
    """A computation node.

    Attributes:
        graph: whose it is.
        kind: "input", "parameter" or "operation".
        function: what computes its value from those of its inputs; its name, or "f" for a function without one.
        inputs: links to where its arguments come from, in their order; one twice where x·x has two of them.
        consumers: links to what uses its value.
        value: a float, a tensor of float64, or an exact number; of the last forward pass. Whole numbers that are given
            stay whole: exact among Fractions and symbols, and floats to PyTorch's functions.
    """

    graph: Graph
    name: str
    kind: str
    function: str = ""
    inputs: tuple[Node, ...] = ()
    consumers: list[Node] = field(default_factory=list)
    value: Any = None
    apply: Function | None = None
    derivatives: Function | None = None

    def __repr__(self) -> str:
        return f"{self.name} = {_printed(self.value) if isinstance(self.value, Tensor) else self.value}"


def vertex_of(given: Node | Vertex) -> Vertex:
    """Give the name of a node; a vertex as it is."""
    return given.name if isinstance(given, Node) else given


class Graph:
    """A graph of node functions, computed as it is built; printed, a table of its nodes.

    Attributes:
        nodes: by name, producers first.
    """

    def __init__(self) -> None:
        self.nodes: dict[str, Node] = {}

    def __str__(self) -> str:
        rows = [
            (n.name, n.function or n.kind, ", ".join(source.name for source in n.inputs), _printed(n.value))
            for n in self.nodes.values()
        ]
        return table(("node", "function", "of", "value"), rows)

    def __getitem__(self, name: str) -> Node:
        if name not in self.nodes:
            raise UnknownName(f"no node {name!r} in the graph; there are {some_of(self.nodes) or 'none'}")
        return self.nodes[name]

    # ------------------------------------------------------------ building

    def inputs(self, **values: Any) -> list[Node]:
        """Add inputs: numbers, Fractions, sympy expressions, or (nested lists of) numbers, or tensors."""
        return [self._leaf(name, "input", value) for name, value in values.items()]

    def parameters(self, **values: Any) -> list[Node]:
        """Add learnable parameters, as `inputs` adds inputs."""
        return [self._leaf(name, "parameter", value) for name, value in values.items()]

    def _leaf(self, name: str, kind: str, value: Any) -> Node:
        return self._added(Node(self, name, kind, value=_number(value)))

    def _added(self, node: Node) -> Node:
        if node.name in self.nodes:
            raise BadArgument(f"there is a node {node.name!r} already")
        self.nodes[node.name] = node
        return node

    def add(
        self, name: str, function: str | Function, *inputs: Node | str, derivatives: Function | None = None
    ) -> Node:
        """Add an operation on the values of other nodes, and compute it.

        Args:
            name: the node's.
            function: "+", "*" and "@" for sums, products and matrix products of any number of arguments; the name of
                a function of torch, torch.nn.functional or (for exact values) sympy: "sin", "relu"; or a function.
            inputs: nodes of this graph, or their names.
            derivatives: of the values of the inputs: a derivative by each, a number, or a Jacobian with a row for each
                number of the result. Without it autograd, or sympy, says what they are.

        Raises:
            BadArgument, UnknownName: no such function or node; or the name is taken.
        """
        sources = tuple(self._own(given) for given in inputs)
        label = function if isinstance(function, str) else getattr(function, "__name__", "f").replace("<lambda>", "f")
        node = Node(self, name, "operation", label, sources, apply=_applied(function), derivatives=derivatives)
        self._added(node).value = _value(node)
        for source in dict.fromkeys(sources):
            source.consumers.append(node)
        return node

    def _own(self, given: Node | str) -> Node:
        if isinstance(given, Node) and given.graph is not self:
            raise BadArgument(f"{given.name} is a node of another graph")
        return given if isinstance(given, Node) else self[given]

    # ------------------------------------------------------------ the forward and the backward pass

    def forward(self, **values: Any) -> dict[str, Any]:
        """Compute every node again, with new values for some inputs and parameters; give all values by name.

        Raises:
            BadArgument: a name is that of an operation, or a function cannot take the new values; nothing has changed.
        """
        before = {name: node.value for name, node in self.nodes.items()}
        for name in values:
            if self[name].kind == "operation":
                raise BadArgument(f"{name} is computed: only inputs and parameters can be set")
        try:
            for node in self.nodes.values():
                node.value = _value(node) if node.kind == "operation" else _number(values.get(node.name, node.value))
        except Exception:
            for name, value in before.items():
                self.nodes[name].value = value
            raise
        return {name: node.value for name, node in self.nodes.items()}

    def gradient(self, loss: Node | str) -> dict[str, Any]:
        """Backpropagate vectors: Δ(ℓ) = 1, Δ(i) = Σ over consumers j of Jacobian(y_j, y_i)ᵀ Δ(j).

        Returns:
            ∂loss/∂node in the node's own shape, for all of them, by name; 0 where the loss does not depend on it.
        """
        end = self._scalar(loss)
        delta: dict[str, Any] = {name: _zeros(node) for name, node in self.nodes.items()}
        delta[end.name] = _ones(end)
        for node in reversed(self.nodes.values()):
            for source, matrix in zip(node.inputs, self.jacobians(node), strict=True):
                carried = matrix.mT @ delta[node.name] if isinstance(matrix, Tensor) else _exact(matrix, delta, node)
                delta[source.name] = delta[source.name] + carried
        return {name: _shaped(delta[name], node) for name, node in self.nodes.items()}

    def _scalar(self, loss: Node | str) -> Node:
        node = self._own(loss)
        if isinstance(node.value, Tensor):
            raise BadArgument(f"{node.name} has {node.value.numel()} numbers; a loss has one: add its sum")
        return node

    def jacobians(self, node: Node | str) -> list[Any]:
        """Differentiate a node by each of its inputs: matrices, a row for each number of the node's value.

        Of exact numbers it is a list of one list of one number.
        """
        node = self._own(node)
        if not node.inputs:
            return []
        if node.derivatives is not None:
            given = node.derivatives(*(source.value for source in node.inputs))
            given = given if isinstance(given, (tuple, list)) else (given,)
            if len(given) != len(node.inputs):
                raise BadArgument(f"{node.name} has {len(node.inputs)} inputs, its derivatives gave {len(given)}")
            return [_given(d, node, source) for d, source in zip(given, node.inputs, strict=True)]
        if any(_is_exact(source.value) for source in node.inputs):
            return [[[d]] for d in _symbolic(node)]
        return _by_autograd(node)

    # ------------------------------------------------------------ written out

    def scalars(self, *, keep_zero: bool = False) -> networkx.MultiDiGraph:
        """Write the graph out: a vertex for each number, an edge with a local derivative for each use of one.

        Vertices are names: "x", "h[0]", "W[0,1]"; they have the attributes `value`, `kind` and `function`.

        Args:
            keep_zero: add edges of weight 0 where there would be one at other numbers (a ReLU that is off).
        """
        graph = networkx.MultiDiGraph()
        for node in self.nodes.values():
            for name, value in zip(_names(node), _numbers(node.value), strict=True):
                graph.add_node(name, value=value, kind=node.kind, function=node.function, node=node.name)
        for number, node in enumerate(self.nodes.values()):
            there = _dependence(node) if keep_zero and node.inputs else [None] * len(node.inputs)
            for k, (source, matrix) in enumerate(zip(node.inputs, self.jacobians(node), strict=True)):
                rows = matrix.tolist() if isinstance(matrix, Tensor) else matrix
                for (i, y), (j, x) in product(enumerate(_names(node)), enumerate(_names(source))):
                    if rows[i][j] != 0 or (there[k] is not None and there[k][i, j]):  # type: ignore[index]
                        graph.add_edge(x, y, weight=rows[i][j], argument=k, order=(number, k, i))
        return graph

    def vectors(self) -> networkx.MultiDiGraph:
        """Write the graph out with a vertex for each node, and the `jacobian` on each edge, by its shape as `label`."""
        graph = networkx.MultiDiGraph()
        for node in self.nodes.values():
            graph.add_node(node.name, value=node.value, kind=node.kind, function=node.function)
        for number, node in enumerate(self.nodes.values()):
            for k, (source, matrix) in enumerate(zip(node.inputs, self.jacobians(node), strict=True)):
                size = f"{len(matrix)}×{len(matrix[0])}"
                graph.add_edge(source.name, node.name, jacobian=matrix, label=size, argument=k, order=(number, k))
        return graph


# ---------------------------------------------------------------- values


def _number(value: Any) -> Any:
    """Give what a node keeps: an exact or a whole number as it is, another as a float, more as a tensor of float64."""
    if _is_exact(value) or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    try:
        found = torch.as_tensor(value, dtype=torch.float64).detach().clone()
    except (TypeError, ValueError, RuntimeError) as error:
        raise BadArgument(f"a value is a number, an exact one, or lists of numbers, not {value!r}: {error}") from None
    return found.item() if found.dim() == 0 else found


def _printed(value: Any) -> str:
    return written(value.tolist() if isinstance(value, Tensor) else value)


def _is_exact(value: Any) -> bool:
    return isinstance(value, Fraction) or is_symbolic(value)


def _tensor(value: Any) -> Tensor:
    return torch.as_tensor(value, dtype=torch.float64)


def _names(node: Node) -> list[str]:
    if not isinstance(node.value, Tensor):
        return [node.name]
    return [f"{node.name}[{','.join(map(str, index))}]" for index in product(*map(range, node.value.shape))]


def _numbers(value: Any) -> list[Number]:
    return value.flatten().tolist() if isinstance(value, Tensor) else [value]


def _count(value: Any) -> int:
    return value.numel() if isinstance(value, Tensor) else 1


def _zeros(node: Node) -> Any:
    exact = isinstance(node.value, int) or _is_exact(node.value)
    return 0 if exact else torch.zeros(_count(node.value), dtype=torch.float64)


def _ones(node: Node) -> Any:
    return 1 if isinstance(node.value, int) or _is_exact(node.value) else torch.ones(1, dtype=torch.float64)


def _shaped(delta: Any, node: Node) -> Any:
    if isinstance(node.value, Tensor):
        return delta.reshape(node.value.shape)
    return delta.item() if isinstance(delta, Tensor) else delta


def _exact(matrix: list[list[Number]], delta: dict[str, Any], node: Node) -> Any:
    return matrix[0][0] * delta[node.name]


# ---------------------------------------------------------------- functions and their derivatives


def _applied(function: str | Function) -> Function:
    """Make a function of values from what `Graph.add` was given."""
    if not isinstance(function, str):
        return function
    if function in FOLDED:
        return lambda *values: reduce(FOLDED[function], values)
    places = (torch, functional)
    found = next((getattr(place, function) for place in places if callable(getattr(place, function, None))), None)

    def apply(*values: Any) -> Any:
        if any(map(_is_exact, values)):
            exact = getattr(importlib.import_module("sympy"), function, None)
            if exact is None:
                raise BadArgument(f"sympy has no function {function!r}: give a Python function of exact numbers")
            return exact(*values)
        if found is None:
            raise BadArgument(
                f"no function {function!r}: '+', '*', '@', a name of torch or torch.nn.functional, or a Python function"
            )
        return found(*values)

    return apply


@alone()
def _value(node: Node) -> Any:
    assert node.apply is not None
    values = [source.value for source in node.inputs]
    exact = any(map(_is_exact, values))
    try:
        found = node.apply(*(values if exact else map(_tensor, values)))
    except GradtraceError:
        raise
    except Exception as error:
        given = ", ".join(source.name for source in node.inputs)
        raise BadArgument(f"{node.name} = {node.function}({given}) cannot be computed: {error}") from error
    if exact:
        return found
    if not isinstance(found, (Tensor, float, int)):
        raise BadArgument(f"the function of {node.name} gave a {type(found).__name__}, not a number or a tensor")
    return _number(_tensor(found))


@alone()
def _by_autograd(node: Node) -> list[Tensor]:
    assert node.apply is not None
    arguments = [_tensor(source.value).clone().requires_grad_() for source in node.inputs]
    with torch.enable_grad():
        result = _tensor(node.apply(*arguments))
    return [jacobian(result, x) for x in arguments]


@alone()
def _dependence(node: Node) -> list[Tensor | None]:
    if any(_is_exact(source.value) for source in node.inputs) or node.derivatives is not None:
        return [None] * len(node.inputs)
    assert node.apply is not None
    apply = node.apply
    arguments = [_tensor(source.value) for source in node.inputs]
    found = dependence(lambda given: [_tensor(apply(*given))], arguments, range(len(arguments)), [0])
    return [found[k, 0] for k in range(len(arguments))]


def _symbolic(node: Node) -> list[Number]:
    """Differentiate by sympy: with symbols for the arguments, and then their values in the symbols' places."""
    sympy = importlib.import_module("sympy")
    assert node.apply is not None
    symbols = [sympy.Dummy(f"a{k}") for k in range(len(node.inputs))]
    result = sympy.sympify(node.apply(*symbols))
    values = {a: sympy.sympify(source.value) for a, source in zip(symbols, node.inputs, strict=True)}
    found = [sympy.diff(result, a).subs(values) for a in symbols]
    if all(isinstance(source.value, (Fraction, int)) for source in node.inputs):
        return [Fraction(d.p, d.q) if d.is_Rational else d for d in found]
    return found


def _given(derivative: Any, node: Node, source: Node) -> Any:
    if _is_exact(derivative) or _is_exact(source.value):
        return [[derivative]]
    rows, columns = _count(node.value), _count(source.value)
    found = _tensor(derivative)
    if found.numel() != rows * columns:
        raise BadArgument(
            f"the derivative of {node.name} by {source.name} needs {rows} × {columns} numbers, it has {found.numel()}"
        )
    return found.reshape(rows, columns)
