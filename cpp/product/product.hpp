// The (max, ×) product: out[b,i,j] = max_k a[b,i,k]·|w[b,j,k]|, and the smallest k that reaches it.
//
// a is non-negative; w has any sign; zero times infinity is zero: an absent edge is absent. Strides are in
// elements and may be anything, also 0 or negative. `out` is contiguous, batch × m × n.
#pragma once

#include <cstdint>

#include "shared/isa.hpp"

namespace gradtrace {

template <class T> struct Operand {
    const T *data;
    int64_t batch_stride, row_stride, k_stride;  // a: rows are i; w: rows are j
};

template <class T> struct Product {
    int64_t batch, m, n, k;
    Operand<T> a, w;
    T *out;
    int32_t *arg;        // null: values only; else -1 where nothing is above zero
    int64_t before = 0;  // out and arg hold the best of so many k's that come before these
    int16_t *short_arg = nullptr;  // in place of arg, where no k is above 32767
};

enum Flag : int {
    NAN_SEEN = 1,  // a NaN in a or w; the output means nothing then
    LOST = 2,      // an output is below the smallest normal number although an edge with two non-zero ends exists
};

struct Summary {
    double max;  // the largest output; 0 if there is none
    double min;  // the smallest output that isn't zero; infinity if there is none
    int flags;
};

// What is worth keeping of a w that many products share; made by `prepare`, of use to the same instruction set only.
struct Prepared {
    virtual ~Prepared() = default;
};

// Forces one algorithm, for tests; `automatic` lets the shape and the operands decide.
enum class Variant : int { automatic, direct, pruned, pruned_typical, pruned_swapped, pruned_sorted };

struct ProductTable {
    Summary (*product_float)(const Product<float> &, const Prepared *, int threads, Variant);
    Summary (*product_double)(const Product<double> &, const Prepared *, int threads, Variant);
    Prepared *(*prepare_float)(int64_t batch, int64_t n, int64_t k, const Operand<float> &w);
    Prepared *(*prepare_double)(int64_t batch, int64_t n, int64_t k, const Operand<double> &w);
};
GRADTRACE_TABLE(ProductTable, product_table)

#ifdef GRADTRACE_ISA
namespace GRADTRACE_ISA {
// The same for other kernels of this instruction set, to call on one thread: no parallel region is entered.
// Only float and double exist.
template <class T>
Summary max_product(const Product<T> &product, const Prepared *prepared = nullptr, Variant variant = Variant::automatic);
template <class T> Prepared *prepare_product(int64_t n, int64_t k, const Operand<T> &w, Prepared *again = nullptr);  // in its memory
}  // namespace GRADTRACE_ISA
#endif

}  // namespace gradtrace
