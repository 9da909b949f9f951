// Scalars one by one, and the table of kernels of one instruction set.
#include <algorithm>

#include "signed/ends.hpp"

namespace gradtrace::GRADTRACE_ISA {
namespace {

template <class T> int scale(const SignedScale<T> &p, int threads) {
    (void)threads;
    int flags = 0;
    for (int64_t i = 0; i < p.n; i++) {
        const T w = p.w[i], x = w * p.g_high[i], y = w * p.g_low[i];
        const bool none = w == 0 || p.g_high[i] != p.g_high[i];
        const T high = w < 0 ? y : x, low = w < 0 ? x : y;
        const T a = high < 0 ? -high : high, b = low < 0 ? -low : low;
        flags |= w != w ? int(NAN_SEEN) : 0;
        flags |= !none && (a <= NORMAL<T> || b <= NORMAL<T>) ? int(LOST) : 0;
        flags |= !none && (a > GREATEST<T> || b > GREATEST<T>) ? BEYOND : 0;
        p.high[i] = none ? NOT_A_NUMBER<T> : high;
        p.low[i] = none ? NOT_A_NUMBER<T> : low;
    }
    return flags;
}

template <class T> constexpr SignedKernels<T> kernels = {&signed_product<T>, &signed_low_rank<T>, &scale<T>};

}  // namespace

extern const SignedTable signed_table = {kernels<float>, kernels<double>};

}  // namespace gradtrace::GRADTRACE_ISA
