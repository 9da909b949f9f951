"""What competes: modules from batch × time × width to the same shape, none of which looks ahead, one row each.

A step's result may depend on this step and the ones before it only: many a task puts the answer in the next step's
input. A module may give a tuple that begins with its result, as PyTorch's recurrent layers do; `first` takes it out.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import count as naturals

import torch
from torch import Tensor, nn

from ..errors import OptionError, UnknownName
from .layers import CausalAttention, CausalConvolution, Perceptron, SkippedAttention
from .memories import NeuralList, StackRNN, TuringMachine
from .user_code import called, load

Make = Callable[[int], nn.Module]


@dataclass(frozen=True)
class Competitor:
    """A row of `COMPONENTS`.

    Attributes:
        make: from the width to a module; its initial weights come from PyTorch's global random state.
        kind: what family it belongs to: two of a kind have no way of working that the other lacks.
    """

    make: Make
    kind: str


def _recurrent(kind: Callable[..., nn.Module], hidden: int) -> nn.Module:
    return kind(hidden, hidden, batch_first=True)


# To add a competitor, add a row.
COMPONENTS: dict[str, Competitor] = {
    "rnn": Competitor(partial(_recurrent, nn.RNN), "recurrent"),
    "lstm": Competitor(partial(_recurrent, nn.LSTM), "gated"),
    "gru": Competitor(partial(_recurrent, nn.GRU), "gated"),
    "attention": Competitor(CausalAttention, "attention"),
    "attention_skip": Competitor(SkippedAttention, "attention"),
    "stack_rnn": Competitor(StackRNN, "memory"),
    "neural_stack": Competitor(partial(NeuralList, stack=True), "memory"),
    "neural_queue": Competitor(partial(NeuralList, stack=False), "memory"),
    "ntm": Competitor(TuringMachine, "memory"),
    "convolution": Competitor(CausalConvolution, "feed-forward"),
    "mlp": Competitor(Perceptron, "feed-forward"),
}


def find(name: str) -> Competitor:
    """Give a row of the table, or the user's own that "mine.py:Conv" names.

    Raises:
        UnknownName: with the names that there are.
        OptionError: the user's own is not there.
    """
    if ":" in name:
        return Competitor(_load(name), "own")
    if name not in COMPONENTS:
        raise UnknownName(
            f"unknown component {name!r}; there are {', '.join(COMPONENTS)}, and FILE.py:CLASS of your own"
        )
    return COMPONENTS[name]


_load = lru_cache(partial(load, classes=True))


def label(name: str) -> str:
    """Give the name by which a model has it: `Conv` of "mine.py:Conv"."""
    return name.rpartition(":")[2]


def build(name: str, hidden: int, parameters: int | None = None) -> nn.Module:
    """Make a competitor by its name; its initial weights come from PyTorch's global random state.

    Args:
        parameters: how many it should have, as nearly as its shape allows: see `Sized`.

    Raises:
        UnknownName, OptionError: as `find`; the user's own raised an exception; or there can't be that many.
    """
    width = hidden if parameters is None else inner_width(name, hidden, parameters)
    made = find(name).make(width) if name in COMPONENTS else called(name, find(name).make, width)
    if not isinstance(made, nn.Module):
        raise OptionError(f"{name}({width}) must give a torch.nn.Module, not {type(made).__name__}")
    return made if parameters is None else Sized(made, hidden, width)


class Sized(nn.Module):
    """A competitor of another width than its surroundings, between two linear maps, so that it has as many parameters.

    Whoever is made larger or smaller has its own number of units; all see and give `hidden` numbers.
    """

    def __init__(self, inner: nn.Module, hidden: int, width: int) -> None:
        super().__init__()
        self.enter, self.inner, self.leave = nn.Linear(hidden, width), inner, nn.Linear(width, hidden)

    def forward(self, x: Tensor) -> Tensor:
        """Go in, through, and out: x and the result are batch × time × hidden."""
        return self.leave(first(self.inner(self.enter(x))))


@lru_cache(maxsize=256)
def inner_width(name: str, hidden: int, parameters: int) -> int:
    """Find the width at which a competitor, with the two maps around it, has nearest to so many parameters.

    Raises:
        OptionError: the nearest is a fifth off or more.
    """
    enough = next(2**n for n in naturals() if count(name, hidden, 2**n) >= parameters)
    above = bisect_left(range(1, enough), parameters, key=lambda width: count(name, hidden, width)) + 1
    at = min((max(above - 1, 1), above), key=lambda width: abs(count(name, hidden, width) - parameters))
    if 5 * abs(count(name, hidden, at) - parameters) >= parameters:
        raise OptionError(
            f"{name} cannot have about {parameters:,} parameters: the nearest is {count(name, hidden, at):,}"
        )
    return at


def count(name: str, hidden: int, width: int) -> int:
    """Count the parameters of a competitor of this inner width and of the maps around it, without making them."""
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        inner = find(name).make(width)
    return sum(p.numel() for p in inner.parameters()) + 2 * hidden * width + width + hidden


def first(result: Tensor | tuple[Tensor, ...]) -> Tensor:
    """Give what a competitor's call resulted in: batch × time × width."""
    return result[0] if isinstance(result, tuple) else result


@torch.no_grad()
def check(name: str, hidden: int) -> None:
    """Try a competitor of the user's own.

    Raises:
        OptionError: it does not map batch × time × hidden to the same shape, or looks ahead.
    """
    with torch.random.fork_rng(devices=[]):
        module, x = build(name, hidden).eval(), torch.randn(2, 5, hidden)
        given = called(name, lambda: first(module(x)))
        shape = tuple(given.shape) if isinstance(given, Tensor) else type(given).__name__
        if shape != (2, 5, hidden):
            raise OptionError(
                f"{name} must map batch × time × width to the same shape: of (2, 5, {hidden}) it makes {shape}"
            )
        x[:, 3:] += 1
        if not torch.allclose(given[:, :3], called(name, lambda: first(module(x)))[:, :3], atol=1e-5):
            raise OptionError(f"{name} looks ahead: what it gives for a step must not depend on later ones")
