// What the kernels of sums share: powers, roots, logarithms, and powers of two, in forms that compilers vectorise.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#include "rows/parallel.hpp"
#include "sums/sums.hpp"

namespace gradtrace::GRADTRACE_ISA {

template <class T> struct Bits;
template <> struct Bits<float> {
    using type = int32_t;
    static constexpr int fraction = 23, bias = 127;
};
template <> struct Bits<double> {
    using type = int64_t;
    static constexpr int fraction = 52, bias = 1023;
};

template <class To, class From> inline To bits(From x) { return __builtin_bit_cast(To, x); }

// x^(2^squarings), and its inverse. The number is a constant, so that loops around them are vectorised.
template <int squarings, class T> inline T raised(T x) {
    if constexpr (squarings == 0)
        return x;
    else
        return raised<squarings - 1>(x * x);
}
template <int squarings, class T> inline T rooted(T x) {
    if constexpr (squarings == 0)
        return x;
    else
        return rooted<squarings - 1>(std::sqrt(x));
}
// Calls f with that constant.
template <class F> int with_power(int squarings, F f) {
    switch (squarings) {
        case 0: return f(std::integral_constant<int, 0>{});
        case 1: return f(std::integral_constant<int, 1>{});
        case 2: return f(std::integral_constant<int, 2>{});
        case 3: return f(std::integral_constant<int, 3>{});
        case 4: return f(std::integral_constant<int, 4>{});
        case 5: return f(std::integral_constant<int, 5>{});
        default: return f(std::integral_constant<int, 6>{});
    }
}

// 2^e for a normal number; what is beyond becomes the smallest or the largest.
template <class T> inline T two_to(int32_t e) {
    using B = Bits<T>;
    using I = typename B::type;
    const int32_t held = e < 1 - B::bias ? 1 - B::bias : e > B::bias ? B::bias : e;
    return bits<T>(I(I(held + B::bias) << B::fraction));
}
// x·2^e where x is not far from 1, also where 2^e itself is beyond the range.
template <class T> inline T scaled(T x, int32_t e) {
    const int32_t half = e >> 1;
    return x * two_to<T>(half) * two_to<T>(e - half);
}

// log2 of a normal positive number, to about its last bit: ln(1 + f) for 1 + f in [√½, √2), by Cephes' polynomial.
inline float log2_of(float x) {
    const int32_t at = bits<int32_t>(x) - 0x3f3504f3;  // √½
    const int32_t e = at >> 23;
    const float f = bits<float>((at & 0x007fffff) + 0x3f3504f3) - 1;
    float p = 7.0376836292e-2f;
    for (float c : {-1.1514610310e-1f, 1.1676998740e-1f, -1.2420140846e-1f, 1.4249322787e-1f, -1.6668057665e-1f,
                    2.0000714765e-1f, -2.4999993993e-1f, 3.3333331174e-1f})
        p = p * f + c;
    const float f2 = f * f;
    const float ln = f + (f2 * f * p - 0.5f * f2);
    return float(e) + ln * 1.44269504f;
}
// The same by ln(1 + f) = 2 artanh(f / (2 + f)).
inline double log2_of(double x) {
    constexpr int64_t root = 0x3fe6a09e667f3bcd;  // √½
    const int64_t at = bits<int64_t>(x) - root;
    const int64_t e = at >> 52;
    const double f = bits<double>((at & 0x000fffffffffffff) + root) - 1;
    const double s = f / (2 + f), s2 = s * s;
    double p = 2.0 / 21;
    for (double c : {2.0 / 19, 2.0 / 17, 2.0 / 15, 2.0 / 13, 2.0 / 11, 2.0 / 9, 2.0 / 7, 2.0 / 5, 2.0 / 3}) p = p * s2 + c;
    const double ln = f - s * (f - s2 * p);  // 2s + s³p, since 2s = f - s f
    return double(e) + ln * 1.4426950408889634074;
}
// z·(h - log2 z), 0 where z is 0.
template <class T> inline T surprise(T z, T h) { return z * (h - log2_of(z > TINY<T> ? z : TINY<T>)); }

// Flags of a product, which underflowed only if neither factor is 0. (Selections are vectorised, conjunctions are not.)
template <class T> inline int flags_of(T out, T one, T other) {
    const T least = one == 0 ? T(-1) : other == 0 ? T(-1) : TINY<T>;
    return out < least ? LOST : out < INF<T> ? 0 : UNBOUNDED;
}

// Runs f(begin, end), which gives flags, over parts of 0 … items.
template <class F> int share_flags(int64_t items, int64_t elements, int threads, F f) {
    return share(items, elements, threads, [&](int64_t begin, int64_t end) { return Summary{0, 0, f(begin, end)}; }).flags;
}

}  // namespace gradtrace::GRADTRACE_ISA
