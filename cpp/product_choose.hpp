// Which algorithm and how many threads: by shape and by how heavy the operands' tails are.
#pragma once

#include "product_pack.hpp"

namespace gradtrace::GRADTRACE_ISA {
namespace {

struct Plan {
    bool pruned;
    bool swapped;  // w's rows are taken one by one and a's in vectors
};

template <class T> Plan choose(const Product<T> &p, Variant variant) {
    if (variant == Variant::direct || variant == Variant::winner) return {false, false};
    if (variant == Variant::pruned) return {true, false};
    if (variant == Variant::pruned_swapped) return {true, true};
    return {p.k >= 128 && p.m >= 16, false};
}

constexpr double PRODUCTS_PER_THREAD = 1 << 18;  // fewer are done before a second thread has woken up

template <class T> int threads_for(const Product<T> &p, int threads) {
    const double work = static_cast<double>(p.batch) * static_cast<double>(p.m) * static_cast<double>(p.n) * static_cast<double>(p.k);
    const double useful = work / PRODUCTS_PER_THREAD;
    if (useful < 2 || threads <= 1) return 1;
#ifdef _OPENMP
    return useful < threads ? static_cast<int>(useful) : threads;
#else
    return 1;
#endif
}

}  // namespace
}  // namespace gradtrace::GRADTRACE_ISA
