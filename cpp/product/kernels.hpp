// The inner loops of the (max, ×) product: a tile of up to ROWS rows by one block of LANES columns.
#pragma once

#include "product/pack.hpp"

namespace gradtrace::GRADTRACE_ISA {
namespace {

// The best products so far and their k (-1: none).
template <class T> struct Tile {
    alignas(64) T best[ROWS][LANES<T>];
    alignas(64) int32_t arg[ROWS][LANES<T>];
};

constexpr int64_t SLICE = 96;  // k's whose packed columns stay in the first-level cache while rows pass over them

constexpr int TOGETHER = REGISTERS == 32 ? 3 : 1;  // rows whose best and k fit the registers beside each other
constexpr int NARROW = VECTORS / 2;                // vectors of a block of which so many hold all its columns

// Every product of MR rows with a slice of a block, or with its first V vectors.
template <class T, int MR, int V>
void direct_rows(const T *row, int64_t row_stride, const T *w, int64_t depth, int32_t first, T *best, int32_t *arg) {
    using S = Simd<T>;
    typename S::reg top[MR][V];
    typename S::ind at[MR][V];
    for (int r = 0; r < MR; r++)
        for (int v = 0; v < V; v++) {
            top[r][v] = S::load(best + r * LANES<T> + v * S::lanes);
            at[r][v] = S::load_index(arg + r * LANES<T> + v * S::lanes);
        }
    for (int64_t k = 0; k < depth; k++) {
        const auto index = settled(S::set_index(first + static_cast<int32_t>(k)));
        for (int r = 0; r < MR; r++) {
            const auto a = S::set(row[r * row_stride + k]);
            for (int v = 0; v < V; v++) {
                const auto p = S::mul(a, S::load(w + k * LANES<T> + v * S::lanes));
                const auto won = S::greater(p, top[r][v]);
                top[r][v] = S::larger(p, top[r][v]);
                at[r][v] = S::update(at[r][v], won, index);
            }
        }
    }
    for (int r = 0; r < MR; r++)
        for (int v = 0; v < V; v++) {
            S::store(best + r * LANES<T> + v * S::lanes, top[r][v]);
            S::store_index(arg + r * LANES<T> + v * S::lanes, at[r][v]);
        }
}

template <class T, int V>
void direct_vectors(const T *row, int64_t row_stride, int rows, const T *w, int64_t depth, int32_t first, Tile<T> &tile, int from) {
    constexpr int MANY = TOGETHER * VECTORS / V;
    for (int64_t k = 0; k < depth; k += SLICE) {
        const int64_t some = least(SLICE, depth - k);
        const T *slice = w + k * LANES<T>;
        const auto at = first + static_cast<int32_t>(k);
        int r = from;
        for (; MANY > 1 && r + MANY <= rows; r += MANY)
            direct_rows<T, MANY, V>(row + r * row_stride + k, row_stride, slice, some, at, tile.best[r], tile.arg[r]);
        for (; r < rows; r++)
            direct_rows<T, 1, V>(row + r * row_stride + k, row_stride, slice, some, at, tile.best[r], tile.arg[r]);
    }
}

// Rows [from, rows) of a tile; `columns` of the block are not padding.
template <class T>
void direct_tile(const T *row, int64_t row_stride, int rows, const T *w, int64_t depth, int32_t first, int64_t columns, Tile<T> &tile,
                 int from = 0) {
    if (columns <= NARROW * Simd<T>::lanes)
        direct_vectors<T, NARROW>(row, row_stride, rows, w, depth, first, tile, from);
    else
        direct_vectors<T, VECTORS>(row, row_stride, rows, w, depth, first, tile, from);
}

// --- pruned -----------------------------------------------------------------------------------------------

constexpr int SEEDS = 64;            // at most, for one row
constexpr int64_t MANY_SEEDS = 1024;  // k's from which on a second round of seeds pays
constexpr int AHEAD = 8;             // survivors whose columns are fetched from the second-level cache in advance

// What is known of one row and one chunk of k.
template <class T> struct RowFacts {
    T sum;      // 0: nothing there; NaN: a NaN in it
    T largest;
    int32_t seed_count;
    int32_t seeds[SEEDS];  // k's that look strong,
    T seed_values[SEEDS];  // and the row there: the row itself may be far away
};

template <class T> void sum_row(const T *row, int64_t depth, RowFacts<T> &facts) {
    using S = Simd<T>;
    auto sum = S::zero();
    int64_t k = 0;
    for (; k + S::lanes <= depth; k += S::lanes) sum = S::add(sum, S::load(row + k));
    if (k < depth) sum = S::add(sum, S::load_part(row + k, static_cast<int>(depth - k)));
    facts.sum = S::sum_of(sum);
}

// Finds the two largest row[k]·score[k] of each of SEEDS / 2 interleaved sequences of k, and the row's sum and largest.
template <class T> void find_seeds(const T *row, const T *score, int64_t depth, RowFacts<T> &facts) {
    using S = Simd<T>;
    constexpr int L = S::lanes, GROUPS = SEEDS / 2 / L;
    typename S::reg first[GROUPS], second[GROUPS], sum = S::zero(), largest = S::zero();
    typename S::ind first_at[GROUPS], second_at[GROUPS];
    alignas(64) int32_t lane[L], found[SEEDS];
    for (int l = 0; l < L; l++) lane[l] = l;
    for (int g = 0; g < GROUPS; g++) {
        first[g] = second[g] = S::zero();
        first_at[g] = second_at[g] = S::set_index(-1);
    }
    const auto lanes = S::load_index(lane);
    for (int64_t k = 0; k < depth; k += L * GROUPS)
        for (int g = 0; g < GROUPS; g++) {
            const int64_t at = k + g * L;
            if (at >= depth) break;
            const auto x = at + L <= depth ? S::load(row + at) : S::load_part(row + at, static_cast<int>(depth - at));
            sum = S::add(sum, x);
            largest = S::larger(x, largest);
            const auto s = S::mul(x, S::load(score + at));
            const auto index = lanes + S::set_index(static_cast<int32_t>(at));
            const auto beats = S::greater(s, first[g]);
            const auto loser = S::blend(beats, first[g], s);
            const auto loser_at = S::blend(beats, first_at[g], index);
            first[g] = S::larger(s, first[g]);
            first_at[g] = S::blend(beats, index, first_at[g]);
            const auto beats_second = S::greater(loser, second[g]);
            second[g] = S::larger(loser, second[g]);
            second_at[g] = S::blend(beats_second, loser_at, second_at[g]);
        }
    for (int g = 0; g < GROUPS; g++) {
        S::store_index(found + g * L, first_at[g]);
        S::store_index(found + SEEDS / 2 + g * L, second_at[g]);
    }
    facts.sum = S::sum_of(sum);
    facts.largest = S::max_of(largest);
    facts.seed_count = 0;
    for (int i = 0; i < (depth < MANY_SEEDS ? SEEDS / 2 : SEEDS); i++)
        if (found[i] >= 0) {
            facts.seed_values[facts.seed_count] = row[found[i]];
            facts.seeds[facts.seed_count++] = found[i];
        }
}

template <class T, class Stays>
int list_staying(const T *row, const T *next, const T *bound, int64_t depth, uint16_t *list, Stays &&stays) {
    using S = Simd<T>;
    int64_t count = 0, k = 0;
    for (; k + S::lanes <= depth; k += S::lanes) {
        __builtin_prefetch(next + k, 0, 2);
        count += S::compress(stays(S::load(row + k), S::load(bound + k)), static_cast<int32_t>(k), list + count);
    }
    if (k < depth) {
        const auto x = S::load_part(row + k, static_cast<int>(depth - k));
        count += S::compress(stays(x, S::load(bound + k)), static_cast<int32_t>(k), list + count);
    }
    return static_cast<int>(count);
}

// The k's that could still win a column: row[k]·bound[k] ≥ threshold. `list` has room for a vector more; `next` is the row
// that comes after this one, fetched from wherever it is meanwhile.
template <class T> int survivors(const T *row, const T *next, const T *bound, int64_t depth, T threshold, uint16_t *list) {
    using S = Simd<T>;
    const auto least_bound = S::set(threshold), zero = S::zero();
    if (threshold >= TRUSTED<T>)
        return list_staying(row, next, bound, depth, list, [&](auto x, auto b) { return S::at_least(S::mul(x, b), least_bound); });
    // tiny products don't keep their order: all that are not zero stay
    return list_staying(row, next, bound, depth, list, [&](auto x, auto b) { return S::greater(S::smaller(x, b), zero); });
}

// One row of a tile. Gives how many k's were worked on.
template <class T>
int pruned_row(const T *row, const T *next, const RowFacts<T> &facts, const T *w, const Bounds<T> &bounds, int64_t depth,
               int32_t first, T *best, int32_t *arg, uint16_t *list) {
    using S = Simd<T>;
    typename S::reg top[VECTORS], seeded[VECTORS];
    for (int v = 0; v < VECTORS; v++) seeded[v] = top[v] = S::load(best + v * S::lanes);
    for (int s = 0; s < facts.seed_count; s++) {
        const auto a = S::set(facts.seed_values[s]);
        const T *column = w + static_cast<int64_t>(facts.seeds[s]) * LANES<T>;
        for (int v = 0; v < VECTORS; v++)
            seeded[v] = S::larger(S::mul(a, S::load(column + v * S::lanes)), seeded[v]);
    }
    auto low = S::set(std::numeric_limits<T>::infinity());
    const auto finite = S::set(std::numeric_limits<T>::max());  // what overflowed need not overflow when scaled
    for (int v = 0; v < VECTORS; v++) {
        const auto scaled = S::mul(S::smaller(seeded[v], finite), S::load(bounds.scale + v * S::lanes));
        low = S::smaller(low, S::larger(scaled, S::load(bounds.dead + v * S::lanes)));
    }
    const int count = survivors(row, next, bounds.bound, depth, S::min_of(low), list);
    if (count == 0) return 0;
    std::memset(list + count, 0, AHEAD * sizeof *list);
    typename S::ind at[VECTORS];
    for (int v = 0; v < VECTORS; v++) at[v] = S::load_index(arg + v * S::lanes);
    for (int s = 0; s < count; s++) {
        const int32_t k = list[s];
        const auto a = S::set(row[k]);
        const auto index = settled(S::set_index(first + k));
        const T *column = w + static_cast<int64_t>(k) * LANES<T>, *later = w + static_cast<int64_t>(list[s + AHEAD]) * LANES<T>;
        for (int v = 0; v < VECTORS; v++) {
            __builtin_prefetch(later + v * S::lanes);
            const auto p = S::mul(a, S::load(column + v * S::lanes));
            const auto won = S::greater(p, top[v]);
            top[v] = S::larger(p, top[v]);
            at[v] = S::update(at[v], won, index);
        }
    }
    for (int v = 0; v < VECTORS; v++) {
        S::store(best + v * S::lanes, top[v]);
        S::store_index(arg + v * S::lanes, at[v]);
    }
    return count;
}

}  // namespace
}  // namespace gradtrace::GRADTRACE_ISA
