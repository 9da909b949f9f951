"""Programs as data: lines of PyTorch, and for each line what it does, in parts that the oracle understands."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

NAME = re.compile(r"\b[a-z]\d+\b")  # h3, w0, x0: no identifier of PyTorch's looks like that


class Cube(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return 3 * x**2 * g


class Straight(torch.autograd.Function):
    """Rounds, and passes half of the gradient; its second result scales."""

    @staticmethod
    def forward(ctx, x, y):
        return x.round(), y * 3

    @staticmethod
    def backward(ctx, g, h):
        return g / 2, h * 3


HELPERS = {
    "torch": torch,
    "F": functional,
    "rnn": torch.nn.utils.rnn,
    "checkpoint": checkpoint,
    "Cube": Cube,
    "Straight": Straight,
}
IMPORTS = """import torch
from torch.nn import functional as F
from torch.nn.utils import rnn
from torch.utils.checkpoint import checkpoint
import gradtrace
from fuzz.program import Cube, Straight  # in tests/
"""


@dataclass(frozen=True)
class Part:
    """One operator call, as a pure function of its arguments' contents.

    Attributes:
        mode: "call" (also views: they are found by the storage they share), "write", "quiet" (a call under no_grad,
            or a detach), "quiet write" (a write under no_grad) or "leaf" (a copy that becomes a leaf).
        outs: names of the results; for a write, of what is written to.
        expr: the function; every name in it is an argument of its own.
    """

    mode: str
    outs: tuple[str, ...]
    expr: str

    @property
    def args(self) -> tuple[str, ...]:
        return tuple(NAME.findall(self.expr))


@dataclass(frozen=True)
class Step:
    """A line of the program, the kind of operator it shows, and its parts."""

    kind: str
    text: str
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Program:
    """Leaves and data, then steps, then the loss.

    Attributes:
        inputs: name and Python text of every leaf and every tensor of data.
        leaves, examples: which of them are leaves, and which enumerate the examples.
        loss: the last step; its parts begin with a product for each target, whose scalars are the loss's terms.
        intent: "apart" (examples do not meet), "connect" (they do, at one step that selects over them) or "free".
    """

    inputs: tuple[tuple[str, str], ...]
    leaves: tuple[str, ...]
    examples: tuple[str, ...]
    steps: tuple[Step, ...]
    loss: Step
    intent: str

    def start(self) -> dict[str, Any]:
        """Make a namespace with fresh leaves and data."""
        space = dict(HELPERS)
        for name, text in self.inputs:
            space[name] = eval(text, space)
        return space

    def run(self, space: dict[str, Any]) -> None:
        """Run all lines; the loss is then `space["loss"]`."""
        for step in (*self.steps, self.loss):
            exec(compiled(step.text), space)

    def listing(self) -> str:
        """Write the program as Python that runs."""
        names = ", ".join(f'"{n}": {n}' for n in self.leaves)
        made = "\n".join(f"{name} = {text}" for name, text in self.inputs)
        body = textwrap.indent("\n".join(s.text for s in (*self.steps, self.loss)), "    ")
        head = f"with gradtrace.record(names={{{names}}}, examples=[{', '.join(self.examples)}]) as tape:"
        return f"{IMPORTS}\n{made}\n{head}\n{body}\ntrace = tape.trace(loss, check=True)"


@cache
def compiled(text: str) -> Any:
    return compile(text, f"<{text}>", "exec")


@cache
def function(expr: str) -> Callable[..., Any]:
    """Make a function of an expression, with a parameter for every place where it names a tensor."""
    count = len(NAME.findall(expr))
    numbers = iter(range(count))
    body = NAME.sub(lambda _: f"_a{next(numbers)}", expr)
    return eval(f"lambda {', '.join(f'_a{i}' for i in range(count))}: {body}", dict(HELPERS))


def quietly(mode: str) -> Any:
    return torch.no_grad() if mode.startswith("quiet") else nullcontext()
