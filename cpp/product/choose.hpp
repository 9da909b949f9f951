// Which algorithm, which operand is pruned, and how many threads: by shape and by how heavy the tails are.
//
// Cycles measured on a Zen 5 core with AVX-512, per vector of products (16 floats):
//     direct     1.3                 every product, compared and blended
//     seeds      1.5                 values only, columns from the second-level cache
//     survivors  1.7                 compared and blended, columns from the second-level cache
//     scan       4 per 16 k's of a row and a block of columns
//     packing    0.6 per number and 20 per bound, shared by all rows
// so a pruned row costs (scan + seeds + survivors + packing) against 1.3·k·VECTORS for a direct one. How many k's survive
// depends on the tails of both operands, on which of the two is taken row by row, on what a column is measured in, and on
// which columns share a block. It is not guessed: a few rows are tried on a few blocks of columns, one way after the other.
#pragma once

#include "product/kernels.hpp"

namespace gradtrace::GRADTRACE_ISA {
namespace {

struct Plan {
    bool pruned = false;
    bool swapped = false;  // w's rows are taken one by one and a's in vectors
    Unit unit = Unit::mean;
    const int32_t *order = nullptr;  // of a's rows, if swapped: blocks of full ones and blocks of nearly empty ones
};

constexpr int64_t PRUNED_K = 128;           // below, seeds alone are a large part of all k's
constexpr int64_t PRUNED_ROWS = 16;         // below, finding the bounds costs more than they save
constexpr double WORTH_A_TRIAL = 1 << 26;   // products: about 1.5 ms, of which a trial takes a tenth
constexpr double PRODUCTS_PER_THREAD = 1 << 21;  // fewer are done before a second thread has woken up and packed its part
constexpr double PRODUCTS_APART = 1 << 19;       // where each thread takes products of its own
constexpr int TRIED_ROWS = 8;
constexpr int64_t TRIED_BLOCKS = 3, TRIED_K = 2048;  // at most so many of the latter in all blocks together
constexpr double DIRECT = 1.3, SEED = 1.5, SURVIVOR = 1.7, SCAN = 4, PACK = 0.6, BOUND = 20;

// Fewer rows than this have to show that pruning pays in a strip of rows, before the rest is done directly.
constexpr int PROBATION = 8;

// How many of `depth` k's may survive if pruning is to pay.
inline int64_t tolerable(int64_t depth) { return depth * 3 / 5; }

// The cost of pruning, as a share of the direct kernel's, for one row and one block.
template <class T> double share(double survivors, double depth, double rows) {
    const double seeds = depth < MANY_SEEDS ? SEEDS / 2 : SEEDS, packing = depth * (PACK * LANES<T> + BOUND);
    const double cycles = (SEED * seeds + SURVIVOR * survivors) * VECTORS + SCAN * depth / Simd<T>::lanes + packing / rows;
    return cycles / (DIRECT * VECTORS * depth);
}

// Most chunks of k have to beat what the others found: for a start, what the row's largest number gives. A row
// that doesn't lie in one piece isn't searched, that would cost a cache line for every number.
template <class T>
void expect_from_elsewhere(const T *row, int64_t k_stride, const Side<T> &columns, int64_t k, int64_t depth, Tile<T> &tile) {
    for (int lane = 0; lane < LANES<T>; lane++) tile.best[0][lane] = 0, tile.arg[0][lane] = -1;
    if (k == depth || k_stride != 1) return;
    int64_t strongest = 0;
    for (int64_t at = 1; at < k; at++)
        if (absolute(row[at]) > absolute(row[strongest])) strongest = at;
    for (int64_t lane = 0; lane < columns.rows; lane++)
        tile.best[0][lane] = absolute(row[strongest]) * absolute(columns.data[columns.place(lane) * columns.row_stride + strongest * columns.k_stride]);
}

template <class T> struct Trial {
    Panel<T> panel;
    T *row, *column_limit;
    uint16_t *list;

    Trial(Carver &carve, int64_t depth, int64_t padded, int64_t blocks, Unit unit)
        : panel{depth, padded, carve.take<T>(blocks * depth * LANES<T>), carve.take<T>(blocks * padded), carve.take<T>(blocks * LANES<T>),
                carve.take<T>(blocks * LANES<T>), carve.take<T>(padded), unit},
          row(carve.take<T>(padded)), column_limit(carve.take<T>(LANES<T>)), list(carve.take<uint16_t>(padded + 64)) {}
};

// Tries some of `rows` on some blocks of `columns`.
template <class T> double trial(const Side<T> &rows, const Side<T> &columns, int64_t k, Unit unit) {
    const int64_t depth = chunk_depth(k), padded = padded_to(depth, 64), count = least(LANES<T>, columns.rows);
    const int64_t blocks = least(most(1, least(TRIED_BLOCKS, TRIED_K / most(depth, 1))), cut(columns.rows, LANES<T>));
    Carver sizes(nullptr);
    Trial<T> needed(sizes, depth, padded, blocks, unit);
    Carver carve(scratch().get<char>(static_cast<int64_t>(sizes.used())));
    const Trial<T> room(carve, depth, padded, blocks, unit);
    const auto some = [&](int64_t b) {
        const int64_t first = (2 * b + 1) * (columns.rows - count) / (2 * blocks);
        Side<T> block = columns;
        block.rows = count;
        if (columns.order) block.order += first;
        else block.data += first * columns.row_stride;
        return block;
    };
    for (int64_t b = 0; b < blocks; b++) pack_block(some(b), 0, b, 0, room.panel, true, room.column_limit);
    find_score(room.panel, blocks);  // of several blocks, as it will be: one block's own seeds would look better than they are
    double survived = 0;
    for (int i = 0; i < TRIED_ROWS; i++) {
        RowFacts<T> facts;
        const T *source = rows.data + (2 * i + 1) * rows.rows / (2 * TRIED_ROWS) * rows.row_stride;
        copy_absolute(source, rows.row_stride, rows.k_stride, 1, depth, room.row, padded);
        find_seeds(room.row, room.panel.score, depth, facts);
        for (int64_t b = 0; b < blocks; b++) {
            Tile<T> tile;
            expect_from_elsewhere(source, rows.k_stride, some(b), k, depth, tile);
            survived += pruned_row(room.row, room.row, facts, room.panel.block(b), room.panel.bounds(b), depth, 0, tile.best[0], tile.arg[0], room.list);
        }
    }
    return share<T>(survived / static_cast<double>(TRIED_ROWS * blocks), static_cast<double>(depth), static_cast<double>(rows.rows));
}

template <class T> double products(const Product<T> &p) {
    return static_cast<double>(p.batch) * static_cast<double>(p.m) * static_cast<double>(p.n) * static_cast<double>(p.k);
}

constexpr double SWAPPED = 1.1;        // the output is written in columns
constexpr double WORTH_PRUNING = 0.9;  // of the direct kernel's cost
constexpr double GOOD = 0.45;          // of the same: other ways are not tried then
constexpr double UNEVEN = 0.25;        // of all k's: how many more one row may have than another before rows are sorted

// How many k's of each row are not zero.
template <class T> void count_full(const Side<T> &side, int64_t k, int32_t *count) {
    std::memset(count, 0, static_cast<size_t>(side.rows) * sizeof *count);
    const bool along = side.row_stride == 1;  // memory is read in its own order
    for (int64_t outer = 0; outer < (along ? k : side.rows); outer++)
        if (along)
            for (int64_t row = 0; row < side.rows; row++) count[row] += side.data[outer * side.k_stride + row] != 0;
        else
            for (int64_t at = 0; at < k; at++) count[outer] += side.data[outer * side.row_stride + at * side.k_stride] != 0;
}

// Whether some rows of a block from the middle are much fuller than others.
template <class T> bool uneven(const Side<T> &side, int64_t k) {
    int32_t count[LANES<T>];
    const int64_t some = least(LANES<T>, side.rows);
    count_full(Side<T>{side.data + (side.rows - some) / 2 * side.row_stride, side.row_stride, side.k_stride, some, true}, k, count);
    int64_t fullest = 0, emptiest = k;
    for (int64_t row = 0; row < some; row++) fullest = most(fullest, count[row]), emptiest = least(emptiest, count[row]);
    return static_cast<double>(fullest - emptiest) > static_cast<double>(k) * UNEVEN;
}

// Orders rows by how full they are. One column that is nearly empty lets a whole block's threshold fall to zero.
template <class T> const int32_t *by_fullness(const Side<T> &side, int64_t k) {
    static thread_local Scratch own;
    int32_t *order = own.get<int32_t>(2 * side.rows + k + 2), *count = order + side.rows, *next = count + side.rows;
    count_full(side, k, count);
    std::memset(next, 0, static_cast<size_t>(k + 2) * sizeof *next);
    for (int64_t row = 0; row < side.rows; row++) next[count[row] + 1]++;
    for (int64_t full = 0; full < k; full++) next[full + 1] += next[full];
    for (int64_t row = 0; row < side.rows; row++) order[next[count[row]]++] = static_cast<int32_t>(row);
    return order;
}

template <class T> Plan choose(const Product<T> &p, bool prepared, Variant variant) {
    Side<T> a = side_a(p, 0), w = side_w(p, 0);
    if (variant == Variant::direct) return {};
    if (variant == Variant::pruned) return {true};
    if (variant == Variant::pruned_typical) return {true, false, Unit::typical};
    if (variant == Variant::pruned_swapped) return {true, true};
    if (variant == Variant::pruned_sorted) return {true, true, Unit::typical, by_fullness(a, p.k)};
    if (p.k < PRUNED_K || p.m < PRUNED_ROWS) return {};
    if (prepared || products(p) < WORTH_A_TRIAL) return {true};  // what doesn't suit it is noticed on the way
    Plan best;
    double least_share = WORTH_PRUNING;
    const bool either = p.m >= LANES<T> && p.n >= PRUNED_ROWS;
    const auto good = [&](bool swapped, Unit unit) {
        if (swapped && !either) return false;
        const double share = swapped ? trial(w, a, p.k, unit) * SWAPPED : trial(a, w, p.k, unit);
        if (share < least_share) least_share = share, best = {true, swapped, unit, a.order};
        return share < GOOD;
    };
    for (const Unit unit : {Unit::mean, Unit::typical})
        for (const bool swapped : {false, true})
            if (good(swapped, unit)) return best;
    if (!either || !uneven(a, p.k)) return best;
    a.order = by_fullness(a, p.k);
    for (const Unit unit : {Unit::mean, Unit::typical})
        if (good(true, unit)) break;
    return best;
}

template <class T> int threads_for(const Product<T> &p, int threads) {
    const double padded = static_cast<double>(padded_to(p.n, NARROW * Simd<T>::lanes)) / static_cast<double>(p.n);
    const double useful = products(p) * padded / (p.batch >= 2 * threads ? PRODUCTS_APART : PRODUCTS_PER_THREAD);
    if (useful < 2 || threads <= 1) return 1;
#ifdef _OPENMP
    return useful < threads ? static_cast<int>(useful) : threads;
#else
    return 1;
#endif
}

}  // namespace
}  // namespace gradtrace::GRADTRACE_ISA
