"""Train many versions of one network at once: those with this or that set of its components.

Networks of width 16 spend their time on calls, not on arithmetic. So the versions' weights are stacked and each
operator runs once for all of them. No number of one version enters another, and Adam works scalar by scalar, so each
version learns as it would alone, up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..errors import OptionError
from .components import first
from .layers import CausalAttention, SkippedAttention
from .memories import Memory, NeuralList, StackRNN, TuringMachine
from .plugged import Node, Plugged, components_of
from .tasks import IGNORED, Batch, Task
from .training import MAX_NORM

Stack = Mapping[str, Tensor]  # parameters of copies of one module: copies × the parameter's shape
Run = Callable[[nn.Module, Stack, Tensor], Tensor]  # x: copies × batch × time × …


# ---------------------------------------------------------------- copies of one module


def run_copies(module: nn.Module, stack: Stack, x: Tensor) -> Tensor:
    """Run copies of a module, each on its own input: copies × batch × time × width."""
    return BY_HAND.get(type(module), _mapped)(module, stack, x)


def _mapped(module: nn.Module, stack: Stack, x: Tensor) -> Tensor:
    try:
        with sdpa_kernel(SDPBackend.MATH):  # the fused one would be called copy by copy
            return vmap(lambda own, row: first(functional_call(module, own, (row,))))(dict(stack), x)
    except (RuntimeError, ValueError) as error:  # what vmap says of what it cannot do
        name = type(module).__name__
        raise OptionError(f"{name} does not run under torch.func.vmap, as a study needs it to: {error}") from error


def _looked_up(module: nn.Module, stack: Stack, x: Tensor) -> Tensor:
    table = stack["weight"]  # copies × words × width
    return F.embedding(x + torch.arange(len(x)).view(-1, 1, 1) * table.shape[1], table.flatten(0, 1))


def _map(stack: Stack, name: str) -> Callable[[Tensor], Tensor]:
    """Give copies of a linear layer, each of which maps its own rows: (copies · batch) × … × width."""
    weight, bias = stack[f"{name}.weight"].mT, stack.get(f"{name}.bias")

    def run(x: Tensor) -> Tensor:
        rows = x.reshape(len(weight), -1, x.shape[-1])
        y = rows @ weight if bias is None else torch.baddbmm(bias.unsqueeze(1), rows, weight)
        return y.view(*x.shape[:-1], -1)

    return run


# An example knows nothing of the others, so all copies' examples are one long batch for a module whose maps are given.


def _memory(module: nn.Module, stack: Stack, x: Tensor) -> Tensor:
    assert isinstance(module, Memory)
    enter, again, orders, out = (_map(stack, name) for name in ("enter", "again", "orders", "out"))
    learned = {key: stack[key].repeat_interleave(x.shape[1], 0) for key, _ in module.named_parameters(recurse=False)}
    return module.read(x.flatten(0, 1), (enter, again, orders, out), learned).view_as(x)


def _attention(module: nn.Module, stack: Stack, x: Tensor) -> Tensor:
    assert isinstance(module, CausalAttention)
    return module.attend(x.flatten(0, 1), _map(stack, "qkv"), _map(stack, "out")).view_as(x)


def _recurrent(step: Callable[[Tensor, Tensor, tuple[Tensor, ...]], tuple[Tensor, ...]], states: int) -> Run:
    """Give a one-layer recurrence from its step: (input's part, state's part, states) → states, result first."""

    def run(module: nn.Module, stack: Stack, x: Tensor) -> Tensor:
        copies, batch, time, _ = x.shape
        given = torch.baddbmm(stack["bias_ih_l0"].unsqueeze(1), x.flatten(1, 2), stack["weight_ih_l0"].mT)
        weight, bias = stack["weight_hh_l0"].mT, stack["bias_hh_l0"].unsqueeze(1)
        state = (x.new_zeros(copies, batch, weight.shape[1]),) * states
        out = []
        for now in given.unflatten(1, (batch, time)).unbind(2):  # copies × batch × gates
            state = step(now, torch.baddbmm(bias, state[0], weight), state)
            out.append(state[0])
        return torch.stack(out, 2)

    return run


def _rnn_step(now: Tensor, back: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return ((now + back).tanh(),)


def _gru_step(now: Tensor, back: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    both = 2 * state[0].shape[-1]
    reset, update = (now[..., :both] + back[..., :both]).sigmoid().chunk(2, -1)
    new = torch.addcmul(now[..., both:], reset, back[..., both:]).tanh()
    return (torch.lerp(new, state[0], update),)


def _lstm_step(now: Tensor, back: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    enter, forget, new, out = (now + back).chunk(4, -1)
    cell = forget.sigmoid() * state[1] + enter.sigmoid() * new.tanh()
    return out.sigmoid() * cell.tanh(), cell


# What `vmap` does not take, or takes slowly. PyTorch's defaults are meant: one layer, one direction, tanh.
BY_HAND: dict[type[nn.Module], Run] = {
    nn.Embedding: _looked_up,
    nn.RNN: _recurrent(_rnn_step, 1),
    nn.GRU: _recurrent(_gru_step, 1),
    nn.LSTM: _recurrent(_lstm_step, 2),
    StackRNN: _memory,
    NeuralList: _memory,
    TuringMachine: _memory,
    CausalAttention: _attention,
    SkippedAttention: _attention,
}


# ---------------------------------------------------------------- versions of one architecture


class SideBySide:
    """Versions of a network, in training.

    Args:
        model: all components, and the weights with which each version starts.
        task: says what is asked.
        versions: the sets of components: bit i stands for the architecture's component i.
        rate: Adam's.
    """

    def __init__(self, model: Plugged, task: Task, versions: Sequence[int], rate: float) -> None:
        self.model, self.task, self.versions = model, task, tuple(versions)
        every = torch.arange(len(versions))
        self.rows = {"embedding": every, "output": every}  # which versions have a module
        for bit, name in enumerate(model.components):
            self.rows[name] = torch.tensor([i for i, v in enumerate(versions) if v >> bit & 1], dtype=torch.long)
        self.stacks = {
            name: {
                key: p.detach().expand(len(rows), *p.shape).clone().requires_grad_()
                for key, p in model.get_submodule(name).named_parameters()
            }
            for name, rows in self.rows.items()
            if len(rows)
        }
        self.parameters = [(self.rows[name], p) for name, stack in self.stacks.items() for p in stack.values()]
        self.optimizer = torch.optim.Adam([p for _, p in self.parameters], lr=rate)

    def scores(self, inputs: Tensor) -> Tensor:
        """Score classes: inputs versions × batch × time → versions × batch × time × classes."""
        x = run_copies(self.model.embedding, self.stacks["embedding"], inputs)
        value, _ = self._run(self.model.root, x)
        return run_copies(self.model.output, self.stacks["output"], value)

    def _run(self, node: Node, x: Tensor) -> tuple[Tensor, Tensor]:
        """Give a node's result, and which versions have one: in the others all its components are absent."""
        there = self._there(node)
        if node is None:
            return x, there
        if isinstance(node, str):
            return self._component(node, x), there
        sides = [self._run(side, x) for side in node.sides]
        count = sum(own.to(x.dtype) for _, own in sides)
        assert isinstance(count, Tensor)
        total = sum(value * own.to(x.dtype).view(-1, 1, 1, 1) for value, own in sides)
        mean = total / count.clamp(min=1).view(-1, 1, 1, 1)
        mean = torch.where((count > 0).view(-1, 1, 1, 1), mean, x)
        return (mean if node.join is None else self._component(node.join, mean)), there

    def _there(self, node: Node) -> Tensor:
        there = torch.zeros(len(self.versions), dtype=torch.bool)
        for name in components_of(node):
            there[self.rows[name]] = True
        return there if node is not None else ~there

    def _component(self, name: str, x: Tensor) -> Tensor:
        """Run a component where it is present, and pass what comes elsewhere."""
        rows = self.rows[name]
        if not len(rows):
            return x
        return x.index_copy(0, rows, run_copies(self.model.get_submodule(name), self.stacks[name], x[rows]))

    def losses(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Give each version's mean loss and score on a batch."""
        count, targets = len(self.versions), batch.targets.flatten()
        scores = self.scores(batch.inputs.expand(count, *batch.inputs.shape))
        read = self.task.read(scores.flatten(0, 1)).unflatten(0, (count, len(batch))).flatten(1, 2)
        each = F.cross_entropy(read.mT, targets.expand(count, -1), ignore_index=IGNORED, reduction="none")
        asked = (targets != IGNORED).sum()
        return each.sum(1) / asked, (read.detach().argmax(-1) == targets).sum(1) / asked

    def step(self, batch: Batch) -> None:
        """Take one step of every version, each one's gradient clipped by its own norm."""
        loss, _ = self.losses(batch)
        self.optimizer.zero_grad()
        loss.sum().backward()
        grads = [(rows, p.grad) for rows, p in self.parameters if p.grad is not None]
        square = torch.zeros(len(self.versions), dtype=loss.dtype)
        for rows, grad in grads:
            square.index_add_(0, rows, grad.square().flatten(1).sum(1))
        scale = (MAX_NORM / (square.sqrt() + 1e-6)).clamp(max=1.0)  # as clip_grad_norm_ does
        for rows, grad in grads:
            grad.mul_(scale[rows].view(-1, *[1] * (grad.dim() - 1)))
        self.optimizer.step()

    @torch.no_grad()
    def write(self, number: int, model: Plugged) -> None:
        """Put the weights of a version into a network."""
        for name, stack in self.stacks.items():
            at = (self.rows[name] == number).nonzero().flatten().tolist()
            for key, parameter in model.get_submodule(name).named_parameters() if at else ():
                parameter.copy_(stack[key][at[0]])
