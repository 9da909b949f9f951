"""What competes: modules from batch × time × width to the same shape, none of which looks ahead, one row each.

A step's result may depend on this step and the ones before it only: many a task puts the answer in the next step's
input. A module may give a tuple that begins with its result, as PyTorch's recurrent layers do; `first` takes it out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import Tensor, nn

from .layers import CausalAttention, CausalConvolution, Perceptron, SkippedAttention
from .memories import NeuralList, StackRNN, TuringMachine

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


def build(name: str, hidden: int, parameters: int | None = None) -> nn.Module:
    """Make a competitor by its name, which has its initial weights from PyTorch's global random state.

    Args:
        parameters: how many it should have: its inner width is chosen so that the count is as near as it gets, and two
            linear maps lead from `hidden` to the inner width and back.
    """
    if parameters is not None:
        raise NotImplementedError
    return COMPONENTS[name].make(hidden)


def first(result: Tensor | tuple[Tensor, ...]) -> Tensor:
    """Give what a competitor's call resulted in: batch × time × width."""
    return result[0] if isinstance(result, tuple) else result
