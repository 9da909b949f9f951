// The largest and the smallest path weight of every scalar, as signed numbers: what an edge's sign does to the two.
//
// An element is two planes, high ≥ low, both a NaN where there is no path. An edge w makes w·high and w·low of them, in
// whichever order its sign says; w = 0 is no edge. Operands may have any strides, in elements; results are contiguous.
// Inputs are finite or NaN. Every function gives flags: NAN_SEEN, a weight is a NaN; LOST, a result is no normal number,
// or may be wrong because something underflowed; TOO_LARGE, a result is infinite. Without a flag every product is what
// it would be if exponents had no bounds: products that underflow are nearest to 0, so they are results, or beaten.
#pragma once

#include <cstdint>

#include "product/product.hpp"

namespace gradtrace {

constexpr int BEYOND = 4;  // beside NAN_SEEN and LOST: a result is infinite

// high and low lie alike.
template <class T> struct Ends {
    const T *high, *low;
    int64_t batch_stride, row_stride, stride;
};

// An array of edges or factors.
template <class T> struct SignedEdges {
    const T *data;
    int64_t batch_stride, row_stride, stride;
};

// out[b,i,j] = the ends of w[b,j,k]·a[b,i,k] over k.
template <class T> struct SignedProduct {
    int64_t batch, m, n, k;
    Ends<T> a;
    SignedEdges<T> w;  // rows are j
    T *high, *low;
};

// Jacobians own on the diagonal and Σ_r left_r,i right_r,j beside it, of one row each; factors have no batch.
template <class T> struct SignedRows {
    int64_t batch, rows, n;
    Ends<T> g;
    SignedEdges<T> own, left[2], right[2];
    int rank;
    T *high, *low;
};

// out = the ends of w·g, all contiguous.
template <class T> struct SignedScale {
    int64_t n;
    const T *w, *g_high, *g_low;
    T *high, *low;
};

template <class T> struct SignedKernels {
    int (*product)(const SignedProduct<T> &, int threads);
    int (*low_rank)(const SignedRows<T> &, int threads);
    int (*scale)(const SignedScale<T> &, int threads);
};

struct SignedTable {
    SignedKernels<float> single;
    SignedKernels<double> dual;
};
GRADTRACE_TABLE(SignedTable, signed_table)

#ifdef GRADTRACE_ISA
namespace GRADTRACE_ISA {
template <class T> int signed_product(const SignedProduct<T> &, int threads);
template <class T> int signed_low_rank(const SignedRows<T> &, int threads);
}  // namespace GRADTRACE_ISA
#endif

}  // namespace gradtrace
