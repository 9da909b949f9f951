"""The tree by which a report folds a graph: modules by call instance, runs of operators, single operator calls.

A module call is an unbroken stretch of the recording, and so is a run of operators between the calls of its
children. Folding any of them therefore leaves a graph without cycles, unless calls interleave (threads,
generators); what does form a cycle is condensed to one node that cannot be opened.
Layers are local: a node's layer is its place among the children of its parent, by longest path. The picture
of a cut is composed from them, so opening a node moves nothing that was left of it to its right.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..recording.record import Call, Value

MOST_CHILDREN = 32  # more of them are gathered in stretches, which open one by one
MOST_SHOWN = 24
MOST_STRANDS = 4  # up to which a run is taken apart
# operators that only move scalars: no name for a run
SHUFFLES = frozenset(
    (
        *("view", "_unsafe_view", "reshape", "contiguous", "clone", "alias", "detach", "_to_copy", "lift_fresh"),
        *("transpose", "transpose_", "permute", "t", "expand", "unsqueeze", "squeeze", "constant_pad_nd"),
        *("slice", "select", "unbind", "split", "unsafe_split", "split_with_sizes", "cat", "stack"),
    )
)


@dataclass(eq=False)
class Node:
    """A node of the tree.

    Attributes:
        kind: "root", "module", "operators" (a run of them), "stretch" (of neighbours), "condensed" (a cycle),
            "operator", "parameters" or "parameter".
        item: the number of the operator call, or parameter, for those that stand for one; else -1.
    """

    name: str
    kind: str
    parent: int = -1
    item: int = -1
    layer: int = 0
    label: str = ""
    children: list[int] = field(default_factory=list)


@dataclass(eq=False)
class Tree:
    """Nodes by number; 0 is the root. `of_item` gives the node of each operator call or parameter."""

    nodes: list[Node]
    of_item: dict[int, int] = field(default_factory=dict)

    def add(self, parent: int, name: str, kind: str, item: int = -1) -> int:
        """Make a node, the last child of its parent."""
        number = len(self.nodes)
        self.nodes.append(Node(name, kind, parent, item))
        self.nodes[parent].children.append(number)
        if item >= 0:
            self.of_item[item] = number
        return number

    def above(self, number: int) -> list[int]:
        """Give a node and those above it, the root first."""
        out = []
        while number >= 0:
            out.append(number)
            number = self.nodes[number].parent
        return out[::-1]

    def items(self, number: int) -> list[int]:
        """Give all calls, or parameters, inside a node."""
        out, waiting = [], [number]
        while waiting:
            node = self.nodes[waiting.pop()]
            out += [node.item] if node.item >= 0 else []
            waiting += reversed(node.children)
        return out

    def holds(self, node: Node, kind: str) -> bool:
        """Tell whether any node inside is of a kind."""
        return any(self.nodes[c].kind == kind or self.holds(self.nodes[c], kind) for c in node.children)

    def wrap(self, parent: int, members: Sequence[int], name: str, kind: str) -> int:
        """Put a new node between a parent and some of its children."""
        home = self.nodes[parent]
        number = len(self.nodes)
        self.nodes.append(Node(name, kind, parent, children=list(members)))
        at = home.children.index(members[0])
        inside = set(members)
        home.children = [c for c in home.children if c not in inside]
        home.children.insert(at, number)
        for member in members:
            self.nodes[member].parent = number
        return number

    def columns(self) -> dict[str, list[Any]]:
        """Give the nodes that are reached from the root as columns for JSON; parents come before children."""
        order, number = [0], {0: 0}
        for old in order:
            for child in self.nodes[old].children:
                number[child] = len(order)
                order.append(child)
        nodes = [self.nodes[old] for old in order]
        return {
            "name": [n.name for n in nodes],
            "label": [n.label or n.name for n in nodes],
            "kind": [n.kind for n in nodes],
            "parent": [number.get(n.parent, -1) for n in nodes],
            "layer": [n.layer for n in nodes],
            "item": [n.item for n in nodes],
            "open": sorted(number[n] for n in open_at_first(self)),
        }


def call_tree(calls: Sequence[Call], links: Iterable[tuple[int, int]]) -> Tree:
    """Fold operator calls, given in recording order, by the modules they ran in.

    Args:
        calls: those that lead to the loss.
        links: pairs of call numbers, a result of the first going into the second.
    """
    tree = Tree([Node("", "root")])
    known: dict[tuple[int, str], int] = {}
    latest: dict[int, int] = {}
    for call in calls:
        home = 0
        for scope in map(str, call.scopes):
            if (home, scope) not in known:
                known[home, scope] = tree.add(home, scope, "module")
            latest[home] = home = known[home, scope]
        run = latest.get(home, -1)
        if run < 0 or tree.nodes[run].kind != "operators":
            run = latest[home] = tree.add(home, tree.nodes[home].name, "operators")
        tree.add(run, bare(call.name), "operator", call.index)
    links = list(links)
    _split_runs(tree, links)
    _drop_needless_runs(tree)
    _gather(tree)
    _place(tree, links)
    _label(tree)
    return tree


def parameter_tree(leaves: Sequence[Value]) -> Tree:
    """Fold parameters by the parts of their names."""
    tree = Tree([Node("", "root")])
    known: dict[str, int] = {"": 0}
    for item, leaf in enumerate(leaves):
        parts, home = str(leaf.name).split("."), 0
        for i in range(1, len(parts)):
            name = ".".join(parts[:i])
            if name not in known:
                known[name] = tree.add(home, name, "parameters")
            home = known[name]
        tree.add(home, str(leaf.name), "parameter", item)
    for number in range(len(tree.nodes) - 1, 0, -1):
        _hoist(tree, number, lambda node: node.kind == "parameters" and len(node.children) == 1)
    for node in tree.nodes:
        node.label = _short(node.name, tree.nodes[node.parent].name if node.parent > 0 else "")
    return tree


def _short(name: str, home: str) -> str:
    """Leave out of a parameter's name what stands in that of its group, but no number without a name.

    >>> _short("net.h.0", "net.h"), _short("net.h.0.attn.bias", "net.h.0")
    ('h.0', 'attn.bias')
    """
    above = len(home.split(".")) if home else 0
    parts = name.split(".")
    return ".".join(parts[above - 1 if above and parts[above].isdigit() else above :])


def bare(operator: str) -> str:
    """Shorten "aten.mm.default" to "mm"."""
    parts = operator.split(".")
    return parts[1] if len(parts) > 1 else operator


def _hoist(tree: Tree, number: int, needless: Callable[[Node], bool]) -> None:
    """Put a node's children in its place, if it is needless."""
    node = tree.nodes[number]
    if node.parent < 0 or not needless(node):
        return
    home = tree.nodes[node.parent].children
    at = home.index(number)
    home[at : at + 1] = node.children
    for child in node.children:
        tree.nodes[child].parent = node.parent
    node.children = []


def _split_runs(tree: Tree, links: Sequence[tuple[int, int]]) -> None:
    """Take apart runs of a few strands that have nothing to do with each other, so that experts stand side by side."""
    before: dict[int, list[int]] = {}
    for source, target in links:
        before.setdefault(target, []).append(source)
    for number in range(len(tree.nodes)):
        run = tree.nodes[number]
        strands = _strands(tree.items(number), before) if run.kind == "operators" else []
        if 1 < len(strands) <= MOST_STRANDS:
            for strand in strands[1:]:
                members = [tree.of_item[item] for item in strand]
                inside = set(members)
                run.children = [c for c in run.children if c not in inside]
                apart = tree.add(run.parent, run.name, "operators")
                home = tree.nodes[run.parent].children
                home.insert(home.index(number) + 1, home.pop())
                tree.nodes[apart].children = members
                for member in members:
                    tree.nodes[member].parent = apart


def _strands(items: Sequence[int], before: dict[int, list[int]]) -> list[list[int]]:
    """Group calls, given in recording order, that links among them connect."""
    home: dict[int, list[int]] = {}
    for item in items:
        parts = {id(home[b]): home[b] for b in before.get(item, ()) if b in home}
        strand = max(parts.values(), key=len, default=[])
        for part in [*parts.values(), [item]]:
            if part is not strand:
                strand += part
                home.update(dict.fromkeys(part, strand))
    return [sorted(strand) for strand in {id(strand): strand for strand in home.values()}.values()]


def _drop_needless_runs(tree: Tree) -> None:
    """A run of one operator is that operator; a module of nothing but a run is its operators."""

    def needless(node: Node) -> bool:
        alone = len(tree.nodes[node.parent].children) == 1
        return node.kind == "operators" and (alone or len(node.children) == 1)

    for number in range(len(tree.nodes)):
        _hoist(tree, number, needless)


def _gather(tree: Tree) -> None:
    """Gather many children in stretches of neighbours."""
    waiting = [0]
    while waiting:
        number = waiting.pop()
        children = tree.nodes[number].children
        if len(children) > MOST_CHILDREN:
            size = math.ceil(math.sqrt(len(children)))
            for part in [children[i : i + size] for i in range(0, len(children), size)]:
                tree.wrap(number, part, tree.nodes[number].name, "stretch")
        waiting += tree.nodes[number].children


def _place(tree: Tree, links: list[tuple[int, int]]) -> None:
    """Give every node its layer among its siblings; condense what forms a cycle."""
    graphs = _graphs_of_siblings(tree, links)
    waiting = [0]
    while waiting:
        number = waiting.pop()
        children, links_here = tree.nodes[number].children, graphs.get(number, set())
        order = {child: i for i, child in enumerate(children)}
        if all(order[a] < order[b] for a, b in links_here):
            _place_forward(tree, children, links_here)
        else:
            _place_condensed(tree, number, links_here)
        waiting += [c for c in tree.nodes[number].children if tree.nodes[c].kind != "condensed"]


def _place_forward(tree: Tree, children: Sequence[int], links: set[tuple[int, int]]) -> None:
    """Do so where every link leads to a later sibling: each is in the layer after the last of those before it."""
    before: dict[int, list[int]] = {}
    for source, target in links:
        before.setdefault(target, []).append(source)
    for child in children:
        tree.nodes[child].layer = 1 + max((tree.nodes[b].layer for b in before.get(child, ())), default=-1)


def _place_condensed(tree: Tree, number: int, links: set[tuple[int, int]]) -> None:
    import networkx as nx  # here, since calls hardly ever interleave

    graph = nx.DiGraph(sorted(links))
    graph.add_nodes_from(tree.nodes[number].children)
    folded = nx.condensation(graph)
    for layer, generation in enumerate(nx.topological_generations(folded)):
        for part in generation:
            members = sorted(folded.nodes[part]["members"])
            if len(members) > 1:
                members = [tree.wrap(number, members, tree.nodes[members[0]].name, "condensed")]
            tree.nodes[members[0]].layer = layer


def _graphs_of_siblings(tree: Tree, links: list[tuple[int, int]]) -> dict[int, set[tuple[int, int]]]:
    """Draw each link between calls where they part: among the children of the lowest node above both."""
    graphs: dict[int, set[tuple[int, int]]] = {}
    above = {item: tree.above(number) for item, number in tree.of_item.items()}
    for source, target in dict.fromkeys(links):
        for home, a, b in zip(above[source], above[source][1:], above[target][1:], strict=False):
            if a != b:
                graphs.setdefault(home, set()).add((a, b))
                break
    return graphs


def _label(tree: Tree) -> None:
    """Give nodes the names they show: without what their parent's says already."""
    for node in tree.nodes:
        home = tree.nodes[node.parent].name if node.parent >= 0 else ""
        if node.kind == "module":
            node.label = node.name.removeprefix(f"{home.split(':')[0]}.") if home else node.name
        elif node.kind in ("operators", "stretch", "condensed"):
            inside = [tree.nodes[c] for c in node.children]
            modules = [n for n in inside if n.kind == "module"]
            node.label = f"{modules[0].name} – {modules[-1].name}" if modules else _name_of_run(tree, node)


def _name_of_run(tree: Tree, run: Node) -> str:
    """Name a run by its first operators that compute something."""
    names = [tree.nodes[tree.of_item[i]].name for c in run.children for i in tree.items(c)]
    telling = list(dict.fromkeys(n for n in names if n not in SHUFFLES)) or list(dict.fromkeys(names))
    return ", ".join(n.strip("_") for n in telling[:2]) + (", …" if len(telling) > 2 else "")


def open_at_first(tree: Tree, most: int = MOST_SHOWN) -> list[int]:
    """Choose what is open at first: as little as shows a handful of parts, none of them nearly everything."""
    size = {n: len(tree.items(n)) for n in range(len(tree.nodes))}
    opened, shown = [0], list(tree.nodes[0].children)
    while True:
        folders = [n for n in shown if tree.nodes[n].kind in ("module", "parameters", "stretch")]
        largest = max(folders, key=lambda n: size[n], default=None)
        if largest is None or not tree.nodes[largest].children:
            return opened
        few = len(folders) < 3 or size[largest] > 0.6 * size[0]
        inside = tree.nodes[largest].children
        if not few or len(shown) + len(inside) > most or all(tree.nodes[c].kind == "operator" for c in inside):
            return opened
        opened.append(largest)
        shown = [n for n in shown if n != largest] + inside


def cut(tree: Tree, opened: Iterable[int]) -> list[int]:
    """Give the nodes that show, when these are open."""
    is_open, out, waiting = set(opened), [], [0]
    while waiting:
        number = waiting.pop()
        if number in is_open:
            waiting += reversed(tree.nodes[number].children)
        else:
            out.append(number)
    return out
