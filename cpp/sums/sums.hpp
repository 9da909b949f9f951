// Sums of positive numbers: the p-norm, p = 2^squarings, and the entropy of shares, on plain numbers.
//
// Cotangents are finite and non-negative, weights have any sign and count with their absolute value. Powers are taken
// of numbers in units of a row's largest, in powers of two, so that they neither round nor, where it counts, underflow.
// Every function gives flags: LOST where a result isn't 0 and below the smallest normal number, or where what
// underflowed on the way may count; UNBOUNDED where one is infinite or no number; AGAIN where -1 stands for a result
// that has to be found in another way.
#pragma once

#include <cstdint>

#include "shared/isa.hpp"
#include "product/product.hpp"
#include "rows/rows.hpp"

namespace gradtrace {

constexpr int UNBOUNDED = 4, AGAIN = 8;
constexpr int32_t NOTHING = -(1 << 28);  // the exponent of a row of zeros

// A matrix for each batch entry, its rows contiguous.
template <class T> struct Matrices {
    const T *data;
    int64_t batch, rows, columns;
    int64_t batch_stride, row_stride;
};

// The unit of each row, or of each column: scale = 2^-exponent brings its largest near 2^room, within what is normal.
template <class T> struct Units {
    Matrices<T> x;
    bool of_columns;
    int room;
    T *scale;
    int32_t *exponent;  // of zeros: NOTHING
};

// out = (|x|·scale)^p, contiguous; a scale for each row, or for each column.
template <class T, class U> struct Raise {
    Matrices<T> x;
    bool by_column;
    const T *scale;
    int squarings;
    U *out;
};

// out = v = |x|·scale, and out_h = v·(h - log2 v), contiguous; h lies as x does, null: zeros.
template <class T, class U> struct Shares {
    Matrices<T> x;
    const T *h;
    bool by_column;
    const T *scale;
    U *out, *out_h;
};

// out = total^(1/p)·2^(row exponent + column exponent). `least`: a total that underflow may have changed.
template <class T, class U> struct Settle {
    const U *total;
    int64_t batch, rows, columns;  // contiguous
    const int32_t *of_row, *of_column;
    int squarings;
    double least;
    T *out;
};

// z = total·2^(…) likewise, h = mixed / total + log2 total.
template <class T, class U> struct SettleShares {
    const U *total, *mixed;
    int64_t batch, rows, columns;
    const int32_t *of_row, *of_column;
    double least;
    T *z, *h;
};

// Elements are z, and for the entropy h beside it; null h: the p-norm.
template <class T> struct Join {
    int64_t n;
    const T *z1, *h1, *z2, *h2;
    int squarings;
    T *z, *h;
};

// Elements merged along each row, or along each column; out contiguous.
template <class T> struct SumAlong {
    Matrices<T> z;
    const T *h;  // lies as z does
    bool along_columns;
    int squarings;
    T *out, *out_h;
};

// out_j = own_j·g_j merged with, over i≠j, right_j·left_i·g_i. All rows × n, contiguous.
template <class T> struct OneRows {
    int kind;  // as RankOneKind
    int64_t rows, n;
    const T *own, *left, *right, *z, *h;
    int squarings;
    T *out, *out_h;
};

// The same with left0_i·right0_j + left1_i·right1_j.
template <class T> struct TwoRows {
    int64_t rows, n;
    const T *own, *left0, *left1, *right0, *right1, *z, *h;
    int squarings;
    T *out, *out_h;
};

// The same of a normalisation x̂·γ, whose factors are those of `Standard`: rows of n1·n2 scalars, by strides.
template <class T> struct StandardRows {
    int64_t rows, n1, n2;
    Rows<const T> hat, gamma, scale, z, h;  // null gamma: ones; null h: the p-norm
    double count;
    int squarings;
    Rows<T> out, out_h;
};

// The same without absolute values: out_j = own_j·g_j + Σ over i≠j of left_i·right_j·g_i, the factors rounded to float.
struct AddedRows {
    int64_t rows, n1, n2;
    Rows<const float> hat, gamma, scale;  // null gamma: ones
    Rows<const double> g;
    double count;
    Rows<double> out;
};

template <class T, class U> struct SumProducts {
    int (*raise)(const Raise<T, U> &, int threads);
    int (*settle)(const Settle<T, U> &, int threads);
    int (*shares)(const Shares<T, U> &, int threads);
    int (*settle_shares)(const SettleShares<T, U> &, int threads);
};

template <class T> struct SumRows {
    int (*units)(const Units<T> &, int threads);
    int (*join)(const Join<T> &, int threads);
    int (*reduce)(const SumAlong<T> &, int threads);
    int (*one)(const OneRows<T> &, int threads);
    int (*two)(const TwoRows<T> &, int threads);
    int (*standard)(const StandardRows<T> &, int threads);
};

struct SumsTable {
    SumRows<float> single;
    SumRows<double> dual;
    SumProducts<float, float> narrow;
    SumProducts<double, float> mixed;
    SumProducts<double, double> wide;
    int (*added)(const AddedRows &, int threads);
};
GRADTRACE_TABLE(SumsTable, sums_table)

#ifdef GRADTRACE_ISA
namespace GRADTRACE_ISA {
template <class T> int units(const Units<T> &, int threads);
template <class T> int join(const Join<T> &, int threads);
template <class T> int reduce(const SumAlong<T> &, int threads);
template <class T> int one_rows(const OneRows<T> &, int threads);
template <class T> int two_rows(const TwoRows<T> &, int threads);
template <class T> int standard_rows(const StandardRows<T> &, int threads);
int added_rows(const AddedRows &, int threads);
template <class T, class U> int raise(const Raise<T, U> &, int threads);
template <class T, class U> int settle(const Settle<T, U> &, int threads);
template <class T, class U> int shares(const Shares<T, U> &, int threads);
template <class T, class U> int settle_shares(const SettleShares<T, U> &, int threads);
}  // namespace GRADTRACE_ISA
#endif

}  // namespace gradtrace
