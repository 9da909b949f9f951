"""The GPU's product, bit by bit against the definition: through Triton's interpreter, and on a GPU if there is one."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from interpreted import interpreter
from torch import Tensor

from gradtrace.errors import GradtraceError, NotANumber
from gradtrace.kernels import triton_product
from gradtrace.kernels.triton_product import CONFIGS, DOUBLE, Config, available, choose, configurations, packed

Run = Callable[..., Any]
TINY = torch.finfo(torch.float32).tiny


def need_triton() -> None:
    if not available():
        why = "triton is not installed (pip install 'gradtrace[gpu]')"
        pytest.fail(why) if os.environ.get("CI") == "true" else pytest.skip(why)


def natively(name: str, *args: Any, **kwargs: Any) -> Any:
    moved = [x.cuda() if isinstance(x, Tensor) else x for x in args]
    found = getattr(triton_product, name)(*moved, **kwargs)
    if isinstance(found, tuple):
        return tuple(x.cpu() for x in found)
    return found.cpu() if isinstance(found, Tensor) else found


@pytest.fixture(scope="module", params=["interpreter", *(["cuda"] if torch.cuda.is_available() else [])])
def run(request: pytest.FixtureRequest) -> Iterator[Run]:
    need_triton()
    if request.param == "cuda":
        yield natively
    else:
        with interpreter() as interpreted:
            yield interpreted


def definition(a: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """One k after the other; a later one must be strictly larger."""
    kind = torch.promote_types(torch.promote_types(a.dtype, w.dtype), torch.float32)
    best = torch.zeros(a.shape[0], a.shape[1], w.shape[1], dtype=kind)
    arg = torch.full(best.shape, -1)
    for k in range(a.shape[2]):
        x, y = a[:, :, None, k].to(kind), w[:, None, :, k].to(kind).abs()
        product = torch.where((x == 0) | (y == 0), 0.0, x * y)
        arg = torch.where(product > best, k, arg)
        best = torch.where(product > best, product, best)
    return best, arg


def check(run: Run, a: Tensor, w: Tensor, **kwargs: Any) -> None:
    best, arg = run("max_product", a, w, **kwargs)
    expected, index = definition(a, w)
    assert best.dtype == expected.dtype
    assert torch.equal(best, expected)
    assert not best.signbit().any()
    assert torch.equal(arg, index)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def integers(*shape: int, seed: int = 0) -> Tensor:
    """Few values, so that most maxima are reached several times."""
    return torch.randint(-3, 4, shape, generator=torch.Generator().manual_seed(seed)).float()


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (1, 3, 130, 5), (2, 33, 7, 65), (3, 5, 9, 16), (1, 70, 70, 33)])
def test_odd_shapes_and_ties(run, shape):
    b, i, j, k = shape
    check(run, normal(b, i, k).abs(), normal(b, j, k, seed=1))
    check(run, integers(b, i, k).abs(), integers(b, j, k, seed=1))


@pytest.mark.parametrize("config", CONFIGS + DOUBLE)
def test_every_configuration_gives_the_same_bits(run, config):
    height, width = config.tile
    check(run, normal(1, height + 1, 37).abs(), normal(1, width + 3, 37, seed=1), config=config)
    check(run, integers(1, 3, 70).abs(), integers(1, 5, 70, seed=1), config=config)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("other", [torch.bfloat16, torch.float64])
def test_dtypes(run, dtype, other):
    check(run, normal(2, 5, 40, dtype=dtype).abs(), normal(2, 6, 40, seed=1, dtype=other))


def test_all_equal_takes_the_first(run):
    check(run, torch.ones(1, 5, 100), torch.full((1, 4, 100), -2.0))


def test_the_winner_at_every_place(run):
    # row i has its largest element at k = i: in each block of k, at its ends and beyond the last full one
    check(run, torch.ones(1, 70, 70) + torch.eye(70), torch.ones(1, 2, 70))


def test_zeros_have_no_index(run):
    a, w = normal(1, 6, 40).clamp(min=0), normal(1, 7, 40, seed=1)
    a[0, 2], w[0, 3] = 0, 0
    check(run, a, w)
    _, arg = run("max_product", a, w)
    assert (arg[0, 2] == -1).all()
    assert (arg[0, :, 3] == -1).all()


def test_negative_zeros(run):
    check(run, torch.tensor([[[-0.0, 0.0, -0.0]]]), torch.tensor([[[1.0, -1.0, -0.0], [-0.0, -0.0, -0.0]]]))


def test_infinities_and_zero_times_infinity(run):
    values = torch.tensor([0.0, 1.0, math.inf, 1e30, TINY])
    a = values[torch.randint(5, (1, 9, 50), generator=torch.Generator().manual_seed(0))]
    w = -values[torch.randint(5, (1, 8, 50), generator=torch.Generator().manual_seed(1))]
    check(run, a, w)
    check(run, torch.tensor([[[0.0, math.inf]]]), torch.tensor([[[math.inf, 0.0], [math.inf, 1.0]]]))


def test_denormals_overflow_and_underflow(run):
    a = torch.tensor([[[TINY / 8, TINY / 4, 1e-30, 3e38, 1.0]]])
    w = torch.tensor([[[1.0, 1.0, 0.0, 0.0, 0.0], [0.5, 0.25, 1e-30, 0.0, 0.0], [1.0, 1.0, 1.0, 2.0, -math.inf]]])
    check(run, a, w)
    check(run, a.double() * 2.0**-900, w.double() * 2.0**-120)


@pytest.mark.parametrize("which", [0, 1])
def test_nan_is_reported(run, which):
    operands = [normal(2, 5, 9).abs(), normal(2, 4, 9, seed=1)]
    operands[which][1, 3, 8] = math.nan
    with pytest.raises(NotANumber, match="operand of a product"):
        run("max_product", *operands)
    assert run("launch", *operands)[2]


def test_strides(run):
    a, w = normal(2, 40, 30).abs(), normal(2, 40, 50, seed=1)
    check(run, a.transpose(1, 2), w.transpose(1, 2))  # k is the slowest axis
    check(run, a[:, ::3, 1::2], w[:, 5:, 2:17])
    check(run, a[:, :1].expand(2, 7, 30), w[:1, :, :30].expand(2, 40, 30))
    check(run, a.movedim(0, 2)[:, :9, :], w.movedim(0, 2)[:, 3:9, :].expand(40, 6, 2))


@pytest.mark.parametrize("shape", [(0, 3, 4, 5), (2, 0, 4, 5), (2, 3, 0, 5), (2, 3, 4, 0)])
def test_nothing(run, shape):
    b, i, j, k = shape
    check(run, torch.ones(b, i, k), torch.ones(b, j, k))


def test_values_alone_and_narrow_indices(run):
    a, w = normal(2, 5, 50).abs(), normal(2, 6, 50, seed=1)
    assert torch.equal(run("max_values", a, w), definition(a, w)[0])
    _, arg = run("max_product", a, w, index=torch.int32)
    assert arg.dtype == torch.int32
    assert torch.equal(arg.long(), definition(a, w)[1])


@pytest.mark.parametrize(
    ("a", "w", "message"),
    [
        (torch.ones(2, 3, 4), torch.ones(2, 3, 5), "expected b × i × k and b × j × k"),
        (torch.ones(2, 3, 4), torch.ones(3, 3, 4), "expected b × i × k and b × j × k"),
        (torch.ones(3, 4), torch.ones(1, 3, 4), "three dimensions"),
        (torch.ones(1, 3, 4), torch.ones(1, 3, 4, dtype=torch.int64), "must be one of torch.float16"),
    ],
)
def test_operands_that_do_not_fit(run, a, w, message):
    with pytest.raises(GradtraceError, match=message):
        run("max_product", a, w)


def test_operands_on_the_cpu_are_refused():
    need_triton()
    with pytest.raises(GradtraceError, match="must be on a CUDA device"):
        triton_product.max_product(torch.ones(1, 1, 1), torch.ones(1, 1, 1))


def test_without_triton_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr(triton_product, "available", lambda: False)
    with pytest.raises(GradtraceError, match="needs the package triton: pip install"):
        triton_product.max_product(torch.ones(1, 1, 1), torch.ones(1, 1, 1))


def test_the_interpreter_stays_in_its_process(run):
    assert run("interpreted") is (run is not natively)
    assert "TRITON_INTERPRET" not in os.environ
    assert not triton_product.interpreted()


def test_packing_copies_only_what_does_not_fit():
    fits = torch.ones(2, 3, 8)
    assert packed(fits, torch.float32) is fits
    view = torch.ones(2, 3, 12)[:, :, 4:10]
    assert packed(view, torch.float32) is view
    for given in (fits[:, :, 1:], fits.transpose(1, 2), torch.ones(2, 3, 7), fits.half(), fits[:1].expand(2, 3, 8)):
        made = packed(given, torch.float32)
        assert torch.equal(made, given.float())
        assert made.stride(2) == 1
        assert made.stride(1) % 4 == made.stride(0) % 4 == made.data_ptr() % 16 == 0


def test_large_tiles_where_there_are_enough():
    few, many = torch.ones(1, 8, 4), torch.ones(1, 20_000, 4)
    assert choose(many, many, processors=132) == CONFIGS[0]
    assert choose(few, few, processors=132) == CONFIGS[-1]
    assert choose(many.double(), many, processors=132) == DOUBLE[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_fastest_is_one_of_them(run, dtype):
    device = torch.device("cuda" if run is natively else "cpu")
    assert run("fastest", 1, 5, 6, 7, dtype, device) in configurations(dtype)


@pytest.mark.parametrize("config", CONFIGS + DOUBLE)
def test_threads_and_powers_of_two(config: Config):
    assert config.rows * config.columns == 32 * config.warps
    for size in (config.thick, config.rows, config.wide, config.columns, config.block):
        assert size & (size - 1) == 0
