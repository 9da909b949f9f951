"""Complex numbers against autograd and brute force: every row of theirs, and PyTorch's own samples of complex dtype.

Leaves are pairs of real numbers. The oracle treats a complex number as a pair too: ∂(Re y, Im y)/∂(Re x, Im x).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("expecttest")
pytest.importorskip("torch.testing._internal.common_methods_invocations")

from hypothesis import given
from hypothesis import strategies as st
from op_samples import Found, check
from rule_programs import DATABASE, OWN, prove
from test_op_db import op_db, title

import gradtrace
from gradtrace.jacobians.rules import TABLE, served_by
from gradtrace.jacobians.rules.fourier import circle
from gradtrace.jacobians.rules.pairs import blocks

FEW = 6  # samples of the database
RANDOM = torch.Generator().manual_seed(0)


def z(*shape: int) -> Tensor:
    """Draw a complex leaf."""
    return torch.randn(shape, dtype=torch.complex128, generator=RANDOM).requires_grad_()


def x(*shape: int) -> Tensor:
    """Draw a real leaf."""
    return torch.randn(shape, dtype=torch.float64, generator=RANDOM).requires_grad_()


WINDOW = torch.hann_window(8, dtype=torch.float64)
fft = torch.fft

# what it tries: (function, arguments); by the row that it is about
PROGRAMS: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
    "complex.add": (lambda a, b: torch.add(a, b, alpha=2), (z(2, 3), z(3))),
    "complex.add real": (lambda a, b: torch.add(a, b, alpha=2), (z(2, 3), x(3))),
    "complex.sub turned": (lambda a, b: torch.sub(a, b, alpha=2j), (z(2, 3), z(3))),
    "complex.neg": (lambda a: -a, (z(3),)),
    "complex.clone": (torch.clone, (z(3),)),
    "complex.copy": (lambda a, b: (a * 1).copy_(b), (z(3), x(3))),
    "complex.zero": (lambda a: (a * 1).zero_() + a, (z(3),)),
    "complex._to_copy": (lambda a: a.to(torch.complex128), (x(3),)),
    "complex._to_copy real": (lambda a: a.to(torch.float64), (z(3),)),
    "complex.mul": (lambda a, b: a * b, (z(2, 3), z(3))),
    "complex.mul real": (lambda a, b: a * b, (z(2, 3), x(2, 1))),
    "complex.mul number": (lambda a: a * (2 + 1j), (z(3),)),
    "complex.div": (lambda a, b: a / b, (z(2, 3), z(2, 1))),
    "complex.abs": (torch.abs, (z(3),)),
    "complex.angle": (torch.angle, (z(3),)),
    "complex.conj_physical": (lambda a: a.conj() * 1, (z(3),)),
    "complex.exp": (torch.exp, (z(3),)),
    "complex.where": (lambda a, b: torch.where(torch.tensor([True, False, True]), a, b), (z(2, 3), z(3))),
    "complex.complex": (torch.complex, (x(3), x(3))),
    "complex.polar": (torch.polar, (x(3), x(3))),
    "complex.view_as_real": (lambda a: torch.view_as_real(a), (z(3),)),
    "complex.view_as_complex": (torch.view_as_complex, (x(3, 2),)),
    "complex.cat": (lambda a, b: torch.cat([a, b], 1), (z(2, 3), z(2, 1))),
    "complex.cat real": (lambda a, b: torch.cat([a, b], 1), (z(2, 3), x(2, 1))),
    "complex.mm": (lambda a, b: a @ b, (z(2, 3), z(3, 4))),
    "complex.bmm": (torch.bmm, (z(2, 2, 3), z(2, 3, 2))),
    "complex.addmm": (lambda c, a, b: torch.addmm(c, a, b, alpha=2, beta=1j), (z(4), z(2, 3), z(3, 4))),
    "complex.mv": (torch.mv, (z(2, 3), z(3))),
    "complex.dot": (torch.dot, (z(4), z(4))),
    "complex.vdot": (torch.vdot, (z(4), z(4))),
    "complex.dist": (torch.dist, (z(4), z(4))),
    "complex.norm": (lambda a: torch.ops.aten.norm(a, 2, [1]), (z(2, 3),)),
    "complex.linalg_vector_norm": (lambda a: torch.linalg.vector_norm(a, dim=1), (z(2, 3),)),
    "complex.index_add": (lambda a, b: a.index_add(0, torch.tensor([1, 1]), b, alpha=2j), (z(3, 2), z(2, 2))),
    "complex.unfold_backward": (
        lambda a: torch.ops.aten.unfold_backward(a, [2, 6], 1, 3, 2),
        (z(2, 2, 3),),
    ),
    "complex._fft_r2c": (fft.rfft, (x(2, 6),)),
    "complex._fft_r2c odd": (lambda a: fft.rfft(a, norm="ortho"), (x(2, 5),)),
    "complex._fft_r2c whole": (fft.fft, (x(2, 6),)),
    "complex._fft_r2c axes": (lambda a: fft.rfftn(a, dim=(2, 0)), (x(3, 2, 4),)),
    "complex._fft_c2c": (fft.fft, (z(2, 6),)),
    "complex._fft_c2c back": (lambda a: fft.ifft(a, dim=0), (z(3, 2),)),
    "complex._fft_c2c axes": (fft.fft2, (z(2, 3, 4),)),
    "complex._fft_c2r": (fft.irfft, (z(2, 4),)),
    "complex._fft_c2r odd": (lambda a: fft.irfft(a, n=7, norm="forward"), (z(2, 4),)),
    "complex._fft_c2r one": (lambda a: fft.irfft(a, n=1), (z(2, 4),)),
    "complex._fft_c2r axes": (lambda a: fft.irfft2(a, s=(3, 5)), (z(3, 3),)),
    "complex.view_as_real stft": (lambda a: torch.stft(a, 8, 4, window=WINDOW, return_complex=True), (x(2, 32),)),
    "complex._fft_c2r istft": (lambda a: torch.istft(a, 8, 4, window=WINDOW), (z(5, 9),)),
}
REAL = [name.removeprefix("complex.") for name in TABLE if name.startswith("complex.") and name not in PROGRAMS]
SAMPLES = {
    title(op): op for op in op_db if op.supports_autograd and torch.complex128 in op.supported_backward_dtypes("cpu")
}

# Of these, PyTorch's own gradient is another under any dispatch mode, its samples don't run, or autograd refuses.
BEYOND_PYTORCH = {
    *("pinverse", "linalg.pinv", "linalg.pinv.singular", "svd_lowrank", "pca_lowrank", "linalg.svdvals"),
    *("as_strided.partial_views", "sparse.sampled_addmm", "linalg.matrix_norm"),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_program(name):
    function, args = PROGRAMS[name]
    found = Found()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a cast to real numbers warns
        check(function, args, {}, found, name)
    assert not found.refused
    assert not any(how == "fallback" for how, _ in found.served)
    prove(name.split()[0], found)


def samples_of(op: Any, kind: torch.dtype) -> Iterator[tuple[Callable[..., Any], Any, Any]]:
    """Give (function, arguments, keyword arguments) of an operator's samples."""
    torch.manual_seed(0)
    for sample in op.sample_inputs("cpu", kind, requires_grad=True):
        yield (
            lambda *args, _s=sample, **kwargs: _s.output_process_fn_grad(op(*args, **kwargs)),
            (sample.input, *sample.args),
            sample.kwargs,
        )


def complex_leaves(args: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(z(*t.shape) if isinstance(t, Tensor) and t.requires_grad else t for t in args)


def complex_programs(name: str) -> Iterator[tuple[Callable[..., Any], Any, Any]]:
    """Give programs that call a row of real numbers, with complex leaves."""
    if name in OWN:
        yield OWN[name][0], complex_leaves(OWN[name][1]), {}
        return
    op = next(op for op in op_db if title(op) == (name if name in SAMPLES else DATABASE[name]))
    has_complex = title(op) in SAMPLES
    for function, args, kwargs in samples_of(op, torch.complex128 if has_complex else torch.float64):
        yield function, args if has_complex else complex_leaves(args), kwargs


@pytest.mark.parametrize("name", REAL)
def test_program_of_the_real_row(name):
    """What calls a row of real numbers calls its complex one, on complex leaves."""
    found = Found()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for function, args, kwargs in complex_programs(name):
            check(function, args, kwargs, found, name)
            if found.samples.total() >= FEW and found.recorded[f"complex.{name}"]:
                break
    prove(f"complex.{name}", found)


@pytest.mark.full
@pytest.mark.parametrize("name", sorted(set(SAMPLES) - BEYOND_PYTORCH))
def test_samples_of_complex_dtype(name):
    found = Found()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for function, args, kwargs in islice(samples_of(SAMPLES[name], torch.complex128), FEW):
            check(function, args, kwargs, found, name)
    assert not found.wrong, "\n".join(found.wrong)
    assert not found.refused


def test_blocks_are_those_of_a_product():
    w, v = torch.tensor(3 + 4j), torch.tensor(2 - 1j)
    assert torch.equal(blocks(w, True, True) @ torch.view_as_real(v), torch.view_as_real(w * v))
    assert torch.equal(blocks(w, True, False), torch.view_as_real(w))
    assert torch.equal(blocks(w, False, True) @ torch.view_as_real(v), (w * v).real)


def test_turns_of_the_circle_are_exact_where_they_are_zero_or_one():
    for n in (1, 2, 4, 12, 100):
        cosine, sine = circle(n)
        angle = 2 * torch.pi * torch.arange(n, dtype=torch.float64) / n
        torch.testing.assert_close(cosine, angle.cos(), rtol=0, atol=1e-14)
        torch.testing.assert_close(sine, angle.sin(), rtol=0, atol=1e-14)
        assert int((sine == 0).sum()) == (1 if n % 2 else 2)
        assert int((cosine == 0).sum()) == (2 if n % 4 == 0 else 0)


@given(
    st.integers(1, 9),
    st.sampled_from(["backward", "ortho", "forward"]),
    st.sampled_from(["fft", "ifft", "rfft", "irfft", "hfft", "ihfft"]),
)
def test_transforms_of_any_size(n, norm, name):
    transform = getattr(fft, name)
    a = x(2, n) if name in ("rfft", "ihfft") else z(2, n)
    if name in ("irfft", "hfft"):
        a = z(2, n // 2 + 1)
        program = lambda a: transform(a, n=n, norm=norm)  # noqa: E731
    else:
        program = lambda a: transform(a, norm=norm)  # noqa: E731
    found = Found()
    check(program, (a,), {}, found, name)
    assert not found.wrong
    assert not found.refused


def test_everyday_sizes_need_no_square_of_a_tensor():
    """A batch of complex products and a spectrum: their Jacobians have 10^9 entries and more, if written out."""
    a, w = torch.randn(64, 16, 64, 2).requires_grad_(), torch.randn(64, 64, 64, 2).requires_grad_()
    with gradtrace.record(names={"a": a, "w": w}) as tape:
        y = torch.bmm(torch.view_as_complex(a), torch.view_as_complex(w)) * 1j
        loss = (fft.irfft(fft.rfft(y.abs())).square() + y.angle()).sum()
    assert all(served_by(call) == "exact" for call in tape.calls)
    tape.trace(loss, check=True)


def test_a_transform_of_too_many_places_is_refused_by_name():
    a = torch.randn(128, 128, requires_grad=True)
    with gradtrace.record(names={"a": a}) as tape:
        loss = fft.rfft2(a).abs().sum()
    with pytest.raises(gradtrace.errors.MissingRule, match=r"_fft_r2c.*pairs of places"):
        tape.grad(loss, [a])
