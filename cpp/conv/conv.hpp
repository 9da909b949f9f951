// Convolution under max, in one to three dimensions: which product of a kernel entry and a cotangent is
// largest, for every input and for every kernel entry.
//
// The two sides of a convolution are called small and large: the kernel slides over the large side, and gives
// one position of the small side at each stop: place = l·stride + k·dilation - padding. A convolution's input
// is the large side, a transposed convolution's is the small one. The kernel is (groups·small) × large × taps.
#pragma once

#include "shared/isa.hpp"
#include "product/product.hpp"

namespace gradtrace {

struct ConvShape {
    int64_t batch, groups, small_channels, large_channels;  // channels of one group
    int64_t small[3], large[3], taps[3], stride[3], padding[3], dilation[3];
};

// The result's cotangent g, times f, against the kernel: best and winner (a flat index into g within one
// example) for each scalar of the other side.
template <class T> struct ConvInput {
    ConvShape shape;
    bool transposed;  // g is of the large side, the results of the small one
    const T *w, *g;
    double f;
    T *out;
    int32_t *arg;
};

// The result's cotangent g, times f, against the input x: best and winner (a flat index into g) for each
// entry of the kernel.
template <class T> struct ConvWeight {
    ConvShape shape;
    bool transposed;
    const T *x, *g;
    double f;
    T *out;
    int32_t *arg;
};

template <class T> struct ConvKernels {
    Summary (*input)(const ConvInput<T> &, int threads);
    Summary (*weight)(const ConvWeight<T> &, int threads);
};
struct ConvTable {
    ConvKernels<float> single;
    ConvKernels<double> dual;
};
GRADTRACE_TABLE(ConvTable, conv_table)

#ifdef GRADTRACE_ISA
namespace GRADTRACE_ISA {
template <class T> Summary conv_input(const ConvInput<T> &, int threads);
template <class T> Summary conv_weight(const ConvWeight<T> &, int threads);
}  // namespace GRADTRACE_ISA
#endif

}  // namespace gradtrace
