"""Small random programs, as hypothesis draws them: what people do to tensors, on 2 × 2 of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from gradtrace import component

Step = Callable[[Tensor, Tensor, dict[str, Tensor]], Tensor]


def _slice_write(x: Tensor, y: Tensor, p: dict[str, Tensor]) -> Tensor:
    out = x.clone()
    out[0] = y[1]
    return out


def _column_scaled_in_place(x: Tensor, y: Tensor, p: dict[str, Tensor]) -> Tensor:
    out = x * 1
    out[:, 1].mul_(y[:, 0])
    return out


def _alias_read_after_write(x: Tensor, y: Tensor, p: dict[str, Tensor]) -> Tensor:
    out = x.clone(memory_format=torch.contiguous_format)  # a transposed x has no flat view
    flat = out.view(-1)
    out.mul_(y)
    return flat.view(2, 2) + out


def _buffer_filled(x: Tensor, y: Tensor, p: dict[str, Tensor]) -> Tensor:
    out = torch.zeros(2, 2, dtype=x.dtype)
    out[:, 0] = x[:, 1]
    out[1] += y[0]
    return out


def _half_overwritten(x: Tensor, y: Tensor, p: dict[str, Tensor]) -> Tensor:
    out = x * y
    out[0].zero_()
    out[1, 0] = 2.0
    return out + x


# exact: on small integers and powers of two every intermediate is exact, so that ties are real
EXACT: dict[str, Step] = {
    "add": lambda x, y, p: x + y,
    "sub": lambda x, y, p: x - y,
    "mul": lambda x, y, p: x * y,
    "square": lambda x, y, p: x * x,
    "pow": lambda x, y, p: x.pow(2),
    "relu": lambda x, y, p: torch.relu(x),
    "relu_": lambda x, y, p: torch.relu_(x * 1),
    "abs": lambda x, y, p: x.abs(),
    "neg_half": lambda x, y, p: -0.5 * x,
    "matmul": lambda x, y, p: x @ p["w"],
    "matmul_left": lambda x, y, p: p["w"] @ x,
    "matmul_self": lambda x, y, p: x @ y.t(),
    "linear": lambda x, y, p: functional.linear(x, p["w"], p["b"]),
    "bias": lambda x, y, p: x + p["b"],
    "scale": lambda x, y, p: x * p["b"],
    "scalar": lambda x, y, p: x * p["s"],
    "bmm": lambda x, y, p: torch.bmm(x.expand(2, 2, 2), y.unsqueeze(0).repeat(2, 1, 1)).sum(0),
    "einsum": lambda x, y, p: torch.einsum("ij,kj->ik", x, y),
    "transpose": lambda x, y, p: x.t() + y,
    "view": lambda x, y, p: x.t().reshape(4)[[3, 0, 0, 1]].view(2, 2),
    "row": lambda x, y, p: x[1].expand(2, 2) * y,
    "same_view": lambda x, y, p: x + 2 * x.view(2, 2),
    "flip": lambda x, y, p: x.flip(0) + x,
    "cat": lambda x, y, p: torch.cat([x[:, :1], y[:, 1:]], 1),
    "stack": lambda x, y, p: torch.stack([x[0], y[1]]),
    "chunk": lambda x, y, p: x.chunk(2, 1)[0] * y.chunk(2, 0)[1],
    "gather": lambda x, y, p: x.gather(1, torch.tensor([[1, 1], [0, 1]])),
    "embedding": lambda x, y, p: x + functional.embedding(torch.tensor([1, 1]), p["w"]),
    "sum": lambda x, y, p: x + y.sum(0, keepdim=True),
    "mean": lambda x, y, p: x * y.mean(1, keepdim=True),
    "amax": lambda x, y, p: x + y.max(1, keepdim=True).values,
    "where": lambda x, y, p: torch.where(torch.tensor([[True, False], [False, True]]), x, y),
    "masked": lambda x, y, p: x.masked_fill(torch.tensor([True, False]), 0.0) + y,
    "detach": lambda x, y, p: x.detach() * y,
    "cumsum": lambda x, y, p: x.cumsum(1),
    "slice_write": _slice_write,
    "column_in_place": _column_scaled_in_place,
    "alias": _alias_read_after_write,
    "buffer": _buffer_filled,
    "overwritten": _half_overwritten,
}
SMOOTH: dict[str, Step] = {
    "tanh": lambda x, y, p: torch.tanh(x),
    "sigmoid": lambda x, y, p: torch.sigmoid(x) * y,
    "sin": lambda x, y, p: torch.sin(x),
    "softmax": lambda x, y, p: torch.softmax(x, 1),
    "softmax0": lambda x, y, p: torch.softmax(x, 0) * y,
    "log_softmax": lambda x, y, p: torch.log_softmax(x, -1),
    "layer_norm": lambda x, y, p: functional.layer_norm(x.flatten(), (4,)).view(2, 2),
    "layer_norm_affine": lambda x, y, p: functional.layer_norm(x, (2, 2), p["w"], p["w"]),
    "gelu": lambda x, y, p: functional.gelu(x),
    "logsumexp": lambda x, y, p: x - x.logsumexp(1, keepdim=True),
    "norm": lambda x, y, p: x * y.norm(),
    "std": lambda x, y, p: x * y.std(),
    "prod": lambda x, y, p: x + y.prod(1),
    "cross_entropy": lambda x, y, p: x * functional.cross_entropy(y, torch.tensor([1, 0])),
}
LEAVES = {"x": (2, 2), "w": (2, 2), "b": (2,), "s": ()}


@dataclass(frozen=True)
class Program:
    """Steps (operation, first operand, second operand, component), and the leaves' numbers."""

    steps: tuple[tuple[str, int, int, str], ...]
    data: tuple[float, ...]
    reduce: str

    def leaves(self) -> dict[str, Tensor]:
        """Make fresh leaf tensors."""
        out, numbers = {}, iter(self.data)
        for name, shape in LEAVES.items():
            flat = [next(numbers) for _ in range(int(torch.Size(shape).numel()))]
            out[name] = torch.tensor(flat, dtype=torch.float64).reshape(shape).requires_grad_()
        return out

    def result(self, p: dict[str, Tensor]) -> Tensor:
        """Run the program's steps and give what the last one computes, 2 × 2."""
        pool = [p["x"], p["w"]]
        for name, a, b, scope in self.steps:
            step = EXACT.get(name) or SMOOTH[name]
            with component(scope):
                pool.append(step(pool[a % len(pool)], pool[b % len(pool)], p))
        return pool[-1]

    def run(self, p: dict[str, Tensor]) -> Tensor:
        """Run the program and give its loss."""
        last = self.result(p)
        if self.reduce == "weighted":
            return (last * torch.tensor([[1.0, -2.0], [0.5, 1.0]], dtype=torch.float64)).sum()
        return last.mean() if self.reduce == "mean" else last.sum()


def programs(exact: bool) -> st.SearchStrategy[Program]:
    """Draw programs; exact ones have small dyadic numbers and no transcendental functions."""
    names = list(EXACT) if exact else [*EXACT, *SMOOTH, *SMOOTH]
    count = sum(int(torch.Size(s).numel()) for s in LEAVES.values())
    numbers = st.sampled_from([-2.0, -1.0, -0.5, 0.5, 1.0, 2.0, 3.0, 0.0]) if exact else st.floats(-2, 2, width=32)
    step = st.tuples(st.sampled_from(names), st.integers(0, 5), st.integers(0, 5), st.sampled_from("abc"))
    return st.builds(
        Program,
        st.lists(step, min_size=1, max_size=4).map(tuple),
        st.lists(numbers, min_size=count, max_size=count).map(tuple),
        st.sampled_from(["sum", "mean", "weighted"]),
    )
