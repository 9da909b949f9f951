"""The (max, ×) matrix product with argmax on a CUDA device: values and indices bit by bit those of the definition.

    best[b,i,j] = max_k a[b,i,k]·|w[b,j,k]|        arg[b,i,j] = the smallest k that reaches it, -1 where best is 0

Every product is rounded once and a maximum rounds nothing, so the result depends on no order of evaluation: every
configuration gives the same bits, on every device. Zero times infinity is zero (an absent edge is absent), a NaN
in an operand is an error. float16 and bfloat16 are taken as float32, in which their products are exact.

Needs the package `triton` (the extra `gpu`). With TRITON_INTERPRET=1 set before `triton` is first imported, the
kernels run on CPU tensors through Triton's interpreter, thousands of times slower: for tests.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from ..errors import GradtraceError, NotANumber

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
RESULTS = 64  # results that one program of `locate` handles
ALIGNMENT = 16  # bytes, of every row of an operand: a tensor descriptor's rule


@dataclass(frozen=True)
class Config:
    """How a tile of results lies over the threads of a program.

    Attributes:
        thick, wide: rows and columns of results that one thread keeps in registers.
        rows, columns: threads along each; their product is 32 · warps.
        block: how many k are multiplied between two looks at the index.
        stages: tiles of operands on their way from memory at once.
    """

    thick: int
    rows: int
    wide: int
    columns: int
    block: int
    warps: int
    stages: int = 3

    @property
    def tile(self) -> tuple[int, int]:
        """Rows and columns of results that one program computes."""
        return self.thick * self.rows, self.wide * self.columns

    @property
    def constants(self) -> dict[str, int]:
        """What the kernel `largest` calls them, and how many warps to launch."""
        return {
            "THICK": self.thick,
            "ROWS": self.rows,
            "WIDE": self.wide,
            "COLUMNS": self.columns,
            "BLOCK": self.block,
            "STAGES": self.stages,
            "num_warps": self.warps,
        }


# Large tiles reuse what they read more often, small ones fill the chip when there are few results. Larger patches
# than these no longer fit a thread's 255 registers.
CONFIGS = (
    Config(thick=4, rows=16, wide=8, columns=16, block=16, warps=8),
    Config(thick=4, rows=8, wide=8, columns=16, block=8, warps=4),
    Config(thick=4, rows=8, wide=4, columns=16, block=16, warps=4),
    Config(thick=2, rows=4, wide=2, columns=32, block=32, warps=4),
    Config(thick=1, rows=4, wide=1, columns=32, block=32, warps=4),
)
DOUBLE = (
    Config(thick=4, rows=8, wide=4, columns=16, block=8, warps=4),
    Config(thick=2, rows=8, wide=2, columns=16, block=8, warps=4),
    Config(thick=1, rows=4, wide=1, columns=32, block=16, warps=4),
)


def available() -> bool:
    """Tell whether the package `triton` is installed."""
    return find_spec("triton") is not None


@cache
def interpreted() -> bool:
    """Tell whether Triton runs through its interpreter, on CPU tensors."""
    from triton import knobs

    return bool(knobs.runtime.interpret)


def max_product(
    a: Tensor, w: Tensor, *, index: torch.dtype = torch.int64, config: Config | None = None
) -> tuple[Tensor, Tensor]:
    """Give max_k a[b,i,k]·|w[b,j,k]| and the smallest k that reaches it, -1 where there is none above zero.

    Args:
        a: b × i × k, non-negative, with any strides.
        w: b × j × k, with any strides, on the same device.
        index: int32 or int64.
        config: instead of the one chosen by the shape, see `fastest`. Decides the time, not the result.

    Returns:
        best and arg, b × i × j; best in the wider dtype of the two, at least float32.

    Raises:
        NotANumber: an operand has a NaN. (Finding out waits for the device; `launch` does not.)
        GradtraceError: operands that do not fit each other, or this kernel.

    >>> max_product(torch.tensor([[[1.0, 2.0]]]).cuda(), torch.tensor([[[-4.0, 2.0]]]).cuda())  # doctest: +SKIP
    (tensor([[[4.]]], device='cuda:0'), tensor([[[0]]], device='cuda:0'))
    """
    best, arg, bad = launch(a, w, config=config)
    if bad:
        raise NotANumber("an operand of a product is NaN")
    return best, arg.to(index)


def max_values(a: Tensor, w: Tensor, *, config: Config | None = None) -> Tensor:
    """Give the values alone, without looking for a NaN."""
    check(a, w)
    a, w = packed(a, common_dtype(a, w)), packed(w, common_dtype(a, w))
    return _largest(a, w, config or choose(a, w), track=False)[0]


def launch(a: Tensor, w: Tensor, *, config: Config | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Give best, arg (int32), and on the device whether an operand has a NaN, without waiting for any of them."""
    check(a, w)
    bad = a.isnan().any() | w.isnan().any()
    a, w = packed(a, common_dtype(a, w)), packed(w, common_dtype(a, w))
    config = config or choose(a, w)
    best, arg = _largest(a, w, config, track=True)
    if best.numel() and a.shape[2]:
        from .triton_source import locate

        sizes = *best.shape[1:], a.shape[2], best.numel()
        grid = (-(-best.numel() // RESULTS),)
        strides = *a.stride()[:2], *w.stride()[:2]
        _run(locate, grid, best, a, w, best, arg, *sizes, *strides, BLOCK=config.block, RESULTS=RESULTS)
    return best, arg, bad


def _largest(a: Tensor, w: Tensor, config: Config, *, track: bool) -> tuple[Tensor, Tensor]:
    """Run the first kernel on packed operands: the largest products, and the numbers of their blocks if `track`."""
    (batch, rows, inner), columns = a.shape, w.shape[1]
    best = a.new_zeros((batch, rows, columns))
    block = torch.full_like(best, -1, dtype=torch.int32) if track else best.new_empty(0, dtype=torch.int32)
    if best.numel() and inner:
        from triton.tools.tensor_descriptor import TensorDescriptor

        from .triton_source import largest

        height, width = config.tile
        operands = (
            TensorDescriptor(given, list(given.shape), list(given.stride()), [1, size, config.block])
            for given, size in ((a, height), (w, width))
        )
        grid = (tiles(batch, rows, columns, config),)
        flags = {"TRACK": track, "GUARD": interpreted()}
        _run(largest, grid, best, *operands, best, block, rows, columns, inner, **config.constants, **flags)
    return best, block


def _run(kernel: Any, grid: tuple[int], where: Tensor, *args: Any, **constants: Any) -> None:
    """Start a kernel on the device of `where`, which need not be the current one."""
    if where.is_cuda:
        with torch.cuda.device(where.device):
            kernel[grid](*args, **constants)
    else:
        kernel[grid](*args, **constants)


def common_dtype(a: Tensor, w: Tensor) -> torch.dtype:
    """Give the dtype of the arithmetic: the wider of the two, at least float32."""
    return torch.promote_types(torch.promote_types(a.dtype, w.dtype), torch.float32)


def packed(given: Tensor, dtype: torch.dtype) -> Tensor:
    """Give b × i × k in a dtype, its rows contiguous and aligned: a copy unless it is so already."""
    unit = ALIGNMENT // dtype.itemsize
    rows_fit = given.stride(2) == 1 and all(step and step % unit == 0 for step in given.stride()[:2])
    if given.dtype == dtype and rows_fit and given.data_ptr() % ALIGNMENT == 0:
        return given
    batch, rows, inner = given.shape
    room = given.new_empty((batch, rows, -(-inner // unit) * unit), dtype=dtype)
    return room[:, :, :inner].copy_(given)


def tiles(batch: int, rows: int, columns: int, config: Config) -> int:
    """Count the programs that a product needs."""
    height, width = config.tile
    return batch * -(-rows // height) * -(-columns // width)


def choose(a: Tensor, w: Tensor, processors: int | None = None) -> Config:
    """Take the largest tile of which there are enough to keep every multiprocessor busy, else the smallest."""
    processors = processors or _processors()
    configs = configurations(a.dtype)
    batch, rows, columns = a.shape[0], a.shape[1], w.shape[1]
    return next((c for c in configs if tiles(batch, rows, columns, c) >= processors), configs[-1])


def configurations(dtype: torch.dtype) -> tuple[Config, ...]:
    """Give those that are worth trying, the largest tile first."""
    return DOUBLE if dtype == torch.float64 else CONFIGS


@cache
def fastest(batch: int, rows: int, columns: int, inner: int, dtype: torch.dtype, device: torch.device) -> Config:
    """Find the configuration for a shape by trying each; remembered, since trying compiles them all."""
    a = torch.rand(batch, rows, inner, dtype=dtype, device=device)
    w = torch.rand(batch, columns, inner, dtype=dtype, device=device)
    return min(configurations(dtype), key=lambda config: min(_seconds(a, w, config) for _ in range(4)))


def _seconds(a: Tensor, w: Tensor, config: Config) -> float:
    """Time one product, until its results are there."""
    start = perf_counter()
    launch(a, w, config=config)[1][:1, :1, :1].tolist()  # copied to the CPU: waits for the device
    return perf_counter() - start


@cache
def _processors() -> int:
    """Count the multiprocessors of the current device; one where there is none."""
    if not torch.cuda.is_available():
        return 1
    return torch.cuda.get_device_properties(torch.cuda.current_device()).multi_processor_count


def check(a: Tensor, w: Tensor) -> None:
    """Raise `GradtraceError` unless the operands fit each other and this kernel."""
    if not available():
        raise GradtraceError("the product on a GPU needs the package triton: pip install 'gradtrace[gpu]'")
    for name, given in (("a", a), ("w", w)):
        if given.dtype not in DTYPES:
            raise GradtraceError(f"{name} must be one of {', '.join(map(str, DTYPES))}, not {given.dtype}")
        if given.dim() != 3:
            raise GradtraceError(f"{name} must have three dimensions, not shape {tuple(given.shape)}")
        if not given.is_cuda and not interpreted():
            raise GradtraceError(f"{name} must be on a CUDA device, not on {given.device}")
    if a.device != w.device:
        raise GradtraceError(f"a is on {a.device} and w on {w.device}")
    if a.shape[0] != w.shape[0] or a.shape[2] != w.shape[2]:
        raise GradtraceError(f"expected b × i × k and b × j × k, not {tuple(a.shape)} and {tuple(w.shape)}")
    if a.shape[2] >= 1 << 31 or a.shape[0] * a.shape[1] * w.shape[1] >= 1 << 37:
        raise GradtraceError(f"too large for 32-bit indices: {tuple(a.shape)} and {tuple(w.shape)}")
