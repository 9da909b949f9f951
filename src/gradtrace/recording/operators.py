"""What recording needs to know of an operator, read from its schema once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from .collectives import SPACES
from .fused_recurrent import LSTM

# what these write does not depend on what was there
_DRAWING = ("uniform", "normal", "bernoulli", "random", "exponential", "cauchy", "log_normal", "geometric")
_OVERWRITING = {"copy", "fill", "zero", *_DRAWING}


# Results that autograd saves for its backward pass, so that keeping them costs no memory: a derivative is a function of
# them, and a pass over the tape need not run the operator again. By position: mean and rstd of a norm, winners.
_FIRST = "tanh sigmoid relu exp exp2 expm1 sqrt rsqrt reciprocal tan _softmax _safe_softmax _log_softmax logsumexp"
_SECOND = "max_pool2d_with_indices max min sort topk"
_NORMS = "native_layer_norm native_group_norm native_batch_norm _native_batch_norm_legit"
_KEPT = (
    dict.fromkeys(_FIRST.split(), (0,))
    | dict.fromkeys(_SECOND.split(), (1,))
    | dict.fromkeys(_NORMS.split(), (1, 2))
    | {LSTM: (0, 1, 2)}
)

# Operators whose derivative needs no argument: it is constant, or a function of the result. Autograd does not keep them
# either; whoever wants them has them computed again, by at most so many operators.
_CONSTANT = "add sub neg clone cat stack unsafe_split unsafe_split_with_sizes unsafe_chunk _unsafe_view"
_NEEDLESS = f"{_CONSTANT} tanh sigmoid relu _softmax _safe_softmax _log_softmax"
DEEPEST = 16
# views that can be taken of a copy as well: they don't ask how it lies in memory
_STEADY = "split split_with_sizes unsafe_split chunk unbind slice select narrow t transpose permute expand"

# what asks an argument for its shape alone: autograd makes no node, and the result is a constant
FACTORIES = {"zeros_like", "ones_like", "full_like", "empty_like", "rand_like", "randn_like", "randint_like"}
FACTORIES |= {"new_zeros", "new_ones", "new_full", "new_empty", "new_empty_strided"}

# lazy conjugates and negatives are resolved below autograd, where their consumers would be seen on strangers
_EAGER = {torch.ops.aten._conj.default: torch.ops.aten.conj_physical.default}
_EAGER[torch.ops.aten._neg_view.default] = torch.ops.aten.neg.default


# what a tensor is asked by C++ that cannot bear an error; wrapper subclasses answer by these
_ASKING = (
    "size stride dim numel layout storage_offset is_contiguous is_strides_like_format is_non_overlapping_and_dense"
)
ASKING = {f"{sym}{base}" for base in _ASKING.split() for sym in ("", "sym_")}


@dataclass(frozen=True, slots=True)
class Operator:
    """What capture needs to know of an operator, read from its schema once.

    Attributes:
        func: what is called, and recorded.
        name: with its overload, "aten.mul_.Tensor".
        base: its bare name, "mul" for aten.mul_.Tensor.
        written: (position, name) of the arguments that it writes to.
        overwrites: whether what its first argument held does not matter.
        view: whether it moves no data: views, and in-place changes of a tensor's own shape.
        reshapes: whether it is one of the latter (t_, squeeze_).
        draws: whether it draws random numbers.
        kept: positions of the results that autograd saves.
        needless: whether its derivative needs no argument's data.
        repeatable: whether running it again on copies gives the same.
        foreign: whether it is not one of PyTorch's own.
        asks: whether it only asks what a tensor is like.
        eager: whether it stands for a lazy one, which would give a view.
        exchanges: whether ranks exchange tensors by it.
    """

    func: Any
    name: str
    base: str
    written: tuple[tuple[int, str], ...]
    overwrites: bool
    view: bool
    reshapes: bool
    draws: bool
    kept: tuple[int, ...]
    needless: bool
    repeatable: bool
    foreign: bool
    asks: bool
    eager: bool
    exchanges: bool


@cache
def operator(op: Any) -> Operator:
    """Read an operator's schema."""
    lazy, op = op, _EAGER.get(op, op)
    reshapes = torch.Tag.inplace_view in op.tags
    view = bool(op.is_view) or reshapes
    marked = [(i, a) for i, a in enumerate(op._schema.arguments) if a.alias_info is not None and a.alias_info.is_write]
    written = () if view else tuple((i, a.name) for i, a in marked)
    base = op._schema.name.split("::")[-1].rstrip("_")
    overwrites = base in _OVERWRITING and bool(written)
    draws = torch.Tag.nondeterministic_seeded in op.tags
    needless, repeatable = base in _NEEDLESS.split(), not (view or draws) or base in _STEADY.split()
    return Operator(
        *(op, str(op), base, written, overwrites, view, reshapes, draws),
        *(_KEPT.get(base, ()), needless, repeatable),
        not op._schema.name.startswith("aten::"),
        op._schema.name.startswith("prim::") or base in ASKING,
        op is not lazy,
        op.namespace in SPACES,
    )
