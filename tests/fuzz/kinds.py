"""The kinds of operator that programs are made of, as templates of Python text.

Placeholders: a b c are followed or unfollowed tensors of floats, k one that is a constant, i j of integers, m of
booleans, p q leaves; o is the result's name (o2, o3 more of them), t u are names of what lies between; d is an axis of
a, n a small number, x y are indices as in a[…], s a shape with as many scalars as a.
"""

from __future__ import annotations

# one operator each; a second and third result are o2, o3
CALLS = {
    "add": "{a} + {b}",
    "sub": "{a} - {b}",
    "mul": "{a} * {b}",
    "div": "{a} / ({b})",
    "scale": "{a} * -1.5",
    "square": "{a} * {a}",
    "pow": "{a}.pow(2)",
    "pow_tensor": "torch.pow(2.0, {a})",
    "neg": "-{a}",
    "abs": "{a}.abs()",
    "exp": "torch.exp({a})",
    "sin": "torch.sin({a})",
    "sqrt": "torch.sqrt({a})",
    "tanh": "torch.tanh({a})",
    "sigmoid": "torch.sigmoid({a})",
    "relu": "torch.relu({a})",
    "gelu": "F.gelu({a})",
    "silu": "F.silu({a})",
    "softplus": "F.softplus({a})",
    "leaky_relu": "F.leaky_relu({a}, 0.1)",
    "elu": "F.elu({a})",
    "hardtanh": "F.hardtanh({a})",
    "clamp": "{a}.clamp(-0.5, 0.8)",
    "maximum": "torch.maximum({a}, {b})",
    "atan2": "torch.atan2({a}, {b})",
    "lerp": "torch.lerp({a}, {b}, 0.3)",
    "addcmul": "torch.addcmul({a}, {b}, {c})",
    "matmul": "{a} @ {p}",
    "matmul_two": "{a} @ {b}",
    "matmul_self": "{a} @ {a}.mT",
    "bmm": "torch.bmm({a}, {b})",
    "mv": "torch.mv({a}, {b})",
    "outer": "torch.outer({a}, {b})",
    "dot": "torch.dot({a}, {b})",
    "linear": "F.linear({a}, {b}, {c})",
    "addmm": "torch.addmm({a}, {b}, {c})",
    "einsum_ij": "torch.einsum('ij,kj->ik', {a}, {b})",
    "einsum_bj": "torch.einsum('bij,jk->bik', {a}, {b})",
    "einsum_rows": "torch.einsum('bi,bi->b', {a}, {b})",
    "softmax": "torch.softmax({a}, {d})",
    "log_softmax": "torch.log_softmax({a}, {d})",
    "logsumexp": "{a}.logsumexp({d})",
    "layer_norm": "F.layer_norm({a}, {a}.shape[-1:])",
    "layer_norm_affine": "F.layer_norm({a}, {a}.shape[-1:], {b}, {c})",
    "group_norm": "F.group_norm({a}, 2)",
    "batch_norm": "F.batch_norm({a}, None, None, training=True)",
    "batch_norm_affine": "F.batch_norm({a}, None, None, {b}, {c}, training=True)",
    "conv1d": "F.conv1d({a}, {b})",
    "conv1d_padded": "F.conv1d({a}, {b}, padding=1)",
    "conv_transpose1d": "F.conv_transpose1d({a}, {b})",
    "max_pool1d": "F.max_pool1d({a}, 2, 1)",
    "avg_pool1d": "F.avg_pool1d({a}, 2, 1)",
    "adaptive_avg_pool1d": "F.adaptive_avg_pool1d({a}, 1)",
    "upsample": "F.interpolate({a}, scale_factor=2, mode='nearest')",
    "sum": "{a}.sum({d})",
    "sum_keep": "{a}.sum({d}, keepdim=True)",
    "sum_all": "{a}.sum()",
    "mean": "{a}.mean({d}, keepdim=True)",
    "amax": "{a}.amax({d})",
    "amin": "{a}.amin({d}, keepdim=True)",
    "var": "{a}.var({d}, correction=0)",
    "std": "{a}.std({d})",
    "norm": "{a}.norm(dim={d}, keepdim=True)",
    "norm_all": "torch.linalg.vector_norm({a})",
    "prod": "{a}.prod({d})",
    "cumsum": "{a}.cumsum({d})",
    "cumprod": "{a}.cumprod({d})",
    "logcumsumexp": "{a}.logcumsumexp({d})",
    "flip": "{a}.flip({d})",
    "roll": "{a}.roll(1, {d})",
    "cat": "torch.cat([{a}, {b}], {d})",
    "stack": "torch.stack([{a}, {b}], {d})",
    "repeat": "{a}.repeat(*[1] * ({a}.dim() - 1), 2)",
    "repeat_interleave": "{a}.repeat_interleave(2, {d})",
    "pad_constant": "F.pad({a}, (1, 0), value=0.5)",
    "pad_reflect": "F.pad({a}, (1, 0), mode='reflect')",
    "pad_replicate": "F.pad({a}, (0, 1), mode='replicate')",
    "pad_circular": "F.pad({a}, (1, 1), mode='circular')",
    "tril": "torch.tril({a})",
    "where": "torch.where({m}, {a}, {b})",
    "where_number": "torch.where({m}, {a}, 0.25)",
    "masked_fill": "{a}.masked_fill({m}, -0.5)",
    "gather": "{a}.gather({d}, {i})",
    "index_select": "{a}.index_select({d}, {i})",
    "index": "{a}[{i}]",
    "index_last": "{a}[..., {i}]",
    "index_pairs": "{a}[{i}, {j}]",
    "embedding": "F.embedding({i}, {p})",
    "take_along": "torch.take_along_dim({a}, {i}, {d})",
    "scatter": "{a}.scatter({d}, {i}, 0.5)",
    "scatter_add": "{a}.scatter_add({d}, {i}, {b})",
    "index_add": "{a}.index_add({d}, {i}, {b})",
    "masked_select": "{a}[{m}]",
    "clone": "{a}.clone()",
    "contiguous": "{a}.contiguous()",
    "pack": "rnn.pack_padded_sequence({a}, torch.tensor([2, 2, 1]), batch_first=True).data",
    "mse": "F.mse_loss({a}, {b}, reduction='none')",
    "smooth_l1": "F.smooth_l1_loss({a}, {b}, reduction='none')",
    "custom": "Cube.apply({a})",
    "unfold_copy": "{a}.unfold({d}, 2, 1) * 1.5",
    # views, which are found by the memory that they share
    "view_flat": "{a}.view(-1)",
    "view": "{a}.view({s})",
    "reshape": "{a}.reshape({s})",
    "transpose": "{a}.transpose(-1, -2)",
    "transpose_first": "{a}.transpose(0, 1)",
    "permute": "{a}.permute(*reversed(range({a}.dim())))",
    "squeeze": "{a}.squeeze()",
    "unsqueeze": "{a}.unsqueeze({d})",
    "expand": "{a}.expand(2, *{a}.shape)",
    "expand_dim": "{a}.unsqueeze(-1).expand(*{a}.shape, 2)",
    "narrow": "{a}.narrow({d}, 1, 1)",
    "select": "{a}.select({d}, {n})",
    "slice": "{a}[{x}]",
    "slice_of_slice": "{a}[{x}][{y}]",
    "diagonal": "{a}.diagonal(0, -2, -1)",
    "unfold": "{a}.unfold({d}, 2, 1)",
    "as_strided": "{a}.as_strided((2, 2), (1, 1))",
    "as_strided_step": "{a}.as_strided((2,), (2,), {n})",
    "view_as": "{a}.view_as({a})",
    "flatten": "{a}.flatten(1)",
}
SEVERAL = {
    "unbind": ("{a}.unbind({d})[:2]", 2),
    "unbind_expanded": ("{a}.expand(2, *{a}.shape).unbind(0)", 2),
    "split": ("{a}.split(1, {d})[:2]", 2),
    "chunk": ("{a}.chunk(2, {d})", 2),
    "sort": ("{a}.sort({d})", 2),
    "topk": ("{a}.topk(2, {d})", 2),
    "topk_one": ("{a}.topk(1, {d})", 2),
    "max": ("{a}.max({d})", 2),
    "min": ("{a}.min({d}, keepdim=True)", 2),
    "median": ("{a}.median({d})", 2),
    "kthvalue": ("{a}.kthvalue(1, {d})", 2),
    "cummax": ("{a}.cummax({d})", 2),
    "var_mean": ("torch.var_mean({a}, {d})", 2),
    "custom_two": ("Straight.apply({a}, {b})", 2),
}
# integers and booleans, which autograd does not follow, and what else it does not
CONSTANTS = {
    "argmax": "{a}.argmax({d})",
    "argmin_keep": "{a}.argmin({d}, keepdim=True)",
    "argsort": "{a}.argsort({d})",
    "greater": "{a} > {b}",
    "positive": "{a} > 0",
    "equal": "{i} == {j}",
    "one_hot": "F.one_hot({i}, 4).to(torch.float64)",
    "float": "{m}.to(torch.float64)",
    "index_sum": "({i} + {j}) % 2",
    "not": "~{m}",
    "sign": "({a} > 0).to(torch.float64) * 2",
}
# a line, and its parts: mode, results, function
LINES = {
    "no_grad": ("with torch.no_grad(): {o} = torch.tanh({a})", [("quiet", "{o}", "torch.tanh({a})")]),
    "no_grad_view": ("with torch.no_grad(): {o} = {a}[{x}]", [("quiet", "{o}", "{a}[{x}]")]),
    "detach": ("{o} = {a}.detach()", [("quiet", "{o}", "{a}.detach()")]),
    "detach_product": (
        "{o} = {a}.detach() * {b}",
        [("quiet", "{t}", "{a}.detach()"), ("call", "{o}", "{t} * {b}")],
    ),
    "leaf": ("{o} = {k}.clone().requires_grad_()", [("leaf", "{o}", "{k}.clone()")]),
    "leaf_detached": ("{o} = {a}.detach().clone().requires_grad_()", [("leaf", "{o}", "{a}.clone()")]),
    "checkpoint": (
        "{o} = checkpoint(lambda z: torch.tanh(z) * z, {a}, use_reentrant=False)",
        [("call", "{t}", "torch.tanh({a})"), ("call", "{o}", "{t} * {a}")],
    ),
    "fft_abs": (
        "{o} = torch.fft.rfft({a}).abs()",
        [
            ("call", "{t}", "torch.view_as_real(torch.fft.rfft({a}))"),
            ("call", "{o}", "torch.view_as_complex({t}).abs()"),
        ],
    ),
    "complex_product": (
        "{o} = torch.view_as_real(torch.complex({a}, {b}) * torch.complex({a}, {b}))",
        [
            ("call", "{t}", "torch.view_as_real(torch.complex({a}, {b}))"),
            ("call", "{u}", "torch.view_as_real(torch.complex({a}, {b}))"),
            ("call", "{o}", "torch.view_as_real(torch.view_as_complex({t}) * torch.view_as_complex({u}))"),
        ],
    ),
    "cross_entropy": (
        "{o} = F.cross_entropy({a}, {i}, reduction='none')",
        [
            ("call", "{t}", "torch.log_softmax({a}, 1)"),
            ("call", "{o}", "F.nll_loss({t}, {i}, reduction='none')"),
        ],
    ),
    "attention": (
        "{o} = F.scaled_dot_product_attention({a}, {b}, {b}, scale=1.0)",
        [
            ("call", "{t}", "{a} @ {b}.mT"),
            ("call", "{u}", "torch.softmax({t}, -1)"),
            ("call", "{o}", "{u} @ {b}"),
        ],
    ),
    "packed": (
        "{o} = rnn.pad_packed_sequence(rnn.pack_padded_sequence({a}, torch.tensor([2, 2, 1]), batch_first=True),"
        " batch_first=True)[0]",
        [
            (
                "call",
                "{o}",
                "rnn.pad_packed_sequence(rnn.pack_padded_sequence({a}, torch.tensor([2, 2, 1]), batch_first=True),"
                " batch_first=True)[0]",
            )
        ],
    ),
    "index_by_argmax": (
        "{o} = {a}.gather(-1, {b}.argmax(-1, keepdim=True))",
        [("quiet", "{t}", "{b}.argmax(-1, keepdim=True)"), ("call", "{o}", "{a}.gather(-1, {t})")],
    ),
    "softmax_of_softmax": (
        "{o} = torch.softmax({a}, -1).log_softmax(-1)",
        [("call", "{t}", "torch.softmax({a}, -1)"), ("call", "{o}", "{t}.log_softmax(-1)")],
    ),
    "normalized": (
        "{o} = {a} / ({a}.abs().sum(-1, keepdim=True) + 1)",
        [
            ("call", "{t}", "{a}.abs()"),
            ("call", "{u}", "{t}.sum(-1, keepdim=True)"),
            ("call", "{v}", "{u} + 1"),
            ("call", "{o}", "{a} / {v}"),
        ],
    ),
    # buffers that are written in parts
    "zeros_like": (
        "{o} = torch.zeros_like({a}); {o}[1:] = {a}[:-1]",
        [("call", "{o}", "torch.zeros_like({a})"), ("call", "{t}", "{o}[1:]"), ("call", "{u}", "{a}[:-1]"),
         ("write", "{t}", "{u}.clone()")],
    ),
    "empty_like": (
        "{o} = torch.empty_like({a}); {o}[..., 1:] = {a}[..., :-1]; {o}[..., :1] = {b}[..., :1]",
        [("call", "{o}", "torch.zeros_like({a})"), ("call", "{t}", "{o}[..., 1:]"), ("call", "{u}", "{a}[..., :-1]"),
         ("write", "{t}", "{u}.clone()"), ("call", "{v}", "{o}[..., :1]"), ("call", "{w}", "{b}[..., :1]"),
         ("write", "{v}", "{w}.expand_as({v})")],
    ),
    "new_zeros": (
        "{o} = {a}.new_zeros({a}.shape); {o}[{x}] = {b}",
        [("call", "{o}", "torch.zeros({a}.shape, dtype=torch.float64)"), ("call", "{t}", "{o}[{x}]"),
         ("write", "{t}", "{b}.expand_as({t}).clone()")],
    ),
    "full_like": (
        "{o} = torch.full_like({a}, -1.0); {o}[0] += {b}",
        [("call", "{o}", "torch.full_like({a}, -1.0)"), ("call", "{t}", "{o}[0]"), ("write", "{t}", "{t} + {b}")],
    ),
    "zeros_only": (
        "{o} = torch.zeros(3, 2, dtype=torch.float64)",
        [("quiet", "{o}", "torch.zeros(3, 2, dtype=torch.float64)")],
    ),
    "zeros_row": (
        "{o} = torch.zeros(3, 2, dtype=torch.float64); {o}[:1] = {a}[:1, :2]",
        [("quiet", "{o}", "torch.zeros(3, 2, dtype=torch.float64)"), ("call", "{t}", "{o}[:1]"),
         ("call", "{u}", "{a}[:1, :2]"), ("write", "{t}", "{u}.expand_as({t}).clone()")],
    ),
}  # fmt: skip
# in place: a line, and what {a} then holds
WRITES = {
    "copy_": ("{a}.copy_({b})", "{b}.expand_as({a}).clone()"),
    "add_": ("{a}.add_({b})", "{a} + {b}"),
    "mul_": ("{a}.mul_({b})", "{a} * {b}"),
    "sub_": ("{a} -= {b}", "{a} - {b}"),
    "div_": ("{a}.div_(2.0)", "{a} / 2.0"),
    "scale_": ("{a}.mul_(-0.5)", "{a} * -0.5"),
    "zero_": ("{a}.zero_()", "torch.zeros({a}.shape, dtype=torch.float64)"),
    "fill_": ("{a}.fill_(0.7)", "torch.full({a}.shape, 0.7, dtype=torch.float64)"),
    "fill_tensor_": ("{a}.fill_({b}.sum())", None),
    "tanh_": ("{a}.tanh_()", "torch.tanh({a})"),
    "relu_": ("{a}.relu_()", "torch.relu({a})"),
    "sigmoid_": ("torch.sigmoid_({a})", "torch.sigmoid({a})"),
    "neg_": ("{a}.neg_()", "-{a}"),
    "clamp_": ("{a}.clamp_(-0.5, 0.5)", "{a}.clamp(-0.5, 0.5)"),
    "masked_fill_": ("{a}.masked_fill_({m}, 0.5)", "{a}.masked_fill({m}, 0.5)"),
    "scatter_": ("{a}.scatter_({d}, {i}, 0.5)", "{a}.scatter({d}, {i}, 0.5)"),
    "scatter_add_": ("{a}.scatter_add_({d}, {i}, {b})", "{a}.scatter_add({d}, {i}, {b})"),
    "index_add_": ("{a}.index_add_({d}, {i}, {b})", "{a}.index_add({d}, {i}, {b})"),
    "index_fill_": ("{a}.index_fill_({d}, {i}, 0.5)", "{a}.index_fill({d}, {i}, 0.5)"),
    "index_put_": ("{a}[torch.tensor([0, 1])] = {b}", "torch.index_put({a}, (torch.tensor([0, 1]),), {b})"),
    "index_put_add_": (
        "{a}.index_put_((torch.tensor([0, 0, 1]),), {b}, accumulate=True)",
        "torch.index_put({a}, (torch.tensor([0, 0, 1]),), {b}, accumulate=True)",
    ),
    "mask_put_": ("{a}[{m}] = 0.3", "torch.index_put({a}, ({m},), torch.tensor(0.3, dtype=torch.float64))"),
    "addcmul_": ("{a}.addcmul_({b}, {c})", "torch.addcmul({a}, {b}, {c})"),
    "lerp_": ("{a}.lerp_({b}, 0.3)", "torch.lerp({a}, {b}, 0.3)"),
    "cumsum_": ("{a}.cumsum_({d})", "{a}.cumsum({d})"),
}
# of which a view is taken first, for this line only
VIEWS = {
    "slice": "{a}[{x}]",
    "slice_slice": "{a}[{x}][{y}]",
    "column": "{a}.select(-1, {n})",
    "diagonal": "{a}.diagonal(0, -2, -1)",
    "transposed": "{a}.mT",
    "transposed_slice": "{a}.mT[{x}]",
    "narrow": "{a}.narrow({d}, 1, 1)",
    "flat": "{a}.view(-1)[{x}]",
    "squeezed": "{a}[{x}].squeeze()",
    "strided": "{a}.as_strided((2,), (2,), {n})",
    "unsqueezed": "{a}.unsqueeze(0)[{x}]",
}
# selecting over the first axis: examples meet there
CONNECTING = {
    "amax_batch": ("{o} = {a}.amax(0)", [("call", "{o}", "{a}.amax(0)")]),
    "amin_batch": ("{o} = {a}.amin(0, keepdim=True)", [("call", "{o}", "{a}.amin(0, keepdim=True)")]),
    "max_batch": ("{o} = {a}.max(0).values", [("call", "{o}", "{a}.max(0).values")]),
    "sort_batch": ("{o} = {a}.sort(0).values", [("call", "{o}", "{a}.sort(0).values")]),
    "topk_batch": ("{o} = {a}.topk(1, 0).values", [("call", "{o}", "{a}.topk(1, 0).values")]),
    "median_batch": ("{o} = {a}.median(0).values", [("call", "{o}", "{a}.median(0).values")]),
    "cummax_batch": ("{o} = {a}.cummax(0).values", [("call", "{o}", "{a}.cummax(0).values")]),
    "kthvalue_batch": ("{o} = {a}.kthvalue(2, 0).values", [("call", "{o}", "{a}.kthvalue(2, 0).values")]),
    "argmax_batch": (
        "{o} = {a}.gather(0, {a}.argmax(0, keepdim=True))",
        [("quiet", "{t}", "{a}.argmax(0, keepdim=True)"), ("call", "{o}", "{a}.gather(0, {t})")],
    ),
    "argsort_batch": (
        "{o} = {a}.gather(0, {a}.argsort(0))",
        [("quiet", "{t}", "{a}.argsort(0)"), ("call", "{o}", "{a}.gather(0, {t})")],
    ),
    "softmax_batch": ("{o} = torch.softmax({a}, 0)", [("call", "{o}", "torch.softmax({a}, 0)")]),
    "batch_norm_batch": (
        "{o} = F.batch_norm({a}, None, None, training=True)",
        [("call", "{o}", "F.batch_norm({a}, None, None, training=True)")],
    ),
    "mean_times": (
        "{o} = {a}.mean(0) * {a}",
        [("call", "{t}", "{a}.mean(0)"), ("call", "{o}", "{t} * {a}")],
    ),
    "prod_batch": ("{o} = {a}.prod(0)", [("call", "{o}", "{a}.prod(0)")]),
    "gram": ("{o} = {a} @ {a}.mT", [("call", "{t}", "{a}.mT"), ("call", "{o}", "{a} @ {t}")]),
}


def templates() -> dict[str, tuple[str, list[tuple[str, str, str]]]]:
    """Give every kind as a line and its parts, but for those that connect examples."""
    out = dict(LINES)
    for name, expr in CALLS.items():
        out[name] = f"{{o}} = {expr}", [("call", "{o}", expr)]
    for name, (expr, count) in SEVERAL.items():
        outs = ", ".join(["{o}", "{o2}", "{o3}"][:count])
        out[name] = f"{outs} = {expr}", [("call", outs, expr)]
    for name, expr in CONSTANTS.items():
        out[name] = f"{{o}} = {expr}", [("quiet", "{o}", expr)]
    for name, (line, expr) in WRITES.items():
        if expr is None:
            parts = [("call", "{t}", "{b}.sum()"), ("write", "{a}", "{t}.expand({a}.shape).clone()")]
        else:
            parts = [("write", "{a}", expr)]
        out[name] = line, parts
        out[f"{name} quietly"] = (
            f"with torch.no_grad(): {line}",
            [(f"quiet{' write' * (m == 'write')}", o, e) for m, o, e in parts],
        )
        for view, of in VIEWS.items():  # {t} is the view, on which the line works
            where = [("call", "{v}", of)]
            moved = [(m, o.replace("{a}", "{v}"), e.replace("{a}", "{v}")) for m, o, e in parts]
            out[f"{name} {view}"] = f"{{v}} = {of}; {line.replace('{a}', '{v}')}", where + moved
    return out
