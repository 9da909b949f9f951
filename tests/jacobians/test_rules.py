"""Rules against PyTorch's own Jacobians, for the operators of everyday models; and how rows are registered.

A program is one operator whose result is weighed and added up, so that the strongest path from x_j has the weight
max_i |c_i ∂y_i/∂x_j|, and the total is Σ_i |c_i ∂y_i/∂x_j|. Jacobians are `torch.autograd.functional.jacobian`'s.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from checks import F64, assert_paths_have_their_strength, leaf, recorded, run
from torch import Tensor

from gradtrace import AbsSum, Max, Sum
from gradtrace.jacobians.rules import TABLE, generic, register, structures
from gradtrace.semirings.base import Count

I = torch.tensor  # noqa: E741
MASK = I([[True, False, True, True], [False, True, True, False], [True] * 4])
M, V, IMAGE = (3, 4), (4,), (2, 3, 4, 4)

# operator: (program, shapes of its leaves)
ROWS: dict[str, tuple[Callable[..., Tensor], tuple[tuple[int, ...], ...]]] = {
    # pointwise, by the generic rule
    "add": (lambda x, y: torch.add(x, y, alpha=3), (M, V)),
    "sub": (lambda x, y: x - y, (M, (3, 1))),
    "mul": (lambda x, y: x * y, (M, ())),
    "div": (lambda x, y: x / (y + 3), (M, V)),
    "pow": (lambda x: x**3, (M,)),
    "tanh": (torch.tanh, (M,)),
    "sigmoid": (torch.sigmoid, (M,)),
    "relu": (torch.relu, (M,)),
    "gelu": (lambda x: F.gelu(x, approximate="tanh"), (M,)),
    "silu": (F.silu, (M,)),
    "where": (lambda x, y: torch.where(MASK, x, y), (M, V)),
    "maximum": (torch.maximum, (M, V)),
    "clamp": (lambda x: x.clamp(-0.5, 0.5), (M,)),
    "lerp": (torch.lerp, (M, V, ())),
    "addcmul": (lambda x, y, z: torch.addcmul(x, y, z, value=0.3), (M, V, (3, 1))),
    "masked_fill": (lambda x, v: x.masked_fill(MASK, v), (M, ())),
    "tril": (lambda x: x.tril(), (M,)),
    "_to_copy": (lambda x: x.float(), (M,)),
    # views
    "t": (lambda x: x.t(), (M,)),
    "expand": (lambda x: x.expand(2, 3, 4), ((3, 1),)),
    "slice": (lambda x: x[:, 1::2], (M,)),
    "select": (lambda x: x[1], (M,)),
    "unfold": (lambda x: x.unfold(1, 3, 1), (M,)),
    "diagonal": (lambda x: x.diagonal(1), (M,)),
    "as_strided": (lambda x: x.as_strided((3, 3), (1, 1), 2), (M,)),
    # products
    "mm": (lambda x, y: x @ y, (M, (4, 2))),
    "bmm": (torch.bmm, ((2, 3, 4), (2, 4, 2))),
    "mv": (torch.mv, (M, V)),
    "dot": (torch.dot, (V, V)),
    "addmm": (lambda x, y, z: torch.addmm(x, y, z, beta=0.5, alpha=2), ((2,), M, (4, 2))),
    "baddbmm": (lambda x, y, z: torch.baddbmm(x, y, z, beta=3.0), ((2, 1, 2), (2, 3, 4), (2, 4, 2))),
    "convolution": (lambda x, w, b: F.conv2d(x, w, b, stride=2, padding=1), (IMAGE, (2, 3, 3, 3), (2,))),
    # reductions
    "sum": (lambda x: x.sum(1), (M,)),
    "mean": (lambda x: x.mean((0, 2)), ((2, 3, 4),)),
    "amax": (lambda x: x.amax(0), (M,)),
    "logsumexp": (lambda x: x.logsumexp((0, 1)), (M,)),
    "prod": (lambda x: x.prod(1), (M,)),
    "var": (lambda x: x.var(1, correction=0), (M,)),
    "std": (lambda x: x.std(dim=0, keepdim=True), (M,)),
    "linalg_vector_norm": (lambda x: torch.linalg.vector_norm(x, 3, dim=1), (M,)),
    "max": (lambda x: x.max(1).values, (M,)),
    "sort": (lambda x: x.sort(1, descending=True).values, (M,)),
    "topk": (lambda x: x.topk(2, 0).values, (M,)),
    "median": (lambda x: x.median(1).values, (M,)),
    "nll_loss_forward": (lambda x: F.nll_loss(x, I([0, 3, -100])), (M,)),
    "mse_loss": (lambda x, y: F.mse_loss(x, y), (M, M)),
    "binary_cross_entropy_with_logits": (lambda x: F.binary_cross_entropy_with_logits(x, MASK.double()), (M,)),
    # normalisations: one operator, one Jacobian
    "_softmax": (lambda x: x.softmax(1), (M,)),
    "_log_softmax": (lambda x: x.log_softmax(0), (M,)),
    "native_layer_norm": (lambda x, w, b: F.layer_norm(x, (4,), w, b), (M, V, V)),
    "native_group_norm": (lambda x, w, b: F.group_norm(x, 2, w, b), ((2, 4, 3), V, V)),
    "native_batch_norm": (lambda x, w, b: F.batch_norm(x, None, None, w, b, True), (M, V, V)),
    # index maps
    "cat": (lambda x, y: torch.cat([x, y, x], 1), (M, (3, 2))),
    "stack": (lambda x, y: torch.stack([x, y], 1), (M, M)),
    "embedding": (lambda w: F.embedding(I([[0, 2], [2, 1]]), w, padding_idx=1), (M,)),
    "gather": (lambda x: x.gather(1, I([[0, 0], [3, 1], [2, 2]])), (M,)),
    "index_select": (lambda x: x.index_select(0, I([1, 1, 0])), (M,)),
    "index": (lambda x: x[I([0, 2, 0]), I([1, 1, 1])], (M,)),
    "repeat": (lambda x: x.repeat(2, 1), (M,)),
    "flip": (lambda x: x.flip(1), (M,)),
    "constant_pad_nd": (lambda x: F.pad(x, (1, -1), value=2.0), (M,)),
    "reflection_pad1d": (lambda x: F.pad(x, (2, 1), mode="reflect"), (M,)),
    "masked_select": (lambda x: x.masked_select(MASK), (M,)),
    # writing by index
    "scatter": (lambda x, y: x.scatter(1, I([[0, 1], [2, 3], [1, 0]]), y), (M, (3, 2))),
    "scatter_add": (lambda x, y: x.scatter_add(1, I([[0, 0], [2, 3], [1, 1]]), y), (M, (3, 2))),
    "index_add": (lambda x, y: x.index_add(0, I([1, 1]), y, alpha=2), (M, (2, 4))),
    "index_put": (lambda x, y: x.index_put((I([0, 2]), I([1, 1])), y), (M, (2,))),
    "masked_scatter": (lambda x, y: x.masked_scatter(MASK, y), (M, (12,))),
    "slice_scatter": (lambda x, y: torch.slice_scatter(x, y, 1, 0, 4, 2), (M, (3, 2))),
    # others
    "cumsum": (lambda x: x.cumsum(1), (M,)),
    "cumprod": (lambda x: x.cumprod(0), (M,)),
    "max_pool2d_with_indices": (lambda x: F.max_pool2d(x, 2), (IMAGE,)),
    "avg_pool2d": (lambda x: F.avg_pool2d(x, 2), (IMAGE,)),
    "upsample_bilinear2d": (lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"), ((1, 1, 3, 3),)),
    "linalg_inv_ex": (lambda x: torch.linalg.inv(x), ((3, 3),)),
    "glu": (lambda x: F.glu(x, 1), (M,)),
}
KERNELS_IN_FLOAT32 = {"_to_copy"}

WORDS = I([[0, 2, 2], [2, 1, 0]])
CLASSES = I([[0, 3], [-100, 1]])
# plain arguments that change an operator's derivative, one by one: (operator, program, shapes of its leaves)
ARGUMENTS: list[tuple[str, Callable[..., Tensor], tuple[tuple[int, ...], ...]]] = [
    ("embedding", lambda w: F.embedding(WORDS, w, scale_grad_by_freq=True), (M,)),
    ("embedding", lambda w: F.embedding(WORDS, w, padding_idx=2, scale_grad_by_freq=True), (M,)),
    ("embedding", lambda w: F.embedding(I([1, 1]), w, padding_idx=1), (M,)),
    ("_embedding_bag", lambda w: F.embedding_bag(WORDS, w, mode="sum", scale_grad_by_freq=True), (M,)),
    ("_embedding_bag", lambda w: F.embedding_bag(WORDS, w, mode="mean", padding_idx=2), (M,)),
    ("_embedding_bag", lambda w, s: F.embedding_bag(WORDS, w, mode="sum", per_sample_weights=s), (M, (2, 3))),
    ("gelu", lambda x: F.gelu(x), (M,)),
    ("rsub", lambda x, y: torch.rsub(x, y, alpha=2), (M, V)),
    ("addcdiv", lambda x, y, z: torch.addcdiv(x, y, z + 3, value=0.3), (M, V, (3, 1))),
    ("div", lambda x, y: torch.div(x, y + 3, rounding_mode="floor") + x, (M, V)),
    ("div", lambda x: torch.div(x, 0.3, rounding_mode="trunc") + x, (M,)),
    ("elu", lambda x: F.elu(x, 0.5), (M,)),
    ("celu", lambda x: F.celu(x, 0.5), (M,)),
    ("softplus", lambda x: F.softplus(x, 2, 1), (M,)),
    ("leaky_relu", lambda x: F.leaky_relu(x, 0.3), (M,)),
    ("addmv", lambda x, a, v: torch.addmv(x, a, v, beta=0, alpha=2), ((3,), M, V)),
    ("addr", lambda x, a, b: torch.addr(x, a, b, beta=0.5, alpha=2), (M, (3,), V)),
    ("std", lambda x: x.std((0, 1), correction=2), (M,)),
    ("var", lambda x: x.var(unbiased=False), (M,)),
    ("linalg_vector_norm", lambda x: torch.linalg.vector_norm(x, float("inf"), dim=0, keepdim=True), (M,)),
    ("sum", lambda x: x.sum((0, -1), keepdim=True), (M,)),
    ("logsumexp", lambda x: x.logsumexp(-1, keepdim=True), (M,)),
    ("nll_loss_forward", lambda x: F.nll_loss(x, I([0, 3, 1]), weight=torch.arange(1.0, 5).double()), (M,)),
    ("nll_loss_forward", lambda x: F.nll_loss(x, I([0, 3, 1]), ignore_index=3, reduction="none"), (M,)),
    ("nll_loss2d_forward", lambda x: F.nll_loss(x, CLASSES, weight=torch.arange(1.0, 5).double()), ((2, 4, 2),)),
    ("huber_loss", lambda x, y: F.huber_loss(x, y, reduction="sum", delta=0.5), (M, M)),
    ("smooth_l1_loss", lambda x, y: F.smooth_l1_loss(x, y, reduction="none", beta=0.5), (M, M)),
    ("binary_cross_entropy_with_logits", lambda x: F.binary_cross_entropy_with_logits(
        x, MASK.double(), weight=torch.arange(4.0).double(), pos_weight=torch.arange(1.0, 5).double()), (M,)),
    ("max_pool2d_with_indices", lambda x: F.max_pool2d(x, 2, 2, 1, 2, ceil_mode=True), ((1, 1, 5, 6),)),
    ("avg_pool2d", lambda x: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True, count_include_pad=False), ((1, 1, 4, 6),)),
    ("avg_pool2d", lambda x: F.avg_pool2d(x, 3, 2, 1, divisor_override=5), ((1, 1, 4, 6),)),
    ("upsample_bilinear2d", lambda x: F.interpolate(x, (5, 4), mode="bilinear", align_corners=True), ((1, 1, 3, 3),)),
    ("grid_sampler_2d", lambda x, g: F.grid_sample(x, g, padding_mode="reflection", align_corners=True),
     ((1, 2, 3, 3), (1, 2, 2, 2))),
    ("index_put", lambda x, y: x.index_put((I([0, 0]), I([1, 1])), y, accumulate=True), (M, (2,))),
    ("index_add", lambda x, y: x.index_add(1, I([1, 1]), y, alpha=-0.5), (M, (3, 2))),
    ("scatter_reduce", lambda x, y: x.scatter_reduce(1, I([[0, 0]] * 3), y, "mean", include_self=False), (M, (3, 2))),
    ("cumsum", lambda x: x.cumsum(-1), (M,)),
    ("renorm", lambda x: torch.renorm(x, 1, 1, 0.5), (M,)),
    ("_cdist_forward", lambda x, y: torch.cdist(x, y, p=3.0), (M, (2, 4))),
    ("native_layer_norm", lambda x, w: F.layer_norm(x, V, w, eps=0.5), (M, V)),
    ("sort", lambda x: torch.sort(x, dim=-1, descending=True, stable=True).values, (M,)),
    ("topk", lambda x: x.topk(2, 0, largest=False).values, (M,)),
    ("roll", lambda x: x.roll((1, 2), (0, 1)), (M,)),
    ("tril", lambda x: x.tril(1), (M,)),
    ("clamp", lambda x, y: torch.clamp(x, min=y, max=y + 0.5), (M, V)),
    ("_weight_norm_interface", lambda v, g: torch._weight_norm(v, g, 1), (M, (1, 4))),
]  # fmt: skip


def weights(y: Tensor) -> Tensor:
    """Give different weights to all scalars of a result, with ties and zeros nowhere."""
    return torch.linspace(0.7, 2.3, max(1, y.numel()), dtype=y.dtype).reshape(y.shape).cos()


@pytest.mark.parametrize("name", ROWS)
def test_row(name):
    hold(name, *ROWS[name])


@pytest.mark.parametrize("number", range(len(ARGUMENTS)), ids=lambda n: f"{ARGUMENTS[n][0]}-{n}")
def test_arguments_that_change_a_derivative(number):
    hold(*ARGUMENTS[number])


def hold(name: str, program: Callable[..., Tensor], shapes: tuple[tuple[int, ...], ...]) -> None:
    """Compare a program that calls an operator with its Jacobian, under each semiring."""
    leaves = {f"x{i}": leaf(*shape, seed=i) for i, shape in enumerate(shapes)}
    tape, loss = recorded(lambda **given: (program(*given.values()) * weights(program(*_data(given)))).sum(), leaves)
    assert name in {c.base for c in tape.calls if any(i.value is not None for i in c.inputs)}
    jacobians = torch.autograd.functional.jacobian(program, tuple(leaves.values()))
    c = weights(program(*_data(leaves))).double()
    found = {s.name: run(tape, loss, leaves, s) for s in (Sum, AbsSum, Max, Count)}
    tolerance = {"rtol": 1e-6, "atol": 1e-6} if name in KERNELS_IN_FLOAT32 else {"rtol": 1e-10, "atol": 1e-12}
    for (leaf_name, x), j in zip(leaves.items(), jacobians, strict=True):
        rows = (j.double().reshape(c.numel(), x.numel()) * c.reshape(-1, 1)).reshape(c.numel(), *x.shape)
        torch.testing.assert_close(found["sum"][leaf_name], rows.sum(0), **tolerance)
        torch.testing.assert_close(found["abssum"][leaf_name], rows.abs().sum(0), **tolerance)
        torch.testing.assert_close(found["max"][leaf_name], rows.abs().amax(0), **tolerance)
        assert torch.equal(found["count"][leaf_name], (rows != 0).sum(0).double())
    assert_paths_have_their_strength(tape.trace(loss), leaves)


def _data(given: dict[str, Tensor]) -> list[Tensor]:
    return [t.detach() for t in given.values()]


def test_a_repeated_argument_has_parallel_edges():
    leaves = {"x": torch.tensor([3.0, -2.0], **F64, requires_grad=True)}
    tape, loss = recorded(lambda x: (x * x).sum(), leaves)
    assert [run(tape, loss, leaves, s)["x"].tolist() for s in (Sum, AbsSum, Max, Count)] == [
        [6, -4],
        [6, 4],
        [3, 2],
        [2, 2],
    ]
    tape, loss = recorded(lambda x: x.pow(2).sum(), leaves)
    assert [run(tape, loss, leaves, s)["x"].tolist() for s in (Max, Count)] == [[6, 4], [1, 1]]


def test_an_edge_of_weight_zero_is_absent():
    leaves = {"x": torch.tensor([-1.0, 0.0, 2.0], **F64, requires_grad=True)}
    tape, loss = recorded(lambda x: torch.relu(x).sum(), leaves)
    assert run(tape, loss, leaves, Count)["x"].tolist() == [0, 0, 1]
    assert tape.trace(loss).strength["x"].tolist() == [-torch.inf, -torch.inf, 0]


def test_an_operator_may_have_one_row_only():
    with pytest.raises(ValueError, match="'mm' has a rule already"):
        register("mm", lambda call: [])


def test_rows_serve_in_place_and_out_of_place_forms_alike():
    leaves = {"x": leaf(3, 4)}
    plain, one = recorded(lambda x: (x * 1).masked_fill(MASK, 2.0).cumsum(1).square().sum(), leaves)
    placed, two = recorded(lambda x: (x * 1).masked_fill_(MASK, 2.0).cumsum_(1).square().sum(), leaves)
    assert [c.base for c in plain.calls] == [c.base for c in placed.calls]
    for semiring in (Sum, AbsSum, Max, Count):
        assert torch.equal(run(plain, one, leaves, semiring)["x"], run(placed, two, leaves, semiring)["x"])


def test_new_rules_take_part_at_once(monkeypatch):
    calls: list[str] = []

    def rule(call):
        calls.append(call.name)
        return []

    monkeypatch.setitem(TABLE, "tanh", rule)
    tape, _ = recorded(lambda x: x.tanh().sum(), {"x": leaf(2)})
    assert structures(tape.calls[0]) == []
    assert calls == ["aten.tanh.default"]


def test_which_operators_need_no_derivative_to_be_known():
    tape, _ = recorded(lambda x: (x.t().tanh() @ x).cumsum(0).sum(), {"x": leaf(2, 2)})
    assert [generic(c) for c in tape.calls] == [True] * 5
