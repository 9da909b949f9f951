// Both ends of many scalars in registers. No path is a NaN outside, and beaten by anything inside: (-∞, ∞).
#pragma once

#include <limits>

#include "shared/simd.hpp"
#include "signed/signed.hpp"

namespace gradtrace::GRADTRACE_ISA {
namespace {

template <class T> constexpr T INFINITE = std::numeric_limits<T>::infinity();
template <class T> constexpr T NOT_A_NUMBER = std::numeric_limits<T>::quiet_NaN();
template <class T> constexpr T GREATEST = std::numeric_limits<T>::max();
template <class T> constexpr T NORMAL = std::numeric_limits<T>::min();

// What an edge looks like to `meet`: an absent one is a NaN.
template <class T> inline T edge_of(T w) { return w == 0 ? NOT_A_NUMBER<T> : w; }

// Lets w·high and w·low into the ends (top, bottom); a NaN changes nothing. Of two candidates both are NaN, or none.
template <class T> inline void meet(typename Simd<T>::reg x, typename Simd<T>::reg y, typename Simd<T>::reg &top, typename Simd<T>::reg &bottom) {
    using S = Simd<T>;
    top = S::larger(S::larger(x, y), top);
    bottom = S::smaller(S::smaller(x, y), bottom);
}

// Turns (-∞, ∞) into NaN again and says what is wrong with a result; a number just above the least normal one may have
// been rounded to it.
template <class T> inline int settle(T &high, T &low) {
    if (high == -INFINITE<T> && low == INFINITE<T>) {
        high = low = NOT_A_NUMBER<T>;
        return 0;
    }
    const T a = high < 0 ? -high : high, b = low < 0 ? -low : low;
    return (a <= NORMAL<T> || b <= NORMAL<T> ? LOST : 0) | (a > GREATEST<T> || b > GREATEST<T> ? BEYOND : 0);
}

template <class T> inline int settle_all(T *high, T *low, int64_t n) {
    int flags = 0;
    for (int64_t i = 0; i < n; i++) {
        const T h = high[i], l = low[i], a = h < 0 ? -h : h, b = l < 0 ? -l : l;
        const bool none = h == -INFINITE<T> && l == INFINITE<T>;
        flags |= !none && (a <= NORMAL<T> || b <= NORMAL<T>) ? int(LOST) : 0;
        flags |= !none && (a > GREATEST<T> || b > GREATEST<T>) ? BEYOND : 0;
        high[i] = none ? NOT_A_NUMBER<T> : h;
        low[i] = none ? NOT_A_NUMBER<T> : l;
    }
    return flags;
}

}  // namespace
}  // namespace gradtrace::GRADTRACE_ISA
