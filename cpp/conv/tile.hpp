// The inner loop of the convolutions: a tile of a (max, ×) product whose operands are addressed by tables of
// offsets, so that patches are never written out.
//
// Numbers of one operand are broadcast (a), registers of the other are loaded (b).
#pragma once

#include "rows/parallel.hpp"

namespace gradtrace::GRADTRACE_ISA {

constexpr int ROWS = 6;                          // numbers of a that share a load of b
constexpr int VECTORS = REGISTER == 64 ? 4 : 2;  // registers of b in a tile
constexpr int PASS = VECTORS / 2;                // of which so many are used at a time: maxima and winners stay in registers
template <class T> constexpr int WIDTH = VECTORS * LANES<T>;

template <class T> struct Tile {
    const T *a[ROWS];
    const T *b;
    const int32_t *a_at, *b_at;  // offsets, one per step
    int64_t steps;
    Vec<T> best[ROWS][VECTORS];
    Int<T> step[ROWS][VECTORS];  // the first step that reached it; -1 if none did
};

// The loops over rows and registers are unrolled before gcc decides what lives in memory; and not inlined, or it
// spills the maxima. V: registers of b in use, from `first` on.
template <int V, class T> __attribute__((noinline)) void run_pass(Tile<T> &tile, int first) {
    Vec<T> best[ROWS][V];
    Int<T> step[ROWS][V];
#pragma GCC unroll 6
    for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 2
        for (int v = 0; v < V; v++) best[r][v] = tile.best[r][first + v], step[r][v] = all_int<T>(-1);
    const T *a0 = tile.a[0], *a1 = tile.a[1], *a2 = tile.a[2], *a3 = tile.a[3], *a4 = tile.a[4], *a5 = tile.a[5];
    const T *columns = tile.b + first * LANES<T>;
    Int<T> here{};
    for (int64_t k = 0; k < tile.steps; k++, here += 1) {
        const T *from = columns + tile.b_at[k];
        const int64_t at = tile.a_at[k];
        const T a[ROWS] = {a0[at], a1[at], a2[at], a3[at], a4[at], a5[at]};
        Vec<T> b[V];
#pragma GCC unroll 2
        for (int v = 0; v < V; v++) b[v] = load(from + v * LANES<T>);
#pragma GCC unroll 6
        for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 2
            for (int v = 0; v < V; v++) {
                const Vec<T> p = a[r] * b[v];
                step[r][v] = p > best[r][v] ? here : step[r][v];
                best[r][v] = larger(p, best[r][v]);
            }
    }
#pragma GCC unroll 6
    for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 2
        for (int v = 0; v < V; v++) tile.best[r][first + v] = best[r][v], tile.step[r][first + v] = step[r][v];
}

// `columns`: numbers of b that matter.
template <class T> void run(Tile<T> &tile, int64_t columns) {
    const int used = int(std::min<int64_t>(VECTORS, (columns + LANES<T> - 1) / LANES<T>));
    int first = 0;
    for (; first + PASS <= used; first += PASS) run_pass<PASS>(tile, first);
    for (; first < used; first++) run_pass<1>(tile, first);
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
