"""Networks plugged together from components, at random: four in parallel, or grown by a grammar.

    S → diamond          X → diamond  with probability p          X → component, or nothing  otherwise

A diamond leads its input into two X and takes the mean of their results; its join may hold a component that reads that
mean. One side of a diamond may hold nothing: a skip. The first diamond's join holds none, for everything would have to
pass through it. As in `random_architectures`, p is halved from a diamond to those in it.

What happens without a component is said once, by `Plugged.forward` for one network and, for all at once, by
`side_by_side`: it is left out of the mean, or bypassed where it has no rival.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

from torch import Tensor, nn

from .components import build, first, label
from .random_architectures import FIRST
from .seeds import derived_seed, seeded
from .tasks import Task

SENSES = ("parallel", "grown")
JOINED = SKIPPED = 0.5


@dataclass(frozen=True)
class Diamond:
    """Sides whose mean goes on, to the component at the join if it has one."""

    sides: tuple[Node, ...]
    join: str | None = None

    @property
    def components(self) -> tuple[str, ...]:
        """Names of all components in it, in the order in which they run."""
        found = [name for side in self.sides for name in components_of(side)]
        return (*found, *([self.join] if self.join else []))

    def plain(self) -> dict[str, Any]:
        """Give it as JSON holds it."""
        return {"mean": [s.plain() if isinstance(s, Diamond) else s for s in self.sides], "join": self.join}


Node: TypeAlias = "Diamond | str | None"  # None: nothing is there, so it is passed


def components_of(node: Node) -> tuple[str, ...]:
    """Name the components of a node."""
    return node.components if isinstance(node, Diamond) else (node,) if node else ()


def read(plain: Any) -> Any:
    """Make a node of what `plain` gave."""
    return Diamond(tuple(map(read, plain["mean"])), plain["join"]) if isinstance(plain, dict) else plain


def draw(seed: int, number: int, components: Sequence[str], count: int) -> Diamond:
    """Draw an architecture: even numbers are parallel, odd ones grown.

    Args:
        seed, number: decide it.
        components: names to draw from, each once at most.
        count: how many components it has.
    """
    source = random.Random(derived_seed(seed, f"architecture {number}"))
    names = source.sample(list(components), count)
    if number % len(SENSES) == 0:
        return Diamond(tuple(names))
    while True:
        shape = _diamond(source, FIRST, first=True)
        if len(components_of(shape)) == count and _joins(shape):
            return _named(shape, iter(names))


def _diamond(source: random.Random, p: float, *, first: bool = False) -> Diamond:
    sides: list[Node] = [_diamond(source, p / 2) if source.random() < p / 2 else "?" for _ in range(2)]
    if "?" in sides and source.random() < SKIPPED:
        sides[sides.index("?")] = None
    return Diamond(tuple(sides), None if first or source.random() >= JOINED else "?")


def _joins(node: Node) -> bool:
    """Tell whether a join holds a component: without one, all are in parallel."""
    return isinstance(node, Diamond) and (node.join is not None or any(map(_joins, node.sides)))


def _named(node: Any, names: Iterator[str]) -> Any:
    if not isinstance(node, Diamond):
        return node and next(names)
    sides = tuple([_named(side, names) for side in node.sides])
    return Diamond(sides, node.join and next(names))


class Plugged(nn.Module):
    """A network: inputs → embedding → architecture → output.

    Args:
        root: the architecture.
        task: says what goes in and what comes out.
        hidden: the width of everything.
        seed: decides initial weights; each component's depend on it and on the component's name only.
    """

    def __init__(self, root: Diamond, task: Task, hidden: int, seed: int) -> None:
        super().__init__()
        self.root = _named(root, map(label, root.components))
        self.components: tuple[str, ...] = self.root.components
        self.embedding = seeded(seed, "embedding", partial(task.embedding, hidden))
        for name in root.components:
            self.add_module(label(name), seeded(seed, name, partial(build, name, hidden)))
        self.output = seeded(seed, "output", partial(nn.Linear, hidden, task.outputs))

    def forward(self, inputs: Tensor, present: Collection[str] | None = None) -> Tensor:
        """Score classes at every step, with the components that are `present` (all): batch × time × classes."""
        return self.after(self.embedding(inputs), present)

    def after(self, x: Tensor, present: Collection[str] | None = None) -> Tensor:
        """Go on from the embedding's result."""
        result = self._run(self.root, x, frozenset(self.components if present is None else present))
        return self.output(x if result is None else result)

    def _run(self, node: Node, x: Tensor, present: frozenset[str]) -> Tensor | None:
        """Give a node's result, or None where none of its components is present: it is left out."""
        if node is None:
            return x
        if not present & {*components_of(node)}:
            return None
        if isinstance(node, str):
            return first(self.get_submodule(node)(x))
        results = [r for side in node.sides if (r := self._run(side, x, present)) is not None]
        mean = sum(results[1:], start=results[0]) / len(results) if results else x
        return first(self.get_submodule(node.join)(mean)) if node.join in present else mean
