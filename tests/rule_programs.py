"""Which programs call which rows of the table of rules: samples of PyTorch's own test database, or written out.

A new row needs a program here: `test_no_row_is_missing` names those that have none.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from op_samples import Found
from torch import Tensor

aten = torch.ops.aten


def x(*shape: int) -> Tensor:
    """Draw a leaf."""
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()


def single(*shape: int) -> Tensor:
    """Draw a leaf for an operator that knows no float64."""
    return x(*shape).detach().float().requires_grad_()


def places(*values: int) -> Tensor:
    return torch.tensor(values)


def _convolved_back(a: Tensor, w: Tensor, b: Tensor, v: Tensor) -> Tensor:
    """Use every result of the operator: in groups, strided, padded and dilated, and transposed."""
    total = torch.zeros((), dtype=torch.float64)
    for given, kernel, turned in ((a, w, False), (b, v, True)):
        sizes = [2, 1], [1, 0], [1, 2], turned, [1 if turned else 0, 0], 2
        y = aten.convolution(given, kernel, None, *sizes)
        g = torch.linspace(-1, 1, y.numel(), dtype=torch.float64).reshape(y.shape) * given.flatten()[0]
        found = aten.convolution_backward(g, given, kernel, [y.shape[1]], *sizes, [True] * 3)
        total = total + sum((part * part).sum() for part in found)
    return total


# rules whose operator is in the database under its own name
SAME = """
_batch_norm_with_update _native_batch_norm_legit _softmax_backward_data _unsafe_masked_index
_unsafe_masked_index_put_accumulate _upsample_bilinear2d_aa addbmm addcmul addmm addmv addr alias_copy amax aminmax
as_strided as_strided_copy as_strided_scatter baddbmm bernoulli block_diag bmm cat cholesky cholesky_inverse
cholesky_solve clone constant_pad_nd cummax cummin diag_embed diagonal_copy diagonal_scatter dist dot expand_copy
fill flip gather grid_sampler_2d grid_sampler_3d index_add index_copy index_fill index_put index_select kthvalue
logcumsumexp logsumexp lu_unpack masked_fill masked_scatter masked_select max_pool2d_with_indices_backward mean
median mm mode mv nanmedian nansum narrow_copy native_batch_norm native_group_norm native_layer_norm normal ormqr
permute_copy prod put renorm repeat roll rot90 rsub scatter scatter_add select_scatter slice_scatter sort
split_with_sizes_copy squeeze_copy stack std std_mean t_copy take topk trace transpose_copy triangular_solve tril
triu unbind_copy unfold_copy unsqueeze_copy var var_mean vdot view_copy
"""

# rule → the operator of the database that comes down to it
DATABASE = {
    "add": "add",
    "div": "div.no_rounding_mode",
    "mean": "mean",
    "mul": "mul",
    "neg": "neg",
    "pow": "pow",
    "relu": "nn.functional.relu",
    "sigmoid": "sigmoid",
    "sub": "sub",
    "tanh": "tanh",
    **{name: name for name in SAME.split()},
    "_adaptive_avg_pool2d": "nn.functional.adaptive_avg_pool2d",
    "_adaptive_avg_pool3d": "nn.functional.adaptive_avg_pool3d",
    "_cdist_forward": "cdist",
    "_ctc_loss": "nn.functional.ctc_loss",
    "_embedding_bag": "nn.functional.embedding_bag",
    "_euclidean_dist": "cdist",
    "_linalg_det": "linalg.det",
    "_linalg_eigh": "linalg.eigvalsh",
    "_linalg_slogdet": "logdet",
    "_linalg_solve_ex": "linalg.solve",
    "_linalg_svd": "linalg.norm",
    "_log_softmax": "log_softmax",
    "_pdist_forward": "nn.functional.pdist",
    "_prelu_kernel": "nn.functional.prelu",
    "_safe_softmax": "torch.ops.aten._safe_softmax.default",
    "_softmax": "masked.softmin",
    "_to_copy": "to",
    "_trilinear": "nn.functional.bilinear",
    "_upsample_nearest_exact1d": "nn.functional.interpolate.nearest-exact",
    "_upsample_nearest_exact2d": "nn.functional.interpolate.nearest-exact",
    "_upsample_nearest_exact3d": "nn.functional.interpolate.nearest-exact",
    "adaptive_max_pool2d": "nn.functional.adaptive_max_pool2d",
    "adaptive_max_pool3d": "nn.functional.adaptive_max_pool3d",
    "amin": "masked.amin",
    "avg_pool2d": "nn.functional.avg_pool2d",
    "avg_pool3d": "nn.functional.avg_pool3d",
    "binary_cross_entropy": "nn.functional.binary_cross_entropy",
    "binary_cross_entropy_with_logits": "nn.functional.binary_cross_entropy_with_logits",
    "celu": "nn.functional.celu",
    "channel_shuffle": "nn.functional.channel_shuffle",
    "convolution": "nn.functional.conv2d",
    "copy": "nn.functional.pad.circular",
    "cumprod": "masked.cumprod",
    "cumsum": "masked.cumsum",
    "embedding": "nn.functional.embedding",
    "fractional_max_pool2d": "nn.functional.fractional_max_pool2d",
    "fractional_max_pool3d": "nn.functional.fractional_max_pool3d",
    "glu": "nn.functional.glu",
    "hardswish": "nn.functional.hardswish",
    "huber_loss": "nn.functional.huber_loss",
    "im2col": "nn.functional.unfold",
    "index": "__getitem__",
    "index_reduce": "index_reduce.amin",
    "linalg_cholesky_ex": "linalg.cholesky_ex",
    "linalg_cross": "linalg.cross",
    "linalg_householder_product": "linalg.householder_product",
    "linalg_inv_ex": "linalg.inv_ex",
    "linalg_lstsq": "linalg.lstsq",
    "linalg_lu": "linalg.lu",
    "linalg_lu_factor_ex": "linalg.lu_factor_ex",
    "linalg_lu_solve": "linalg.lu_solve",
    "linalg_matrix_exp": "matrix_exp",
    "linalg_pinv": "linalg.pinv",
    "linalg_qr": "qr",
    "linalg_solve_triangular": "linalg.solve_triangular",
    "linalg_vector_norm": "linalg.vector_norm",
    "log_sigmoid_forward": "nn.functional.logsigmoid",
    "max": "max.reduction_with_dim",
    "max_pool2d_with_indices": "nn.functional.max_pool2d",
    "max_pool3d_with_indices": "nn.functional.max_pool3d",
    "max_unpool2d": "nn.functional.max_unpool2d",
    "max_unpool3d": "nn.functional.max_unpool3d",
    "min": "min.reduction_no_dim",
    "mse_loss": "nn.functional.mse_loss",
    "multi_margin_loss": "nn.functional.multi_margin_loss",
    "multilabel_margin_loss_forward": "nn.functional.multilabel_margin_loss",
    "nll_loss2d_forward": "nn.functional.nll_loss",
    "nll_loss_forward": "nn.functional.nll_loss",
    "norm": "nn.functional.pairwise_distance",
    "pixel_shuffle": "nn.functional.pixel_shuffle",
    "pixel_unshuffle": "nn.functional.pixel_unshuffle",
    "reflection_pad1d": "nn.functional.pad.reflect",
    "reflection_pad2d": "nn.functional.pad.reflect",
    "reflection_pad3d": "nn.functional.pad.reflect",
    "replication_pad1d": "nn.functional.pad.replicate",
    "replication_pad2d": "nn.functional.pad.replicate_negative",
    "replication_pad3d": "nn.functional.pad.replicate",
    "rrelu_with_noise": "nn.functional.rrelu",
    "scatter_reduce": "scatter_reduce.mean",
    "segment_reduce": "_segment_reduce.offsets",
    "smooth_l1_loss": "nn.functional.smooth_l1_loss",
    "soft_margin_loss": "nn.functional.soft_margin_loss",
    "sum": "scatter_reduce.sum",
    "threshold": "nn.functional.threshold",
    "upsample_bicubic2d": "nn.functional.interpolate.bicubic",
    "upsample_bilinear2d": "nn.functional.upsample_bilinear",
    "upsample_linear1d": "nn.functional.interpolate.linear",
    "upsample_nearest1d": "nn.functional.interpolate.nearest",
    "upsample_nearest2d": "nn.functional.interpolate.nearest",
    "upsample_nearest3d": "nn.functional.interpolate.nearest",
    "upsample_trilinear3d": "nn.functional.interpolate.trilinear",
}

SCALES = torch.tensor([0.02, 0.01, 0.03])

# rule → (function, arguments)
OWN: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
    # constants: the argument goes nowhere, except by the other term
    "poisson": (lambda a: torch.poisson(a.square()) + a, (x(2, 3),)),
    "uniform": (lambda a: (a * 1).uniform_() + a, (x(2, 3),)),
    "exponential": (lambda a: (a * 1).exponential_() + a, (x(2, 3),)),
    "cauchy": (lambda a: (a * 1).cauchy_() + a, (x(2, 3),)),
    "log_normal": (lambda a: (a * 1).log_normal_() + a, (x(2, 3),)),
    "geometric": (lambda a: (a * 1).geometric_(0.5) + a, (x(2, 3),)),
    "random": (lambda a: (a * 1).random_(5) + a, (x(2, 3),)),
    "_standard_gamma": (lambda a: torch._standard_gamma(a.exp()), (x(2, 3),)),
    "autograd._Dirichlet": (lambda a: torch.distributions.Dirichlet(a.exp()).rsample(), (x(2, 3),)),
    "native_dropout": (lambda a: torch.native_dropout(a, 0.5, True)[0], (x(4, 5),)),
    "zero": (lambda a: (a * 1).zero_() + a, (x(2, 3),)),
    "lift_fresh": (lambda a: aten.lift_fresh(a * 1), (x(2, 3),)),
    # copies
    "select_copy": (lambda a: aten.select_copy(a, 0, 1), (x(2, 3),)),
    "slice_copy": (lambda a: aten.slice_copy(a, 1, 0, 3, 2), (x(2, 3),)),
    "split_copy": (lambda a: aten.split_copy(a, 2, 1), (x(2, 3),)),
    "_unsafe_index": (lambda a: aten._unsafe_index(a, [places(0, 1, 1)]), (x(2, 3),)),
    "_unsafe_index_put": (lambda a, b: aten._unsafe_index_put(a, [places(0, 2)], b), (x(3, 2), x(2, 2))),
    "_index_put_impl": (lambda a, b: aten._index_put_impl(a, [places(0, 0)], b, True), (x(3, 2), x(2, 2))),
    "unfold_backward": (lambda a: aten.unfold_backward(a, [2, 6], 1, 3, 2), (x(2, 2, 3),)),
    "col2im": (lambda a: torch.nn.functional.fold(a, (4, 3), 2, padding=1, stride=2), (x(1, 8, 6),)),
    # contractions
    "_convolution": (
        lambda a, w: aten._convolution(a, w, None, [1], [0], [1], False, [0], 1, False, False, False, False),
        (x(1, 2, 5), x(3, 2, 2)),
    ),
    "conv_tbc": (lambda a, w, b: torch.conv_tbc(a, w, b, 1), (x(4, 2, 3), x(2, 3, 2), x(2))),
    # groups: rows, columns, or a stretch of the sum, of their own
    "_grouped_mm": (
        lambda a, b, c, d: [
            aten._grouped_mm(a, b, places(3, 3, 4).int()).contiguous(),
            aten._grouped_mm(c, d, places(1, 4).int()).contiguous(),
            aten._grouped_mm(d, a, places(1, 4).int()).contiguous(),
        ],
        (single(4, 4), single(3, 4, 8), single(2, 3, 4), single(4, 4)),
    ),
    # weights
    "_weight_norm_interface": (
        lambda v, g, h: [aten._weight_norm_interface(v, g, 0)[0], aten._weight_norm_interface(v, h, 2)[0]],
        (x(3, 2, 4), x(3, 1, 1), x(1, 1, 4)),
    ),
    "fake_quantize_per_tensor_affine_cachemask": (
        lambda a: torch.fake_quantize_per_tensor_affine(a, 0.01, 3, -60, 60),
        (single(4, 5),),
    ),
    "fake_quantize_per_channel_affine_cachemask": (
        lambda a: torch.fake_quantize_per_channel_affine(a, SCALES, places(1, 2, 0).int(), 1, -60, 60),
        (single(4, 3),),
    ),
    "_fake_quantize_per_tensor_affine_cachemask_tensor_qparams": (
        lambda a: torch.fake_quantize_per_tensor_affine(a, SCALES[:1], places(1).int(), -60, 60),
        (single(4, 3),),
    ),
    "_fake_quantize_learnable_per_tensor_affine": (
        lambda a, s, o: torch._fake_quantize_learnable_per_tensor_affine(a, s.exp() * 0.02, o, -60, 60, 0.5),
        (single(4, 5), single(1), single(1)),
    ),
    "_fake_quantize_learnable_per_channel_affine": (
        lambda a, s, o: torch._fake_quantize_learnable_per_channel_affine(a, s.exp() * 0.02, o, 1, -60, 60, 0.5),
        (single(4, 3, 2), single(3), single(3)),
    ),
    "_fused_moving_avg_obs_fq_helper": (
        lambda a: torch.fused_moving_avg_obs_fake_quant(
            *(a, torch.tensor(1), torch.tensor(1), torch.tensor([-1.0]), torch.tensor([1.0])),
            *(torch.tensor([0.01]), torch.tensor([0]), 0.01, -60, 60, 0),
        ),
        (single(4, 5),),
    ),
    # sequences
    "_pack_padded_sequence": (
        lambda a, b: [
            torch._VF._pack_padded_sequence(a, places(3, 1), True)[0],
            torch._VF._pack_padded_sequence(b, places(2, 1, 1), False)[0],
        ],
        (x(2, 3, 2), x(2, 3)),
    ),
    # normalisations
    "_native_batch_norm_legit_no_training": (
        lambda a, w, b: aten._native_batch_norm_legit_no_training(
            a, w, b, torch.zeros(3).double(), torch.ones(3).double(), 0.1, 1e-5
        )[0],
        (x(2, 3, 2), x(3), x(3)),
    ),
    "_batch_norm_no_update": (
        lambda a, w, b: aten._batch_norm_no_update(a, w, b, torch.zeros(3).double(), torch.ones(3).double(), 0.1, 1e-5)[
            0
        ],
        (x(2, 3, 2), x(3), x(3)),
    ),
    # what a backward pass computes, differentiated again
    "softplus_backward": (lambda g, a: aten.softplus_backward(g, a, 1, 20), (x(2, 3), x(2, 3))),
    "elu_backward": (lambda g, a: aten.elu_backward(g, 1.5, 1.0, 1.0, False, a), (x(2, 3), x(2, 3))),
    "hardshrink_backward": (lambda g, a: aten.hardshrink_backward(g, a, 0.5), (x(2, 3), x(2, 3))),
    "hardtanh_backward": (lambda g, a: aten.hardtanh_backward(g, a, -0.5, 0.5), (x(2, 3), x(2, 3))),
    "hardswish_backward": (lambda g, a: aten.hardswish_backward(g, a), (x(2, 3), x(2, 3))),
    "leaky_relu_backward": (lambda g, a: aten.leaky_relu_backward(g, a, 0.1, False), (x(2, 3), x(2, 3))),
    "log_sigmoid_backward": (
        lambda g, a: aten.log_sigmoid_backward(g, a, aten.log_sigmoid_forward(a.detach())[1]),
        (x(2, 3), x(2, 3)),
    ),
    "softshrink_backward": (lambda g, a: aten.softshrink_backward(g, a, 0.5), (x(2, 3), x(2, 3))),
    "_log_softmax_backward_data": (
        lambda g, a: aten._log_softmax_backward_data(g, a, 1, torch.float64),
        (x(2, 3), x(2, 3)),
    ),
    "slice_backward": (lambda g: aten.slice_backward(g, [4, 3], 0, 0, 3, 2), (x(2, 3),)),
    "select_backward": (lambda g: aten.select_backward(g, [3, 2], 0, 1), (x(2),)),
    "convolution_backward": (_convolved_back, (x(2, 4, 5, 4), x(4, 2, 3, 2), x(2, 4, 4, 4), x(4, 2, 3, 2))),
    # images
    "_upsample_bicubic2d_aa": (lambda a: aten._upsample_bicubic2d_aa(a, [2, 3], False), (x(1, 2, 4, 4),)),
    "_upsample_lanczos2d_aa": (lambda a: aten._upsample_lanczos2d_aa(a, [2, 3], False), (x(1, 2, 4, 4),)),
    "max_pool3d_with_indices_backward": (
        lambda g, a: aten.max_pool3d_with_indices_backward(
            g,
            a,
            [2] * 3,
            [2] * 3,
            [0] * 3,
            [1] * 3,
            False,
            torch.nn.functional.max_pool3d(a, 2, return_indices=True)[1],
        ),
        (x(1, 1, 2, 1, 2), x(1, 1, 4, 2, 4).detach()),
    ),
}


def prove(name: str, found: Found) -> None:
    assert not found.wrong, "\n".join(found.wrong)
    assert found.recorded[name] > 0, f"the program does not call {name}, only {sorted(found.recorded)}"
