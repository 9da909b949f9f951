"""Operands and brute-force arithmetic for the tests of the C++ kernels, in numpy alone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from numpy.typing import NDArray

native: Any = pytest.importorskip("gradtrace._native", reason="built without a compiler")

Array = NDArray[Any]

NAN_SEEN, LOST = 1, 2
DTYPES = {False: np.float32, True: np.float64}
POOLS = ("integers", "normal", "lognormal", "sparse", "denormal", "huge", "infinite", "constant", "zero")


def examples(count: int) -> settings:
    """Try so many examples; a tenth under sanitizers, which are ten times slower."""
    return settings(max_examples=count // 10 if "GRADTRACE_NATIVE" in os.environ else count, deadline=None)


@contextmanager
def instruction_set(name: str) -> Iterator[None]:
    """Run with one instruction set."""
    before = native.instruction_set()
    native.use_instruction_set(name)
    try:
        yield
    finally:
        native.use_instruction_set(before)


def numbers(rng: np.random.Generator, pool: str, shape: tuple[int, ...], double: bool) -> Array:
    """Draw signed numbers of one kind."""
    dtype = DTYPES[double]
    tiny, huge = np.finfo(dtype).tiny, np.finfo(dtype).max
    x = rng.standard_normal(shape)
    small = rng.integers(-2, 3, shape)
    made = {
        "integers": small,
        "normal": x,
        "lognormal": np.exp(3 * x) * rng.choice([-1, 1], shape),
        "sparse": np.where(rng.random(shape) < 0.8, 0, x),
        "denormal": small * rng.choice([1, tiny / 8, tiny, tiny * 4, tiny**0.5, tiny**0.5 / 64], shape),
        "huge": x * rng.choice([1, huge / 64, huge**0.4], shape),
        "infinite": np.where(rng.random(shape) < 0.2, np.inf * np.sign(x), small),
        "constant": np.full(shape, 0.75),
        "zero": np.zeros(shape),
    }[pool]
    return np.array(made, dtype=dtype, order="C")


settings_of_a_call = st.fixed_dictionaries(
    {
        "double": st.booleans(),
        "isa": st.sampled_from(native.instruction_sets()),
        "threads": st.sampled_from([1, 2]),
        "seed": st.integers(0, 1 << 30),
        "pools": st.tuples(*[st.sampled_from(POOLS)] * 3),
        "f": st.sampled_from([1.0, 1.0, 4.0, 0.25, 2.0**-140, 2.0**90]),
    }
)


def strided(x: Array, rng: np.random.Generator) -> Array:
    """Lay the same numbers out in memory in some other way: permuted, with gaps, or backwards."""
    order = rng.permutation(x.ndim)
    room = np.zeros([x.shape[d] * 2 + 1 for d in order], dtype=x.dtype)
    some = [slice(1, 1 + 2 * x.shape[d], 2) if rng.random() < 0.5 else slice(0, x.shape[d]) for d in order]
    view = room[(*some, ...)]
    view = view.transpose(np.argsort(order))
    if x.ndim and rng.random() < 0.3:
        view = view[::-1]
    view[...] = x
    return view


def steps(x: Array) -> list[int]:
    """Give the strides, in elements."""
    return [s // x.itemsize for s in x.strides]


def address(x: Array | None) -> int:
    """Give the address of the first element."""
    return 0 if x is None else x.__array_interface__["data"][0]


def weighed(w: Array, g: Array, f: float) -> Array:
    """Give |w|·(f·g), each step rounded; zero times infinity is zero."""
    with np.errstate(all="ignore"):
        scaled = g * g.dtype.type(f)
        product = np.abs(w) * scaled
    return np.where(np.isnan(product) & ~np.isnan(w) & ~np.isnan(g), 0, product).astype(g.dtype)


def best(candidates: Array) -> tuple[Array, Array]:
    """Give the maximum over the last axis and the smallest index that reaches it, -1 where that is zero."""
    if candidates.shape[-1] == 0:
        shape = candidates.shape[:-1]
        return np.zeros(shape, candidates.dtype), np.full(shape, -1)
    value, index = candidates.max(-1), candidates.argmax(-1)
    return value, np.where(value > 0, index, -1)


def same(a: Array, b: Array) -> None:
    """Check that two arrays are equal, bit by bit save for the sign of zero."""
    np.testing.assert_array_equal(a, b)


def check_extent(found: tuple[float, float, int], out: Array, must: Array, may: Array | None = None) -> None:
    """Check (max, min, flags) against the results.

    Args:
        found: what the kernel said.
        out: the results.
        must: per result, whether an edge with two non-zero ends exists.
        may: where the flag may be raised beyond that; None: it is exact.
    """
    high, low, flags = found
    nonzero = out[out > 0]
    assert high == (out.max() if out.size else 0)
    assert low == (nonzero.min() if nonzero.size else np.inf)
    assert not flags & NAN_SEEN
    tiny = np.finfo(out.dtype).tiny
    if (must & (out < tiny)).any():
        assert flags & LOST
    elif may is None or not may.any():
        assert not flags & LOST
