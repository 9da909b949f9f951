// Products of both ends: two rows of `a` by a block of w's columns, in registers, for one k after the other.
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
constexpr int WIDEST = REGISTERS / 8;  // vectors side by side: 2 · PAIR · WIDEST sums, and what they are made of

// w as blocks × k × width, absent edges and columns NaN.
template <class T> struct Columns {
    int64_t width, blocks;
    std::vector<T> edges;
    bool nan = false;

    Columns(const SignedProduct<T> &p, int64_t width) : width(width), blocks((p.n + width - 1) / width), edges(p.batch * blocks * p.k * width) {
        for (int64_t b = 0; b < p.batch; b++)
            for (int64_t block = 0; block < blocks; block++) pack(p, b, block);
    }
    const T *block(const SignedProduct<T> &p, int64_t b, int64_t at) const { return edges.data() + (b * blocks + at) * p.k * width; }

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
            for (int64_t k = tile; k < end; k++)
                for (int64_t j = count; j < width; j++) to[k * width + j] = NOT_A_NUMBER<T>;
        }
        nan |= found;
    }
};

// Some rows of `a` as pairs × k × PAIR × (high, low); those beyond the last have no path.
template <class T> void read(const SignedProduct<T> &p, int64_t b, int64_t first, int64_t count, T *to) {
    const int64_t whole = (count + PAIR - 1) / PAIR * PAIR, base = b * p.a.batch_stride + first * p.a.row_stride;
    const auto put = [&](int64_t row, int64_t k) {
        const int64_t at = base + row * p.a.row_stride + k * p.a.stride;
        T *out = to + (row / PAIR * p.k + k) * 2 * PAIR + 2 * (row % PAIR);
        out[0] = row < count ? p.a.high[at] : NOT_A_NUMBER<T>;
        out[1] = row < count ? p.a.low[at] : NOT_A_NUMBER<T>;
    };
    if (p.a.row_stride < p.a.stride)
        for (int64_t k = 0; k < p.k; k++)
            for (int64_t row = 0; row < whole; row++) put(row, k);
    else
        for (int64_t row = 0; row < whole; row++)
            for (int64_t k = 0; k < p.k; k++) put(row, k);
}

template <class T, int V> void block_of(const T *a, const T *w, int64_t k, T *high, T *low) {
    using S = Simd<T>;
    typename S::reg top[PAIR][V], bottom[PAIR][V];
    for (int r = 0; r < PAIR; r++)
        for (int v = 0; v < V; v++) top[r][v] = S::set(-INFINITE<T>), bottom[r][v] = S::set(INFINITE<T>);
    for (int64_t at = 0; at < k; at++, a += 2 * PAIR, w += V * S::lanes) {
        for (int r = 0; r < PAIR; r++) {
            const auto h = S::set(a[2 * r]), l = S::set(a[2 * r + 1]);
            for (int v = 0; v < V; v++) {
                const auto edge = S::load(w + v * S::lanes);
                meet<T>(S::mul(edge, h), S::mul(edge, l), top[r][v], bottom[r][v]);
            }
        }
    }
    for (int r = 0; r < PAIR; r++)
        for (int v = 0; v < V; v++) {
            S::store(high + (r * V + v) * S::lanes, top[r][v]);
            S::store(low + (r * V + v) * S::lanes, bottom[r][v]);
        }
}

template <class T, int V> int rows_of(const SignedProduct<T> &p, const Columns<T> &w, int64_t b, int64_t first, std::vector<T> &room) {
    constexpr int64_t WIDTH = V * Simd<T>::lanes;
    const int64_t count = std::min(TALL, p.m - first), pairs = (count + PAIR - 1) / PAIR;
    room.resize(pairs * p.k * 2 * PAIR);
    read(p, b, first, count, room.data());
    T high[PAIR * WIDTH], low[PAIR * WIDTH];
    int flags = 0;
    for (int64_t block = 0; block < w.blocks; block++) {
        const int64_t j = block * WIDTH, width = std::min<int64_t>(WIDTH, p.n - j);
        for (int64_t pair = 0; pair < pairs; pair++) {
            block_of<T, V>(room.data() + pair * p.k * 2 * PAIR, w.block(p, b, block), p.k, high, low);
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
