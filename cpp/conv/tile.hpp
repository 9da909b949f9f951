// The inner loop of the convolutions: a tile of a (max, ×) product whose operands are addressed by tables of
// offsets, so that patches are never written out.
//
// Numbers of one operand are broadcast (a), registers of the other are loaded (b). For each result the tile
// knows which block of the reduced axis won; the index is looked for in that block alone, afterwards.
#pragma once

#include "rows/parallel.hpp"

namespace gradtrace::GRADTRACE_ISA {

constexpr int ROWS = 6;                          // numbers of a that share a load of b
constexpr int VECTORS = REGISTER == 64 ? 4 : 2;  // registers of b: ROWS × VECTORS maxima have to stay in registers
template <class T> constexpr int WIDTH = VECTORS * LANES<T>;
constexpr int64_t BLOCK = 16;  // steps between two notes of who won

template <class T> struct Tile {
    const T *a[ROWS];
    const T *b;
    const int32_t *a_at, *b_at;  // offsets, one per step
    int64_t steps;
    Vec<T> best[ROWS][VECTORS];
    Int<T> block[ROWS][VECTORS];  // the block that won, -1 if none did
};

// The loops over rows and registers are unrolled before gcc decides what lives in memory; and not inlined, or it
// spills the maxima. V: registers of b in use.
template <int V, class T> __attribute__((noinline)) void run_block(Tile<T> &tile, int64_t begin, int64_t end) {
    Vec<T> best[ROWS][V];
#pragma GCC unroll 6
    for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) best[r][v] = tile.best[r][v];
    const T *a0 = tile.a[0], *a1 = tile.a[1], *a2 = tile.a[2], *a3 = tile.a[3], *a4 = tile.a[4], *a5 = tile.a[5];
    for (int64_t k = begin; k < end; k++) {
        const T *from = tile.b + tile.b_at[k];
        const int64_t at = tile.a_at[k];
        const T a[ROWS] = {a0[at], a1[at], a2[at], a3[at], a4[at], a5[at]};
        Vec<T> b[V];
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) b[v] = load(from + v * LANES<T>);
#pragma GCC unroll 6
        for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 4
            for (int v = 0; v < V; v++) best[r][v] = larger(a[r] * b[v], best[r][v]);
    }
    const Int<T> here = all_int<T>(begin / BLOCK);
#pragma GCC unroll 6
    for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) {
            tile.block[r][v] = best[r][v] > tile.best[r][v] ? here : tile.block[r][v];
            tile.best[r][v] = best[r][v];
        }
}

template <int V, class T> void run_blocks(Tile<T> &tile) {
    for (int64_t k = 0; k < tile.steps; k += BLOCK) run_block<V>(tile, k, std::min(tile.steps, k + BLOCK));
}
// `columns`: numbers of b that matter.
template <class T> void run(Tile<T> &tile, int64_t columns) {
    if (columns <= LANES<T>)
        run_blocks<1>(tile);
    else if (columns <= 2 * LANES<T>)
        run_blocks<2>(tile);
    else
        run_blocks<VECTORS>(tile);
}

// The first step that reached the best, lane by lane; -1 where no step of this tile did.
template <class T> Int<T> winners(const Tile<T> &tile, int r, int v) {
    const Vec<T> best = tile.best[r][v];
    const Int<T> block = tile.block[r][v];
    const T *a = tile.a[r], *b = tile.b + v * LANES<T>;
    Int<T> out = all_int<T>(-1), open = block >= 0;
    while (any(open)) {
        const int64_t id = block[first<T>(open)], begin = id * BLOCK, end = std::min(tile.steps, begin + BLOCK);
        const Int<T> here = open & (block == all_int<T>(id));
        Int<T> found = out, step = all_int<T>(end - 1);
        for (int64_t k = end - 1; k >= begin; k--, step -= 1)  // backwards, so that the first one stays
            found = a[tile.a_at[k]] * load(b + tile.b_at[k]) == best ? step : found;
        out = here ? found : out;
        open &= ~here;
    }
    return out;
}

// Lanes in which some step has two non-zero factors.
template <class T> Int<T> possible(const Tile<T> &tile, int r, int v) {
    Int<T> out{};
    for (int64_t k = 0; k < tile.steps; k++)
        if (tile.a[r][tile.a_at[k]] != 0) out |= load(tile.b + tile.b_at[k] + v * LANES<T>) != 0;
    return out;
}

// What packing learns of an operand: its magnitudes times f.
template <class T> struct Packed {
    Vec<T> low = all(INF<T>), total{};  // low: of those that aren't zero; a NaN stays in the total
    Int<T> vanished{};

    Vec<T> take(Vec<T> x, Vec<T> f) {
        const Vec<T> size = magnitude<T>(x), out = size * f;
        total += size;
        vanished |= (out == 0) & (size != 0);
        low = smaller(out > T(0) ? out : all(INF<T>), low);
        return out;
    }
    // n numbers from one line to another.
    void take(const T *from, T *to, int64_t n, Vec<T> f) {
        int64_t i = 0;
        for (; i + LANES<T> <= n; i += LANES<T>) store(to + i, take(load(from + i), f));
        if (i < n) store(to + i, take(load(from + i, n - i), f), n - i);
    }
    void add(const Packed &o) {
        low = smaller(o.low, low);
        total += o.total;
        vanished |= o.vanished;
    }
    T lowest() const { return gradtrace::GRADTRACE_ISA::lowest<T>(low); }
    int flags() const { return (any(Int<T>(total != total)) ? NAN_SEEN : 0) | (any(vanished) ? LOST : 0); }
};

// Whether a product of these two can be below the normal numbers.
template <class T> bool may_lose(const Packed<T> &a, const Packed<T> &b) { return a.lowest() * b.lowest() < TINY<T>; }

}  // namespace gradtrace::GRADTRACE_ISA
