// The k largest products: out[·,b,i,j] of a[·,b,i,k]·|w[b,j,k]|.
//
// Columns are packed into blocks, with a bound on each block's edges of one k. A row visits its k's from the list that can
// become the strongest in a block down, and is done where a list could not get into any of the block any more.
#include "topk/lists.hpp"

#ifdef _OPENMP
#include <omp.h>
#endif

namespace gradtrace::GRADTRACE_ISA {
namespace {

constexpr int64_t ROWS = 64;           // rows of `a` that are read together, at most
constexpr int64_t TOGETHER = 1 << 18;  // bytes of them
constexpr int64_t SERIAL = 1 << 15;    // products below which waking a thread costs more than it saves

// |w| as blocks × k × COLUMNS. Columns beyond the last are copies of it, so that they hold nothing up.
template <class T> struct Packed {
    int64_t k, blocks;
    std::vector<T> edges;                // batch × blocks × k × COLUMNS
    std::vector<T> bounds, limits;       // batch × blocks × k; batch × blocks
    std::vector<T> least;                // batch × blocks: the smallest edge other than 0

    Packed(const TopProduct<T> &p, int threads)
        : k(p.k), blocks((p.n + COLUMNS<T> - 1) / COLUMNS<T>), edges(p.batch * blocks * k * COLUMNS<T>), bounds(p.batch * blocks * k),
          limits(p.batch * blocks), least(p.batch * blocks) {
        const int64_t all = p.batch * blocks;
        (void)threads;
#ifdef _OPENMP
#pragma omp parallel for num_threads(threads) schedule(static)
#endif
        for (int64_t x = 0; x < all; x++) pack(p, x);
    }

    // Whether an edge is a NaN, or infinite: candidates are made of zeros too, which must not meet infinity.
    int flags() const {
        int out = 0;
        for (T x : limits) out |= std::isnan(x) ? NAN_SEEN : std::isinf(x) ? TOO_LARGE : 0;
        return out;
    }

  private:
    void pack(const TopProduct<T> &p, int64_t x) {
        constexpr int64_t TILE = 16;
        const int64_t b = x / blocks, first = x % blocks * COLUMNS<T>, width = std::min<int64_t>(COLUMNS<T>, p.n - first);
        const T *from = p.w.data + b * p.w.batch_stride + first * p.w.row_stride;
        T *to = edges.data() + x * k * COLUMNS<T>;
        T total{}, limit{}, smallest = INF<T>;
        for (int64_t tile = 0; tile < k; tile += TILE) {
            const int64_t end = std::min(k, tile + TILE);
            if (p.w.row_stride == 1)
                for (int64_t at = tile; at < end; at++)
                    for (int64_t j = 0; j < width; j++) to[at * COLUMNS<T> + j] = std::abs(from[at * p.w.stride + j]);
            else
                for (int64_t j = 0; j < width; j++)
                    for (int64_t at = tile; at < end; at++)
                        to[at * COLUMNS<T> + j] = std::abs(from[j * p.w.row_stride + at * p.w.stride]);
            for (int64_t at = tile; at < end; at++) {
                T *row = to + at * COLUMNS<T>, bound{}, low = INF<T>;
                for (int64_t j = width; j < COLUMNS<T>; j++) row[j] = row[width - 1];
                for (int64_t j = 0; j < COLUMNS<T>; j++) {
                    bound = row[j] > bound ? row[j] : bound;
                    const T some = row[j] > 0 ? row[j] : INF<T>;
                    low = some < low ? some : low;
                    total += row[j];
                }
                bounds[x * k + at] = bound;
                limit = std::max(limit, bound);
                smallest = std::min(smallest, low);
            }
        }
        limits[x] = std::isnan(total) ? total : limit;  // nothing but a NaN makes a sum of magnitudes one
        least[x] = smallest;
    }
};

template <class T> struct Block {
    const T *packed, *bound_of;

    void fetch(int32_t at) const {
        for (int j = 0; j < COLUMNS<T>; j += 64 / int(sizeof(T))) __builtin_prefetch(packed + int64_t(at) * COLUMNS<T> + j);
    }
    T bound(int32_t at) const { return bound_of[at]; }
    const T *row(int32_t at) const { return packed + int64_t(at) * COLUMNS<T>; }
    Vec<T> edges(int32_t at, int v) const { return load(row(at) + v * LANES<T>); }
};

// What one thread works with.
template <class T> struct Room {
    std::vector<T> raw, list;
    std::vector<int64_t> row_at;
    Candidates<T> rows[ROWS];
};

// Gives how many rows are read together: whole cache lines where rows lie next to each other, and as many for each thread.
template <class T> int64_t rows_together(const TopProduct<T> &p, int threads) {
    constexpr int64_t LINE = 64 / sizeof(T);
    const int64_t m = std::max<int64_t>(1, p.m), least = m > 1 && p.a.row_at[1] - p.a.row_at[0] == 1 ? LINE : 1;
    const int64_t fit = TOGETHER / (int64_t(sizeof(T)) * std::max<int64_t>(1, p.k) * width_for(p.a.entries));
    const int64_t most = std::clamp(fit / least * least, least, ROWS), shares = (m + most - 1) / most;
    const int64_t even = p.batch >= threads ? shares : (shares + threads - 1) / threads * threads, rows = (m + even - 1) / even;
    return std::min(ROWS, (rows + least - 1) / least * least);
}

template <class T>
int some_rows(const TopProduct<T> &p, const Packed<T> &w, int64_t b, int64_t first, int64_t rows, Room<T> &room) {
    const int width = width_for(p.a.entries);
    const int64_t count = std::min(rows, p.m - first), apart = p.k * width + 64 / sizeof(T);  // not a power of two
    room.raw.resize(rows * apart);
    room.list.resize(Filling<T, Block<T>>::room(p.keep) * COLUMNS<T>);
    room.row_at.assign(p.a.row_at + first, p.a.row_at + first + count);
    for (int64_t &at : room.row_at) at += b * p.a.batch_stride;
    const Lying lying(room.row_at.data(), count, p.a.at, p.k, width);
    read_rows(p.a.plane, p.a.entries, room.row_at.data(), count, p.a.at, p.k, lying, width, apart, room.raw.data());
    for (int64_t r = 0; r < count; r++) room.rows[r].take(room.raw.data() + r * apart, p.k, width);
    int flags = 0;
    for (int64_t block = 0; block < w.blocks; block++) {
        const int64_t x = b * w.blocks + block, columns = std::min<int64_t>(COLUMNS<T>, p.n - block * COLUMNS<T>);
        const Block<T> edges{w.edges.data() + x * p.k * COLUMNS<T>, w.bounds.data() + x * p.k};
        for (int64_t r = 0; r < count; r++) {
            room.rows[r].sort(edges.bound_of);
            const T low = fill(room.list.data(), p.keep, columns, room.rows[r], p.a.entries, edges);
            flags |= judge(room.list.data(), low < TINY<T> && room.rows[r].least() * w.least[x] < TINY<T>);
            for (int s = 0; s < p.keep; s++) {
                T *to = p.out + ((s * p.batch + b) * p.m + first + r) * p.n + block * COLUMNS<T>;
                std::memcpy(to, room.list.data() + s * COLUMNS<T>, size_t(columns) * sizeof(T));
            }
        }
    }
    return flags;
}

}  // namespace

template <class T> int top_product(const TopProduct<T> &p, int threads) {
    threads = p.batch * p.m * p.n * p.k < SERIAL ? 1 : threads;
    const Packed<T> w(p, threads);
    if (const int found = w.flags()) return found;
    const int64_t rows = rows_together(p, threads), chunks = (p.m + rows - 1) / rows, all = p.batch * chunks;
    int flags = 0;
#ifdef _OPENMP
#pragma omp parallel num_threads(threads) reduction(| : flags)
#endif
    {
        Room<T> room;
#ifdef _OPENMP
#pragma omp for schedule(dynamic)
#endif
        for (int64_t x = 0; x < all; x++) flags |= some_rows(p, w, x / chunks, x % chunks * rows, rows, room);
    }
    return flags;
}

template int top_product(const TopProduct<float> &, int);
template int top_product(const TopProduct<double> &, int);

}  // namespace gradtrace::GRADTRACE_ISA
