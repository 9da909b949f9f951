"""Every operator of PyTorch's own test database, against autograd: a few samples each, or (`-m full`) all.

`op_db` is private to PyTorch; it was written against 2.13 and is skipped where it cannot be imported.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import pytest
import torch

pytest.importorskip("expecttest")
op_db = pytest.importorskip("torch.testing._internal.common_methods_invocations").op_db

from op_samples import Found, check  # noqa: E402

FEW = 3  # samples an operator in the default run

# operators of which some samples are refused, and words of the refusal
SPARSE = "sparse or nested"
REFUSED = {
    "sparse.mm.reduce": SPARSE,
    "sparse.sampled_addmm": SPARSE,
    "to_sparse": SPARSE,
    "nn.functional.linear_cross_entropy.chunked_none": "custom autograd.Function",
}


def title(op: Any) -> str:
    return f"{op.name}.{op.variant_test_name}" if op.variant_test_name else op.name


def covered() -> list[Any]:
    """The operators that have a backward in float64 on a CPU."""
    return [op for op in op_db if op.supports_autograd and torch.float64 in op.supported_backward_dtypes("cpu")]


def programs(op: Any, count: int | None) -> Iterator[tuple[Callable[..., Any], Any, Any]]:
    """Give (function, arguments, keyword arguments) of an operator's differentiable samples."""
    torch.manual_seed(0)
    for sample in islice(op.sample_inputs("cpu", torch.float64, requires_grad=True), count):
        yield (
            lambda *args, _s=sample, **kwargs: _s.output_process_fn_grad(op(*args, **kwargs)),
            (sample.input, *sample.args),
            sample.kwargs,
        )


def examine(op: Any, count: int | None) -> Found:
    """Check some samples of an operator, or (None) all."""
    found = Found()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated operators are operators
        for number, (function, args, kwargs) in enumerate(programs(op, count)):
            check(function, args, kwargs, found, f"{title(op)}[{number}]")
    return found


def judge(op: Any, found: Found) -> None:
    assert not found.wrong, "\n".join(found.wrong)
    allowed = REFUSED.get(title(op))
    for reason in found.refused:
        assert allowed is not None, reason
        assert allowed in reason


@pytest.mark.parametrize("op", covered(), ids=title)
def test_few_samples(op):
    judge(op, examine(op, FEW))


@pytest.mark.full
@pytest.mark.parametrize("op", covered(), ids=title)
def test_all_samples(op):
    judge(op, examine(op, None))
