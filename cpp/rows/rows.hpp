// Everything that isn't a (max, ×) product of matrices: pointwise weights, merges, reductions, index maps,
// low-rank Jacobians, and tallies of sets of components.
//
// Cotangents are non-negative, edge weights have any sign and count with their absolute value. Zero times
// infinity is zero: an absent edge is absent. Indices of winners are -1 where the best is 0, and of equal
// candidates the smallest index wins. Strides are in elements and may be anything, also 0 or negative.
// `f` is a power of two that every cotangent is multiplied with first.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "shared/isa.hpp"
#include "product/product.hpp"

namespace gradtrace {

constexpr int MAX_DIMS = 8;

// What a pointwise weight is made from.
enum class Weight : int {
    constant = 0,  // c
    given = 1,     // w
    tanh = 2,      // 1 - y·y, rounded once
    sigmoid = 3,   // (1 - y)·y
    relu = 4,      // y > 0
    exp = 6,       // exp(y), within 2 units in the last place
};

// out = |weight|·(f·g), of `shape` and contiguous.
template <class T> struct Scale {
    Weight kind;
    double c, f;
    int dims;
    int64_t shape[MAX_DIMS], g_stride[MAX_DIMS], w_stride[MAX_DIMS];
    const T *g, *w;
    T *out;
};

// In place: b·fb replaces a·fa where it is above zero and not smaller. Null pointers are planes not kept.
template <class T> struct Merge {
    int64_t n;
    double fa, fb;
    T *a;
    const T *b;
    int32_t *a_index;
    const int32_t *b_index;
    uint8_t *choice;
    int32_t *choice32;
    int32_t ordinal;
};

// A tensor outer × n1 × n2 × inner; null data stands for ones.
template <class T> struct Grid {
    const T *data;
    int64_t outer, n1, n2, inner;  // strides
};

// out[o, i] = max over (n1, n2) of |w|·(f·g); the index is n1·N2 + n2.
template <class T> struct Reduce {
    int64_t outer, n1, n2, inner;
    Grid<T> g, w;
    double f;
    T *out;
    int32_t *index;
};

// out[b, index[r], :] = max over rows r of f·g[b, r, :]; arg is r. Everything is contiguous.
template <class T> struct Segment {
    int64_t batch, rows, inner, size;
    const T *g;
    const int64_t *index;  // -1: nowhere
    double f;
    T *out;
    int32_t *arg;
    uint8_t *choice;    // null, or what `ordinal` is written to where this call wins
    int32_t *choice32;  // the same, wider
    int32_t ordinal;
    bool init;  // start from zeros; else merge into what is there, where a new value wins ties
};

// Rows of n1·n2 scalars, addressed by three strides.
template <class T> struct Rows {
    T *data;
    int64_t row, n1, n2;  // strides
};

// Where the factors of a rank-one Jacobian come from.
enum class RankOneKind : int {
    given = 0,        // own, left and right
    softmax = 1,      // right is p: own = p·(1 - p), left = p
    log_softmax = 2,  // right is p: own = 1 - p, left = 1
};

// out_j = max(|own_j|·f·g_j, |right_j|·max over i≠j of |left_i|·f·g_i).
template <class T> struct RankOne {
    RankOneKind kind;
    int64_t rows, n1, n2;
    Rows<const T> g, own, left, right;
    double f;
    Rows<T> out;
    int32_t *arg;  // with the strides of out
};

// out_j = max(|own_j|·f·g_j, max over i≠j of |left0_i + left1_i·t_j|·f·g_i).
template <class T> struct RankTwo {
    int64_t rows, n1, n2;
    Rows<const T> g, own, left0, left1, t;
    double f;
    Rows<T> out;
    int32_t *arg;
};

// A normalisation x̂·γ: with a = γ·scale, own = a·(1 - (1 + x̂·x̂)/count), left0 = -a/count,
// left1 = -a·x̂/count, t = x̂. Factors are rounded in their own type F.
template <class T, class F = T> struct Standard {
    int64_t rows, n1, n2;
    Rows<const T> g;
    Rows<const F> hat, gamma, scale;  // null gamma: ones
    double count, f;
    Rows<T> out;
    int32_t *arg;
    int16_t *short_arg;  // where not null, winners go here: a row is short enough
};

// Rows of n1·n2 scalars, of which left_i · right_j connects i and j. Beside NAN_SEEN:
constexpr int MEET = 2;    // the product of some i and j may vanish, though neither is 0
constexpr int ABSENT = 4;  // some left_i, or some right_j, is 0
template <class T> struct Meeting {
    int64_t rows, n1, n2;
    Rows<const T> left0, left1, right0, right1;
};

struct BitCount {
    uint64_t bits;
    int64_t count;
    double strength;
};
using Counts = std::optional<std::vector<BitCount>>;

template <class T> struct RowKernels {
    Summary (*scale)(const Scale<T> &, int threads);
    Summary (*merge)(const Merge<T> &, int threads);
    Summary (*reduce_max)(const Reduce<T> &, int threads);
    Summary (*segment_max)(const Segment<T> &, int threads);
    Summary (*rank_one)(const RankOne<T> &, int threads);
    Summary (*rank_two)(const RankTwo<T> &, int threads);
    Summary (*standard)(const Standard<T> &, int threads);
    Counts (*tally)(const uint64_t *bits, const T *strength, int64_t n, int threads);
    int (*meeting)(const Meeting<T> &, int threads);
};

struct RowsTable {
    RowKernels<float> single;
    RowKernels<double> dual;
    Summary (*mixed)(const Standard<double, float> &, int threads);
};
GRADTRACE_TABLE(RowsTable, rows_table)

#ifdef GRADTRACE_ISA
namespace GRADTRACE_ISA {
template <class T> Summary scale(const Scale<T> &, int threads);
template <class T> Summary merge(const Merge<T> &, int threads);
template <class T> Summary reduce_max(const Reduce<T> &, int threads);
template <class T> Summary segment_max(const Segment<T> &, int threads);
template <class T> Summary rank_one(const RankOne<T> &, int threads);
template <class T> Summary rank_two(const RankTwo<T> &, int threads);
template <class T, class F> Summary standard(const Standard<T, F> &, int threads);
template <class T> Counts tally(const uint64_t *bits, const T *strength, int64_t n, int threads);
template <class T> int meeting(const Meeting<T> &, int threads);
}  // namespace GRADTRACE_ISA
#endif

}  // namespace gradtrace
