"""What a question will cost, before it is asked: seconds and bytes, from the sizes of the calls that were recorded.

Both are linear in a few sizes (`sizes`). What a pass holds decides which (planes of what is carried and of leaves,
winners, for each example what only leaves are made into); by how much is fitted to measurements (`costs`). Seconds are
those of this machine, as a calibration of about half a second finds it: a small call, a product, numbers one by one.
An estimate says nothing of other questions that were asked before, whose answers are kept.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import NotEnoughMemory
from ..kernels.available import available
from ..recording.dispatch import Capture
from ..recording.isolation import uncollected
from ..recording.record import Record
from ..semirings import PLAIN, Family, Graded, Through
from ..semirings.base import AbsSum, Max, Sum
from ..semirings.power import Norm
from ..semirings.ranked import Strongest
from .costs import BYTES, SECONDS
from .forest import plant
from .sizes import Sizes

if TYPE_CHECKING:
    import pandas

SMALL = 2**26  # bytes that nobody is asked about
OFTEN = 2.0  # times too much that an estimate may say: what is refused does not fit if it needs that much less
QUESTIONS = (
    "trace",
    "check",
    "greedy",
    "each example",
    "greedy, each example",
    "influence",
    "influence, each example",
    "influence, greedy, each example",
    "flow",
    "report",
)
OF_A_TRACE = QUESTIONS[2:]  # that are put to a trace


@dataclass(frozen=True)
class Speed:
    """Seconds that a trace takes on this machine for one small call, one multiplication of a product, one number."""

    call: float
    product: float
    number: float


@dataclass(frozen=True)
class Cost:
    """What one question will cost, together with the trace that it is put to, if it is.

    Attributes:
        seconds: estimated.
        bytes: by how much the process is estimated to grow, beyond what recording took.
        fits: whether so much memory can be had now.
    """

    question: str
    seconds: float
    bytes: int
    fits: bool


@dataclass(frozen=True)
class Estimate:
    """One row a question.

    Attributes:
        available: bytes that can be had now; None where the system does not say.
    """

    rows: tuple[Cost, ...]
    available: int | None

    def __getitem__(self, question: str) -> Cost:
        return next(row for row in self.rows if row.question == question)

    def to_dataframe(self) -> pandas.DataFrame:
        """Give one row a question, as a pandas DataFrame."""
        import pandas

        return pandas.DataFrame([asdict(r) for r in self.rows])

    def __str__(self) -> str:
        lines = [f"{'question':<32}{'time':>12}{'memory':>12}"]
        for row in self.rows:
            note = "" if row.fits else "  does not fit"
            lines.append(f"{row.question:<32}{_time(row.seconds):>12}{amount(row.bytes):>12}{note}")
        if self.available is not None:
            lines.append(f"{amount(self.available)} can be had")
        return "\n".join(lines)

    __repr__ = __str__


def _time(seconds: float) -> str:
    return f"{1000 * seconds:.0f} ms" if seconds < 1 else f"{seconds:.1f} s" if seconds < 100 else f"{seconds:,.0f} s"


def amount(size: float) -> str:
    """Write bytes for people."""
    return f"{size / 2**20:,.0f} MiB" if size < 2**30 else f"{size / 2**30:,.1f} GiB"


# ---------------------------------------------------------------- from sizes to costs


def _by_example(question: str) -> bool:
    return question == "report" or question.endswith("each example")


def bytes_of(question: str, of: Sizes, lanes: int = 1) -> float:
    """Estimate the memory of a question.

    Args:
        lanes: how many numbers each scalar carries, where that depends on what is asked.
    """
    return sum(factor * size for factor, size in zip(BYTES[question], held(question, of, lanes), strict=True))


def held(question: str, of: Sizes, lanes: int = 1) -> tuple[float, ...]:
    """Give what memory is linear in, in bytes: some for any question and call, then numbers by what they belong to."""
    w = of.width * lanes
    each = of.width * of.examples * of.each if _by_example(question) else 0.0
    numbers = of.leaves, of.values, of.chosen, of.live, of.patches, of.largest
    return (2.0**20, 1024.0 * of.calls, each, *[w * number for number in numbers])


def seconds_of(question: str, of: Sizes, speed: Speed, lanes: int = 1) -> float:
    """Estimate the time of a question."""
    return sum(factor * size for factor, size in zip(SECONDS[question], done(question, of, speed, lanes), strict=True))


def done(question: str, of: Sizes, speed: Speed, lanes: int = 1) -> tuple[float, ...]:
    """Give what time is linear in, in seconds of this machine."""
    by_example = of.examples if _by_example(question) else 0
    products, numbers = speed.product * lanes, speed.number * lanes
    return (
        100 * speed.call if question == "report" else 0.0,  # the page itself
        speed.call * of.calls,
        products * of.products,
        products * of.convolutions,
        numbers * of.rows,
        numbers * of.scalars,
        numbers * of.leaves,
        speed.number * by_example * of.each,
        speed.number * by_example * of.uses,
    )


# ---------------------------------------------------------------- the machine


@lru_cache(maxsize=8)
def calibrated(threads: int) -> Speed:
    """Measure this machine, once for each number of threads: at most a second.

    By the time of this thread, which works along with the others and is not lengthened by other programs.
    """
    del threads  # torch knows
    clock = time.thread_time
    small, wide = torch.ones(4), torch.ones(1 << 19)
    weight, batch = torch.eye(512), torch.ones(256, 512)
    call = _least(clock, small, lambda x: _chain(x, 50)) / 51
    product = _least(clock, weight, lambda w: (batch @ w).sum()) - 2 * call
    # the first times alone: an allocator may give later ones the pages that were written before, or may not
    number = _least(clock, wide, lambda x: _chain(x, 4), most=2) - 5 * call
    return Speed(call, max(product, call) / batch.numel() / 512, max(number, call) / wide.numel() / 6)


def _chain(x: Tensor, length: int) -> Tensor:
    for _ in range(length):
        x = x.tanh()
    return x.sum()


def _least(clock: Callable[[], float], leaf: Tensor, run: Callable[[Tensor], Tensor], most: int = 20) -> float:
    """Give the least time of some traces of a small program, no more than so many."""
    leaf, record = leaf.clone().requires_grad_(), Record()
    capture = Capture(record, None, {"leaf": leaf}, ())
    with torch.enable_grad(), capture.running():
        made = run(leaf)
    loss = capture.values.lookup(made)
    assert loss is not None
    taken = []
    with uncollected():  # as a question is
        while len(taken) < min(3, most) or (sum(taken) < 0.1 and len(taken) < most):
            began = clock()
            plant(record, loss, "best")
            taken.append(clock() - began)
    return min(taken)


# ---------------------------------------------------------------- questions


def key_of(semiring: Family, components: int) -> tuple[str, int] | None:
    """Give what `tape.grad` under a semiring costs as, and how many numbers it carries; None if that is not known."""
    if isinstance(semiring, Through):
        return "through", 1 + (components if semiring.components is None else len(semiring.components))
    if isinstance(semiring, Graded):
        degrees = components if semiring.max_degree is None else semiring.max_degree
        return ("graded", degrees + 2) if PLAIN.get(semiring.semiring.name) in (Sum, AbsSum, Max) else None
    if isinstance(semiring.carrier, Strongest):
        return "topk", semiring.carrier.k
    if isinstance(semiring.carrier, Norm):
        return "power", 1
    return (semiring.name, 1) if PLAIN.get(semiring.name) is semiring else None


def estimate(
    whole: Sizes,
    some: Sizes,
    asked: Sequence[Family],
    components: int,
    *,
    apart: bool,
) -> Estimate:
    """Estimate what questions to a tape will cost.

    Args:
        whole, some: sizes of all of it, and of the part that leads from the leaves of which influence is asked.
        asked: semirings.
        components: how many `Through` and `Graded` split by, where they do not say.
        apart: whether each example can be asked about.
    """
    room, speed = available(), calibrated(torch.get_num_threads())
    kinds = [(name, name, 1) for name in QUESTIONS if apart or not name.endswith("each example")]
    kinds += [(f"grad, {k.name}", *key) for k in asked if (key := key_of(k, components)) is not None]
    rows = []
    for title, question, lanes in kinds:
        of = some if question.startswith("influence") else whole
        need, seconds = bytes_of(question, of, lanes), seconds_of(question, of, speed, lanes)
        if question in OF_A_TRACE:
            need, seconds = need + bytes_of("trace", whole), seconds + seconds_of("trace", whole, speed)
        rows.append(Cost(title, seconds, int(need), room is None or need <= room))
    return Estimate(tuple(rows), room)


def is_small(question: str, at_most: Sizes, lanes: int = 1) -> bool:
    """Tell whether a question surely takes so little memory that nobody has to be asked for it."""
    return bytes_of(question, at_most, lanes) <= SMALL


def refuse(question: str, of: Sizes, lanes: int = 1) -> None:
    """Refuse a question for which there surely is too little memory.

    Raises:
        NotEnoughMemory: says what would fit.
    """
    need = bytes_of(question, of, lanes)
    room = available() if need > SMALL else None
    if room is None or need <= OFTEN * room:
        return
    said = f"{question} would take about {amount(need)} of memory, and {amount(room)} can be had"
    raise NotEnoughMemory(f"{said}; {_instead(question, of, lanes, room)}")


def _instead(question: str, of: Sizes, lanes: int, room: int) -> str:
    """Say what would fit."""
    fits = _most(lambda n: bytes_of(question, _of_examples(of, n), lanes) <= room, of.examples - 1)
    ways = [f"{fits} of its {of.examples} examples would fit"] if fits else []
    if _by_example(question):
        share = _most(lambda n: bytes_of(question, _of_group(of, n / 1000), lanes) <= room, 999)
        scalars = int(of.leaves * share / 1000)
        ways += (
            [f"a group of at most {scalars:,} of its {of.leaves:,.0f} parameter scalars would (of=…)"] if share else []
        )
    return (
        ", or ".join(ways) or "fewer examples alone do not help: trace a smaller model, or where there is more memory"
    )


def _most(fits: Callable[[int], bool], top: int) -> int:
    """Give the largest number up to `top` that fits, of numbers of which the smaller ones fit if larger ones do."""
    low, high = 0, top
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def _of_examples(of: Sizes, count: int) -> Sizes:
    """Give the sizes of a tape of fewer examples."""
    part = count / of.examples
    return replace(
        of, examples=count, values=of.values * part, chosen=of.leaves + (of.chosen - of.leaves) * part,
        live=of.live * part, patches=of.patches * part,
    )  # fmt: skip


def _of_group(of: Sizes, part: float) -> Sizes:
    """Give the sizes of a tape of which a part of the leaves is asked about."""
    return replace(of, leaves=of.leaves * part, each=of.each * part, uses=of.uses * part)
