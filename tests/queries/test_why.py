"""Why parameters get no gradient: sick programs, at least two a cause, and healthy ones, in which nothing is found."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import gradtrace
from gradtrace.errors import NotANumber, UnknownName

Program = tuple[nn.Module, Callable[[nn.Module], Tensor]]  # and its loss


def seeded() -> Tensor:
    torch.manual_seed(0)
    return torch.randn(6, 4)


X = seeded()


class Two(nn.Module):
    """Two layers `a` and `b`; how they are put together is the program's."""

    def __init__(self, how: Callable[[Two, Tensor], Tensor], width: int = 4) -> None:
        super().__init__()
        self.a, self.b, self.how = nn.Linear(4, width), nn.Linear(width, 4), how

    def forward(self, x: Tensor) -> Tensor:
        return self.how(self, x)


def two(how: Callable[[Two, Tensor], Tensor], prepare: Callable[[Two], object] = lambda model: None) -> Program:
    torch.manual_seed(1)
    model = Two(how)
    with torch.no_grad():
        prepare(model)
    return model, lambda m: m(X).square().mean()


def frozen(model: Two) -> None:
    model.a.weight.requires_grad_(False)


def without_grad(m: Two, x: Tensor) -> Tensor:
    with torch.no_grad():
        h = m.a(x)
    return m.b(h.relu())


def by_numpy(m: Two, x: Tensor) -> Tensor:
    return m.b(torch.from_numpy(m.a(x).detach().numpy() * 2))


def weight_data(m: Two, x: Tensor) -> Tensor:
    return m.b(F.linear(x, m.a.weight.data, m.a.bias))


def tanh_then_detached(m: Two, x: Tensor) -> Tensor:
    return m.b(m.a(x).tanh().detach())


class Lora(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.base, self.down, self.up = nn.Linear(4, 4), nn.Linear(4, 2, bias=False), nn.Linear(2, 4, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(x))


class OneKey(nn.Module):
    """Attention over one position: its softmax is constant."""

    def __init__(self, positions: int) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.attention, self.positions = nn.MultiheadAttention(4, 2, batch_first=True), positions

    def forward(self, x: Tensor) -> Tensor:
        h = x.unsqueeze(1).expand(-1, self.positions, -1) + torch.arange(float(self.positions)).reshape(1, -1, 1)
        return self.attention(h, h, h, need_weights=False)[0]


class Keys(nn.Module):
    """Attention whose keys have a bias of their own, which no softmax sees."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.q, self.k, self.v = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return ((self.q(x) @ self.k(x).t()).softmax(-1)) @ self.v(x)


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.a, self.norm, self.b = nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.norm(self.a(x)).relu())


class Deep(nn.Module):
    """Sigmoids, each of which loses a quarter at least."""

    def __init__(self, depth: int, scale: float) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.layers = nn.ModuleList([nn.Linear(4, 4) for _ in range(depth)])
        with torch.no_grad():
            for layer in self.layers:
                layer.weight.mul_(scale)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x).sigmoid()
        return x


def loss_of(model: nn.Module) -> Tensor:
    return model(X).square().mean()


def plain(model: nn.Module) -> Program:
    return model, loss_of


def at_nought(model: Two) -> None:
    model.a.bias.copy_(torch.tensor([0.0, 1.0, 2.0, 3.0]))


def below_half() -> Program:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).half()
    return model, lambda m: m(X.half()).float().mean() * 1e-8


def in_place(m: Two, x: Tensor) -> Tensor:
    h = m.a(x).tanh()
    h.detach_()
    return m.b(h)


def only_b(m: Two, x: Tensor) -> Tensor:
    return m.b(x)


def thrown_away(m: Two, x: Tensor) -> Tensor:
    m.a(x).tanh()
    return m.b(x)


def kept_aside(m: Two, x: Tensor) -> Tensor:
    m.aside = m.a(x).relu()
    return m.b(x)


def negative(model: Two) -> None:
    model.a.bias.fill_(-100.0)


def large(model: Two) -> None:
    model.a.bias.fill_(1000.0)


def one_sided(model: Two) -> None:
    model.a.bias.copy_(torch.tensor([1e5, 0.0, 0.0, 0.0]))


def nought(model: Two) -> None:
    model.b.weight.zero_()


def roots(zero: Tensor) -> Tensor:
    return zero.sqrt() - (zero * 1).sqrt()


def unequal(m: Two, x: Tensor) -> Tensor:
    h = m.a(x)
    return m.b(x) + h - h


class AdaptedLinear(nn.Module):
    """LoRA as libraries write it: the base is frozen, B is 0 at first."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.base, self.A = nn.Linear(4, width), nn.Parameter(torch.randn(2, 4))
        self.B = nn.Parameter(torch.zeros(width, 2))
        self.base.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + x @ self.A.t() @ self.B.t() * 2.0


def adapted() -> Program:
    torch.manual_seed(1)
    return plain(nn.Sequential(AdaptedLinear(4), nn.ReLU(), AdaptedLinear(3)))


class Answers(torch.autograd.Function):
    """A product of one argument, whose backward has None for it, and the other."""

    @staticmethod
    def forward(ctx, x, y):
        return x * 2 + y

    @staticmethod
    def backward(ctx, g):
        return None, g


class Noughts(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, g):
        return g * 0


class Rounds(torch.autograd.Function):
    """A straight-through estimator."""

    @staticmethod
    def forward(ctx, x):
        return x.round()

    @staticmethod
    def backward(ctx, g):
        return g


class RoundsHard(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        y = x.round()
        ctx.mark_non_differentiable(y)
        return y

    @staticmethod
    def backward(ctx, g):
        return None


def mask_in_integers(m: Two, x: Tensor) -> Tensor:
    mask = (m.a(x) > 0).long()
    mask[:, 0] = 1
    return m.b(x) * mask


def head_beside(m: Two, x: Tensor) -> Tensor:
    m.other = m.a(m.b(x))  # a head that no loss is taken of
    return m.b(x)


def target_network(m: Two, x: Tensor) -> Tensor:
    with torch.no_grad():
        target = m.a(x)
    return m.b(x) - target


def in_the_loss(m: Two, x: Tensor) -> Tensor:
    penalty = m.a(x).square().mean()
    return m.b(x) + penalty.item()


def gated(m: Two, x: Tensor) -> Tensor:
    return m.b(x) + m.b.bias * m.a(x)


def no_gate(m: Two) -> None:
    m.b.bias.zero_()


def largest_two(m: Two, x: Tensor) -> Tensor:
    return m.b(x * torch.zeros_like(x).scatter(1, m.a(x).topk(2, -1).indices, 1.0))


def sorted_by(m: Two, x: Tensor) -> Tensor:
    return m.b(x.gather(1, m.a(x).argsort(-1)))


def set_to_zero(m: Two, x: Tensor) -> Tensor:
    h = m.a(x).clone()
    h.zero_()
    return m.b(h + x)


def written_over(m: Two, x: Tensor) -> Tensor:
    h = m.a(x).clone()
    h[:] = m.b(x)
    return h


def computed_again(part: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return checkpoint(part, x, use_reentrant=False)


def distance(m: Two, x: Tensor) -> Tensor:
    h = m.a(x)
    return m.b(x) + (h - x @ m.a.weight.t() - m.a.bias).mul(0).square().sum(-1, keepdim=True).sqrt()


def log_of_nothing(m: Two, x: Tensor) -> Tensor:
    h = m.a(x)
    return m.b(x) + torch.where(x > 99, (h * 0).abs().log() * h, x)


SICK: dict[str, tuple[Callable[[], Program], str, str, str]] = {
    # name: (program, parameter, cause, what is said or where)
    "frozen": (lambda: two(lambda m, x: m.b(m.a(x)), frozen), "a.weight", "frozen", "requires_grad"),
    "frozen, unused": (lambda: two(only_b, frozen), "a.weight", "frozen", "requires_grad"),
    "unused": (lambda: two(only_b), "a.weight", "unused", "nothing"),
    "unused bias": (lambda: two(lambda m, x: m.b(x @ m.a.weight)), "a.bias", "unused", "nothing"),
    "result thrown away": (lambda: two(thrown_away), "a.weight", "result unused", "aten.tanh"),
    "result kept aside": (lambda: two(kept_aside), "a.bias", "result unused", "aten.relu"),
    "detach": (lambda: two(lambda m, x: m.b(m.a(x).detach())), "a.weight", "cut", "detach"),
    "detach after tanh": (lambda: two(tanh_then_detached), "a.weight", "cut", "m.a(x).tanh().detach()"),
    "no_grad": (lambda: two(without_grad), "a.weight", "cut", "h = m.a(x)"),
    "no_grad, bias": (lambda: two(without_grad), "a.bias", "cut", "h = m.a(x)"),
    ".data": (lambda: two(weight_data), "a.weight", "cut", "m.a.weight.data"),
    ".data of a result": (lambda: two(lambda m, x: m.b(m.a(x).data.clone())), "a.bias", "cut", ".data"),
    "numpy": (lambda: two(by_numpy), "a.weight", "cut", "numpy()"),
    "numpy of a weight": (
        lambda: two(lambda m, x: m.b(x @ torch.from_numpy(m.a.weight.detach().numpy()))), "a.weight", "cut", "numpy()",
    ),
    "a Python number": (lambda: two(lambda m, x: m.b(x) * m.a(x).sum().item()), "a.weight", "cut", "_local_scalar"),
    "argmax": (lambda: two(lambda m, x: m.b(F.one_hot(m.a(x).argmax(-1), 4).float())), "a.weight", "cut", "argmax"),
    "comparison": (lambda: two(lambda m, x: m.b((m.a(x) > 0).float())), "a.bias", "cut", "aten.gt"),
    "an integer as an index": (
        lambda: two(lambda m, x: m.b(x)[m.a(x).sum(-1).long() % 6]), "a.weight", "cut", "aten._to_copy",
    ),
    "a comparison as a mask": (
        lambda: two(lambda m, x: m.b(x.masked_fill(m.a(x) < 0, 1.0))), "a.weight", "cut", "aten.lt",
    ),
    "a ReLU6 over its top": (lambda: two(lambda m, x: m.b(F.relu6(m.a(x))), large), "a.bias", "zero", "is off"),
    "a saturated softmax": (
        lambda: two(lambda m, x: m.b(m.a(x).softmax(-1)), one_sided), "a.weight", "zero", "softmax is saturated",
    ),
    "a saturated softmax over rows": (
        lambda: two(lambda m, x: m.b((m.a(x).t() * 1e4).softmax(0).t()), one_sided), "a.bias", "zero", "saturated",
    ),
    "a LoRA of a convolution": (lambda: plain_lora(), "down.weight", "zero", "up.weight, which is 0"),
    "a ReLU that is off": (lambda: two(lambda m, x: m.b(m.a(x).relu()), negative), "a.weight", "zero", "relu is off"),
    "clamp": (lambda: two(lambda m, x: m.b(m.a(x).clamp(0, 1)), large), "a.bias", "zero", "clamp is off"),
    "a saturated sigmoid": (
        lambda: two(lambda m, x: m.b(m.a(x).sigmoid()), large), "a.weight", "zero", "sigmoid is saturated",
    ),
    "a saturated tanh": (lambda: two(lambda m, x: m.b(m.a(x).tanh()), large), "a.bias", "zero", "tanh is saturated"),
    "LoRA": (lambda: plain(Lora()), "down.weight", "zero", "up.weight, which is 0"),
    "a layer of zeros": (lambda: two(lambda m, x: m.b(m.a(x)), nought), "a.weight", "zero", "b.weight, which is 0"),
    "rounding": (lambda: two(lambda m, x: m.b(m.a(x).round())), "a.weight", "zero", "round is 0"),
    "a softmax over one": (
        lambda: two(lambda m, x: m.b(m.a(x)[:, :1].softmax(-1).expand(-1, 4))), "a.weight", "zero", "one element",
    ),
    "attention to one position": (lambda: two_heads(), "q", "zero", "one element"),
    "a bias before batch norm": (lambda: plain(Normed()), "a.bias", "cancelled", "adds up to 0"),
    "a bias of keys": (lambda: plain(Keys()), "k.bias", "cancelled", "adds up to 0"),
    "added and taken away": (lambda: two(unequal), "a.weight", "cancelled", "adds up to 0"),
    "sigmoids": (lambda: plain(Deep(12, 0.3)), "layers.0.weight", "vanished", "most is lost"),
    "below what a float holds": (lambda: plain(Deep(40, 0.003)), "layers.0.bias", "vanished", "most is lost"),
    "sqrt at 0": (
        lambda: two(lambda m, x: m.b(torch.where(x > 9, m.a(x), (m.a(x) * 0).abs().sqrt()))), "a.bias", "nan", "0 · ∞",
    ),
    "infinite from two sides": (
        lambda: two(lambda m, x: m.b(x) + roots(m.a(x) * 0)), "a.bias", "nan", "∞ − ∞",
    ),
    "a root of a parameter at 0": (
        lambda: two(lambda m, x: m.b(x) + m.a.bias.sqrt(), at_nought), "a.bias", "infinite", "sqrt",
    ),
    "an arc sine at 1": (
        lambda: two(lambda m, x: m.b(x) + m.a.bias.asin(), lambda m: m.a.bias.fill_(1)), "a.bias", "infinite", "asin",
    ),
    "a part that is cut off": (
        lambda: two(lambda m, x: m.b((torch.cat([m.a(x), x], -1) * 2)[:, 4:])), "a.weight", "zero", "after cat uses",
    ),
    "below what a half holds": (below_half, "0.weight", "vanished", "the least that torch.float16 holds"),
    "detached in place": (lambda: two(in_place), "a.weight", "result unused", "detach_()"),
    "LoRA, as libraries write it": (adapted, "2.A", "zero", "2.B, which is 0 everywhere"),
    "a frozen base": (adapted, "0.base.weight", "frozen", "requires_grad"),
    "item() in the loss": (lambda: two(in_the_loss), "a.weight", "cut", "_local_scalar_dense"),
    "a mask of integers, written to": (lambda: two(mask_in_integers), "a.weight", "cut", "aten.gt"),
    "a head beside": (lambda: two(head_beside), "a.weight", "result unused", "aten.addmm"),
    "a target network": (lambda: two(target_network), "a.weight", "cut", "target = m.a(x)"),
    "an empty slice": (lambda: two(lambda m, x: m.b(x) + m.a(x[:0]).sum()), "a.weight", "zero", "is empty"),
    "a factor 0": (lambda: two(lambda m, x: m.b(x) + 0 * m.a(x)), "a.weight", "zero", "multiplies it by the number 0"),
    "a gate that is 0": (lambda: two(gated, no_gate), "a.weight", "zero", "mul multiplies it by b.bias, which is 0"),
    "the smaller of two": (
        lambda: two(lambda m, x: torch.maximum(m.a(x) - 100, m.b(x))), "a.weight", "zero", "maximum chooses none",
    ),
    "a function that answers None": (
        lambda: two(lambda m, x: Answers.apply(m.a(x), m.b(x))), "a.weight", "cut", "the backward of autograd.Answers",
    ),
    "a function that answers 0": (
        lambda: two(lambda m, x: m.b(Noughts.apply(m.a(x)))), "a.weight", "zero", "the derivative of autograd.Noughts",
    ),
    "marked as not differentiable": (
        lambda: two(lambda m, x: m.b(x) * RoundsHard.apply(m.a(x))), "a.weight", "cut", "aten.round",
    ),
    "indices of the largest": (lambda: two(largest_two), "a.weight", "cut", "aten.topk.default gives indices"),
    "an order": (lambda: two(sorted_by), "a.bias", "cut", "aten.sort.default gives indices"),
    "set to 0": (lambda: two(set_to_zero), "a.weight", "zero", "zero overwrites it"),
    "written over": (lambda: two(written_over), "a.bias", "zero", "copy overwrites it"),
    "checkpointed and detached": (
        lambda: two(lambda m, x: m.b(computed_again(m.a, x).detach())), "a.weight", "cut", "detach",
    ),
    "checkpointed and off": (
        lambda: two(lambda m, x: m.b(computed_again(lambda t: (m.a(t) - 1e4).relu(), x))), "a.weight", "zero", "is off",
    ),
    "a sample": (
        lambda: two(lambda m, x: m.b(Normal(m.a(x), 1.0).sample())), "a.weight", "cut", "aten.expand",
    ),
    "a distance of 0": (lambda: two(distance), "a.weight", "nan", "aten.pow"),
    "the log of 0, where it is not looked at": (lambda: two(log_of_nothing), "a.weight", "nan", "0 · ∞"),
    "norm of a power": (lambda: two(lambda m, x: m.b(x) + ((m.a(x) * 0) ** 2).sqrt()), "a.bias", "nan", "aten.pow"),
}  # fmt: skip


def plain_lora() -> Program:
    torch.manual_seed(1)
    model = nn.ModuleDict(
        {n: nn.Conv1d(*c, 1, bias=False) for n, c in {"base": (4, 4), "down": (4, 2), "up": (2, 4)}.items()}
    )
    nn.init.zeros_(model["up"].weight)
    x = X.t().unsqueeze(0)
    return model, lambda m: (m["base"](x) + m["up"](m["down"](x))).square().mean()


def two_heads() -> Program:
    """Queries and keys of one position."""
    torch.manual_seed(1)
    model = nn.ParameterDict({name: nn.Parameter(torch.randn(4, 4)) for name in "qkv"})
    h = X.unsqueeze(1)
    return model, lambda m: F.scaled_dot_product_attention(h @ m["q"], h @ m["k"], h @ m["v"]).square().mean()


def trace_of(program: Program) -> gradtrace.Trace:
    model, loss_function = program
    with gradtrace.record(model, examples=X) as tape:
        loss = loss_function(model)
    return tape.trace(loss)


@pytest.mark.parametrize("name", list(SICK))
def test_the_cause_is_found(name):
    program, parameter, cause, said = SICK[name]
    made = program()
    trace = trace_of(made)
    found = trace.why(parameter)
    assert found.cause == cause, found
    assert said in str(found)
    elsewhere = cause in ("frozen", "unused", "cancelled") or "sample" in name
    assert elsewhere or "test_why.py:" in str(found)
    assert_autograd_agrees(trace, *made)


def assert_autograd_agrees(
    trace: gradtrace.Trace, model: nn.Module, loss_function: Callable[[nn.Module], Tensor]
) -> None:
    """Compare the cause of every parameter with the gradient that autograd has for it."""
    loss_function(model).backward()
    for name, parameter in model.named_parameters():
        may = {"frozen"}
        if parameter.requires_grad:
            may = {"unused", "cut", "result unused"} if parameter.grad is None else {"healthy", "cancelled", "vanished"}
        if parameter.grad is not None and parameter.grad.isnan().any():
            may = {"nan"}
        elif parameter.grad is not None and parameter.grad.isinf().any():
            may = {"infinite"}
        elif parameter.grad is not None and not parameter.grad.any():
            may = {"zero", "cancelled", "vanished"}
        assert trace.why(name).cause in may, (name, parameter.grad)


def residual() -> nn.Module:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(4, 4) for _ in range(8)])

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x = x + layer(x).relu()
            return x

    return Block()


def recurrent(kind: type[nn.RNNBase]) -> Program:
    model = kind(4, 6, batch_first=True)
    return model, lambda m: m(X.unsqueeze(1).expand(-1, 5, -1))[0].square().mean()


def encoder(**options: object) -> Program:
    model = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True, **options)
    return model, lambda m: m(X.unsqueeze(0) * 3)[..., 0].square().mean()


def logging_too(m: Two, x: Tensor) -> Tensor:
    h = m.a(x)
    m.seen = h.detach().numpy().mean(), h.sum().item(), (h > 0).float().mean()
    return m.b(h.tanh())


HEALTHY: dict[str, Callable[[], Program]] = {
    "linear": lambda: plain(nn.Linear(4, 3)),
    "relu": lambda: plain(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))),
    "gelu": lambda: plain(nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 2))),
    "tanh": lambda: plain(nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))),
    "sigmoid": lambda: plain(nn.Sequential(nn.Linear(4, 8), nn.Sigmoid(), nn.Linear(8, 2))),
    "silu": lambda: plain(nn.Sequential(nn.Linear(4, 8), nn.SiLU(), nn.Linear(8, 2))),
    "dropout": lambda: plain(nn.Sequential(nn.Linear(4, 16), nn.Dropout(0.3), nn.ReLU(), nn.Linear(16, 2))),
    "deep": lambda: plain(nn.Sequential(*[m for _ in range(6) for m in (nn.Linear(4, 4), nn.Tanh())])),
    "residual": lambda: plain(residual()),
    "layer norm": lambda: plain(nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.GELU(), nn.Linear(6, 2))),
    "batch norm": lambda: plain(nn.Sequential(nn.Linear(4, 6, bias=False), nn.BatchNorm1d(6), nn.Tanh())),
    "batch norm, evaluated": lambda: plain(nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 2)).eval()),
    "rnn": lambda: recurrent(nn.RNN),
    "gru": lambda: recurrent(nn.GRU),
    "lstm": lambda: recurrent(nn.LSTM),
    "embedding": lambda: (nn.Embedding(9, 4), lambda m: m(torch.arange(6)).square().mean()),
    "convolution": lambda: (nn.Conv1d(1, 3, 2), lambda m: m(X.unsqueeze(1)).relu().square().mean()),
    "pooling": lambda: (nn.Conv1d(1, 3, 2), lambda m: F.max_pool1d(m(X.unsqueeze(1)), 3).square().mean()),
    "cross entropy": lambda: (nn.Linear(4, 3), lambda m: F.cross_entropy(m(X), torch.arange(6) % 3)),
    "double": lambda: (nn.Linear(4, 3).double(), lambda m: m(X.double()).square().mean()),
    "autocast": lambda: (nn.Linear(4, 8), half),
    "detached for a log": lambda: two(logging_too),
    "a target that is detached": lambda: two(lambda m, x: m.b(x) + m.a(x) - m.a(x).detach()),
    "used twice": lambda: two(lambda m, x: m.b(m.a(m.a(x).relu()) + m.a(x))),
    "weights shared": lambda: two(lambda m, x: m.b(F.linear(m.a(x), m.a.weight.t()))),
    "straight through": lambda: two(lambda m, x: m.b(Rounds.apply(m.a(x)))),
    "straight through by hand": lambda: two(lambda m, x: m.b(m.a(x) + (m.a(x).round() - m.a(x)).detach())),
    "checkpointed": lambda: two(lambda m, x: m.b(computed_again(m.a, x))),
    "tied": lambda: two(lambda m, x: F.linear(m.b(m.a(x)), m.a.weight)),
    "sixteen bits": lambda: (sixteen_bits(), lambda m: m(X.bfloat16()).float().square().mean()),
    "sixteen bits, autocast": lambda: (sixteen_bits().float(), half),
    "a slope that a mask hides": lambda: two(lambda m, x: m.b(m.a(x).relu().sqrt())),
    "beside an infinite slope": lambda: (Rooted(), lambda m: m(X).square().mean()),
    "a mask": lambda: two(lambda m, x: m.b(m.a(x).masked_fill(x > 0, -1e9).softmax(-1))),
    "written in place": lambda: two(lambda m, x: m.b(m.a(x).add_(1).sigmoid_())),
    "written to slices": lambda: two(in_slices),
    "a sample that is followed": lambda: two(lambda m, x: m.b(Normal(m.a(x), 1.0).rsample())),
    "hard choices by Gumbel": lambda: two(lambda m, x: m.b(F.gumbel_softmax(m.a(x), hard=True))),
    "weight norm": lambda: plain(nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), nn.Tanh())),
    "padding that is left out": lambda: (
        nn.Linear(4, 4), lambda m: F.cross_entropy(m(X), torch.tensor([0, 1, 2, 3, -100, -100])),
    ),
    "a small beginning": lambda: two(lambda m, x: m.b(m.a(x).tanh()), lambda m: m.a.weight.mul_(1e-3)),
    "a few ReLUs that are off": lambda: two(lambda m, x: m.b(m.a(x).relu()), lambda m: m.a.bias[:2].fill_(-100)),
}  # fmt: skip


def sixteen_bits() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 64), nn.GELU(), nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 3)).bfloat16()


class Rooted(nn.Module):
    """A buffer's roots do no harm."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) + torch.zeros(4).sqrt()


def in_slices(m: Two, x: Tensor) -> Tensor:
    h = torch.zeros(6, 4)
    h[:, :2], h[:, 2:] = m.a(x)[:, :2], m.a(x)[:, 2:]
    return m.b(h)


def half(model: nn.Module) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return model(X).float().square().mean()


@pytest.mark.parametrize("name", list(HEALTHY))
def test_nothing_is_found_in_what_is_well(name):
    torch.manual_seed(2)
    program = HEALTHY[name]()
    trace = trace_of(program)
    found = [trace.why(parameter) for parameter in trace.tape.leaves]
    assert [str(w) for w in found if w.cause != "healthy"] == []
    assert trace.unused() == {}
    assert_autograd_agrees(trace, *program)


def test_there_are_enough_of_both():
    causes = [cause for _, _, cause, _ in SICK.values()]
    assert len(SICK) >= 25
    assert len(HEALTHY) >= 25
    assert all(causes.count(cause) >= 2 for cause in set(causes))
    kinds = {"frozen", "unused", "result unused", "cut", "zero", "cancelled", "vanished", "nan", "infinite"}
    assert set(causes) == kinds


def test_an_infinite_gradient_leaves_the_others_healthy_and_everything_works(tmp_path):
    class Roots(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.b, self.p = nn.Linear(4, 4), nn.Parameter(torch.tensor([0.0, 1.0, 2.0, 3.0]))

        def forward(self, x: Tensor) -> Tensor:
            return self.b(x) + self.p.sqrt()

    model = Roots()
    with gradtrace.record(model, examples=X) as tape:
        loss = model(X).square().mean()
    trace = tape.trace(loss, check=True)
    causes = {name: trace.why(name).cause for name in ("p", "b.weight", "b.bias")}
    assert causes == {"p": "infinite", "b.weight": "healthy", "b.bias": "healthy"}
    trace.report(tmp_path / "report.html")
    kept = gradtrace.load(trace.save(tmp_path / "trace.gradtrace"))
    assert str(kept.influence(["b"])) == str(trace.influence(["b"]))
    kept.report(tmp_path / "kept.html")


def test_a_functions_backward_that_gives_nan_is_named():
    class Bad(Noughts):
        @staticmethod
        def backward(ctx, g):
            return g * float("nan")

    model = nn.Linear(4, 4)
    with gradtrace.record(model) as tape:
        loss = Bad.apply(model(X)).square().mean()
    with pytest.raises(NotANumber, match=r"autograd\.Bad.*test_why\.py"):
        tape.trace(loss)


def test_a_parameter_that_is_computed_is_no_leaf():
    w = torch.ones(4, 4, requires_grad=True)
    with gradtrace.record(names={"half": w / 2, "w": w}) as tape:
        loss = (X @ w).square().mean()
    trace = tape.trace(loss)
    assert trace.why("half").cause == "not a leaf"
    assert trace.why("w").cause == "healthy"
    with pytest.raises(UnknownName, match="there are w"):
        trace.why("nobody")


def test_a_parametrized_weight_is_no_leaf():
    net = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
    with gradtrace.record(net, names={"effective": net.weight}) as tape:
        loss = loss_of(net)
    trace = tape.trace(loss)
    assert trace.why("effective").cause == "not a leaf"
    assert trace.why("parametrizations.weight.original0").cause == "healthy"


def test_what_vanished_is_told_by_layer():
    found = trace_of(plain(Deep(12, 0.3))).why("layers.0.weight")
    ends = dict(found.layers)
    assert [name for name in ends if name] == [f"layers.{n}" for n in range(12)]
    log2 = [ends[f"layers.{n}"] for n in range(12)]
    assert log2 == sorted(log2, reverse=True)
    assert log2[-1] < -20


def test_unused_by_cause():
    program = two(lambda m, x: m.b(m.a(x).detach()), lambda m: m.b.bias.requires_grad_(False))
    assert trace_of(program).unused() == {"frozen": ["b.bias"], "cut": ["a.weight", "a.bias"]}


def ddp_finds(model: nn.Module, loss_function: Callable[[nn.Module], Tensor], tmp_path: Path) -> list[str]:
    """The parameters without a gradient, by DDP's own account: it numbers those that require one."""
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        parallel = nn.parallel.DistributedDataParallel(model)
        loss_function(parallel).backward()
        names = [name for name, p in model.named_parameters() if p.requires_grad]
        try:
            loss_function(parallel)
        except RuntimeError as error:
            return [names[int(n)] for n in re.findall(r"grad for rank 0: ([\d ]+)", str(error))[0].split()]
        return []
    finally:
        torch.distributed.destroy_process_group()


class Branches(nn.Module):
    """Four layers, of which a program uses some."""

    def __init__(self, how: Callable[[Branches, Tensor], Tensor]) -> None:
        super().__init__()
        self.layers, self.how = nn.ModuleList([nn.Linear(4, 4) for _ in range(4)]), how

    def forward(self, x: Tensor) -> Tensor:
        return self.how(self, x)


def overwritten(h: Tensor, by: Tensor) -> Tensor:
    h[:] = by
    return h


USES: list[Callable[[Branches, Tensor], Tensor]] = [
    lambda m, x: m.layers[0](x),
    lambda m, x: m.layers[1](m.layers[3](x).relu()),
    lambda m, x: m.layers[2](m.layers[0](x).detach()),
    lambda m, x: m.layers[0](x) * (m.layers[1](x) > 0),
    lambda m, x: m.layers[0](x) + m.layers[1](x).sum().item(),
    lambda m, x: (m.layers[0](x), m.layers[2](x).tanh())[0],
    lambda m, x: F.linear(x, m.layers[0].weight),
    lambda m, x: m.layers[3](m.layers[1](x) + m.layers[1].bias.data),
    lambda m, x: sum(layer(x) for layer in m.layers),
    lambda m, x: m.layers[0](x)[:, m.layers[1](x)[0].argmax()].unsqueeze(1),
    lambda m, x: m.layers[1](m.layers[0](x).clone().zero_() + x),
    lambda m, x: overwritten(m.layers[2](x).clone(), m.layers[0](x)),
    lambda m, x: Answers.apply(m.layers[0](x), m.layers[3](x)),
    lambda m, x: m.layers[0](x) + m.layers[1](x[:0]).sum(),
    lambda m, x: x.gather(1, m.layers[2](x).argsort(-1)) * m.layers[1](x),
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("number", range(len(USES)))
def test_unused_is_what_ddp_finds(number, tmp_path):
    torch.manual_seed(3)
    model = Branches(USES[number])
    model.layers[0].bias.requires_grad_(number != 1)
    ours = trace_of(plain(model)).unused()
    mine = {name for cause, names in ours.items() if cause != "frozen" for name in names}
    assert mine == set(ddp_finds(model, loss_of, tmp_path))
    assert ours.get("frozen", []) == ["layers.0.bias"] * (number == 1)
