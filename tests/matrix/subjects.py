"""The programs that every question is put to: models, modules, operators and random programs, all of them small."""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, partial
from itertools import islice
from typing import Any

import programs as drawn
import torch
import zoo
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from gradtrace import component
from gradtrace.experiments.random_architectures import RandomNetwork, grow

SEED = 7
F64 = torch.float64
APART, CONNECTED, UNKNOWN = "apart", "connected", "unknown"
Alone = Callable[[int], Tensor]


@dataclass(frozen=True)
class Program:
    """A forward pass that can be recorded once.

    Attributes:
        names: names of leaves that are no parameters of the model.
        examples: the tensor whose rows are the examples; None where there is none.
        loss: ℓ.
        alone: the part c·ℓ_b of the loss that is one example's, with a forward pass of its own.
        exact: whether that forward pass computes the very same numbers.
        compared: the leaves whose traces are compared with those of an example alone; None for all.
    """

    model: nn.Module | None
    names: Mapping[str, Tensor]
    examples: Tensor | None
    loss: Callable[[], Tensor]
    alone: Alone | None = None
    exact: bool = True
    compared: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Subject:
    """A program that can be built, always with the same numbers.

    Attributes:
        make: builds it, in training or evaluation mode, in a precision.
        relation: whether the loss is a sum of one term an example ("apart"), by an oracle that knows nothing of
            gradtrace, or the examples are "connected"; "unknown" where neither can be told.
        modal: whether training and evaluation differ; functional programs have one mode.
    """

    name: str
    make: Callable[[bool, torch.dtype], Program]
    relation: Callable[[bool], str]
    modal: bool = True
    dtypes: tuple[torch.dtype, ...] = (torch.float32, F64)

    def build(self, training: bool, dtype: torch.dtype) -> Program:
        torch.manual_seed(SEED)
        return self.make(training, dtype)


def seeded(f: Callable[[], Tensor]) -> Tensor:
    """Compute with the same random draws as always."""
    torch.manual_seed(SEED)
    return f().detach().double()


def quiet(f: Callable[..., Any]) -> Callable[..., Any]:
    """Let the oracles' own forward passes warn: deprecated operators are operators."""

    def run(*args: Any) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return f(*args)

    return run


def cast(given: Any, dtype: torch.dtype) -> Any:
    """Take a program's arguments to a precision; leaves stay leaves."""

    def one(t: Any) -> Any:
        if not isinstance(t, Tensor) or t.dtype != F64:
            return t
        return t.detach().to(dtype).requires_grad_(t.requires_grad)

    return tree_map(one, given)


# ---------------------------------------------------------------- whether examples are connected


def moved(x: Tensor, rows: tuple[int, ...], draw: int) -> Tensor:
    """Give other examples in some rows: a little changed, much changed, or another row's."""
    out = x.detach().clone()
    for row in rows:
        g = torch.Generator().manual_seed(10 * row + draw)
        if not x.is_floating_point() or draw == 2:
            out[row] = x[(row + 1) % len(x)]
        else:
            noise = torch.randn(x[row].shape, generator=g, dtype=F64).to(x.dtype)
            out[row] = x[row] * (1 + 0.05 * noise) if draw == 0 else x[row] + noise
    return out.requires_grad_(x.is_floating_point())


def at(f: Callable[[Tensor], Tensor], x: Tensor, rows: tuple[int, ...], draw: int) -> Tensor:
    """Compute a function with other examples in some rows."""
    return f(moved(x, rows, draw))


def pairs(count: int) -> list[tuple[int, int]]:
    return [(a, b) for a in range(min(count, 3)) for b in range(a + 1, min(count, 4))]


@quiet
def interaction(loss: Callable[[Tensor], Tensor], x: Tensor) -> str:
    """Tell whether ℓ(x) is a sum of functions of its rows: its second differences all vanish."""
    seen = False
    for draw in range(3):
        for a, b in pairs(len(x)):
            try:
                values = [seeded(partial(at, loss, x, r, draw)) for r in ((), (a,), (b,), (a, b))]
            except Exception:
                continue
            if not all(bool(v.isfinite()) for v in values):
                continue
            seen = True
            scale = max(float(v.abs()) for v in values)
            if abs(float(values[0] - values[1] - values[2] + values[3])) > 1e-5 * max(
                scale, 1e-3
            ):  # some compute in float32
                return CONNECTED
    return APART if seen or len(x) == 1 else UNKNOWN


@quiet
def independent(rows: Callable[[Tensor], Tensor], x: Tensor) -> bool:
    """Tell whether each term depends on its own example only."""
    start = seeded(lambda: rows(x))
    for draw in range(3):
        for a in range(min(len(x), 4)):
            others = [b for b in range(len(x)) if b != a]
            now = seeded(partial(at, rows, x, (a,), draw))
            if not torch.allclose(now[others], start[others], rtol=1e-9, atol=1e-12, equal_nan=True):
                return False
    return True


# ---------------------------------------------------------------- whole models


def _model(name: str, build: Callable[[], zoo.Subject]) -> Subject:
    def made(training: bool, dtype: torch.dtype) -> zoo.Subject:
        subject = build().to(dtype)
        subject.model.train(training)
        return subject

    @cache
    @quiet
    def factor(training: bool) -> float | None:
        """c in ℓ = Σ c·ℓ_b, 1 or one over the number of examples; None if there is no such c."""
        subject = made(training, F64)
        if not subject.sliced:
            return None
        count = len(subject.examples)
        try:
            parts = sum(seeded(lambda b=b: subject.alone(b)) for b in range(count))
        except ValueError:  # batch norm of a single number
            return None
        c = float(seeded(subject.loss) / parts)
        return next((k for k in (1.0, 1 / count) if math.isclose(c, k, rel_tol=1e-5)), None)  # some add up in float32

    @cache
    def draws(training: bool) -> bool:
        """Whether the forward pass is a random one, so that an example alone sees other draws."""
        subject = made(training, F64)
        found = []
        for seed in (0, 1):
            torch.manual_seed(seed)
            found.append(float(subject.loss().detach()))
        return found[0] != found[1]

    def make(training: bool, dtype: torch.dtype) -> Program:
        subject = made(training, dtype)
        c = None if draws(training) else factor(training)
        alone = None if c is None else lambda b: subject.alone(b) * c
        return Program(subject.model, {}, subject.examples, subject.loss, alone, exact=False)

    def relation(training: bool) -> str:
        return UNKNOWN if draws(training) else CONNECTED if factor(training) is None else APART

    return Subject(f"zoo/{name}", make, relation)


def models() -> Iterator[Subject]:
    for name in zoo.ZOO:
        yield _model(name, lambda name=name: zoo.build(name))


# ---------------------------------------------------------------- programs whose results have one row an example


@dataclass(frozen=True)
class Rowed:
    """A function of a tensor of examples, and the other leaves.

    Attributes:
        results: the tensors that it computes of the examples.
    """

    model: nn.Module | None
    names: Mapping[str, Tensor]
    examples: Tensor | None
    results: Callable[[Any], list[Tensor]]

    def loss(self, x: Any) -> Tensor:
        return total([(y * weights(y)).sum() for y in self.results(x)])

    def terms(self, x: Any) -> Tensor | None:
        """The loss's terms, one an example; None where the results have no such rows."""
        found = self.results(x)
        if self.examples is None or not found or any(y.dim() == 0 or len(y) != len(self.examples) for y in found):
            return None
        return total([(y * weights(y)).reshape(len(y), -1).sum(1) for y in found])


def total(parts: list[Tensor]) -> Tensor:
    """Add up parts of a loss; zero, which needs no gradient, if there are none."""
    return sum((p.double() for p in parts[1:]), parts[0].double()) if parts else torch.zeros((), dtype=F64)


def weights(y: Tensor) -> Tensor:
    """Give every result its own weight in the loss."""
    g = torch.Generator().manual_seed(0)
    return (torch.rand(y.shape, generator=g, dtype=F64) + 0.5).to(y.dtype)


def followed(result: Any) -> list[Tensor]:
    """List the results that autograd follows, complex ones as pairs of numbers."""
    found = [y for y in tree_leaves(result) if isinstance(y, Tensor) and y.requires_grad]
    return [torch.view_as_real(y.resolve_conj()) if y.is_complex() else y for y in found]


def rowed(name: str, build: Callable[[bool, torch.dtype], Rowed], modal: bool) -> Subject:
    @cache
    def apart(training: bool) -> tuple[str, bool]:
        """The relation of the examples, and whether each term is its own example's."""
        torch.manual_seed(SEED)
        program = build(training, F64)
        if program.examples is None:
            return UNKNOWN, False
        x = moved(program.examples, (), 0)
        try:
            if quiet(program.terms)(x) is not None and independent(program.terms, x):  # type: ignore[arg-type]
                return APART, True
        except Exception:  # moved out of the function's domain
            pass
        return interaction(program.loss, x), False

    def make(training: bool, dtype: torch.dtype) -> Program:
        p = build(training, dtype)
        own = apart(training)[1]
        torch.manual_seed(SEED)

        def alone(b: int) -> Tensor:
            terms = p.terms(p.examples)
            assert terms is not None
            return terms[b]

        return Program(p.model, p.names, p.examples, lambda: p.loss(p.examples), alone if own else None)

    return Subject(name, make, lambda training: apart(training)[0], modal)


def rows_of(tensor: Any) -> bool:
    return isinstance(tensor, Tensor) and tensor.layout is torch.strided and tensor.dim() > 0 and len(tensor) > 0


def named_leaves(given: Any) -> dict[str, Tensor]:
    leaves = {id(t): t for t in tree_leaves(given) if isinstance(t, Tensor) and t.requires_grad}
    return {f"leaf{i}": t for i, t in enumerate(leaves.values())}


def _module(info: Any, number: int, sample: Callable[[bool], Any]) -> Subject:
    def build(training: bool, dtype: torch.dtype) -> Rowed:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            chosen = sample(training)
            made = chosen.constructor_input
            module = info.module_cls(*made.args, **made.kwargs).to(dtype).train(training)
            given = cast(own((chosen.forward_input.args, chosen.forward_input.kwargs)), dtype)
            if isinstance(module, LazyModuleMixin):
                module(*given[0], **given[1])
        flat, spec = tree_flatten(given)
        place = next((i for i, t in enumerate(flat) if rows_of(t)), None)

        def results(x: Any) -> list[Tensor]:
            args, kwargs = tree_unflatten([x if i == place else t for i, t in enumerate(flat)], spec)
            return followed(module(*args, **kwargs))

        return Rowed(module, named_leaves(given), None if place is None else flat[place], results)

    return rowed(f"module/{info.name}[{number}]", build, modal=True)


def own(given: Any) -> Any:
    """Make leaves of the tensors that require grad (a sample may give views of them)."""

    def leaf(t: Any) -> Any:
        return t.detach().requires_grad_() if isinstance(t, Tensor) and t.requires_grad and not t.is_leaf else t

    return tree_map(leaf, given)


def modules(seed: int = 0, each: int = 1) -> Iterator[Subject]:
    """Some inputs of every module of PyTorch's own test database, drawn with a seed."""
    from torch.testing._internal.common_modules import module_db

    for info in module_db:

        def samples(training: bool, info: Any = info) -> list[Any]:
            torch.manual_seed(SEED)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                options = {"device": "cpu", "dtype": F64, "requires_grad": True, "training": training}
                return list(info.module_inputs_func(info, **options))

        count = min(len(samples(True)), len(samples(False)))
        for number in sorted(random.Random(f"{seed} {info.name}").sample(range(count), min(each, count))):
            yield _module(info, number, lambda training, s=samples, n=number: s(training)[n])


# ---------------------------------------------------------------- operators


def _operator(op: Any, title: str, number: int) -> Subject:
    """One sample, whose first tensor is made of examples and a parameter, h = x·p with p = 1.

    An example alone: the other rows of h are detached. So operators may move rows about, and the oracle still holds.
    """

    def pieces(dtype: torch.dtype) -> tuple[Any, ...]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.manual_seed(SEED)
            sample = next(islice(op.sample_inputs("cpu", F64, requires_grad=True), number, None))
        flat, spec = tree_flatten(cast(own((sample.input, sample.args, sample.kwargs)), dtype))
        place = next((i for i, t in enumerate(flat) if rows_of(t) and t.requires_grad and t.is_floating_point()), None)

        def of(x: Any) -> Tensor:
            first, args, kwargs = tree_unflatten([x if i == place else t for i, t in enumerate(flat)], spec)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = followed(sample.output_process_fn_grad(op(first, *args, **kwargs)))
            return total([(y * weights(y)).sum() for y in found])

        return flat, place, of

    def make(training: bool, dtype: torch.dtype) -> Program:
        flat, place, of = pieces(dtype)
        if place is None:
            return Program(None, named_leaves(flat), None, lambda: of(None))
        x = flat[place].detach()
        p = torch.ones(1, *x.shape[1:], dtype=dtype, requires_grad=True)
        names = {"p": p, **named_leaves([t for i, t in enumerate(flat) if i != place])}

        def alone(b: int) -> Tensor:
            h, mine = x * p, torch.arange(len(x)).reshape(-1, *[1] * (x.dim() - 1)) == b
            return of(torch.where(mine, h, h.detach()))

        return Program(None, names, x, lambda: of(x * p), alone, compared=("p",))

    @cache
    def relation(training: bool) -> str:
        flat, place, of = pieces(F64)
        return UNKNOWN if place is None else interaction(lambda x: of(x * 1), flat[place].detach())

    return Subject(f"op/{title}[{number}]", make, relation, modal=False)


def operators(seed: int = 0, count: int = 120) -> Iterator[Subject]:
    """Samples of operators of PyTorch's own test database that have a backward, both drawn with a seed."""
    from test_op_db import covered, title

    for op in sorted(random.Random(seed).sample(covered(), count), key=title):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.manual_seed(SEED)
            some = sum(1 for _ in islice(op.sample_inputs("cpu", F64, requires_grad=True), 12))
        if some:
            yield _operator(op, title(op), random.Random(f"{seed} {title(op)}").randrange(some))


# ---------------------------------------------------------------- random programs


def _drawn(seed: int) -> Subject:
    draw = random.Random(f"matrix {seed}")
    names = [*drawn.EXACT, *drawn.SMOOTH, *drawn.SMOOTH]
    leaf = seed % 2 == 0  # whether the examples are a leaf themselves
    step = lambda: (draw.choice(names), draw.randint(0, 5), draw.randint(0, 5), draw.choice("abc"))  # noqa: E731
    steps = tuple(step() for _ in range(draw.randint(1, 5)))
    plan = drawn.Program(steps, tuple(draw.uniform(-2, 2) for _ in range(11)), "sum")

    def build(training: bool, dtype: torch.dtype) -> Rowed:
        leaves = cast(plan.leaves(), dtype)
        x = leaves["x"] if leaf else leaves.pop("x").detach()
        return Rowed(None, leaves, x, lambda x: followed([plan.result(leaves | {"x": x})]))

    return rowed(f"random/{seed}", build, modal=False)


def _network(seed: int) -> Subject:
    def build(training: bool, dtype: torch.dtype) -> Rowed:
        model = RandomNetwork(grow(seed, widths=(2, 5))).to(dtype)
        x = torch.randn(3, model.architecture.inputs, generator=torch.Generator().manual_seed(seed), dtype=F64)
        return Rowed(model, {}, x.to(dtype), lambda x: [component_of(model, x)])

    return rowed(f"grammar/{seed}", build, modal=False)


def component_of(model: nn.Module, x: Tensor) -> Tensor:
    with component("network"):
        return model(x)


def drawn_programs(count: int = 40, networks: int = 8) -> Iterator[Subject]:
    yield from (_drawn(seed) for seed in range(count))
    yield from (_network(seed) for seed in range(networks))


def everything() -> list[Subject]:
    return [*models(), *modules(), *operators(), *drawn_programs()]
