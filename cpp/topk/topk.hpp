// Several path weights for every scalar: what keeping the k largest does to products, rows and index maps.
//
// A list is kept in planes: plane s holds the s-th largest weight of every scalar, 0 where there are fewer. Weights and
// edges w are float or double; no weight is negative, edges have any sign. Only values are computed: of equal weights it
// makes no difference which is kept, so candidates may be visited in whatever order leaves most of them out.
// Strides are in elements. Results are planes one after another.
#pragma once

#include <cstdint>

#include "product/product.hpp"

namespace gradtrace {

constexpr int TOO_LARGE = 4;  // beside NAN_SEEN and LOST: a result is infinite

// Planes of one layout: `entries` of batch × rows × n.
template <class T> struct Lists {
    const T *const *plane;
    int entries;
    int64_t batch_stride, row_stride, stride;
};

// An array of edges or factors.
template <class T> struct Edges {
    const T *data;
    int64_t batch_stride, row_stride, stride;
};

// The same, but rows and the lists of one lie anywhere: list k of row r at row_at[r] + at[k] of a batch's.
template <class T> struct Spread {
    const T *const *plane;
    int entries;
    int64_t batch_stride;
    const int64_t *row_at, *at;
};

// out[s,b,i,j] = the s-th largest of a[·,b,i,k]·|w[b,j,k]| over k and the entries of a.
template <class T> struct TopProduct {
    int64_t batch, m, n, k;
    Spread<T> a;
    Edges<T> w;  // rows are j
    int keep;
    T *out;
};

// Jacobians own on the diagonal and Σ_r left_r,i right_r,j beside it, of one row each; factors have no batch.
template <class T> struct TopRows {
    int64_t batch, rows, n;
    Lists<T> g;
    Edges<T> own, left[2], right[2];
    int rank;
    int keep;
    T *out;
};

template <class T> struct TopKernels {
    // All give flags.
    int (*product)(const TopProduct<T> &, int threads);
    int (*low_rank)(const TopRows<T> &, int threads);
    // out[s,i] = |w[i]|·g[s,i], contiguous; `entries` of n.
    int (*weigh)(const Lists<T> &g, const T *w, int64_t n, T *out, int threads);
    // Merges b into a, n scalars each; `out` may be a's planes. Planes of out beyond a's are written.
    void (*merge)(const Lists<T> &a, const Lists<T> &b, int64_t n, int keep, T *const *out, int threads);
    // out[s,i] = the s-th largest over a row; rows lie next to each other (row_stride 1), or go on along memory (stride 1).
    void (*reduce)(const Lists<T> &g, int64_t rows, int64_t n, int keep, T *out, int threads);
    // Lets every list into the one of out (zeros at first) that its index names; gives how many entries are in use.
    int (*segment)(const Lists<T> &g, int64_t rows, int64_t n, const int64_t *index, int64_t index_row_stride, int64_t size, int keep,
                   T *out);
    // The largest number of weights other than 0 in any row, at most `keep`.
    int (*depth)(const Spread<T> &g, int64_t batch, int64_t rows, int64_t n, int keep);
};

struct TopTable {
    TopKernels<float> single;
    TopKernels<double> dual;
};
GRADTRACE_TABLE(TopTable, top_table)

#ifdef GRADTRACE_ISA
namespace GRADTRACE_ISA {
template <class T> int top_product(const TopProduct<T> &, int threads);
template <class T> int top_low_rank(const TopRows<T> &, int threads);
}  // namespace GRADTRACE_ISA
#endif

}  // namespace gradtrace
