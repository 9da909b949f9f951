"""What is right, by plain Python: a program's scalar graph, and answers read off it.

Tensors are index maps: every tensor knows the flat positions at which its scalars lie in a memory, and a memory has for
every position a number, a vertex, and the example on which the number depends. A view has positions in the memory of
another; a write replaces vertices at some positions. Local derivatives are those of
`torch.autograd.functional.jacobian`, one operator at a time. Nothing here is gradtrace's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch
from fuzz.program import Part, function, quietly
from torch import Tensor
from torch.autograd.functional import jacobian

SHARED, MIXED = -1, -2  # labels: no example reaches a number; several do
Vertex = int | None
LARGEST, MOST = 50.0, 20


class Rejected(Exception):
    """A step that no program should have: it is not defined, not differentiable, or too large."""


@dataclass(eq=False)
class Memory:
    """A storage: flat numbers, and for each the example that it depends on."""

    data: Tensor
    labels: list[int]
    frozen: bool = False  # what is given as examples is not written to


@dataclass(eq=False)
class Ref:
    """A tensor of the program.

    Attributes:
        vertices: by position in the memory; shared by all views that autograd follows together.
        where: the positions of its scalars, laid out as the tensor is.
        parent, picks: for a view, of what, and which of its scalars; a view's scalars are vertices of their own.
    """

    memory: Memory
    vertices: list[Vertex]
    where: Tensor
    parent: Ref | None = None
    picks: tuple[int, ...] = ()
    units: dict[tuple[int, int], int] = field(default_factory=dict)

    def value(self) -> Tensor:
        return self.memory.data.as_strided(self.where.shape, self.where.stride(), self.where.storage_offset())

    def positions(self) -> list[int]:
        return self.where.flatten().tolist()

    def labels(self) -> Tensor:
        return torch.tensor(self.memory.labels)[self.where]

    def followed(self) -> bool:
        return any(self.vertices[p] is not None for p in self.positions())


@dataclass
class Graph:
    """Vertices are numbered in the order they are made, so producers come first; edges by consumer."""

    into: list[list[tuple[int, float]]] = field(default_factory=list)
    faint: bool = False  # whether some derivative is rounding noise, so that a count of paths is one of noise

    def add(self, edges: Iterable[tuple[int, float]] = ()) -> int:
        self.into.append([e for e in edges if e[1] != 0])
        return len(self.into) - 1

    def reverse(self, root: int, lift: Callable, plus: Callable, without: Iterable[int] = ()) -> dict[int, float]:
        """Run g_v = ⊕ λ(w) g_u, from the root to all that it depends on; some vertices are left out."""
        gone, g = set(without), {root: 1.0}
        for u in range(root, -1, -1):
            if u in g and u not in gone:
                for v, w in self.into[u]:
                    term = lift(w) * g[u]
                    g[v] = plus(g[v], term) if v in g else term
        return g

    def sums(self, root: int) -> dict[int, float]:
        return self.reverse(root, float, lambda a, b: a + b)

    def absolute(self, root: int) -> dict[int, float]:
        return self.reverse(root, abs, lambda a, b: a + b)

    def counts(self, root: int) -> dict[int, float]:
        return self.reverse(root, lambda w: 1.0, lambda a, b: a + b)

    def best(self, root: int, without: Iterable[int] = ()) -> dict[int, float]:
        return self.reverse(root, abs, max, without)

    def consumers(self, root: int) -> dict[int, list[tuple[int, float]]]:
        out: dict[int, list[tuple[int, float]]] = {}
        for u in range(root + 1):
            for v, w in self.into[u]:
                out.setdefault(v, []).append((u, w))
        return out


def greedy(consumers: dict, start: int, root: int, g: dict[int, float], flow: dict[int, float]) -> float | None:
    """Give the weight of the greedy path: 0 if there is none, None where rounding decides about it."""
    vertex, weight = start, 1.0
    while vertex != root:
        edges = consumers.get(vertex, [])
        pulls = [abs(w * g.get(u, 0.0)) for u, w in edges]
        if any(0 < abs(g.get(u, 0.0)) < 1e-9 * flow[u] or (u in flow and g[u] == 0) for u, _ in edges if u in flow):
            return None
        top = max(pulls, default=0.0)
        if top == 0:
            return 0.0
        if sum(p > top * (1 - 1e-9) for p in pulls) > 1:
            return None
        vertex, w = edges[pulls.index(top)]
        weight *= abs(w)
    return weight


class Oracle:
    """Runs a program part by part, and keeps its scalar graph."""

    def __init__(self) -> None:
        self.env: dict[str, Ref] = {}
        self.graph = Graph()
        self.leaves: dict[str, list[int]] = {}
        self.met: dict[str, list[Vertex]] = {}  # what examples met in, by name, as it was made: it may be overwritten
        self.writes = False
        self.unclear = False  # whether examples wrote over followed numbers behind autograd's back: whose are they?
        self.calls: set[str] = set()  # first results of the calls that autograd follows
        self._generator = torch.Generator().manual_seed(0)

    def give(self, name: str, tensor: Tensor, *, leaf: bool, example: bool) -> None:
        """Take a leaf or a tensor of data from the program."""
        ref = self._fresh(tensor.detach().clone(memory_format=torch.contiguous_format), [SHARED] * tensor.numel())
        if example:
            each = tensor.numel() // len(tensor)
            ref.memory.labels = [b for b in range(len(tensor)) for _ in range(each)]
        ref.memory.frozen = not leaf
        self.env[name] = ref
        if leaf:
            self._make_leaf(name, ref)

    def _make_leaf(self, name: str, ref: Ref) -> None:
        for p in ref.positions():
            ref.vertices[p] = self.graph.add()
        self.leaves[name] = [ref.vertices[p] for p in ref.positions()]  # type: ignore[misc]

    def _fresh(self, out: Tensor, labels: list[int]) -> Ref:
        """Lay a new tensor out as PyTorch did; labels are in the order of its scalars."""
        n = out.numel()
        dense = torch.empty_strided(out.shape, out.stride()).untyped_storage().nbytes() == n * 4
        out = out if dense else out.contiguous()
        where = torch.arange(n).as_strided(out.shape, out.stride())
        memory = Memory(out.as_strided((n,), (1,), out.storage_offset()).clone(), [SHARED] * n)
        for p, label in zip(where.flatten().tolist(), labels, strict=True):
            memory.labels[p] = label
        return Ref(memory, [None] * n, where)

    # ------------------------------------------------------------ reading

    def read(self, ref: Ref) -> list[Vertex]:
        """Give the vertices of a tensor's scalars at this moment."""
        return [self._vertex(ref, k, p) for k, p in enumerate(ref.positions())]

    def _vertex(self, ref: Ref, k: int, position: int) -> Vertex:
        under = ref.vertices[position]
        if ref.parent is None or under is None:
            return under
        if (k, under) not in ref.units:
            source = self._vertex(ref.parent, ref.picks[k], position)
            assert source is not None
            ref.units[k, under] = self.graph.add([(source, 1.0)])
        return ref.units[k, under]

    # ------------------------------------------------------------ one part

    def run(self, part: Part, *, apart: bool = False) -> None:
        """Run one part.

        Raises:
            Rejected: it should not be in a program; nothing has changed then.
        """
        if any(n not in self.env for n in part.args):
            raise Rejected("names a tensor that is not there")
        refs, f = [self.env[n] for n in part.args], function(part.expr)
        xs = [r.value() for r in refs]
        with torch.no_grad():
            found = f(*xs)
        ys = [found] if isinstance(found, Tensor) else list(found)
        _check(ys)
        if part.mode == "write" or part.mode == "quiet write":
            self._write(part, refs, f, xs, ys[0], apart)
            return
        labels = self._labels(f, refs, xs, ys)
        if apart and any(MIXED in s for s in labels):
            raise Rejected("examples meet")
        if part.mode == "leaf":
            self.env[part.outs[0]] = self._fresh(ys[0], labels[0])
            self._make_leaf(part.outs[0], self.env[part.outs[0]])
            return
        if part.mode == "quiet":
            for name, y, s in zip(part.outs, ys, labels, strict=True):
                self.env[name] = self._quiet(refs, xs, y, s)
            return
        here = any(MIXED in s for s in labels) and not any(MIXED in r.memory.labels for r in refs)
        self._call(part, refs, f, xs, ys, labels)
        if here:
            self.met |= {name: self.read(self.env[name]) for name in part.outs}

    def _quiet(self, refs: list[Ref], xs: list[Tensor], y: Tensor, labels: list[int]) -> Ref:
        """Make a tensor that autograd does not follow; it may lie in the memory of one that is followed."""
        ref = _shared(refs, xs, y)
        if ref is None:
            return self._fresh(y, labels)
        return Ref(ref.memory, [None] * len(ref.vertices), _where(ref, y))

    def _call(self, part: Part, refs: list[Ref], f: Callable, xs: list[Tensor], ys: list[Tensor], labels: list) -> None:
        views = [_shared(refs, xs, y) for y in ys]
        edges = None if all(v is not None for v in views) else self._edges(refs, f, xs, ys)
        if any(r.memory.data.is_floating_point() and r.followed() for r in refs):
            self.calls.add(part.outs[0])
        for number, (name, y, view) in enumerate(zip(part.outs, ys, views, strict=True)):
            same = next((r for r, x in zip(refs, xs, strict=True) if x is y), None)
            if same is not None:  # contiguous() of what is contiguous
                self.env[name] = same
            elif view is not None:
                picks = _picks(part, f, refs, xs, number, view, y)
                self.env[name] = Ref(view.memory, view.vertices, _where(view, y), view, picks)
            else:
                self.env[name] = self._made(y, labels[number], None if edges is None else edges[number])

    def _made(self, y: Tensor, labels: list[int], edges: list[list] | None) -> Ref:
        """Make a tensor with a memory of its own, and a vertex for each scalar, if autograd follows it."""
        ref = self._fresh(y, labels)
        if edges is not None and y.is_floating_point():
            for k, p in enumerate(ref.positions()):
                ref.vertices[p] = self.graph.add(edges[k])
        return ref

    def _write(self, part: Part, refs: list[Ref], f: Callable, xs: list[Tensor], y: Tensor, apart: bool) -> None:
        target = self.env[part.outs[0]]
        if target.memory.frozen:
            raise Rejected("writes to data")
        there = target.positions()
        if len(set(there)) < len(there):
            raise Rejected("writes to one place twice")
        for other in refs:
            if (
                other.memory is target.memory
                and other.positions() != there
                and not set(there).isdisjoint(other.positions())
            ):
                raise Rejected("reads what it is writing to")
        if y.shape != target.where.shape:
            raise Rejected("a write of another shape")
        y = y.clone()
        (labels,) = self._labels(f, refs, xs, [y])
        if apart and MIXED in labels:
            raise Rejected("examples meet")
        edges = None if part.mode == "quiet write" else self._edges(refs, f, xs, [y])
        self.writes = True
        behind = part.mode == "quiet write" and target.followed()
        before = [target.memory.labels[p] for p in there]
        self.unclear |= behind and labels != before
        # a parameter's number over an example's: by its place it is the example's, by its origin everybody's
        self.unclear |= any(new == SHARED and old >= 0 for new, old in zip(labels, before, strict=True))
        target.value().copy_(y)
        for k, p in enumerate(target.positions()):
            target.memory.labels[p] = labels[k]
            if part.mode == "write":
                target.vertices[p] = self.graph.add(edges[0][k]) if edges is not None else None

    # ------------------------------------------------------------ derivatives

    def _edges(self, refs: list[Ref], f: Callable, xs: list[Tensor], ys: list[Tensor]) -> list[list[list]] | None:
        """Give for every result and scalar of it its edges; None if autograd follows no argument."""
        at = [i for i, r in enumerate(refs) if r.memory.data.is_floating_point() and r.followed()]
        if not at:
            return None
        real = [i for i, y in enumerate(ys) if y.is_floating_point()]
        edges: list[list[list]] = [[[] for _ in range(y.numel())] for y in ys]
        if not real:
            return edges

        def g(*moving: Tensor) -> tuple[Tensor, ...]:
            given = list(xs)
            for i, x in zip(at, moving, strict=True):
                given[i] = x
            out = f(*given)
            out = [out] if isinstance(out, Tensor) else out
            return tuple(out[i] for i in real)

        found = jacobian(g, tuple(xs[i].detach() for i in at))  # laid out as they are: so ties fall as they do
        vertices = [self.read(refs[i]) for i in at]
        for number, row in zip(real, found, strict=True):
            for sources, matrix in zip(vertices, row, strict=True):
                self._add(edges[number], sources, matrix.reshape(len(edges[number]), len(sources)))
        return edges

    def _add(self, edges: list[list], sources: list[Vertex], matrix: Tensor) -> None:
        if not matrix.isfinite().all():
            raise Rejected("a derivative is not finite")
        top = float(matrix.abs().max())
        self.graph.faint |= bool(((matrix != 0) & (matrix.abs() < 1e-11 * top)).any())
        for k, j in matrix.nonzero().tolist():
            if sources[j] is not None:
                edges[k].append((sources[j], float(matrix[k, j])))

    # ------------------------------------------------------------ which example a number depends on

    def _labels(self, f: Callable, refs: list[Ref], xs: list[Tensor], ys: list[Tensor]) -> list[list[int]]:
        """Change what belongs to one example, in several ways, and see which results change."""
        labels = [r.labels() for r in refs]
        out = [torch.full(y.shape, SHARED) for y in ys]
        for group in sorted({int(v) for s in labels for v in s.flatten()} - {SHARED}):
            masks = [s == group for s in labels]
            for label, changed in zip(out, self._changed(f, xs, ys, masks), strict=True):
                alone = torch.where(label == SHARED, group, MIXED)
                label[changed] = alone[changed]
        return [s.flatten().tolist() for s in out]

    def _changed(self, f: Callable, xs: list[Tensor], ys: list[Tensor], masks: list[Tensor]) -> list[Tensor]:
        changed = [torch.zeros(y.shape, dtype=torch.bool) for y in ys]
        for way in range(5):
            moved = [torch.where(m, self._moved(x, way), x) for x, m in zip(xs, masks, strict=True)]
            try:
                with torch.no_grad():
                    found = f(*moved)
            except (RuntimeError, IndexError):  # an index out of range
                continue
            found = [found] if isinstance(found, Tensor) else list(found)
            for c, y, z in zip(changed, ys, found, strict=True):
                c |= (z != y) if z.shape == y.shape else torch.ones((), dtype=torch.bool)
        return changed

    def _moved(self, x: Tensor, way: int) -> Tensor:
        if x.dtype == torch.bool:
            return ~x
        if not x.is_floating_point():
            return torch.full_like(x, way) if way < 2 else (x + way) % 2
        if way == 0:
            return torch.full_like(x, torch.nan)
        noise = torch.rand(x.shape, generator=self._generator, dtype=x.dtype) + 0.1
        return x + noise * (30.0, -30.0, 1.0, -1.0)[way - 1]

    # ------------------------------------------------------------ the loss

    def apart(self, terms: Sequence[str], count: int) -> list[list[int]] | None:
        """Give for each example the terms' vertices that are not its own; None where the terms are not apart."""
        others: list[list[int]] = [[] for _ in range(count)]
        some = False
        for name in terms:
            ref = self.env[name]
            labels = _rows(ref.labels(), count)
            some |= bool((ref.labels() >= 0).any())
            if labels is None:
                return None
            for vertex, row in zip(self.read(ref), labels.flatten().tolist(), strict=True):
                if vertex is not None:
                    for b in range(count):
                        others[b] += [vertex] if b != row else []
        return others if some else None


def _rows(labels: Tensor, count: int) -> Tensor | None:
    """Say which example each term belongs to; what no example reaches belongs to the row in which it stands."""
    if (labels >= 0).all():
        return labels
    if labels.dim() == 0 or len(labels) != count or (labels == MIXED).any():
        return None
    rows = torch.arange(count).reshape(count, *[1] * (labels.dim() - 1)).expand(labels.shape)
    return rows if ((labels == rows) | (labels == SHARED)).all() and (labels >= 0).any() else None


def _check(ys: list[Tensor]) -> None:
    for y in ys:
        if y.numel() == 0 or y.numel() > MOST:
            raise Rejected("empty, or too large")
        if not y.isfinite().all() or (y.is_floating_point() and float(y.abs().max()) > LARGEST):
            raise Rejected("not finite, or too large a number")


def _shared(refs: list[Ref], xs: list[Tensor], y: Tensor) -> Ref | None:
    """Find the argument in whose memory a result lies."""
    at = y.untyped_storage().data_ptr()
    return next((r for r, x in zip(refs, xs, strict=True) if x.untyped_storage().data_ptr() == at), None)


def _where(ref: Ref, y: Tensor) -> Tensor:
    return torch.arange(len(ref.vertices)).as_strided(y.shape, y.stride(), y.storage_offset())


def _picks(part: Part, f: Callable, refs: list[Ref], xs: list[Tensor], number: int, view: Ref, y: Tensor) -> tuple:
    """Say which scalar of its argument each scalar of a view is: look where an index of them goes."""
    if "as_strided" in part.expr:
        at = {p: k for k, p in enumerate(view.positions())}
        found = [at.get(p) for p in _where(view, y).flatten().tolist()]
        if None in found or len(at) < view.where.numel():
            raise Rejected("a view beyond what it is a view of")
        return tuple(found)
    index = torch.arange(view.where.numel(), dtype=torch.float64).reshape(view.where.shape)
    moved = f(*[index if r is view else x for r, x in zip(refs, xs, strict=True)])
    return tuple(int(k) for k in (moved if isinstance(moved, Tensor) else list(moved)[number]).flatten())


def run_parts(oracle: Oracle, parts: Iterable[Part], *, apart: bool = False) -> None:
    for part in parts:
        with quietly(part.mode):
            oracle.run(part, apart=apart)
