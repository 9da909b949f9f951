"""Empty tensors: experts without tokens, detectors without positives, sequences of padding.

Each program has another term, so that there is a path, and every question about it has an answer: autograd's under Sum.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import gradtrace


def x(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()


NONE = torch.zeros(0, dtype=torch.int64)
NOWHERE = torch.zeros(0, 3, dtype=torch.int64)
ONE = torch.tensor([1])
NO = torch.zeros(2, 3, dtype=torch.bool)
IMAGES, ROWS, TABLE = (0, 3, 4, 4), (0, 3), (2, 3)

PROGRAMS: dict[str, tuple[Callable[..., Any], tuple[tuple[int, ...], ...]]] = {
    "linear": (F.linear, (ROWS, (4, 3), (4,))),
    "inner": (torch.mm, ((3, 0), (0, 4))),
    "batches": (torch.bmm, ((0, 3, 4), (0, 4, 2))),
    "inner of batches": (torch.baddbmm, ((2, 3, 2), (2, 3, 0), (2, 0, 2))),
    "dot": (torch.dot, ((0,), (0,))),
    "complex product": (lambda a: torch.view_as_complex(a) @ torch.view_as_complex(a).mT, ((2, 0, 2),)),
    "complex pointwise": (lambda a: torch.view_as_complex(a).exp(), ((0, 2),)),
    "convolution": (F.conv2d, (IMAGES, (2, 3, 3, 3))),
    "convolution with a bias": (F.conv2d, (IMAGES, (2, 3, 3, 3), (2,))),
    "transposed convolution": (F.conv_transpose2d, (IMAGES, (3, 2, 3, 3), (2,))),
    "softmax of no row": (lambda a: a.softmax(-1), (ROWS,)),
    "softmax of empty rows": (lambda a: a.log_softmax(-1), ((3, 0),)),
    "attention to nothing": (F.scaled_dot_product_attention, ((2, 1, 3, 4), (2, 1, 0, 4), (2, 1, 0, 4))),
    "layer norm": (lambda a, w, b: F.layer_norm(a, (3,), w, b), (ROWS, (3,), (3,))),
    "group norm": (lambda a, w, b: F.group_norm(a, 3, w, b), (IMAGES, (3,), (3,))),
    "sum": (lambda a: a.sum(0), (ROWS,)),
    "mean of no row": (lambda a: a.mean(1), (ROWS,)),
    "product": (lambda a: a.prod(0), (ROWS,)),
    "norm": (lambda a: a.norm(dim=0), (ROWS,)),
    "maximum": (lambda a: a.max(1).values, (ROWS,)),
    "sort": (lambda a: a.sort(0).values, (ROWS,)),
    "none of the largest": (lambda a: a.topk(0, 0).values, (TABLE,)),
    "cat": (lambda a, b: torch.cat([a, b]), (ROWS, TABLE)),
    "stack": (lambda a, b: torch.stack([a, b]), (ROWS, ROWS)),
    "index": (lambda a: a[NONE], (TABLE,)),
    "index by a mask": (lambda a: a[a.sum(1) > 1e9], (TABLE,)),
    "index_select": (lambda a: a.index_select(0, NONE), (TABLE,)),
    "gather": (lambda a: a.gather(0, NOWHERE), (TABLE,)),
    "as_strided": (lambda a: a.as_strided((0, 2), (2, 1)), (TABLE,)),
    "embedding of nothing": (lambda w: F.embedding(NONE, w), (TABLE,)),
    "embedding of padding": (lambda w: F.embedding(ONE, w, padding_idx=1), ((9, 3),)),
    "embedding of padding, tied": (lambda w: F.embedding(ONE, w, padding_idx=1) @ w.mT, ((9, 3),)),
    "embedding by frequency": (lambda w: F.embedding(NONE, w, scale_grad_by_freq=True), (TABLE,)),
    "embedding of no width": (lambda w: F.embedding(ONE, w), ((5, 0),)),
    "empty bags": (lambda w: F.embedding_bag(NONE, w, torch.tensor([0, 0]), mode="max"), (TABLE,)),
    "bags of padding": (lambda w: F.embedding_bag(ONE, w, torch.tensor([0, 0]), padding_idx=1), (TABLE,)),
    "scatter": (lambda a, b: a.scatter(0, NOWHERE, b), (TABLE, ROWS)),
    "scatter_reduce": (lambda a, b: a.scatter_reduce(0, NOWHERE, b, "amax"), (TABLE, ROWS)),
    "index_add": (lambda a, b: a.index_add(0, NONE, b, alpha=2), (TABLE, ROWS)),
    "index_put": (lambda a, b: a.index_put((NONE,), b), (TABLE, ROWS)),
    "masked_scatter": (lambda a, b: a.masked_scatter(NO, b), (TABLE, (0,))),
    "masked_select": (lambda a: a.masked_select(NO), (TABLE,)),
    "padding": (lambda a: F.pad(a, (0, 0, 1, 1)), (ROWS,)),
    "repeat": (lambda a: a.repeat(0, 1), (TABLE,)),
    "expand": (lambda a: a.expand(0, 3), ((1, 3),)),
    "cumsum": (lambda a: a.cumsum(0), (ROWS,)),
    "cumprod": (lambda a: a.cumprod(1), (ROWS,)),
    "pooling": (lambda a: F.avg_pool2d(F.max_pool2d(a, 2), 2), (IMAGES,)),
    "interpolation": (lambda a: F.interpolate(a, scale_factor=2, mode="bilinear"), (IMAGES,)),
    "grid": (lambda a, g: F.grid_sample(a, g, align_corners=False), (IMAGES, (0, 2, 2, 2))),
    "loss of no row": (lambda a: F.cross_entropy(a, NONE, reduction="sum"), (ROWS,)),
    "loss of ignored rows": (lambda a: F.cross_entropy(a, torch.tensor([-100] * 2), reduction="sum"), (TABLE,)),
    "loss of boxes": (lambda a, b: F.smooth_l1_loss(a, b, reduction="sum"), ((0, 4), (0, 4))),
    "distances": (torch.cdist, ((2, 0), (2, 0))),
    "distances of one": (F.pdist, ((1, 3),)),
    "inverse": (torch.linalg.inv, ((0, 3, 3),)),
    "segments": (lambda a: torch.segment_reduce(a, "sum", lengths=torch.tensor([0, 0])), (ROWS,)),
    "tokens of one expert": (
        lambda a, w: torch._grouped_mm(a.float(), w.float(), offs=torch.tensor([0, 0, 4], dtype=torch.int32)),
        ((4, 8), (3, 8, 16)),
    ),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_question_has_an_answer(name):
    function, shapes = PROGRAMS[name]
    leaves = {f"x{i}": x(*shape) for i, shape in enumerate(shapes)} | {"other": x()}
    with warnings.catch_warnings(), gradtrace.record(names=leaves) as tape:
        warnings.simplefilter("ignore")
        y = function(*list(leaves.values())[:-1])
        y = torch.view_as_real(y) if y.is_complex() else y
        loss = (y * torch.linspace(1, 2, max(1, y.numel()))[: y.numel()].reshape(y.shape)).sum() + 2 * leaves["other"]
    given = list(leaves.values())
    expected = torch.autograd.grad(loss, given, retain_graph=True, allow_unused=True)
    ours = tape.grad(loss, given, gradtrace.Sum, allow_unused=True)
    for leaf, a, b in zip(given, ours, expected, strict=True):
        a, b = (torch.zeros_like(leaf) if g is None else g for g in (a, b))
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    for semiring in (gradtrace.AbsSum, gradtrace.Max):
        tape.grad(loss, given, semiring, allow_unused=True)
    trace = tape.trace(loss)
    assert trace.strength["other"].item() == 1
    trace.influence(of="*")
    trace.flow()
