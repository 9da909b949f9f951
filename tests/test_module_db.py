"""Every module of PyTorch's own test database, in training and in evaluation mode: Sum against autograd.

`module_db` is private to PyTorch; it was written against 2.13 and is skipped where it cannot be imported.
"""

from __future__ import annotations

import warnings
from itertools import islice
from typing import Any

import pytest
import torch
from torch.nn.modules.lazy import LazyModuleMixin

pytest.importorskip("expecttest")
module_db = pytest.importorskip("torch.testing._internal.common_modules").module_db

from op_samples import Found, check  # noqa: E402

FEW = 3  # inputs a module and mode in the default run
REFUSED: dict[str, str] = {}  # name → words of the refusal


def examine(info: Any, training: bool, count: int | None) -> Found:
    """Check some inputs of a module, or (None) all."""
    found = Found()
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated modules are modules
        inputs = info.module_inputs_func(info, device="cpu", dtype=torch.float64, requires_grad=True, training=training)
        for number, sample in enumerate(islice(inputs, count)):
            made, given = sample.constructor_input, sample.forward_input
            module = info.module_cls(*made.args, **made.kwargs).double().train(training)
            if isinstance(module, LazyModuleMixin):
                module(*given.args, **given.kwargs)  # makes the parameters
            check(module, given.args, given.kwargs, found, f"{info.name}[{number}]", module)
    return found


def judge(info: Any, found: Found) -> None:
    assert not found.wrong, "\n".join(found.wrong)
    # PyTorch 2.13's own fused loss, an autograd.Function in Python around chunks of rows, is written out whole
    own = ("_linear_cross_entropy_batch_chunked", "_linear_cross_entropy_batch_chunked_no_reduction")
    assert not [name for how, name in found.served if how == "fallback" and name not in own]
    for reason in found.refused:
        assert info.name in REFUSED, reason
        assert REFUSED[info.name] in reason


modes = pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
modules = pytest.mark.parametrize("info", module_db, ids=lambda info: info.name)


@modes
@modules
def test_few_inputs(info, training):
    judge(info, examine(info, training, FEW))


@pytest.mark.full
@modes
@modules
def test_all_inputs(info, training):
    judge(info, examine(info, training, None))
