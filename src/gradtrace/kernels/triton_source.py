"""The code that runs on the GPU, in Triton. Importing this module needs the package `triton`.

Two kernels. `largest` keeps, for every result, the largest product so far and the number of the block of
`BLOCK` consecutive k that raised it last; `locate` looks into that one block for the smallest k. A product then
costs a multiplication and a maximum, where carrying the index along with each would cost a compare and two
selects in place of the maximum, all in the pipe that has half the lanes.

Tiles of operands come through tensor descriptors (on Hopper the bulk copy engine: no address arithmetic, zeros
beyond the edge). Products have five axes, k × THICK × WIDE × rows × columns, because of how Triton lays a
tensor out over threads: the last axes first. With rows · columns = number of threads, each thread holds all k of
a THICK × WIDE patch of results, so that no maximum crosses threads and each number that is read from shared
memory serves THICK or WIDE products. Plain pointer loads would not do: their layout spreads k over the threads
and pulls the products after it.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def largest(
    a, w, best, block,
    rows, columns, inner,
    THICK: tl.constexpr, ROWS: tl.constexpr, WIDE: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr,
    STAGES: tl.constexpr, TRACK: tl.constexpr, GUARD: tl.constexpr,
):  # fmt: skip
    """Give max_k a·|w| and, if TRACK, which block of k reached it first; -1 where the maximum is 0.

    Args:
        a: descriptor of b × i × k, non-negative, cut into 1 × THICK·ROWS × BLOCK.
        w: descriptor of b × j × k, cut into 1 × WIDE·COLUMNS × BLOCK.
        best: b × i × j, contiguous, of the operands' dtype.
        block: b × i × j, contiguous.
        GUARD: make 0·∞ zero explicitly. The hardware's max passes over a NaN, so it needs no guard.
    """
    across = tl.cdiv(columns, WIDE * COLUMNS)
    tiles = tl.cdiv(rows, THICK * ROWS) * across
    tile = tl.program_id(0) % tiles
    batch = tl.program_id(0) // tiles
    upper = (tile // across) * (THICK * ROWS)
    left = (tile % across) * (WIDE * COLUMNS)
    top = tl.zeros((THICK, WIDE, ROWS, COLUMNS), best.dtype.element_ty)
    won = tl.full((THICK, WIDE, ROWS, COLUMNS), -1, tl.int32)
    for first in tl.range(0, inner, BLOCK, num_stages=STAGES):
        # k × thick × rows, k × wide × columns
        x = tl.reshape(a.load([batch, upper, first]), (THICK, ROWS, BLOCK)).permute(2, 0, 1)
        y = tl.reshape(w.load([batch, left, first]), (WIDE, COLUMNS, BLOCK)).permute(2, 0, 1)
        product = x[:, :, None, :, None] * tl.abs(y)[:, None, :, None, :]
        if GUARD:
            product = tl.where(product == product, product, 0)
        here = tl.max(product, 0)
        if TRACK:
            won = tl.where(here > top, first // BLOCK, won)  # strictly: of equals the first block stays
        top = tl.maximum(top, here)
    # a thread's results lie ROWS or COLUMNS apart, so that the threads of a warp write neighbours
    i = upper + tl.arange(0, THICK)[:, None, None, None] * ROWS + tl.arange(0, ROWS)[None, None, :, None]
    j = left + tl.arange(0, WIDE)[None, :, None, None] * COLUMNS + tl.arange(0, COLUMNS)[None, None, None, :]
    at = (batch.to(tl.int64) * rows + i) * columns + j
    tl.store(best + at, top, (i < rows) & (j < columns))
    if TRACK:
        tl.store(block + at, won, (i < rows) & (j < columns))


@triton.jit
def locate(
    a, w, best, block,
    rows, columns, inner, count,
    a_b, a_i, w_b, w_j,
    BLOCK: tl.constexpr, RESULTS: tl.constexpr,
):  # fmt: skip
    """Replace the number of the winning block by the smallest k in it whose product is the maximum.

    Args:
        a: b × i × k, with strides a_b, a_i, 1.
        w: b × j × k, with strides w_b, w_j, 1.
        best: b × i × j, what `largest` gave.
        block: in and out, b × i × j; -1 stays.
        count: b · i · j.
    """
    at = tl.program_id(0).to(tl.int64) * RESULTS + tl.arange(0, RESULTS)
    some = at < count
    won = tl.load(block + at, some, other=-1)
    top = tl.load(best + at, some, other=0)
    row = at // columns  # of all batches
    i, j, batch = row % rows, at % columns, row // rows
    # results × k
    k = won[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    inside = (won >= 0)[:, None] & (k < inner)
    x = tl.load(a + (batch * a_b + i * a_i)[:, None] + k, inside, other=0)
    y = tl.load(w + (batch * w_b + j * w_j)[:, None] + k, inside, other=0)
    reached = inside & (x * tl.abs(y) == top[:, None])
    first = tl.min(tl.where(reached, k, 2147483647), 1)
    tl.store(block + at, tl.where(won >= 0, first, -1), some)
