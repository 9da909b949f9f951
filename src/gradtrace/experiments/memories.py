"""Recurrent competitors with a memory: a superposition stack, a neural stack and queue, a Neural Turing Machine.

Each has a simple controller, h = tanh(W x + U [h, r]) with r what was read a step ago, and its result is a linear map
of the controller's state and of what is read at this step. So what tells them apart is the memory. Nothing here loops
over the batch, and a step takes as few operator calls as it can: there are many steps in a study.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

State = tuple[Tensor, ...] | None  # each batch × …; None: nothing is there yet
Map = Callable[[Tensor], Tensor]


class Memory(nn.Module):
    """The controller and the loop over time; a memory says what a step does to its state.

    Args:
        hidden: the width of everything.
        orders: how many numbers the controller gives to the memory at each step, beside a value of `hidden`.
    """

    def __init__(self, hidden: int, orders: int) -> None:
        super().__init__()
        self.hidden = hidden
        self.enter = nn.Linear(hidden, hidden)
        self.again = nn.Linear(2 * hidden, hidden, bias=False)
        self.orders = nn.Linear(hidden, orders + hidden)
        self.out = nn.Linear(2 * hidden, hidden)

    def forward(self, x: Tensor) -> Tensor:
        """Read step by step: x and the result are batch × time × hidden."""
        learned = {name: p.expand(len(x), *p.shape) for name, p in self.named_parameters(recurse=False)}
        return self.read(x, (self.enter, self.again, self.orders, self.out), learned)

    def read(self, x: Tensor, maps: tuple[Map, Map, Map, Map], learned: dict[str, Tensor]) -> Tensor:
        """Do so with these maps, and with what the memory holds at first where that is learned (batch × …)."""
        enter, again, orders, out = maps
        state, both, seen = self.begin(**learned), x.new_zeros(len(x), 2 * self.hidden), []
        for step in enter(x).unbind(1):
            h = torch.tanh(step + again(both))
            read, state = self.turn(orders(h), state)
            both = torch.cat((h, read), 1)
            seen.append(both)
        return out(torch.stack(seen, 1))

    def begin(self, **learned: Tensor) -> State:
        """Give the state before the first step."""
        del learned
        return None

    @abstractmethod
    def turn(self, orders: Tensor, state: State) -> tuple[Tensor, State]:
        """Carry out orders, batch × (orders + hidden); give what is then read, batch × hidden, and the new state."""


class StackRNN(Memory):
    """A stack every cell of which is a superposition of what pushing, popping and leaving it would put there.

    From Joulin and Mikolov, "Inferring algorithmic patterns with stack-augmented recurrent nets" (2015), with vectors
    in the cells and as many cells as there were steps: sᵢ ← push · sᵢ₋₁ + pop · sᵢ₊₁ + stay · sᵢ, s₋₁ = σ(value).
    """

    def __init__(self, hidden: int) -> None:
        super().__init__(hidden, 3)

    def turn(self, orders: Tensor, state: State) -> tuple[Tensor, State]:
        push, stay, pop = orders[:, :3].softmax(1)[:, :, None, None].unbind(1)  # each batch × 1 × 1
        value = torch.sigmoid(orders[:, None, 3:])
        if state is None:
            stack = push * value
        else:
            deep = torch.cat((value, state[0]), 1)  # what each cell holds after a push: batch × (depth + 1) × hidden
            deep = F.pad(deep, (0, 0, 0, 2))
            stack = push * deep[:, :-2] + stay * deep[:, 1:-1] + pop * deep[:, 2:]
        return stack[:, 0], (stack,)


class NeuralList(Memory):
    """A neural stack or queue: values with strengths between 0 and 1, read and popped from the front, one unit deep.

    From Grefenstette et al., "Learning to transduce with unbounded memory" (2015). What is pushed comes to the front of
    a stack and to the back of a queue, so that all else is the same for both: with b the strength before a value,
    s ← max(0, s − max(0, pop − b)), then push, then read Σ min(s, max(0, 1 − b)) · value.

    Args:
        stack: whether it is a stack, and not a queue.
    """

    def __init__(self, hidden: int, *, stack: bool) -> None:
        super().__init__(hidden, 2)
        self.stack = stack
        with torch.no_grad():
            self.orders.bias[1] = -1  # as they do: who pops all at first never learns what was pushed

    def turn(self, orders: Tensor, state: State) -> tuple[Tensor, State]:
        push, pop = torch.sigmoid(orders[:, :2]).split(1, 1)  # each batch × 1
        strength, values = push, torch.tanh(orders[:, None, 2:])
        if state is not None:
            left = F.relu(state[0] - F.relu(pop - before(state[0])))
            strength = torch.cat((push, left) if self.stack else (left, push), 1)  # batch × depth
            values = torch.cat((values, state[1]) if self.stack else (state[1], values), 1)  # batch × depth × hidden
        weight = torch.minimum(strength, F.relu(1 - before(strength)))
        return torch.bmm(weight[:, None], values)[:, 0], (strength, values)


def before(strength: Tensor) -> Tensor:
    """Sum what stands before each, batch × depth; not as all up to each less itself, which has paths that cancel."""
    depth = strength.shape[1]
    return strength @ torch.ones(depth, depth, dtype=strength.dtype).triu(1)


class TuringMachine(Memory):
    """A Neural Turing Machine with one head that writes and one that reads, by content and by location.

    From Graves, Wayne and Danihelka, "Neural Turing machines" (2014): cosine similarity to a key, sharpened by β and
    normalised; interpolated with the last weighting by g; shifted by −1, 0 or 1; sharpened by γ. Both heads begin at
    the first slot; what the slots hold at first is learned. Writing comes before reading.

    Args:
        slots: how many rows the memory has.
    """

    def __init__(self, hidden: int, slots: int = 16) -> None:
        self.sizes = (2 * hidden, 2, 2, 2, 6, hidden, hidden)  # keys, β, g, γ, shifts, erase, add
        super().__init__(hidden, sum(self.sizes) - hidden)
        self.slots = nn.Parameter(torch.randn(slots, hidden) / hidden**0.5)

    def begin(self, **learned: Tensor) -> State:
        """Hold what is learned, both heads at the first slot."""
        slots = learned["slots"]
        start = F.one_hot(torch.zeros(len(slots), 2, dtype=torch.long), slots.shape[1])
        return slots, start.to(slots.dtype)

    def turn(self, orders: Tensor, state: State) -> tuple[Tensor, State]:
        assert state is not None
        read, *after = self.step(self.sizes, orders, *state)
        return read, tuple(after)

    @staticmethod
    def step(sizes: tuple[int, ...], orders: Tensor, memory: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Move both heads, write, and read: memory is batch × slots × hidden, weight batch × heads × slots."""
        batch = len(orders)
        keys, beta, gate, gamma, shift, erase, add = orders.split(sizes, 1)
        keys = F.normalize(keys.reshape(batch, 2, -1), dim=2)
        alike = keys @ F.normalize(memory, dim=2).transpose(1, 2)
        content = (F.softplus(beta)[:, :, None] * alike).softmax(2)
        weight = torch.lerp(weight, content, torch.sigmoid(gate)[:, :, None])
        around = torch.cat((weight[:, :, -1:], weight, weight[:, :, :1]), 2)
        back, stay, on = shift.reshape(batch, 2, 3).softmax(2).split(1, 2)
        weight = on * around[:, :, :-2] + stay * weight + back * around[:, :, 2:]
        weight = F.normalize(weight ** (1 + F.softplus(gamma)[:, :, None]), p=1, dim=2)
        write, read = weight.split(1, 1)  # each batch × 1 × slots
        write = write.transpose(1, 2)
        memory = memory * (1 - write * torch.sigmoid(erase)[:, None]) + write * torch.tanh(add)[:, None]
        return torch.bmm(read, memory)[:, 0], memory, weight
