// Products of both ends: two rows of `a` by a block of w's columns, in registers, for one k after the other.
//
// Every few k's it is seen what the nearest to 0 of all ends is by now: a k whose largest product is not above that, in
// size, can change none of them. Rounding is monotone, so the product of two largest sizes bounds all others.
#include <algorithm>
#include <vector>

#include "signed/ends.hpp"

#ifdef _OPENMP
#include <omp.h>
#endif

namespace gradtrace::GRADTRACE_ISA {
namespace {

constexpr int PAIR = 2;                // rows that share what is loaded of w
constexpr int64_t TALL = 64;           // rows packed at a time
constexpr int64_t SMALL = 1 << 15;     // products below which waking a thread costs more than it saves
constexpr int64_t FEW = 48;            // k's between two looks at what is left to beat
constexpr int WIDEST = REGISTERS / 8;  // vectors side by side: 2 · PAIR · WIDEST sums, and what they are made of

// w as blocks × k × width, absent edges NaN. Columns beyond the last are copies of it, so that they hold nothing up.
template <class T> struct Columns {
    int64_t width, blocks;
    std::vector<T> edges, sizes;  // batch × blocks × k × width; batch × blocks × k: the largest size of each k
    bool nan = false;

    Columns(const SignedProduct<T> &p, int64_t width) : width(width), blocks((p.n + width - 1) / width), edges(p.batch * blocks * p.k * width), sizes(p.batch * blocks * p.k) {
        for (int64_t b = 0; b < p.batch; b++)
            for (int64_t block = 0; block < blocks; block++) pack(p, b, block);
    }
    const T *block(const SignedProduct<T> &p, int64_t b, int64_t at) const { return edges.data() + (b * blocks + at) * p.k * width; }
    const T *bound(const SignedProduct<T> &p, int64_t b, int64_t at) const { return sizes.data() + (b * blocks + at) * p.k; }

  private:
    void pack(const SignedProduct<T> &p, int64_t b, int64_t block) {
        constexpr int64_t TILE = 16;
        const int64_t first = block * width, count = std::min<int64_t>(width, p.n - first);
        const T *from = p.w.data + b * p.w.batch_stride + first * p.w.row_stride;
        T *to = edges.data() + (b * blocks + block) * p.k * width;
        bool found = false;
        for (int64_t tile = 0; tile < p.k; tile += TILE) {
            const int64_t end = std::min(p.k, tile + TILE);
            if (p.w.row_stride == 1)
                for (int64_t k = tile; k < end; k++)
                    for (int64_t j = 0; j < count; j++) {
                        const T w = from[k * p.w.stride + j];
                        found |= w != w;
                        to[k * width + j] = edge_of(w);
                    }
            else
                for (int64_t j = 0; j < count; j++)
                    for (int64_t k = tile; k < end; k++) {
                        const T w = from[j * p.w.row_stride + k * p.w.stride];
                        found |= w != w;
                        to[k * width + j] = edge_of(w);
                    }
            for (int64_t k = tile; k < end; k++) {
                T *row = to + k * width, most = 0;
                for (int64_t j = count; j < width; j++) row[j] = row[count - 1];
                for (int64_t j = 0; j < width; j++) {
                    const T size = row[j] < 0 ? -row[j] : row[j];
                    most = size > most ? size : most;
                }
                sizes[(b * blocks + block) * p.k + k] = most;
            }
        }
        nan |= found;
    }
};

// Some rows of `a` as pairs × k × PAIR × (high, low), a copy of the last behind an odd number; and pairs × k largest sizes.
template <class T> void read(const SignedProduct<T> &p, int64_t b, int64_t first, int64_t count, T *to, T *sizes) {
    const int64_t whole = (count + PAIR - 1) / PAIR * PAIR, base = b * p.a.batch_stride + first * p.a.row_stride;
    const auto put = [&](int64_t row, int64_t k) {
        const int64_t at = base + std::min(row, count - 1) * p.a.row_stride + k * p.a.stride;
        T *out = to + (row / PAIR * p.k + k) * 2 * PAIR + 2 * (row % PAIR);
        out[0] = p.a.high[at], out[1] = p.a.low[at];
    };
    if (p.a.row_stride < p.a.stride)
        for (int64_t k = 0; k < p.k; k++)
            for (int64_t row = 0; row < whole; row++) put(row, k);
    else
        for (int64_t row = 0; row < whole; row++)
            for (int64_t k = 0; k < p.k; k++) put(row, k);
    for (int64_t x = 0; x < whole / PAIR * p.k; x++) {
        T most = 0;
        for (int y = 0; y < 2 * PAIR; y++) {
            const T end = to[x * 2 * PAIR + y], size = end < 0 ? -end : end;
            most = size > most ? size : most;
        }
        sizes[x] = most;
    }
}

// A pair of rows and a block of columns.
template <class T, int V> struct Tile {
    using S = Simd<T>;
    typename S::reg top[PAIR][V], bottom[PAIR][V];

    void run(const T *a, const T *sizes, const T *w, const T *bounds, int64_t k, T *high, T *low) {
        for (int r = 0; r < PAIR; r++)
            for (int v = 0; v < V; v++) top[r][v] = S::set(-INFINITE<T>), bottom[r][v] = S::set(INFINITE<T>);
        for (int64_t begin = 0; begin < k; begin += FEW) {
            const int64_t end = std::min(k, begin + FEW);
            const T least = begin > 0 ? to_beat() : T(0);
            if (!(least > 0)) {
                for (int64_t at = begin; at < end; at++) meet_at(a + at * 2 * PAIR, w + at * V * S::lanes);
                continue;
            }
            int32_t some[FEW], count = 0;
            for (int64_t at = begin; at < end; at++) some[count] = int32_t(at), count += sizes[at] * bounds[at] > least;
            for (int x = 0; x < count; x++) meet_at(a + some[x] * 2 * PAIR, w + some[x] * V * S::lanes);
        }
        for (int r = 0; r < PAIR; r++)
            for (int v = 0; v < V; v++) {
                S::store(high + (r * V + v) * S::lanes, top[r][v]);
                S::store(low + (r * V + v) * S::lanes, bottom[r][v]);
            }
    }

  private:
    void meet_at(const T *a, const T *w) {
        for (int r = 0; r < PAIR; r++) {
            const auto h = S::set(a[2 * r]), l = S::set(a[2 * r + 1]);
            for (int v = 0; v < V; v++) {
                const auto edge = S::load(w + v * S::lanes);
                meet<T>(S::mul(edge, h), S::mul(edge, l), top[r][v], bottom[r][v]);
            }
        }
    }
    T to_beat() const {
        auto up = top[0][0], down = bottom[0][0];
        for (int r = 0; r < PAIR; r++)
            for (int v = 0; v < V; v++) up = S::smaller(top[r][v], up), down = S::larger(bottom[r][v], down);
        return S::min_of(S::smaller(up, S::mul(S::set(T(-1)), down)));
    }
};

template <class T, int V> int rows_of(const SignedProduct<T> &p, const Columns<T> &w, int64_t b, int64_t first, std::vector<T> &room) {
    constexpr int64_t WIDTH = V * Simd<T>::lanes;
    const int64_t count = std::min(TALL, p.m - first), pairs = (count + PAIR - 1) / PAIR;
    room.resize(pairs * p.k * (2 * PAIR + 1));
    T *rows = room.data(), *sizes = rows + pairs * p.k * 2 * PAIR;
    read(p, b, first, count, rows, sizes);
    Tile<T, V> tile;
    T high[PAIR * WIDTH], low[PAIR * WIDTH];
    int flags = 0;
    for (int64_t block = 0; block < w.blocks; block++) {
        const int64_t j = block * WIDTH, width = std::min<int64_t>(WIDTH, p.n - j);
        for (int64_t pair = 0; pair < pairs; pair++) {
            tile.run(rows + pair * p.k * 2 * PAIR, sizes + pair * p.k, w.block(p, b, block), w.bound(p, b, block), p.k, high, low);
            for (int64_t r = 0; r < PAIR && pair * PAIR + r < count; r++) {
                flags |= settle_all(high + r * WIDTH, low + r * WIDTH, width);
                const int64_t to = (b * p.m + first + pair * PAIR + r) * p.n + j;
                std::memcpy(p.high + to, high + r * WIDTH, size_t(width) * sizeof(T));
                std::memcpy(p.low + to, low + r * WIDTH, size_t(width) * sizeof(T));
            }
        }
    }
    return flags;
}

template <class T, int V> int run(const SignedProduct<T> &p, int threads) {
    const Columns<T> w(p, V * Simd<T>::lanes);
    if (w.nan) return NAN_SEEN;
    threads = p.batch * p.m * p.n * p.k < SMALL ? 1 : threads;
    const int64_t chunks = (p.m + TALL - 1) / TALL, all = p.batch * chunks;
    int flags = 0;
#ifdef _OPENMP
#pragma omp parallel num_threads(threads) reduction(| : flags)
#endif
    {
        std::vector<T> room;
#ifdef _OPENMP
#pragma omp for schedule(dynamic)
#endif
        for (int64_t x = 0; x < all; x++) flags |= rows_of<T, V>(p, w, x / chunks, x % chunks * TALL, room);
    }
    return flags;
}

}  // namespace

template <class T> int signed_product(const SignedProduct<T> &p, int threads) {
    if (p.n <= Simd<T>::lanes) return run<T, 1>(p, threads);
    if (p.n <= 2 * Simd<T>::lanes) return run<T, 2>(p, threads);
    return run<T, WIDEST>(p, threads);
}

template int signed_product(const SignedProduct<float> &, int);
template int signed_product(const SignedProduct<double> &, int);

}  // namespace gradtrace::GRADTRACE_ISA
